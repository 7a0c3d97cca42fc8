"""The single writer of a model: one asyncio task that forms ticks, has them applied, and publishes.

    accept → AdmissionQueue → run (in a thread: apply, snapshot) → publish (on the loop) → answers
                                                             └→ JournalWriter → durable steps

Rules:
- The learner is touched by one run at a time, and between two of them by the event loop alone.
- Whatever others read (`snapshot`, `views`, `figures`) is replaced on the event loop, all at once:
  a prediction sees a whole run or nothing of it. See `PublishedState`.
- A run takes several ticks when several wait, so that one wake-up serves many small messages, and
  waits a little for more where no client waits for it. How ticks fall into runs changes nothing
  that is learned, nor does it that chunks of one stream are joined to one tick.
- A short chunk whose client waits for it alone is a run of its own, made before `accept` returns.
- A chunk is placed in its stream when it is accepted, and what is accepted is applied, whoever
  hangs up.
- Answers do not wait for the journal. Whoever wants to know what is durable asks `durable_step`,
  and is told by `durable_listeners` when it has grown.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from typing import Any, TypeVar

from bptt.config import ServerConfig
from bptt.domain import (
    Answer,
    FloatArray,
    Gauges,
    IncomingChunk,
    ModelDefinition,
    ModelState,
    ModelStatus,
    Refused,
    ReportSink,
    RunReport,
    state_of,
)
from bptt.durability import Checkpoint, CheckpointInfo, Command, Store
from bptt.engine.admission import AdmissionQueue
from bptt.engine.checkpointer import Checkpointer
from bptt.engine.fair_queue import QueuedChunk, StreamCommand, TickBatch
from bptt.engine.flow import FlowWatch
from bptt.engine.journaling import DurableSteps, JournalWriter
from bptt.engine.published import PublishedState
from bptt.engine.records import apply_body, LoadCheckpoint, make_checkpoint
from bptt.engine.responses import PendingResponse
from bptt.engine.rollback import RollbackPolicy
from bptt.engine.run import Outcome, run
from bptt.engine.views import StreamViews
from bptt.errors import (
    from_core,
    ModelFailed,
    NotFound,
    ReadOnly,
    Recovering,
    ServerStopping,
    ServiceError,
    StorageFailed,
)
from bptt_core import ChunkResult, Figures, Learner, Snapshot
from bptt_core.errors import BpttError

log = logging.getLogger(__name__)

T = TypeVar("T")

Control = tuple[Callable[[], Awaitable[Any]], asyncio.Future[Any]]
"""Something to be done between two runs, and who waits for it."""

INLINE_SECONDS = 0.000_3
"""A run of one chunk that is expected to be as short is made on the event loop. Handing it to a
thread and back costs about as much: with one step a message, round trips took 0.5 ms instead of
0.8 ms. Longer runs, and those of several chunks, go to the pool."""

GATHER_SECONDS = 0.001
"""How long a run waits for more where all clients send on without waiting for answers. Each run
costs a thread's turn and copies of what others see: with 3 chunks of 64 steps in each, a fifth of a
message's time."""

GATHER_STEPS = 512
"""Steps in the queue that are enough to begin at once."""

INLINE_MEMORY = 16
"""Runs over which their length is averaged: more than a default k1, so updates are evened out."""


class Trainer:
    """A model at work. Lives on the event loop; `start` it there, and `stop` it in the end.

    Attributes:
        definition: what was asked for.
        settings: how it learns now.
        load_id: a random number of this loading of the model into memory. What was applied but not
            durable may be gone under another one.
        used_at: when somebody last asked for the model, or left it; of the monotonic clock.
        listeners: told why the model stops, when it does.
        durable_listeners: called when more records of the journal have become durable.
        divergence_listeners: called when the model has diverged, and when it learns again.

    Args:
        definition: what was asked for.
        learner: of the definition, after `ticks` records.
        executor: where it learns.
        storage: where the disk is waited for; None: `executor`.
        store: where the model is kept; None: nowhere.
        sink: where it reports to.
        config: limits, and how often it is saved.
        ticks: records in its life so far.
        saved_ticks: those that its newest whole checkpoint holds; None: all.
        damage: what is wrong with its journal; None: nothing. Else it only predicts.
        views: of the learner's streams; None: they are made.
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
    ) -> None:
        self.definition = definition
        self._published = PublishedState(learner, self._figures_turn, views)
        self.settings = learner.settings
        self.parameters = learner.parameter_count
        self.load_id = secrets.randbits(63) | 1
        self.used_at = time.monotonic()
        self._busy: set[asyncio.Task[Any]] = set()  # with something that is asked of the model
        self._learner = learner
        self._executor = executor
        self._store = store
        self._config = config
        self._limits = config.limits
        self._flow = FlowWatch(config.gradient_flow_updates)
        self.listeners: set[Callable[[ServiceError], None]] = set()
        self.durable_listeners: set[Callable[[], None]] = set()
        self.divergence_listeners: set[Callable[[], None]] = set()
        self._wake = asyncio.Event()
        self._refusal: ServiceError | None = None  # why nothing more is accepted
        if damage is not None:
            self._refusal = ReadOnly.of(definition.model_id, damage)
        self._read_only = damage is not None
        self._controls: deque[Control] = deque()  # once all that was accepted is applied
        self._steering: deque[Control] = deque()  # between the next two runs
        self._step_seconds = math.inf  # of runs of one chunk; unknown before the first of them
        self._awaited = 0  # entries that were put since the last run began, and are waited for
        self._idle = False  # `_work` waits for something to do
        self._to_look_at: Outcome | None = None  # how far gradients reach back after it
        self._give_up_with: ServiceError | None = None  # why what is queued is not learned
        self._failed = False
        self._ending = False
        self._task: asyncio.Task[None] | None = None
        self._admission = AdmissionQueue(
            definition.spec, config.limits, self._published, self._came_again
        )
        self.sink = sink.open_model(definition.model_id, learner.figures, self._gauges)
        self._durable = DurableSteps()
        model_id, storage = definition.model_id, storage or executor
        self._journal = JournalWriter(
            model_id,
            store,
            storage,
            last=lsn,
            on_commit=self._committed,
            on_change=self._wake.set,
        )
        self._storage = storage
        self._rollback_policy = RollbackPolicy(store, model_id)
        self._checkpointer = Checkpointer(
            model_id,
            None if self._read_only else store,
            self._journal,
            storage,
            config,
            self.sink,
            lsn=lsn,
            wake=self._wake.set,
        )
        self._rolls_back = False  # to do before anything else
        if saved_lsn is not None and saved_lsn < lsn and not self._read_only:
            self._checkpointer.replayed()
            # Its server may have been killed between the tick that diverged and the roll-back.
            self._rolls_back = (
                learner.figures.diverged and learner.spec.on_divergence == "roll_back"
            )

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to work off the queue."""
        self._task = asyncio.create_task(self._work(), name=f"trainer {self.definition.model_id}")

    async def stop(self, *, refusal: ServiceError, save: bool, grace: float = math.inf) -> None:
        """Accept nothing more, finish what was accepted, save it if asked to.

        Args:
            refusal: what is said to those who come now.
            save: write a checkpoint in the end.
            grace: seconds to finish in; what is left then is refused.

        Raises:
            StorageFailed: the checkpoint, or the journal, could not be written.
        """
        self._refusal = refusal
        self._ending = True
        self._wake.set()
        for listener in list(self.listeners):
            listener(refusal)
        if math.isfinite(grace):
            asyncio.get_running_loop().call_later(grace, self._run_out_of_time)
        if self._task is not None:
            await self._task
        if not save:
            self._journal.give_up(refusal)
        await self._checkpointer.stop()
        if save:
            await self._journal.up_to(self._journal.last)
            if self._checkpointer.unsaved and not self._failed:
                await self._checkpointer.save(await self._copy())

    def keep_during(self, task: asyncio.Task[Any]) -> None:
        """The model is in use until the task is done."""
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    @property
    def stays(self) -> bool:
        """Whether the model must stay in memory: somebody would notice, or nothing else has it."""
        waits = self._admission.in_use or self._controls or self._steering
        writes = self._journal.committed != self._journal.last
        in_use = self.listeners or waits or writes or self._busy or self._rolls_back
        return bool(in_use or self._failed)

    async def settle(self) -> None:
        """Have all of the model saved. It goes on meanwhile: look at `is_settled` afterwards.

        Raises:
            ServiceError: it could not be saved.
        """
        await self._checkpointer.settled()
        if self._checkpointer.unsaved:
            await self._checkpointer.save(await self._between_runs(self._copy))

    @property
    def is_settled(self) -> bool:
        """Whether nothing is lost if the model leaves memory now."""
        return self._checkpointer.is_settled and not self.stays

    def forget(self) -> None:
        """Give the memory of a model that has stopped back now; its trainer stands in cycles."""
        del self._learner
        self._published.forget()

    def _run_out_of_time(self) -> None:
        why = self._give_up_with or self._refusal
        assert why is not None
        self._give_up_with = why
        self._journal.give_up(why)
        self._wake.set()

    @property
    def snapshot(self) -> Snapshot:
        """What predictions read. Immutable."""
        return self._published.snapshot

    @property
    def views(self) -> StreamViews:
        """Live state of each stream, as of the snapshot. Immutable values."""
        return self._published.views

    @property
    def figures(self) -> Figures:
        """How the model does, as of the snapshot."""
        return self._published.figures

    def error_band(self) -> tuple[FloatArray, FloatArray]:
        """As `Snapshot.error_band`, of the newest snapshot; costs none."""
        return self._published.error_band()

    @property
    def state(self) -> ModelStatus:
        """The model as of its snapshot."""
        return ModelStatus(
            self.definition,
            self.parameters,
            len(self.views),
            self.figures,
            self.condition,
            self.settings,
        )

    @property
    def condition(self) -> ModelState:
        """What the model does with chunks."""
        figures = self._published.last_figures
        return "read_only" if self._read_only else state_of(self.settings, figures)

    @property
    def lsn(self) -> int:
        """Records in the life of the model."""
        return self._journal.last

    @property
    def durable_lsn(self) -> int:
        """All records up to this one are as durable as they get."""
        return self._journal.committed

    def incarnation(self, stream_id: str) -> int:
        """The incarnation of a stream as of the newest answer; 0 for one that is not known."""
        return self._published.incarnation(stream_id)

    @property
    def last_incarnation(self) -> int:
        """The highest number that was given to an opening of a stream; 0 before the first."""
        return self._learner.last_incarnation

    def _came_again(self, steps: int) -> None:
        self.sink.duplicate(steps)

    def _gauges(self) -> Gauges:
        self._published.catch_up_from_any_thread()
        return Gauges(len(self._published), self._admission.queue.chunks, self._admission.steps)

    # ------------------------------------------------------------------ coming in

    def expected_step(self, stream_id: str) -> int:
        """The step after all that was accepted of a stream; 0 for one that is not known."""
        return self._admission.expected_step(stream_id)

    @property
    def full(self) -> bool:
        """Whether a chunk must wait for room in the queue, or behind those who wait for it."""
        return self._admission.full

    async def room(self) -> None:
        """Wait until the queue has room for a chunk. Who came first goes first."""
        await self._admission.room()

    @property
    def stalled(self) -> ServiceError | None:
        """Why nothing can be committed for now; None: it can."""
        return self._journal.failure

    def accept(
        self, incoming: IncomingChunk, pending: PendingResponse, sender: object = None
    ) -> None:
        """Give a chunk its place in its stream; the answer fills `pending`.

        Args:
            incoming: well-formed.
            pending: of the call's outbox.
            sender: the open call; from its first chunk of a stream until `leave` no other one may
                send that stream. None: nobody in particular.

        Raises:
            ServiceError: the chunk is refused; nothing was changed.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._journal.failure is not None:
            raise self._journal.failure
        queued = self._admission.place(incoming, pending, sender)
        if self._is_for_now(queued):
            self._learn_now()
        else:
            self._awaited += pending.alone
            self._wake.set()

    def leave(self, sender: object, stream_ids: Iterable[str]) -> None:
        """A call has ended: others may send its streams."""
        self.used_at = time.monotonic()
        self._admission.leave(sender, stream_ids)

    async def command(self, command: StreamCommand) -> int:
        """Reset or delete a stream after what was accepted of it. Its next step then.

        It is durable when this returns.

        Raises:
            UnknownStream: there is none of that name.
            ServiceError: the model takes nothing now.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._journal.failure is not None:
            raise self._journal.failure
        self._admission.put(command)
        self._awaited += 1
        self._wake.set()
        next_step = await command.done
        await self._journal.up_to(self._journal.last)
        return next_step

    # ------------------------------------------------------------------ the work

    def _is_for_now(self, queued: QueuedChunk) -> bool:
        """Whether a chunk that was just queued may be learned before `accept` returns.

        Its client waits for this answer alone, nobody else sends, and nothing else is to be done.
        """
        return (
            self._idle
            and not self._wake.is_set()  # else something waits already that comes before it
            and queued.steps * self._step_seconds <= INLINE_SECONDS
            and queued.pending.alone
            and self._admission.queue.chunks == 1
            and self._published.knows(queued.stream_id)
            and self._admission.sends_one  # else they form a batch
            and not queued.repeats
            and not queued.chunk.end_of_sequence  # which may learn more than the chunk
            and not (self._controls or self._steering or self._checkpointer.due or self._ending)
            and not self._journal.blocked
            and self.definition.spec.on_divergence == "stop"
        )

    def _may_gather(self) -> bool:
        """Whether nobody minds if the next run begins a little later, and holds more."""
        return (
            not self._awaited
            and self._admission.steps < GATHER_STEPS
            and not (self._controls or self._steering or self._ending)
            and self._give_up_with is None
        )

    def _learn_now(self) -> None:
        """A run without a turn of the event loop: three of them took as long as the run."""
        batches = self._admission.take(1, 1)
        try:
            outcome = run(self._learner, batches, looks=not self._published.may_wait)
            self._measured(outcome, batches[0].chunks[0].steps)
            self._publish(batches, outcome)
        except Exception as error:  # noqa: BLE001 - nobody may wait for an answer for ever
            self._fail(batches, error)
            return
        if self._flow.is_due(outcome):
            self._to_look_at = outcome
            self._wake.set()

    async def _work(self) -> None:
        while True:
            if self._rolls_back:
                self._rolls_back = False
                try:
                    await self._roll_back()
                except Exception as error:  # noqa: BLE001 - the learner is in no known state
                    self._fail([], error)
            if self._checkpointer.due and not self._failed:
                self._checkpointer.begin(await self._copy())
            if self._to_look_at is not None:
                outcome, self._to_look_at = self._to_look_at, None
                self.sink.flow(await self._in_thread(self._flow.look, self._learner, outcome))
            if self._controls and not self._admission.queue:
                await self._control(self._controls)
                continue
            stuck = self._journal.blocked and self._give_up_with is None
            if stuck and self._journal.broken is not None:
                self._fail([], self._journal.broken)
                continue
            if self._steering and not stuck:
                await self._control(self._steering)
                continue
            if stuck or not self._admission.queue:
                if self._ending and not self._admission.queue and not self._controls:
                    self._turn_away()
                    return
                self._wake.clear()
                self._idle = True
                await self._wake.wait()
                self._published.catch_up()  # before another thread has the learner
                self._idle = False
                continue
            if self._may_gather():
                await asyncio.sleep(GATHER_SECONDS)
            self._awaited = 0
            batches = self._admission.take(self._limits.run_chunks, self._limits.run_steps)
            if self._give_up_with is not None:
                self._give_up(batches, self._give_up_with)
                continue
            try:
                outcome = await self._outcome(batches)
                self._publish(batches, outcome)
            except Exception as error:  # noqa: BLE001 - nobody may wait for an answer for ever
                self._fail(batches, error)
                continue
            if outcome.diverged:
                self._admission.put_back(outcome.rest)
                self._rolls_back = True
                continue
            if self._flow.is_due(outcome):
                self._to_look_at = outcome

    async def _outcome(self, batches: list[TickBatch]) -> Outcome:
        """What `run` gives: from a thread, or at once where a thread costs more than it saves."""
        alone = _single(batches)
        if alone is None:
            return await self._in_thread(run, self._learner, batches)
        if alone.steps * self._step_seconds <= INLINE_SECONDS:
            outcome = run(self._learner, batches)
        else:
            outcome = await self._in_thread(run, self._learner, batches)
        self._measured(outcome, alone.steps)
        return outcome

    def _measured(self, outcome: Outcome, steps: int) -> None:
        measured = outcome.own_seconds / max(1, steps)  # labels may come by themselves
        before = self._step_seconds if math.isfinite(self._step_seconds) else measured
        self._step_seconds = before + (measured - before) / INLINE_MEMORY

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *arguments)

    # ------------------------------------------------------------------ going out

    def _publish(self, batches: list[TickBatch], outcome: Outcome) -> None:
        """On the loop, in one go: the snapshot, then the answers that tell of it."""
        if outcome.failure is not None:
            self._fail(batches, outcome.failure)
            return
        if outcome.report is not None:
            self._published.takes(outcome)
        else:
            self._published.is_behind(outcome)
        for body, moves in outcome.records:
            lsn = self._journal.put(body)
            if self._store is not None:
                self._durable.applied(lsn, moves)
        self._answer(outcome)
        self.sink.run(outcome.report or RunReport(outcome.ticks, self._published.last_figures))
        if outcome.records and not self._ending:
            self._checkpointer.changed(self._journal.last)
        elif outcome.records:
            self._checkpointer.unsaved = True

    def _figures_turn(self, before: Figures, figures: Figures) -> None:
        if self._idle:  # of runs that did not tell
            self.sink.run(RunReport([], figures))
        if figures.diverged == before.diverged:
            return
        if figures.diverged and self.definition.spec.on_divergence == "stop":
            log.error(
                "model %s has diverged and learns nothing until it is resumed: %d updates in a row "
                "were not finite",
                self.definition.model_id,
                figures.consecutive_skipped,
            )
        for listener in list(self.divergence_listeners):
            listener()

    def _answer(self, outcome: Outcome) -> None:
        for queued, result in outcome.answers:
            self._admission.done(queued.stream_id, queued.steps)
            queued.pending.fill(self._answer_to(queued, result))
        for command, done in outcome.commands:
            self._admission.done(command.stream_id, 0)
            if command.done.done():  # who asked has hung up
                continue
            if isinstance(done, ServiceError):
                command.done.set_exception(done)
            else:
                command.done.set_result(done)

    def _answer_to(self, queued: QueuedChunk, result: ChunkResult | ServiceError) -> Answer:
        if isinstance(result, ServiceError):
            self.sink.refused(result.reason)
            expected = self.expected_step(queued.stream_id)
            return Refused(
                queued.stream_id, queued.chunk.first_step, result, expected, queued.pending.index
            )
        return result

    def _fail(self, batches: list[TickBatch], failure: Exception | None) -> None:
        """Something broke: stop learning, go on predicting from the last whole snapshot."""
        model_id = self.definition.model_id
        log.error("model %s stopped learning", model_id, exc_info=failure)
        error = ModelFailed(
            f"model {model_id} stopped learning after an internal error; "
            "a restart of the server brings it back as it was before that"
        )
        self._failed = True
        self._give_up_with = error
        self._refusal = self._refusal or error
        self._give_up(batches, error)

    def _give_up(self, batches: list[TickBatch], error: ServiceError) -> None:
        given_up = Outcome()
        for each in batches:
            waiting = [q for q in each.chunks + each.duplicates if q.pending.answer is None]
            given_up.answers += [(queued, error) for queued in waiting]
            given_up.commands += [(command, error) for command in each.commands]
        self._answer(given_up)

    # ------------------------------------------------------------------ what is durable

    def durable_step(self, stream_id: str) -> int:
        """All steps of a stream before this one are applied and durable.

        Without a store, or without a journal, that is all that is applied: nothing will ever be
        more durable.
        """
        return self._durable.step(stream_id, self._published.next_step(stream_id))

    async def durable(self) -> None:
        """Wait until all that is applied now is durable.

        Raises:
            ServiceError: it never will be.
        """
        await self._journal.up_to(self._journal.last)

    def _committed(self, lsn: int, seconds: float) -> None:
        self.sink.committed(seconds)
        self._durable.committed(lsn)
        for listener in list(self.durable_listeners):
            listener()

    # ------------------------------------------------------------------ between two runs

    async def _between_runs(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something with the learner soon: a busy queue may never be empty."""
        if self._refusal is not None:
            raise self._refusal
        if self._journal.failure is not None:
            raise self._journal.failure
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._steering.append((work, done))
        self._wake.set()
        return await done

    async def configure(self, changes: dict[str, Any]) -> None:
        """Change how the model learns; it is durable when this returns.

        Args:
            changes: as `Learner.configure` takes them.

        Raises:
            InvalidRequest: one is out of its bounds; nothing was changed.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._journal.failure is not None:
            raise self._journal.failure
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._steering.append((functools.partial(self._configure, changes), done))
        self._wake.set()
        await asyncio.shield(done)
        await self.durable()

    async def _configure(self, changes: dict[str, Any]) -> None:
        command = Command("configure", changes)
        try:
            await self._in_thread(apply_body, self._learner, command)
        except BpttError as error:
            raise from_core(error) from error
        self.settings = self._learner.settings
        self._published.takes_figures(self._learner.figures)
        self._journal.put(command)
        self._checkpointer.changed(self._journal.last)
        self.sink.run(RunReport([], self.figures))
        log.info("model %s: %s", self.definition.model_id, self.settings)

    def _turn_away(self) -> None:
        """Who asked for something between two runs, and the disk did not let it happen."""
        for _, done in self._steering:
            if not done.done():
                done.set_exception(self._refusal or ServerStopping())
        self._steering.clear()

    async def _control(self, controls: deque[Control]) -> None:
        work, done = controls.popleft()
        try:
            result = await work()
        except Exception as error:  # noqa: BLE001 - for who asked
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(result)

    async def _copy(self) -> Checkpoint:
        """Of the model as it is between two runs."""
        return await self._in_thread(
            make_checkpoint, self.definition, self._learner, self._journal.last
        )

    async def save_checkpoint(self) -> CheckpointInfo:
        """Write a checkpoint of the model as it is after the run that is being made.

        Raises:
            StorageFailed: it could not be written, or there is no store.
        """
        if self._store is None:
            raise _no_store()
        checkpoint = await self._between_runs(self._copy)
        await self._checkpointer.save(checkpoint)
        return next(each for each in await self.checkpoints() if each.lsn == checkpoint.lsn)

    async def checkpoints(self) -> list[CheckpointInfo]:
        """Those that are kept, oldest first; none without a store."""
        if self._store is None:
            return []
        loop = asyncio.get_running_loop()
        model_id = self.definition.model_id
        return await loop.run_in_executor(self._storage, self._store.checkpoints, model_id)

    async def restore(self, lsn: int) -> None:
        """Go back to the checkpoint after so many ticks, streams and all.

        What was accepted before is learned first, and then undone; chunks that come meanwhile are
        refused as if the model were being recovered. It is durable when this returns.

        Raises:
            NotFound: there is no such checkpoint.
            DataDamaged: it cannot be read back.
            StorageFailed: there is no store.
        """
        if self._store is None:
            raise _no_store()
        if self._refusal is not None:
            raise self._refusal
        if lsn not in {each.lsn for each in await self.checkpoints()}:
            model_id = self.definition.model_id
            raise NotFound(f"ticks is {lsn}; model {model_id} has no checkpoint after as many")
        refusal = self._refusal = Recovering.of(self.definition.model_id)
        try:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._controls.append((functools.partial(self._restore, lsn), done))
            self._wake.set()
            await asyncio.shield(done)
        finally:
            if self._refusal is refusal:
                self._refusal = None
        await self.durable()

    async def _restore(self, lsn: int) -> None:
        store, model_id = self._store, self.definition.model_id
        assert store is not None
        command = Command("restore", {"lsn": lsn})
        async with self._checkpointer.naming():
            await self._go_back(command, functools.partial(store.load, model_id))
        log.info("model %s restored to %d steps", model_id, self.figures.steps)

    async def _roll_back(self) -> None:
        """Go back to the last good checkpoint; without one the model stays diverged."""
        model_id, skipped = self.definition.model_id, self.figures.consecutive_skipped
        async with self._checkpointer.naming():
            try:
                found = await self._in_thread(self._rollback_policy.find, self._learner)
            except StorageFailed as error:
                log.error("model %s cannot be rolled back: %s", model_id, error.message)
                return
            if found is None:
                log.error(
                    "model %s stays diverged, with no good checkpoint to go back to: %d updates in "
                    "a row were not finite",
                    model_id,
                    skipped,
                )
                return
            checkpoint, command = found
            await self._go_back(command, lambda _: checkpoint)
        self.sink.rolled_back()
        log.warning(
            "model %s rolled back to what it was after %d steps, its learning rate is now %g: %d "
            "updates in a row were not finite",
            model_id,
            checkpoint.steps,
            self.figures.learning_rate,
            skipped,
        )

    async def _go_back(self, command: Command, load: LoadCheckpoint) -> None:
        """Do what a command says that names a checkpoint: all of the model may change."""

        def in_thread() -> tuple[Learner, Snapshot, StreamViews]:
            learner = apply_body(self._learner, command, load).learner
            return learner, learner.snapshot(), StreamViews.of(learner)

        self._learner, snapshot, views = await self._in_thread(in_thread)
        self.settings = self._learner.settings
        self._published.begins_anew(self._learner, snapshot, views)
        self._journal.put(command)
        self._checkpointer.changed(self._journal.last)
        self.sink.run(RunReport([], self.figures))


def _no_store() -> StorageFailed:
    return StorageFailed("there is no data folder: start the server with one to keep checkpoints")


def _single(batches: list[TickBatch]) -> QueuedChunk | None:
    """The one chunk of a run of one, unless its sequence ends, which may learn more than it."""
    if len(batches) != 1 or len(batches[0].chunks) != 1:
        return None
    only = batches[0]
    if only.commands or only.duplicates or only.chunks[0].chunk.end_of_sequence:
        return None
    return only.chunks[0]
