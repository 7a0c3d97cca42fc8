"""Which models are served, for health checks: told in order, and only when it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from bptt.domain import ModelState as State
from bptt.engine.lifecycle import SERVING

Tell = Callable[[str, bool | None], Awaitable[None]]
"""Called with a model's name and whether it is served. None: there is no such model any more."""

_UNCHANGED = frozenset({State.DRAINING, State.STOPPED})
"""States in which a model may be leaving memory, and is served all the same; a server that stops
says so of all models at once, and a deletion says that the model is gone."""


async def tell_nobody(model_id: str, is_served: bool | None) -> None:
    """Do nothing: there are no health checks."""


class HealthReporter:
    """Tells health checks of the states of all models. Lives on the event loop."""

    def __init__(self) -> None:
        self.tell: Tell = tell_nobody
        self._served: dict[str, bool] = {}  # as it should be told
        self._told: dict[str, bool] = {}
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def changed(self, model_id: str, state: State) -> None:
        """A model is in this state now; health checks hear of it soon."""
        if state in _UNCHANGED:
            return
        self._served[model_id] = state in SERVING
        task = asyncio.ensure_future(self.say(model_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def say(self, model_id: str) -> None:
        """Tell what is to be told of a model; health checks know it when this returns."""
        async with self._turn:
            served = self._served.get(model_id)
            if served is not None and self._told.get(model_id) is not served:
                self._told[model_id] = served
                await self.tell(model_id, served)

    async def forget(self, model_id: str) -> None:
        """The model is gone."""
        self._served.pop(model_id, None)
        async with self._turn:
            if model_id not in self._served and self._told.pop(model_id, None) is not None:
                await self.tell(model_id, None)
