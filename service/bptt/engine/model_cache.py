"""Unloads models when more than the limit are in memory, and loads them again on request.

Rules:
- When more models than the limit are in memory, the least recently used one is unloaded first.
- A model in use stays: it has an open Learn call, an unanswered chunk or command, or a record that
  is not durable.
- Before a model is unloaded, a checkpoint of it is written while it keeps working. If that fails,
  or the model is used during the write, it stays. So nothing is lost, whatever the durability is.
- A request for an unloaded model loads it again. Requests for other models do not wait for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from bptt.domain import ModelStatus, ReportSink
from bptt.engine.trainer import Trainer
from bptt.errors import Recovering, ServiceError

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5
"""Pause before the next attempt, if all models are in use or one could not be saved."""


class ModelCache:
    """Moves the models of a registry out of memory and back. Lives on the event loop.

    Attributes:
        states: the status of each unloaded model at the time of its unloading.

    Args:
        in_memory: the registry's loaded models; unloaded ones are removed from it.
        limit: the number of models that may be in memory.
        sink: notified of each model that is unloaded.
        bring_back: loads a model into `in_memory`, and removes it from `states`.
    """

    def __init__(
        self,
        in_memory: dict[str, Trainer],
        limit: int,
        sink: ReportSink,
        bring_back: Callable[[str], Awaitable[None]],
    ) -> None:
        self.states: dict[str, ModelStatus] = {}
        self._in_memory = in_memory
        self._limit = limit
        self._sink = sink
        self._bring_back = bring_back
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._wanted: Counter[str] = Counter()  # requests that wait for a model
        self._clearing: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    @property
    def has_room(self) -> bool:
        """True if one more model may be in memory."""
        return len(self._in_memory) < self._limit

    @property
    def waking(self) -> frozenset[str]:
        """Names of the models that are being loaded."""
        return frozenset(self._waking)

    async def wake(self, model_id: str) -> None:
        """Load a model; when this returns, it is in memory or deleted.

        Raises:
            ServiceError: it could not be loaded.
        """
        self._wanted[model_id] += 1
        try:
            while model_id in self.states:
                task = self._waking.get(model_id)
                if task is None:
                    task = asyncio.create_task(self._wake(model_id), name=f"wake {model_id}")
                    self._waking[model_id] = task
                await asyncio.shield(task)
        finally:
            self._wanted[model_id] -= 1
            if not self._wanted[model_id]:
                del self._wanted[model_id]

    async def _wake(self, model_id: str) -> None:
        try:
            await self._bring_back(model_id)
        finally:
            del self._waking[model_id]

    def make_room(self) -> None:
        """Start unloading models, if more than the limit are in memory."""
        is_clearing = self._clearing is not None and not self._clearing.done()
        if len(self._in_memory) > self._limit and not is_clearing:
            self._clearing = asyncio.create_task(self._clear(), name="models leave memory")

    async def stop(self) -> None:
        """Finish the loading and unloading that is under way, and start no more."""
        self._stopped.set()
        if self._clearing is not None:
            await asyncio.wait([self._clearing])
        while self._waking:
            await asyncio.wait(self._waking.values())

    async def _clear(self) -> None:
        while len(self._in_memory) > self._limit and not self._stopped.is_set():
            trainer = self._used_longest_ago()
            if trainer is None or not await self._put_away(trainer):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), PAUSE_SECONDS)

    def _used_longest_ago(self) -> Trainer | None:
        """The least recently used idle model; None if all are in use."""
        idle = [
            trainer
            for model_id, trainer in self._in_memory.items()
            if not trainer.stays and model_id not in self._wanted
        ]
        return min(idle, key=lambda trainer: trainer.used_at, default=None)

    async def _put_away(self, trainer: Trainer) -> bool:
        """Save a model, and unload it if it was not used during the save."""
        model_id = trainer.definition.model_id
        try:
            await trainer.settle()
        except ServiceError as error:
            log.warning("model %s stays in memory: %s", model_id, error.message)
            trainer.used_at = time.monotonic()  # try other models first
            return False
        is_there = self._in_memory.get(model_id) is trainer
        if is_there and trainer.is_settled and model_id not in self._wanted:
            del self._in_memory[model_id]
            status = self.states[model_id] = trainer.status
            self._sink.rest_model(model_id)
            with contextlib.suppress(ServiceError):  # it is saved: nothing is left to write
                await trainer.stop(refusal=Recovering.of(model_id), save=False)
            trainer.forget()
            self._sink.model_state(model_id, status.state)  # it is loaded again on request
            log.debug("model %s has left memory", model_id)
        return True
