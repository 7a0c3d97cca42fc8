"""All models of a server: made, found, deleted, brought back, and in the end stopped."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from concurrent.futures import Executor
from typing import Any, TypeVar

from bptt.config import ServerConfig
from bptt.domain import ModelDefinition, ModelStatus, ReportSink
from bptt.durability import CheckpointInfo, Store
from bptt.engine.model_cache import ModelCache
from bptt.engine.records import make_checkpoint
from bptt.engine.recovery import recover, Recovered
from bptt.engine.trainer import Trainer
from bptt.engine.views import StreamViews
from bptt.errors import (
    DataDamaged,
    LimitReached,
    ModelExists,
    Recovering,
    ServerStopping,
    ServiceError,
    StorageFailed,
    UnknownModel,
)
from bptt_core import Learner, ModelSpec

log = logging.getLogger(__name__)

COMPILED_SECONDS = 2.0  # what loading kernels that are compiled never takes

T = TypeVar("T")

Tell = Callable[[str, bool], Awaitable[None]]
"""Told whether a model is served, when that changes."""


async def _nobody(model_id: str, is_served: bool) -> None:
    """Nobody is told."""


class Registry:
    """The models of one server. Lives on the event loop.

    Attributes:
        making: names of the models that are being made.

    Args:
        config: limits, and how often models are saved.
        executor: where models learn.
        store: where they are kept, already open; None: nowhere.
        sink: where they report to.
        make_learner: how a learner is made.
        storage: where the disk is waited for; None: `executor`.
    """

    def __init__(
        self,
        config: ServerConfig,
        executor: Executor,
        store: Store | None,
        sink: ReportSink,
        make_learner: Callable[[ModelSpec], Learner] = Learner,
        storage: Executor | None = None,
    ) -> None:
        self._config = config
        self._executor = executor
        self._store = store
        self._sink = sink
        self._make_learner = make_learner
        self._storage = storage or executor
        self._models: dict[str, Trainer] = {}
        self._absent: dict[str, ServiceError] = {}  # in the store only, and why
        self._recovering: dict[str, ModelStatus] = {}  # of those, what is known
        self._model_cache = ModelCache(
            self._models, config.models_in_memory, sink, self._bring_back
        )
        self._tell: Tell = _nobody
        self.making: set[str] = set()
        self._deleting: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        # Models that come back leave a thread to those that learn.
        self._turns = asyncio.Semaphore(max(1, config.threads - 1))

    # ------------------------------------------------------------------ looking

    def get(self, model_id: str) -> Trainer:
        """The model of this name, if it is in memory.

        Raises:
            UnknownModel: there is none.
            Recovering: it is being brought back, or in the store only.
            DataDamaged: it could not be brought back.
        """
        trainer = self._models.get(model_id)
        if trainer is None:
            if model_id in self._model_cache.states:
                raise Recovering.of(model_id)
            raise self._absent.get(model_id) or UnknownModel.of(model_id)
        return trainer

    async def find(self, model_id: str) -> Trainer:
        """The model of this name, brought back into memory if it has left it.

        It stays there at least until whoever asked awaits something.

        Raises:
            UnknownModel: there is none.
            Recovering: it is being brought back at the start of the server.
            ServiceError: it could not be brought back.
        """
        if model_id in self._model_cache.states:
            self.check_running()
            await self._model_cache.wake(model_id)
        trainer = self.get(model_id)
        trainer.used_at = time.monotonic()
        return trainer

    def state(self, model_id: str) -> ModelStatus:
        """The model of this name as it is now, in memory or not. Raises as `get`."""
        state = self._model_cache.states.get(model_id)
        return self.get(model_id).state if state is None else state

    def page(self, after: str, size: int) -> tuple[list[tuple[str, ModelStatus | None]], str]:
        """Models by name, and the name after which the next page begins; "" on the last.

        Those that are not in memory are there, too. None: the model is being brought back, and
        nothing else is known of it yet.
        """
        known = {*self._models, *self._model_cache.states, *self._coming_back()}
        names, following = page(known, after, size)
        return [(name, self._listed(name)) for name in names], following

    def _coming_back(self) -> list[str]:
        return [name for name, why in self._absent.items() if isinstance(why, Recovering)]

    def _listed(self, model_id: str) -> ModelStatus | None:
        if model_id in self._absent:
            return self._recovering.get(model_id)
        return self.state(model_id)

    def _is_known(self, model_id: str) -> bool:
        return any(model_id in each for each in self._places)

    @property
    def _places(self) -> tuple[Collection[str], ...]:
        """Where a model may be: each is in one of them."""
        return self._models, self._model_cache.states, self._absent, self.making

    # ------------------------------------------------------------------ changing

    async def create(self, definition: ModelDefinition) -> Trainer:
        """Make a model, and save it before it is known to anybody.

        Once begun it is finished, even if who asked for it hangs up.

        Raises:
            ServiceError: it exists, is too large, one too many, or could not be saved.
        """
        self.check_running()
        definition.check_size(self._config.limits)
        model_id = definition.model_id
        if model_id in self._deleting:
            await asyncio.wait([self._deleting[model_id]])
            self.check_running()
        if self._is_known(model_id):
            raise ModelExists.of(model_id)
        if sum(map(len, self._places)) >= self._config.limits.models:
            raise LimitReached.of("models", self._config.limits.models)
        self.making.add(model_id)
        return await self._to_its_end(self._make(definition))

    async def _make(self, definition: ModelDefinition) -> Trainer:
        def in_thread() -> Learner:
            learner = self._make_learner(definition.spec)
            start = time.perf_counter()
            learner.warm_up()  # compiles the kernels, if this machine has not yet
            seconds = time.perf_counter() - start
            if seconds > COMPILED_SECONDS:
                log.info("kernels for %s compiled in %.0f s", definition.spec.cell, seconds)
            if self._store is not None:
                self._store.save(make_checkpoint(definition, learner, lsn=0))
            return learner

        try:
            loop = asyncio.get_running_loop()
            learner = await loop.run_in_executor(self._executor, in_thread)
            trainer = self._start(definition, learner, lsn=0, saved_lsn=0)
        finally:
            self.making.discard(definition.model_id)
        await self._tell(definition.model_id, True)
        spec = definition.spec
        log.info(
            "model %s created: %s, %s, %s, %s, %s of %d, %d parameters",
            definition.model_id,
            spec.task,
            spec.cell,
            _count(spec.input_size, "input"),
            _count(spec.outputs, "output"),
            _count(spec.layers, "layer"),
            spec.hidden_size,
            trainer.parameters,
        )
        return trainer

    def _start(
        self,
        definition: ModelDefinition,
        learner: Learner,
        *,
        lsn: int,
        saved_lsn: int,
        damage: str | None = None,
        views: StreamViews | None = None,
    ) -> Trainer:
        trainer = Trainer(
            definition,
            learner,
            executor=self._executor,
            store=self._store,
            sink=self._sink,
            config=self._config,
            lsn=lsn,
            saved_lsn=saved_lsn,
            storage=self._storage,
            damage=damage,
            views=views,
        )
        trainer.start()
        trainer.divergence_listeners.add(functools.partial(self._say_divergence, trainer))
        self._models[definition.model_id] = trainer
        if self._store is not None:
            self._model_cache.make_room()
        return trainer

    def _say_divergence(self, trainer: Trainer) -> None:
        """Who asks for its health is told that a model does not learn."""
        serves = not trainer.figures.diverged
        task = asyncio.ensure_future(self._tell(trainer.definition.model_id, serves))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def delete(self, model_id: str) -> None:
        """Forget a model, after what it has accepted is learned and answered.

        Raises:
            UnknownModel: there is none of that name.
            StorageFailed: it is gone, but what is stored of it could not be deleted.
        """
        self.check_running()
        if isinstance(self._absent.get(model_id), DataDamaged):
            await self._in_storage(self._delete_stored, model_id)
            del self._absent[model_id]
            log.info("model %s deleted, which could not be brought back", model_id)
            return
        if model_id in self._model_cache.waking:
            await self.find(model_id)
        trainer = None
        if model_id in self._model_cache.states:
            del self._model_cache.states[model_id]
        else:
            trainer = self.get(model_id)
            del self._models[model_id]
        task = asyncio.ensure_future(self._delete(model_id, trainer))
        self._deleting[model_id] = task
        await self._to_its_end(task)

    async def _delete(self, model_id: str, trainer: Trainer | None) -> None:
        try:
            if trainer is not None:
                await trainer.stop(refusal=UnknownModel.of(model_id), save=False)
            await self._in_storage(self._delete_stored, model_id)
        finally:
            self._sink.close_model(model_id)
            del self._deleting[model_id]
            await self._tell(model_id, False)
        log.info("model %s deleted", model_id)

    def _delete_stored(self, model_id: str) -> None:
        if self._store is not None:
            self._store.delete(model_id)

    async def _in_storage(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._storage, function, *arguments)

    async def update_model(self, model_id: str, **changes: Any) -> Trainer:
        """Change how a model learns, between two runs. Raises as `get`, and InvalidRequest."""
        self.check_running()
        trainer = await self.find(model_id)
        await self._in_use(trainer, trainer.configure(changes))
        return trainer

    async def save_checkpoint(self, model_id: str) -> CheckpointInfo:
        """Write a checkpoint of a model now. Raises as `get`, and StorageFailed."""
        trainer = await self.find(model_id)
        return await self._in_use(trainer, trainer.save_checkpoint())

    async def list_checkpoints(self, model_id: str) -> list[CheckpointInfo]:
        """A model's checkpoints, oldest first. Raises as `get`, and StorageFailed."""
        return await (await self.find(model_id)).checkpoints()

    async def restore_checkpoint(self, model_id: str, lsn: int) -> Trainer:
        """Take a model back to a checkpoint. Raises as `get`, NotFound, and StorageFailed."""
        trainer = await self.find(model_id)
        await self._in_use(trainer, trainer.restore(lsn))
        return trainer

    async def _in_use(self, trainer: Trainer, work: Coroutine[Any, Any, T]) -> T:
        """As `_to_its_end`; the model stays in memory meanwhile."""
        task = asyncio.ensure_future(work)
        trainer.keep_during(task)
        return await self._to_its_end(task)

    async def _to_its_end(self, work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
        """Await work that goes on when whoever waits for it is cancelled."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    # ------------------------------------------------------------------ life

    async def recover(self, tell: Tell = _nobody) -> None:
        """Bring back every model of the store, side by side; each is served once it is back.

        One that cannot be brought back is told of in the log, and to who asks for it; the others
        do not wait for it.

        Args:
            tell: whether a model is served, when that changes.

        Raises:
            StorageFailed: the store cannot be read.
        """
        self._tell = tell
        if self._store is None:
            return
        model_ids = await self._in_storage(self._store.models)
        self._absent = {model_id: Recovering.of(model_id) for model_id in model_ids}
        for model_id in model_ids:
            await tell(model_id, False)
        await asyncio.gather(*map(self._recover, model_ids))

    async def _recover(self, model_id: str) -> None:
        start = time.perf_counter()
        try:
            found = await self._read_back(model_id)
        except ServerStopping:
            return
        except ServiceError as error:
            log.error("model %s not brought back: %s", model_id, error.message)
            self._absent[model_id] = DataDamaged(f"model {model_id}: {error.message}")
            return
        finally:
            self._recovering.pop(model_id, None)
        del self._absent[model_id]
        seconds = time.perf_counter() - start
        state = found.state
        if self._model_cache.has_room or not found.is_settled:
            self._go_on(found, seconds)
        else:
            self._model_cache.states[model_id] = state
        _say_recovered(found, state, seconds)
        await self._tell(model_id, not state.figures.diverged)

    async def _read_back(self, model_id: str) -> Recovered:
        assert self._store is not None
        on_found = functools.partial(self._recovering.__setitem__, model_id)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._executor, recover, self._store, model_id, self.check_running, on_found
        )

    def _go_on(self, found: Recovered, seconds: float) -> None:
        trainer = self._start(
            found.definition,
            found.learner,
            lsn=found.lsn,
            saved_lsn=found.saved_lsn,
            damage=found.damage,
            views=found.views,
        )
        trainer.sink.recovered(seconds)

    async def _bring_back(self, model_id: str) -> None:
        """Put a model that is in the store only back into memory.

        Raises:
            ServiceError: it cannot be brought back.
        """
        start = time.perf_counter()
        try:
            async with self._turns:
                found = await self._read_back(model_id)
        except DataDamaged as error:
            log.error("model %s not brought back: %s", model_id, error.message)
            self._model_cache.states.pop(model_id)
            damaged = self._absent[model_id] = DataDamaged(f"model {model_id}: {error.message}")
            await self._tell(model_id, False)
            raise damaged from error
        finally:
            self._recovering.pop(model_id, None)
        self._model_cache.states.pop(model_id)
        self._go_on(found, time.perf_counter() - start)

    def check_running(self) -> None:
        """Refuse what would begin now.

        Raises:
            ServerStopping: the server is stopping.
        """
        if self._stopping:
            raise ServerStopping

    def begin_stop(self) -> None:
        """From now on nothing is created or deleted. What is accepted is still learned."""
        self._stopping = True

    async def stop(self, grace: float) -> list[ServiceError]:
        """Finish what was accepted within `grace` seconds, save every model.

        Returns:
            Why models could not be saved.
        """
        self._stopping = True
        loop = asyncio.get_running_loop()
        until = loop.time() + grace
        with contextlib.suppress(TimeoutError):  # what hangs on a disk hangs on it below, too
            async with asyncio.timeout(grace if math.isfinite(grace) else None):
                await self._model_cache.stop()
                if self._tasks:
                    await asyncio.wait(self._tasks)
        left = max(0.0, until - loop.time())
        trainers = list(self._models.values())
        stops = [each.stop(refusal=ServerStopping(), save=True, grace=left) for each in trainers]
        results = await asyncio.gather(*stops, return_exceptions=True)
        failures = []
        for trainer, result in zip(trainers, results, strict=True):
            if isinstance(result, ServiceError):
                log.error("model %s not saved: %s", trainer.definition.model_id, result.message)
                failures.append(result)
            elif isinstance(result, Exception):
                log.error("model %s not saved", trainer.definition.model_id, exc_info=result)
                failures.append(StorageFailed(f"model {trainer.definition.model_id} not saved"))
            elif isinstance(result, BaseException):
                raise result
        return failures


def _say_recovered(found: Recovered, state: ModelStatus, seconds: float) -> None:
    replayed = ""
    if found.replayed_steps:
        replayed = f"; {_count(found.replayed_steps, 'step')} replayed from its journal"
    log.info(
        "model %s recovered in %.1f s: %s, %s, %s%s",
        found.definition.model_id,
        seconds,
        _count(state.figures.steps, "step"),
        _count(state.figures.updates, "update"),
        _count(state.streams, "stream"),
        replayed,
    )


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def page(names: Iterable[str], after: str, size: int) -> tuple[list[str], str]:
    """The first `size` names behind `after` in order, and the last of them if more follow."""
    found = heapq.nsmallest(size + 1, (name for name in names if name > after))
    if len(found) > size:
        return found[:size], found[size - 1]
    return found, ""
