"""A model in memory: connects its parts and offers its entry points.

    accept → AdmissionQueue → Worker (in a thread: apply, snapshot) → Publisher → answers
                                                                          └→ JournalWriter → durable

Rules:
- Every entrance asks the lifecycle first: `admit(operation)`.
- A chunk gets its position in its stream when it is accepted. An accepted chunk is applied or
  refused, whether or not its client hangs up.
- Answers do not wait for the journal. `durable_step` says how far a stream is durable, and
  `durable_listeners` are called when that has advanced.
- The worker has an owner: when its task ends, for whatever reason, the model is FAILED, and all
  waiting requests are answered.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

from bptt.config import ServerConfig
from bptt.domain import (
    IncomingBatch,
    ModelDefinition,
    ReportSink,
)
from bptt.domain import ModelState as State
from bptt.durability import CheckpointInfo, Store
from bptt.engine.administration import Administration
from bptt.engine.admission import AdmissionQueue
from bptt.engine.checkpointer import Checkpointer
from bptt.engine.failures import Supervisor, Unsupervised
from bptt.engine.journaling import JournalWriter
from bptt.engine.lifecycle import Event, Lifecycle, Operation, SETTLED
from bptt.engine.live import LiveLearner
from bptt.engine.messages import Response, StreamCommand
from bptt.engine.publisher import Publisher
from bptt.engine.reader import ModelReader
from bptt.engine.stalls import StallWatch
from bptt.engine.views import StreamViews
from bptt.engine.worker import Worker
from bptt.errors import ReadOnly, ServiceError
from bptt_core import Learner

log = logging.getLogger(__name__)


class Trainer(ModelReader):
    """A model in memory. Lives on the event loop; call `start` there first, and `stop` at the end.

    Attributes:
        load_id: a random number of this loading of the model into memory. Under another
            number, applied steps that were not durable may be gone.
        used_at: when a request last asked for the model, or a call left it; monotonic clock.
        listeners: called with the reason when the model stops or fails.

    Args:
        definition: the model's definition.
        learner: a learner of the definition, after record `lsn`.
        executor: threads that learn.
        storage: threads that wait for the disk; None: `executor`.
        store: stores the model; None: the model is not stored.
        sink: receives the server's reports.
        config: limits, and the checkpoint interval.
        lsn: the last record that the learner has applied.
        saved_lsn: the last record that its newest whole checkpoint holds; None: `lsn`.
        damage: the damage in its journal. None: no damage. A damaged model only predicts.
        views: of the learner's streams; None: they are made.
        lifecycle: in state RECOVERING; None: a new one.
        supervisor: notified of failures. None: failures have no handler.
    """

    def __init__(
        self,
        definition: ModelDefinition,
        learner: Learner,
        *,
        executor: Executor,
        store: Store | None,
        sink: ReportSink,
        config: ServerConfig,
        lsn: int = 0,
        saved_lsn: int | None = None,
        storage: Executor | None = None,
        damage: str | None = None,
        views: StreamViews | None = None,
        lifecycle: Lifecycle | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:
        model_id, storage = definition.model_id, storage or executor
        live = LiveLearner(definition, learner, executor)
        publisher = Publisher(live, views, sink, journaled=store is not None)
        super().__init__(live, lifecycle or Lifecycle(model_id), publisher)
        publisher.on_figures = self._figures_changed
        self.load_id = secrets.randbits(63) | 1
        self.used_at = time.monotonic()
        self.listeners: set[Callable[[ServiceError], None]] = set()
        self._supervisor = supervisor or Unsupervised()
        self._busy: set[asyncio.Task[Any]] = set()  # tasks that use the model
        self._store = store if damage is None else None  # a damaged model is not written
        self._damage = damage
        self._admission = AdmissionQueue(
            definition.spec,
            config.limits,
            self._publisher.published,
            self.sink.duplicate,
            self.sink.refused,
        )
        self._journal = JournalWriter(
            model_id,
            store,
            storage,
            last=lsn,
            on_commit=self._publisher.committed,
            on_change=lambda: self._stalls.journal_changed(),
        )
        self._checkpointer = Checkpointer(
            model_id,
            self._store,
            self._journal,
            storage,
            config,
            self.sink,
            lsn=lsn,
            wake=lambda: self._worker.wake(),
        )
        self._publisher.connect(self._admission, self._journal, self._checkpointer)
        self._worker = Worker(
            self._live,
            self.lifecycle,
            self._admission,
            self._publisher,
            self._journal,
            self._checkpointer,
            config.limits,
            config.gradient_flow_updates,
        )
        self._administration = Administration(
            self._live,
            self.lifecycle,
            self._worker,
            self._publisher,
            self._journal,
            self._checkpointer,
            store,
            storage,
        )
        self._replayed = damage is None and saved_lsn is not None and saved_lsn < lsn
        self._stalls = StallWatch(self.lifecycle, self._worker, self._journal)

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Start the worker; the lifecycle leaves RECOVERING."""
        learner, must_roll_back = self._live.learner, False
        if self._replayed:
            self._checkpointer.replayed()
            # The process may have ended between the tick that diverged and the roll-back.
            must_roll_back = learner.figures.diverged and learner.spec.on_divergence == "roll_back"
        if self._damage is not None:
            why = ReadOnly.of(self.definition.model_id, self._damage)
            self.lifecycle.apply(Event.DAMAGE, why)
        elif must_roll_back:
            self.lifecycle.apply(Event.ROLL_BACK)
        else:
            self._worker.settle()
        self._worker.start(
            roll_back=self._administration.roll_back,
            on_failure=self._worker_failed,
            must_roll_back=must_roll_back,
        )

    async def stop(self, *, refusal: ServiceError, save: bool, grace: float = math.inf) -> None:
        """Accept no more work, finish the accepted work, and save the model if asked to.

        Args:
            refusal: the error for new requests.
            save: write a checkpoint in the end. Else the model is about to be forgotten: what
                cannot be committed at once is refused.
            grace: seconds to finish in; the work left then is refused.

        Raises:
            StorageFailed: the checkpoint, or the journal, could not be written.
        """
        if self.lifecycle.can(Event.DRAIN):
            self.lifecycle.apply(Event.DRAIN, refusal)
        self._worker.wake()
        for listener in list(self.listeners):
            listener(refusal)
        if not save:
            self._stalls.model_is_deleted()
        timer = None
        if math.isfinite(grace):
            loop = asyncio.get_running_loop()
            timer = loop.call_later(grace, self._run_out_of_time, refusal)
        try:
            await self._worker.ended()
            whole = self.lifecycle.state is State.DRAINING  # else the model has failed
            if not (save and whole):
                self._journal.give_up(refusal)
            await self._checkpointer.stop()
            if save and whole:
                await self._journal.up_to(self._journal.last)
                if self._checkpointer.unsaved and self._store is not None:
                    await self._checkpointer.save(await self._live.copy(self._journal.last))
            else:
                await self.close(refusal)
        finally:
            if timer is not None:
                timer.cancel()
            self._stalls.cancel()
            if self.lifecycle.can(Event.STOP):
                self.lifecycle.apply(Event.STOP, refusal)

    async def close(self, why: ServiceError, grace: float = 0.0) -> None:
        """Stop all its writes to the store.

        Args:
            why: the error for waiters for a commit or checkpoint.
            grace: seconds in which applied records may still be committed.
        """
        if grace and self._journal.broken is None:
            task = asyncio.ensure_future(self._journal.up_to(self._journal.last))
            await asyncio.wait([task], timeout=grace)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._journal.close(why)
        await self._checkpointer.close(why)
        self._stalls.cancel()

    def _run_out_of_time(self, why: ServiceError) -> None:
        self._worker.refuse_rest(why)
        self._journal.give_up(why)

    def _worker_failed(self, error: BaseException) -> None:
        """Handle the end of the worker: the model becomes FAILED, and all waiters are answered."""
        doing, model_id = self._worker.doing, self.definition.model_id
        log.error("model %s failed while %s", model_id, doing, exc_info=error)
        self._publisher.published.freeze()
        why = self._supervisor.failed(model_id, self.lifecycle, doing)
        self.lifecycle.apply(Event.FAIL, why)
        try:
            self._worker.refuse_all(why)
        finally:
            for listener in list(self.listeners):
                listener(why)

    def keep_during(self, task: asyncio.Task[Any]) -> None:
        """Keep the model in memory until the task is done."""
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    @property
    def stays(self) -> bool:
        """True if the model is in use, or holds state that is stored nowhere else."""
        waits = self._admission.in_use or self._worker.in_use
        writes = self._journal.committed != self._journal.last
        in_use = self.listeners or waits or writes or self._busy
        return bool(in_use or self.lifecycle.state in _STAYS)

    async def settle(self) -> None:
        """See `Administration.settle`."""
        await self._administration.settle()

    @property
    def is_settled(self) -> bool:
        """True if the model can leave memory without a loss."""
        return self._checkpointer.is_settled and not self.stays

    def forget(self) -> None:
        """Free the memory of a stopped model at once: reference cycles would keep it."""
        del self._live.learner
        self._publisher.published.forget()

    # ------------------------------------------------------------------ state of the parts

    @property
    def stalled(self) -> ServiceError | None:
        """The reason why the store refuses commits now. None: it does not."""
        return self._journal.failure

    def _figures_changed(self) -> None:
        if self.lifecycle.state in SETTLED:
            self._worker.settle()

    @property
    def waits(self) -> bool:
        """Whether its worker is idle."""
        return self._worker.waits

    @property
    def lsn(self) -> int:
        """The lsn of the model's last record."""
        return self._journal.last

    @property
    def durable_lsn(self) -> int:
        """All records up to this one are as durable as they get."""
        return self._journal.committed

    def incarnation(self, stream_id: str) -> int:
        """The incarnation of a stream as of the newest answer; 0 for one that is not known."""
        return self._publisher.published.incarnation(stream_id)

    @property
    def last_incarnation(self) -> int:
        """The highest number that was given to an opening of a stream; 0 before the first."""
        return self._live.learner.last_incarnation

    # ------------------------------------------------------------------ chunks and commands

    def expected_step(self, stream_id: str) -> int:
        """The step after all accepted steps of a stream; 0 for an unknown stream."""
        return self._admission.expected_step(stream_id)

    @property
    def full(self) -> bool:
        """Whether a chunk must wait: the queue is full, or earlier calls wait for room."""
        return self._admission.full

    async def room(self) -> None:
        """Wait until the queue has room for a chunk. First come, first served."""
        await self._admission.room()

    def accept(self, incoming: IncomingBatch, pending: Response, sender: object = None) -> None:
        """Admit a message's lanes to their streams and the queue; the answer fills `pending`.

        A lane that is refused, now or when its turn comes, is part of the answer, and counted.

        Args:
            incoming: well-formed lanes.
            pending: its place in the call's response queue.
            sender: the open call. From its first chunk of a stream until `leave`, no other call may
                send that stream. None: no call.

        Raises:
            ServiceError: the message is refused as a whole; nothing was changed.
        """
        self.lifecycle.admit(Operation.LEARN)
        if self._journal.failure is not None:  # for example during a roll-back
            raise self._journal.failure
        self._worker.came(self._admission.place(incoming, pending, sender))

    def leave(self, sender: object, stream_ids: Iterable[str]) -> None:
        """Release the streams of a call that has ended: other calls may send them."""
        self.used_at = time.monotonic()
        self._admission.leave(sender, stream_ids)

    async def command(self, command: StreamCommand) -> int:
        """Reset or delete a stream after its accepted chunks; durable when this returns.

        Args:
            command: its `done` must be a future of this event loop.

        Returns:
            The stream's next step.

        Raises:
            UnknownStream: no stream has that name.
            ServiceError: the model's state does not admit the command.
        """
        self.lifecycle.admit(Operation.CHANGE_STREAM)
        assert isinstance(command.done, asyncio.Future)
        self._admission.put(command)
        self._worker.came_command()
        next_step: int = await command.done
        await self.durable()
        return next_step

    async def durable(self) -> None:
        """Wait until all records applied by now are durable.

        Raises:
            ServiceError: they cannot become durable, or the store has refused commits for too long.
        """
        await self._journal.up_to(self._journal.last)

    # ------------------------------------------------------------------ administration

    async def configure(self, changes: dict[str, Any]) -> None:
        """See `Administration.configure`."""
        await self._administration.configure(changes)

    async def save_checkpoint(self) -> CheckpointInfo:
        """See `Administration.save_checkpoint`."""
        return await self._administration.save_checkpoint()

    async def checkpoints(self) -> list[CheckpointInfo]:
        """See `Administration.checkpoints`."""
        return await self._administration.checkpoints()

    async def restore(self, lsn: int) -> None:
        """See `Administration.restore`."""
        await self._administration.restore(lsn)


_STAYS = frozenset({State.RECOVERING, State.FAILED, State.RESTORING, State.ROLLING_BACK})
"""States in which a model must not leave memory."""
