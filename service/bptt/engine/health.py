"""Reports to health checks which models are served: changes only, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from bptt.domain import ModelState as State
from bptt.engine.lifecycle import SERVING

Tell = Callable[[str, bool | None], Awaitable[None]]
"""Called with a model's name and whether it is served. None: the model is deleted."""

_UNCHANGED = frozenset({State.DRAINING, State.STOPPED})
"""States that change no health status: a model that leaves memory is still served, a stop of the
server sets all statuses at once, and a deletion removes the model's status."""


async def ignore_health(model_id: str, is_served: bool | None) -> None:
    """Do nothing: used where no health checks are served."""


class HealthReporter:
    """Tells health checks of the states of all models. Lives on the event loop."""

    def __init__(self) -> None:
        self.tell: Tell = ignore_health
        self._served: dict[str, bool] = {}  # the status to report
        self._told: dict[str, bool] = {}
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def changed(self, model_id: str, state: State) -> None:
        """Report a model's new state to health checks, soon."""
        if state in _UNCHANGED:
            return
        self._served[model_id] = state in SERVING
        task = asyncio.ensure_future(self.say(model_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def say(self, model_id: str) -> None:
        """Report a model's status, if it has changed; health checks know it when this returns."""
        async with self._turn:
            served = self._served.get(model_id)
            if served is not None and self._told.get(model_id) is not served:
                self._told[model_id] = served
                await self.tell(model_id, served)

    async def forget(self, model_id: str) -> None:
        """Remove the status of a deleted model."""
        self._served.pop(model_id, None)
        async with self._turn:
            if model_id not in self._served and self._told.pop(model_id, None) is not None:
                await self.tell(model_id, None)
