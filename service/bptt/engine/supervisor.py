"""Recovers models from the store: at the start, on request, and after a failure.

Rules:
- A model that cannot be recovered is FAILED, and the others are served.
- A model whose worker has ended is recovered automatically: after FIRST_PAUSE_SECONDS at first, and
  after twice as long each time it fails again soon. After RETRIES_MAX times it stays FAILED.
- Damage is not tried again: the same bytes give the same error.
- Before a failed model is read back, nothing of its old trainer writes to the store any more.
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
from bptt.engine.trainer import Trainer
from bptt.errors import DataDamaged, ModelFailed, Recovering, ServerStopping, ServiceError
from bptt_core import Learner

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
"""Pause before a failed model is recovered: long enough for a short lack of memory to pass, short
enough that clients that reconnect hardly notice."""

RETRIES_MAX = 5
"""Pauses of 0.5, 1, 2, 4 and 8 s: a failure that outlasts these is a defect, or a chunk that breaks
the model each time its client sends it again."""

QUIET_SECONDS = 60.0
"""A model that has run for this long since its last failure gets all its retries again."""

FLUSH_SECONDS = 5.0
"""How long the journal of a failed model may still be written before it is read back. Records that
are not committed by then were not acknowledged, and clients send their steps again."""

_SETTLES = {
    State.RUNNING: Event.RUN,
    State.PAUSED: Event.PAUSE,
    State.DIVERGED: Event.DIVERGE,
}


@dataclass(slots=True, eq=False)
class AbsentModel:
    """A model of the store that has no trainer, and is not asleep either."""

    model_id: str
    lifecycle: Lifecycle
    known: ModelStatus | None = None
    """The model as it was last known; None: nothing has been read of it."""

    @property
    def status(self) -> ModelStatus | UnreadModel:
        """The model as it is now."""
        state, why = self.lifecycle.state, self.lifecycle.why
        reason = "" if why is None else why.message
        if self.known is None:
            return UnreadModel(self.model_id, state, reason)
        return replace(self.known, state=state, state_reason=reason)


class ModelSupervisor:
    """Starts trainers, and brings models back. Lives on the event loop.

    Attributes:
        absent: models that are being brought back, or could not be.
        health: tells health checks of states.

    Args:
        models: of the registry, in memory.
        config: limits, and how often models are saved.
        executor: where models learn, and are read back.
        storage: where threads wait for the disk.
        store: where models are kept; None: nowhere.
        sink: where models report to.
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
        self._failures: dict[str, tuple[int, float]] = {}  # how many in a row, when the last was
        self._retries: dict[str, asyncio.Task[None]] = {}
        # Models that come back leave a thread to those that learn.
        self._turns = asyncio.Semaphore(max(1, config.threads - 1))

    # ------------------------------------------------------------------ trainers

    def lifecycle(self, model_id: str) -> Lifecycle:
        """A new lifecycle of a model, whose states are shown."""
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
        """Put a model to work, in the place of a trainer that failed if there is one.

        Args:
            definition: the model as its user asked for it.
            learner: of the definition.
            lifecycle: in state RECOVERING; None: a new one.
            more: see `Trainer`.
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

    async def _read_back(self, model_id: str, absent: AbsentModel | None = None) -> Recovered:
        """Read a model back in a thread.

        Args:
            model_id: a model of the store.
            absent: receives the status that is known before the journal is replayed.
        """
        assert self._store is not None

        def on_found(known: ModelStatus) -> None:
            if absent is not None:
                absent.known = known

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._executor, recover, self._store, model_id, self._check_running, on_found
        )

    # ------------------------------------------------------------------ at the start

    async def recover(self, model_ids: list[str]) -> None:
        """Bring models back side by side; each is served once it is back."""
        for model_id in model_ids:
            lifecycle = self.lifecycle(model_id)
            self.absent[model_id] = AbsentModel(model_id, lifecycle)
            self._show(model_id, lifecycle)
            await self.health.say(model_id)
        await asyncio.gather(*(self._recover(self.absent[each]) for each in model_ids))

    async def _recover(self, absent: AbsentModel) -> None:
        model_id, start = absent.model_id, time.perf_counter()
        try:
            found = await self._read_back(model_id, absent)
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
        await self.health.say(model_id)

    # ------------------------------------------------------------------ when asked for

    async def _bring_back(self, model_id: str) -> None:
        """Put a model that has left memory back.

        Raises:
            ServiceError: it cannot be brought back.
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
            log.exception("model %s not brought back; it is tried when next asked for", model_id)
            raise Recovering.after_failure(model_id, FIRST_PAUSE_SECONDS) from error
        self.cache.states.pop(model_id)
        self._go_on(found, lifecycle, time.perf_counter() - start)

    # ------------------------------------------------------------------ after a failure

    def failed(self, model_id: str, lifecycle: Lifecycle, doing: str) -> ServiceError:
        """See `failures.Supervisor`."""
        self._sink.model_failed(model_id, doing)
        if self._store is None or lifecycle.state is State.DRAINING or self._is_stopping:
            return failed_for_good(model_id)
        return self._retry_later(model_id, lifecycle) or failed_for_good(model_id)

    def _not_back(self, model_id: str, lifecycle: Lifecycle, error: Exception) -> None:
        """A model could not be brought back: it is FAILED, and tried again if that may help."""
        told = error.message if isinstance(error, ServiceError) else repr(error)
        known = isinstance(error, ServiceError)
        log.error(
            "model %s not brought back: %s", model_id, told, exc_info=None if known else error
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
                f"model {model_id} could not be brought back: {told if known else 'internal error'}"
                "; a restart of the server tries again"
            ),
        )

    def _retry_later(self, model_id: str, lifecycle: Lifecycle) -> ServiceError | None:
        """Have a model brought back later; None: it has failed too often."""
        count, last = self._failures.get(model_id, (0, -math.inf))
        now = time.monotonic()
        if now - last > QUIET_SECONDS:
            count = 0
        self._failures[model_id] = count + 1, now
        if count >= RETRIES_MAX:
            log.error("model %s stays failed: it was brought back %d times", model_id, count)
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
            log.error("model %s: the attempt to bring it back broke", model_id, exc_info=error)

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
        except Exception as error:  # noqa: BLE001 - it is tried again, or stays failed
            self._not_back(model_id, lifecycle, error)
            return
        _say_recovered(found, found.status, seconds)

    # ------------------------------------------------------------------ ends

    @property
    def _is_stopping(self) -> bool:
        try:
            self._check_running()
        except ServerStopping:
            return True
        return False

    async def leave(self, model_id: str) -> None:
        """Bring a model back no more: it is about to be deleted."""
        self._failures.pop(model_id, None)
        task = self._retries.pop(model_id, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def stop(self) -> None:
        """Bring no model back any more."""
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
    """A number of things, in words: "1 step", "2 steps"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
