"""Recovers models from the store: at the start, on a request, after a failure.

Rules:
- A model that cannot be recovered is FAILED; the other models are served.
- A model whose worker has ended is recovered automatically: first after FIRST_PAUSE_SECONDS, then
  after a pause that doubles with each further failure. After RETRIES_MAX retries it stays FAILED.
- A damaged model is not retried: the same bytes give the same error.
- The old trainer of a failed model stops writing to the store before the model is recovered.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

from bptt.config import ServerConfig
from bptt.domain import ModelDefinition, ModelStatus, ReportSink, UnreadModel
from bptt.domain import ModelState as State
from bptt.durability import Store
from bptt.engine.failures import failed_for_good
from bptt.engine.health import HealthReporter
from bptt.engine.lifecycle import Event, Lifecycle
from bptt.engine.model_cache import ModelCache
from bptt.engine.recovery import recover, Recovered
from bptt.engine.recovery_progress import (
    ignore_progress,
    records_to_replay,
    RecoveryProgress,
    Tell,
)
from bptt.engine.trainer import Trainer
from bptt.errors import DataDamaged, ModelFailed, Recovering, ServerStopping, ServiceError
from bptt_core import Learner

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
"""Pause before the first retry: long enough for a short lack of memory to pass, and short enough
for clients that reconnect."""

RETRIES_MAX = 5
"""Retries, after pauses of 0.5, 1, 2, 4 and 8 s. A failure that persists is a defect, or is caused
by a chunk that its client sends again each time."""

QUIET_SECONDS = 60.0
"""A model that has run this long since its last failure gets all its retries again."""

FLUSH_SECONDS = 5.0
"""How long records of a failed model may still be committed before it is recovered. Later records
were not acknowledged, and their clients send the steps again."""

_SETTLES = {
    State.RUNNING: Event.RUN,
    State.PAUSED: Event.PAUSE,
    State.DIVERGED: Event.DIVERGE,
}


@dataclass(slots=True, eq=False)
class AbsentModel:
    """A model in the store that is being recovered or has failed, and so has no trainer."""

    model_id: str
    lifecycle: Lifecycle
    known: ModelStatus | None = None
    """The last known status; None: nothing has been read yet."""

    @property
    def status(self) -> ModelStatus | UnreadModel:
        """The current status of the model."""
        state, why = self.lifecycle.state, self.lifecycle.why
        reason = "" if why is None else why.message
        if self.known is None:
            return UnreadModel(self.model_id, state, reason)
        return replace(self.known, state=state, state_reason=reason)


class ModelSupervisor:
    """Starts trainers and recovers models. Lives on the event loop.

    Attributes:
        absent: models that are being recovered or have failed.
        health: reports states to the health service.

    Args:
        models: the registry's models in memory.
        config: limits, and the checkpoint interval.
        executor: threads that learn and recover models.
        storage: threads that wait for the disk.
        store: stores the models; None: models are not stored.
        sink: receives the models' reports.
        check_running: raises ServerStopping once the server stops.
    """

    def __init__(
        self,
        models: dict[str, Trainer],
        config: ServerConfig,
        executor: Executor,
        storage: Executor,
        store: Store | None,
        sink: ReportSink,
        check_running: Callable[[], None],
    ) -> None:
        self.absent: dict[str, AbsentModel] = {}
        self.health = HealthReporter()
        self.cache = ModelCache(models, config.models_in_memory, sink, self._bring_back)
        self._models = models
        self._config = config
        self._executor = executor
        self._storage = storage
        self._store = store
        self._sink = sink
        self._check_running = check_running
        self._failures: dict[str, tuple[int, float]] = {}  # number in a row, time of the last one
        self._retries: dict[str, asyncio.Task[None]] = {}
        # Recoveries leave one thread for models that learn.
        self._turns = asyncio.Semaphore(max(1, config.threads - 1))

    # ------------------------------------------------------------------ trainers

    def lifecycle(self, model_id: str) -> Lifecycle:
        """Create a lifecycle for a model; its states go to the sink and the health service."""
        lifecycle = Lifecycle(model_id)
        lifecycle.on_change = functools.partial(self._show, model_id, lifecycle)
        return lifecycle

    def _show(self, model_id: str, lifecycle: Lifecycle) -> None:
        self._sink.model_state(model_id, lifecycle.state)
        self.health.changed(model_id, lifecycle.state)

    def start(
        self,
        definition: ModelDefinition,
        learner: Learner,
        lifecycle: Lifecycle | None = None,
        **more: Any,
    ) -> Trainer:
        """Start a trainer for a model; it replaces a failed one.

        Args:
            definition: the model's definition.
            learner: of the definition.
            lifecycle: in state RECOVERING; None: a new one.
            more: further arguments of `Trainer`.
        """
        model_id = definition.model_id
        trainer = Trainer(
            definition,
            learner,
            executor=self._executor,
            store=self._store,
            sink=self._sink,
            config=self._config,
            storage=self._storage,
            lifecycle=lifecycle or self.lifecycle(model_id),
            supervisor=self,
            **more,
        )
        trainer.start()
        self._models[model_id] = trainer
        self.absent.pop(model_id, None)
        if self._store is not None:
            self.cache.make_room()
        return trainer

    def _go_on(self, found: Recovered, lifecycle: Lifecycle, seconds: float) -> None:
        trainer = self.start(
            found.definition,
            found.learner,
            lifecycle,
            lsn=found.lsn,
            saved_lsn=found.saved_lsn,
            damage=found.damage,
            views=found.views,
        )
        trainer.sink.recovered(seconds)

    async def _read_back(
        self,
        model_id: str,
        absent: AbsentModel | None = None,
        on_replayed: Callable[[int], None] = lambda _: None,
    ) -> Recovered:
        """Recover a model in a thread.

        Args:
            model_id: a model of the store.
            absent: gets the checkpoint's status before the journal is replayed.
            on_replayed: called in the thread with the number of replayed records.
        """
        assert self._store is not None

        def on_found(known: ModelStatus) -> None:
            if absent is not None:
                absent.known = known

        loop = asyncio.get_running_loop()
        work = functools.partial(
            recover, self._store, model_id, self._check_running, on_found, on_replayed
        )
        return await loop.run_in_executor(self._executor, work)

    # ------------------------------------------------------------------ recovery at the start

    async def recover(self, model_ids: list[str], tell: Tell = ignore_progress) -> None:
        """Recover models concurrently; each is served as soon as it is recovered.

        Args:
            model_ids: models of the store.
            tell: is given each line about the progress that is logged.
        """
        for model_id in model_ids:
            lifecycle = self.lifecycle(model_id)
            self.absent[model_id] = AbsentModel(model_id, lifecycle)
            self._show(model_id, lifecycle)
            await self.health.say(model_id)
        if not model_ids:
            return
        progress = RecoveryProgress(model_ids, tell)
        progress.begins()
        reporter = asyncio.ensure_future(self._report(progress, model_ids))
        try:
            await asyncio.gather(
                *(self._recover(self.absent[each], progress) for each in model_ids)
            )
        finally:
            reporter.cancel()
            await asyncio.gather(reporter, return_exceptions=True)
        progress.ends()

    async def _report(self, progress: RecoveryProgress, model_ids: list[str]) -> None:
        """Count what is to be replayed, while that begins already, and log how it goes."""
        assert self._store is not None
        loop = asyncio.get_running_loop()
        for model_id in model_ids:
            count = functools.partial(records_to_replay, self._store, model_id)
            progress.found(model_id, await loop.run_in_executor(self._storage, count))
        progress.counted()
        await progress.report()

    async def _recover(self, absent: AbsentModel, progress: RecoveryProgress) -> None:
        model_id, start = absent.model_id, time.perf_counter()
        try:
            on_replayed = functools.partial(progress.replayed, model_id)
            found = await self._read_back(model_id, absent, on_replayed)
            seconds = time.perf_counter() - start
            status = found.status
            if self.cache.has_room or not found.is_settled:
                self._go_on(found, absent.lifecycle, seconds)
            else:
                self.cache.states[model_id] = status
                absent.lifecycle.apply(_SETTLES[status.state])
                del self.absent[model_id]
        except ServerStopping:
            return
        except Exception as error:  # noqa: BLE001 - the other models are served
            self._not_back(model_id, absent.lifecycle, error)
        else:
            _say_recovered(found, status, seconds)
        progress.recovered()
        await self.health.say(model_id)

    # ------------------------------------------------------------------ recovery on a request

    async def _bring_back(self, model_id: str) -> None:
        """Recover a model that has left memory.

        Raises:
            ServiceError: the model cannot be recovered.
        """
        start, lifecycle = time.perf_counter(), self.lifecycle(model_id)
        try:
            async with self._turns:
                found = await self._read_back(model_id)
        except DataDamaged as error:
            known = self.cache.states.pop(model_id)
            self.absent[model_id] = AbsentModel(model_id, lifecycle, known)
            self._not_back(model_id, lifecycle, error)
            raise lifecycle.refusal() from error
        except ServiceError:
            raise
        except Exception as error:
            log.exception("model %s could not be loaded; the next request tries again", model_id)
            raise Recovering.after_failure(model_id, FIRST_PAUSE_SECONDS) from error
        self.cache.states.pop(model_id)
        self._go_on(found, lifecycle, time.perf_counter() - start)

    # ------------------------------------------------------------------ recovery after a failure

    def failed(self, model_id: str, lifecycle: Lifecycle, doing: str) -> ServiceError:
        """See `failures.Supervisor`."""
        self._sink.model_failed(model_id, doing)
        if self._store is None or lifecycle.state is State.DRAINING or self._is_stopping:
            return failed_for_good(model_id)
        return self._retry_later(model_id, lifecycle) or failed_for_good(model_id)

    def _not_back(self, model_id: str, lifecycle: Lifecycle, error: Exception) -> None:
        """Set a model whose recovery failed to FAILED; schedule a retry unless it is damaged."""
        told = error.message if isinstance(error, ServiceError) else repr(error)
        known = isinstance(error, ServiceError)
        log.error(
            "model %s could not be recovered: %s", model_id, told, exc_info=None if known else error
        )
        self._sink.model_failed(model_id, "recovery")
        why: ServiceError | None = None
        if isinstance(error, DataDamaged):
            why = DataDamaged(f"model {model_id}: {told}")
        else:
            why = self._retry_later(model_id, lifecycle)
        lifecycle.apply(
            Event.FAIL,
            why
            or ModelFailed(
                f"model {model_id} could not be recovered: {told if known else 'internal error'}"
                "; a restart of the server tries again"
            ),
        )

    def _retry_later(self, model_id: str, lifecycle: Lifecycle) -> ServiceError | None:
        """Schedule a retry and return the error until then; None: there are no retries left."""
        count, last = self._failures.get(model_id, (0, -math.inf))
        now = time.monotonic()
        if now - last > QUIET_SECONDS:
            count = 0
        self._failures[model_id] = count + 1, now
        if count >= RETRIES_MAX:
            log.error("model %s stays failed: it was recovered %d times", model_id, count)
            return None
        pause = FIRST_PAUSE_SECONDS * 2**count
        task = asyncio.ensure_future(self._retry(model_id, lifecycle, pause))
        self._retries[model_id] = task
        task.add_done_callback(functools.partial(self._retried, model_id))
        return Recovering.after_failure(model_id, pause)

    def _retried(self, model_id: str, task: asyncio.Task[None]) -> None:
        if self._retries.get(model_id) is task:
            del self._retries[model_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("model %s: the attempt to recover it failed", model_id, exc_info=error)

    async def _retry(self, model_id: str, lifecycle: Lifecycle, pause: float) -> None:
        await asyncio.sleep(pause)
        start, failed = time.perf_counter(), self._models.get(model_id)
        if failed is not None:
            await failed.close(lifecycle.refusal(), FLUSH_SECONDS)
        lifecycle.apply(Event.RETRY)
        try:
            async with self._turns:
                found = await self._read_back(model_id, self.absent.get(model_id))
            seconds = time.perf_counter() - start
            self._go_on(found, lifecycle, seconds)
        except ServerStopping:
            return
        except Exception as error:  # noqa: BLE001 - it is retried, or stays failed
            self._not_back(model_id, lifecycle, error)
            return
        _say_recovered(found, found.status, seconds)

    # ------------------------------------------------------------------ stop

    @property
    def _is_stopping(self) -> bool:
        try:
            self._check_running()
        except ServerStopping:
            return True
        return False

    async def leave(self, model_id: str) -> None:
        """Cancel a model's retry, because the model is about to be deleted."""
        self._failures.pop(model_id, None)
        task = self._retries.pop(model_id, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def stop(self) -> None:
        """Cancel all retries."""
        for model_id in list(self._retries):
            await self.leave(model_id)


def _say_recovered(found: Recovered, status: ModelStatus, seconds: float) -> None:
    replayed = ""
    if found.replayed_steps:
        replayed = f"; {counted(found.replayed_steps, 'step')} replayed from its journal"
    log.info(
        "model %s recovered in %.1f s: %s, %s, %s%s",
        found.definition.model_id,
        seconds,
        counted(status.figures.steps, "step"),
        counted(status.figures.updates, "update"),
        counted(status.streams, "stream"),
        replayed,
    )


def counted(count: int, what: str) -> str:
    """Format a count with its noun: "1 step", "2 steps"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
