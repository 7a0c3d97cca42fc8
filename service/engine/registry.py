"""All models of a server: made, found, deleted, brought back, and in the end stopped."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Executor
from typing import Any, TypeVar

from bptt_core import Learner, ModelSpec
from service.config import ServerConfig
from service.domain import ModelDefinition, ReportSink
from service.durability import CheckpointInfo, Store
from service.engine.records import make_checkpoint
from service.engine.recovery import recover, Recovered
from service.engine.trainer import Trainer
from service.errors import (
    DataDamaged,
    LimitReached,
    ModelExists,
    Recovering,
    ServerStopping,
    ServiceError,
    StorageFailed,
    UnknownModel,
)

log = logging.getLogger(__name__)

COMPILED_SECONDS = 2.0  # what loading kernels that are compiled never takes

T = TypeVar("T")


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
        self._absent: dict[str, ServiceError] = {}  # models of the store, and why they are not here
        self.making: set[str] = set()
        self._deleting: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    # ------------------------------------------------------------------ looking

    def get(self, model_id: str) -> Trainer:
        """The model of this name.

        Raises:
            UnknownModel: there is none.
            Recovering: it is being brought back.
            DataDamaged: it could not be brought back.
        """
        trainer = self._models.get(model_id)
        if trainer is None:
            raise self._absent.get(model_id) or UnknownModel.of(model_id)
        return trainer

    def page(self, after: str, size: int) -> tuple[list[Trainer], str]:
        """Models by name, and the name after which the next page begins; "" on the last."""
        names, following = page(self._models, after, size)
        return [self._models[name] for name in names], following

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
        if model_id in self._models or model_id in self.making or model_id in self._absent:
            raise ModelExists.of(model_id)
        if len(self._models) + len(self._absent) + len(self.making) >= self._config.limits.models:
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
                self._store.save(make_checkpoint(definition, learner, ticks=0))
            return learner

        try:
            loop = asyncio.get_running_loop()
            learner = await loop.run_in_executor(self._executor, in_thread)
            trainer = self._start(definition, learner, ticks=0, saved_ticks=0)
        finally:
            self.making.discard(definition.model_id)
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
        ticks: int,
        saved_ticks: int,
        damage: str | None = None,
    ) -> Trainer:
        trainer = Trainer(
            definition,
            learner,
            executor=self._executor,
            store=self._store,
            sink=self._sink,
            config=self._config,
            ticks=ticks,
            saved_ticks=saved_ticks,
            storage=self._storage,
            damage=damage,
        )
        trainer.start()
        self._models[definition.model_id] = trainer
        return trainer

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
        trainer = self.get(model_id)
        del self._models[model_id]
        task = asyncio.ensure_future(self._delete(trainer))
        self._deleting[model_id] = task
        await self._to_its_end(task)

    async def _delete(self, trainer: Trainer) -> None:
        model_id = trainer.definition.model_id
        try:
            await trainer.stop(refusal=UnknownModel.of(model_id), save=False)
            await self._in_storage(self._delete_stored, model_id)
        finally:
            self._sink.close_model(model_id)
            del self._deleting[model_id]
        log.info("model %s deleted after %d ticks", model_id, trainer.ticks)

    def _delete_stored(self, model_id: str) -> None:
        if self._store is not None:
            self._store.delete(model_id)

    async def _in_storage(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._storage, function, *arguments)

    async def update_model(self, model_id: str, **changes: Any) -> Trainer:
        """Change how a model learns, between two runs. Raises as `get`, and InvalidRequest."""
        self.check_running()
        trainer = self.get(model_id)
        await self._to_its_end(trainer.configure(changes))
        return trainer

    async def save_checkpoint(self, model_id: str) -> CheckpointInfo:
        """Write a checkpoint of a model now. Raises as `get`, and StorageFailed."""
        return await self._to_its_end(self.get(model_id).save_checkpoint())

    async def list_checkpoints(self, model_id: str) -> list[CheckpointInfo]:
        """A model's checkpoints, oldest first. Raises as `get`, and StorageFailed."""
        return await self.get(model_id).checkpoints()

    async def restore_checkpoint(self, model_id: str, ticks: int) -> Trainer:
        """Take a model back to a checkpoint. Raises as `get`, NotFound, and StorageFailed."""
        trainer = self.get(model_id)
        await self._to_its_end(trainer.restore(ticks))
        return trainer

    async def _to_its_end(self, work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
        """Await work that goes on when whoever waits for it is cancelled."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    # ------------------------------------------------------------------ life

    async def recover(self, tell: Callable[[str, bool], Awaitable[None]] = _nobody) -> None:
        """Bring back every model of the store, side by side; each is served once it is back.

        One that cannot be brought back is told of in the log, and to who asks for it; the others
        do not wait for it.

        Args:
            tell: whether a model is served, when that changes.

        Raises:
            StorageFailed: the store cannot be read.
        """
        if self._store is None:
            return
        model_ids = await self._in_storage(self._store.models)
        self._absent = {model_id: Recovering.of(model_id) for model_id in model_ids}
        for model_id in model_ids:
            await tell(model_id, False)
        await asyncio.gather(*(self._recover(model_id, tell) for model_id in model_ids))

    async def _recover(self, model_id: str, tell: Callable[[str, bool], Awaitable[None]]) -> None:
        assert self._store is not None
        loop, start = asyncio.get_running_loop(), time.perf_counter()
        try:
            found = await loop.run_in_executor(
                self._executor, recover, self._store, model_id, self.check_running
            )
        except ServerStopping:
            return
        except ServiceError as error:
            log.error("model %s not brought back: %s", model_id, error.message)
            self._absent[model_id] = DataDamaged(f"model {model_id}: {error.message}")
            return
        del self._absent[model_id]
        seconds = time.perf_counter() - start
        trainer = self._start(
            found.definition,
            found.learner,
            ticks=found.ticks,
            saved_ticks=found.saved_ticks,
            damage=found.damage,
        )
        trainer.sink.recovered(seconds)
        self._say_recovered(found, trainer, seconds)
        await tell(model_id, True)

    def _say_recovered(self, found: Recovered, trainer: Trainer, seconds: float) -> None:
        replayed = ""
        if found.replayed_steps:
            replayed = f"; {_count(found.replayed_steps, 'step')} replayed from its journal"
        log.info(
            "model %s recovered in %.1f s: %s, %s, %s%s",
            found.definition.model_id,
            seconds,
            _count(trainer.figures.steps, "step"),
            _count(trainer.figures.updates, "update"),
            _count(len(trainer.views), "stream"),
            replayed,
        )

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
        if self._tasks:
            await asyncio.wait(self._tasks)
        trainers = list(self._models.values())
        stops = [each.stop(refusal=ServerStopping(), save=True, grace=grace) for each in trainers]
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


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def page(names: Iterable[str], after: str, size: int) -> tuple[list[str], str]:
    """The first `size` names behind `after` in order, and the last of them if more follow."""
    found = heapq.nsmallest(size + 1, (name for name in names if name > after))
    if len(found) > size:
        return found[:size], found[size - 1]
    return found, ""
