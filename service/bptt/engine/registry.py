"""The registry of a server's models: creates, finds, lists, changes, deletes and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import math
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from concurrent.futures import Executor
from typing import Any, TypeVar

from bptt.config import ServerConfig
from bptt.domain import ModelDefinition, ModelStatus, ReportSink, UnreadModel
from bptt.durability import CheckpointInfo, Store
from bptt.engine import recovery_progress
from bptt.engine.health import ignore_health, Tell
from bptt.engine.lifecycle import Event, Operation
from bptt.engine.records import make_checkpoint
from bptt.engine.supervisor import AbsentModel, counted, ModelSupervisor
from bptt.engine.trainer import Trainer
from bptt.errors import (
    LimitReached,
    ModelExists,
    ModelFailed,
    Recovering,
    ServerStopping,
    ServiceError,
    StorageFailed,
    UnknownModel,
)
from bptt_core import Learner, ModelSpec

log = logging.getLogger(__name__)


T = TypeVar("T")


class Registry:
    """The models of one server. Lives on the event loop.

    A model's name is in one of five places: `making`, in memory, asleep (in the store only), absent
    (being recovered, or failed), or being deleted.

    Attributes:
        making: names of the models that are being created.

    Args:
        config: limits, and the checkpoint interval.
        executor: threads that learn.
        store: stores the models, already open; None: models are not stored.
        sink: receives the models' reports.
        make_learner: creates a learner.
        storage: threads that wait for the disk; None: `executor`.
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
        self._supervisor = ModelSupervisor(
            self._models, config, executor, self._storage, store, sink, self.check_running
        )
        self._absent = self._supervisor.absent
        self._model_cache = self._supervisor.cache
        self.making: set[str] = set()
        self._deleting: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    # ------------------------------------------------------------------ look-up

    def get(self, model_id: str, operation: Operation = Operation.SHOW) -> Trainer:
        """The model of this name, if it is in memory.

        Args:
            model_id: its name.
            operation: the operation that is requested.

        Raises:
            UnknownModel: no model has that name.
            Recovering: the model is in the store only.
            ServiceError: its state does not admit the operation, or it is absent.
        """
        trainer = self._models.get(model_id)
        if trainer is not None:
            trainer.lifecycle.admit(operation)
            return trainer
        if model_id in self._model_cache.states:
            raise Recovering.of(model_id)
        absent = self._absent.get(model_id)
        if absent is not None:
            raise absent.lifecycle.refusal()
        raise UnknownModel.of(model_id)

    async def find(self, model_id: str, operation: Operation = Operation.SHOW) -> Trainer:
        """The model of this name, loaded again if it was unloaded.

        It stays in memory at least until the caller awaits. Raises as `get`.
        """
        if model_id in self._model_cache.states:
            self.check_running()
            await self._model_cache.wake(model_id)
        trainer = self.get(model_id, operation)
        trainer.used_at = time.monotonic()
        return trainer

    def status(self, model_id: str) -> ModelStatus | UnreadModel:
        """The current status of a model, in memory or not.

        Raises:
            UnknownModel: no model has that name.
        """
        asleep = self._model_cache.states.get(model_id)
        if asleep is not None:
            return asleep
        absent = self._absent.get(model_id)
        if absent is not None:
            return absent.status
        return self.get(model_id).status

    def page(
        self, after: str, size: int, shown: Callable[[str], bool] = bool
    ) -> tuple[list[ModelStatus | UnreadModel], str]:
        """Models in order of name, and the name after which the next page begins; "" on the last.

        Includes models that are not in memory and failed ones, but only names that are `shown`.
        """
        known = {*self._models, *self._model_cache.states, *self._absent}
        names, following = page(filter(shown, known), after, size)
        return [self.status(name) for name in names], following

    def _is_known(self, model_id: str) -> bool:
        return any(model_id in each for each in self._places)

    @property
    def _places(self) -> tuple[Collection[str], ...]:
        """The tables of names: one of them has a model's name, unless it is being deleted."""
        return self._models, self._model_cache.states, self._absent, self.making

    # ------------------------------------------------------------------ creation

    async def create(
        self, definition: ModelDefinition, prepare: Callable[[Learner], None] | None = None
    ) -> Trainer:
        """Create a model, and save it before any request can see it.

        A creation that has begun is finished, even if its client cancels the call.

        Args:
            definition: the model.
            prepare: changes the new learner in a thread, before it is saved.

        Raises:
            ServiceError: the model exists, is too large, exceeds the number of models, or could
                not be saved.
        """
        self.check_running()
        definition.check_size(self._config.limits)
        model_id = definition.model_id
        while model_id in self._deleting:
            await asyncio.wait([self._deleting[model_id]])
            self.check_running()
        if self._is_known(model_id):
            raise ModelExists.of(model_id)
        if sum(map(len, self._places)) >= self._config.limits.models:
            raise LimitReached.of("models", self._config.limits.models)
        self.making.add(model_id)
        return await self._to_its_end(self._make(definition, prepare))

    async def _make(
        self, definition: ModelDefinition, prepare: Callable[[Learner], None] | None
    ) -> Trainer:
        model_id = definition.model_id

        def in_thread() -> Learner:
            if self._store is not None and model_id in self._store.models():
                raise ModelExists.of(model_id)  # never write into a folder of another model
            learner = self._make_learner(definition.spec)
            if prepare is not None:
                prepare(learner)
            learner.warm_up()  # compiles the kernels if they are not compiled yet
            if self._store is not None:
                self._store.save(make_checkpoint(definition, learner, lsn=0))
            return learner

        try:
            loop = asyncio.get_running_loop()
            learner = await loop.run_in_executor(self._executor, in_thread)
            trainer = self._supervisor.start(definition, learner, lsn=0, saved_lsn=0)
        finally:
            self.making.discard(model_id)
        await self._supervisor.health.say(model_id)
        spec = definition.spec
        log.info(
            "model %s created: %s, %s, %s, %s, %s of %d, %d parameters",
            model_id,
            spec.task,
            spec.cell,
            counted(spec.input_size, "input"),
            counted(spec.outputs, "output"),
            counted(spec.layers, "layer"),
            spec.hidden_size,
            trainer.parameters,
        )
        return trainer

    # ------------------------------------------------------------------ deletion

    async def delete(self, model_id: str) -> None:
        """Delete a model, after its accepted chunks are learned or refused.

        Raises:
            UnknownModel: no model has that name.
            StorageFailed: its files could not be deleted; the model is FAILED, and its deletion may
                be repeated.
            ServiceError: its state does not admit a deletion.
        """
        self.check_running()
        if model_id in self._deleting:  # by another call: raise the same error
            await asyncio.shield(self._deleting[model_id])
            raise UnknownModel.of(model_id)
        if model_id in self._model_cache.waking:
            with contextlib.suppress(ServiceError):  # a model that cannot be loaded may be deleted
                await self.find(model_id)
        if model_id in self._deleting or not self._is_known(model_id):
            raise UnknownModel.of(model_id)
        if model_id in self.making:
            raise Recovering.of(model_id)
        found = self._models.get(model_id) or self._absent.get(model_id)
        if found is not None:
            found.lifecycle.admit(Operation.DELETE)
        task = asyncio.ensure_future(self._delete(model_id))
        self._deleting[model_id] = task
        await self._to_its_end(task)

    async def _delete(self, model_id: str) -> None:
        trainer = self._models.pop(model_id, None)
        absent = self._absent.pop(model_id, None)
        asleep = self._model_cache.states.pop(model_id, None)
        known = asleep or (absent.known if absent else None)
        try:
            await self._supervisor.leave(model_id)
            if trainer is not None:
                known, grace = trainer.status, self._config.grace_seconds
                await trainer.stop(refusal=UnknownModel.of(model_id), save=False, grace=grace)
            if self._store is not None:
                await self._in_storage(self._store.delete, model_id)
        except Exception as error:
            self._sink.close_model(model_id)
            self._stays_failed(model_id, known, error)
            raise
        else:
            self._sink.close_model(model_id)
            await self._supervisor.health.forget(model_id)
        finally:
            del self._deleting[model_id]
        log.info("model %s deleted", model_id)

    def _stays_failed(self, model_id: str, known: ModelStatus | None, error: Exception) -> None:
        """Keep the name of a model whose deletion failed, so that the deletion can be repeated."""
        told = error.message if isinstance(error, ServiceError) else "internal error"
        log.error("model %s not deleted: %s", model_id, told)
        lifecycle = self._supervisor.lifecycle(model_id)
        self._absent[model_id] = AbsentModel(model_id, lifecycle, known)
        why = f"model {model_id} could not be deleted ({told}); delete it again"
        lifecycle.apply(Event.FAIL, ModelFailed(why))

    # ------------------------------------------------------------------ administration

    async def update_model(self, model_id: str, **changes: Any) -> Trainer:
        """Change a model's settings between two runs. Raises as `get`, and InvalidRequest."""
        self.check_running()
        trainer = await self.find(model_id, Operation.CONFIGURE)
        await self._in_use(trainer, trainer.configure(changes))
        return trainer

    async def save_checkpoint(self, model_id: str) -> CheckpointInfo:
        """Write a checkpoint of a model now. Raises as `get`, and StorageFailed."""
        trainer = await self.find(model_id, Operation.SAVE)
        return await self._in_use(trainer, trainer.save_checkpoint())

    async def list_checkpoints(self, model_id: str) -> list[CheckpointInfo]:
        """A model's checkpoints, oldest first. Raises as `get`, and StorageFailed."""
        absent = self._absent.get(model_id)
        if absent is not None and self._store is not None:
            absent.lifecycle.admit(Operation.LIST_CHECKPOINTS)
            return await self._in_storage(self._store.checkpoints, model_id)
        return await (await self.find(model_id, Operation.LIST_CHECKPOINTS)).checkpoints()

    async def restore_checkpoint(self, model_id: str, lsn: int) -> Trainer:
        """Restore a model from a checkpoint. Raises as `get`, NotFound, and StorageFailed."""
        trainer = await self.find(model_id, Operation.RESTORE)
        await self._in_use(trainer, trainer.restore(lsn))
        return trainer

    async def _in_storage(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._storage, function, *arguments)

    async def _in_use(self, trainer: Trainer, work: Coroutine[Any, Any, T]) -> T:
        """As `_to_its_end`; the model stays in memory until then."""
        task = asyncio.ensure_future(work)
        trainer.keep_during(task)
        return await self._to_its_end(task)

    async def _to_its_end(self, work: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
        """Await work that continues if the caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may be gone; this marks the error as seen

    # ------------------------------------------------------------------ life

    async def recover(
        self,
        tell: Tell = ignore_health,
        progress: recovery_progress.Tell = recovery_progress.ignore_progress,
    ) -> None:
        """Recover all models of the store concurrently; each is served once it is recovered.

        A model that cannot be recovered is FAILED, and the others do not wait for it.

        Args:
            tell: called when a model's health changes.
            progress: called with each line about the progress that is logged.

        Raises:
            StorageFailed: the store cannot be read.
        """
        self._supervisor.health.tell = tell
        if self._store is not None:
            model_ids = await self._in_storage(self._store.models)
            await self._supervisor.recover(model_ids, progress)

    def check_running(self) -> None:
        """Refuse an operation that would begin during the stop.

        Raises:
            ServerStopping: the server is stopping.
        """
        if self._stopping:
            raise ServerStopping

    def begin_stop(self) -> None:
        """Create, delete and load no more models. Accepted chunks are still learned."""
        self._stopping = True

    async def stop(self, grace: float) -> list[ServiceError]:
        """Finish the accepted work within `grace` seconds, and save every model.

        Returns:
            The errors of models that could not be saved.
        """
        self._stopping = True
        loop = asyncio.get_running_loop()
        until = loop.time() + grace
        await self._supervisor.stop()
        with contextlib.suppress(TimeoutError):  # a hanging disk is bounded below
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


def page(names: Iterable[str], after: str, size: int) -> tuple[list[str], str]:
    """The first `size` names after `after` in order, and the last of them if more follow."""
    found = heapq.nsmallest(size + 1, (name for name in names if name > after))
    if len(found) > size:
        return found[:size], found[size - 1]
    return found, ""
