"""The loop that learns: one asyncio task for each model that is in memory.

Rules:
- One run at a time works on the learner; between two runs the event loop has it.
- A run takes several batches when several wait, so that one wake-up serves many small messages, and
  waits a little for more where no client waits for it. Neither that, nor joining a stream's chunks
  to one tick, changes what is learned.
- A short chunk whose client waits for its answer alone is a run of its own, made before `accept`
  returns.
- Whatever ends the task (an exception anywhere in it, a cancellation) is reported to `on_failure`
  once. Nothing runs after that, so that no checkpoint of a half-applied model can be written.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

from bptt.config import Limits
from bptt.domain import ModelState as State
from bptt.domain import state_of
from bptt.engine.admission import AdmissionQueue
from bptt.engine.checkpointer import Checkpointer
from bptt.engine.flow import FlowWatch
from bptt.engine.journaling import JournalWriter
from bptt.engine.lifecycle import Event, Lifecycle, SETTLED
from bptt.engine.live import LiveLearner
from bptt.engine.messages import Outcome, QueuedChunk, TickBatch
from bptt.engine.publisher import Publisher
from bptt.engine.requests import RequestQueue, Work
from bptt.engine.run import run
from bptt.errors import ModelFailed, ServiceError

INLINE_SECONDS = 0.000_3
"""Single-chunk runs below this estimate execute on the event loop. Handing one to a thread and back
costs about as much: with one step a message, round trips took 0.5 ms instead of 0.8 ms. Longer
runs, and those of several chunks, go to the pool."""

GATHER_SECONDS = 0.001
"""How long a run waits for more where all clients send on without waiting for answers. Each run
costs a thread's turn and copies of what readers see: with 3 chunks of 64 steps in each, a fifth of
a message's time."""

GATHER_STEPS = 512
"""Steps in the queue that are enough to begin at once."""

INLINE_MEMORY = 16
"""Runs over which their length is averaged: more than a default k1, so updates are evened out."""

_MAY_SETTLE = SETTLED | {State.RECOVERING, State.STALLED, State.RESTORING, State.ROLLING_BACK}

_SETTLES = {
    State.RUNNING: Event.RUN,
    State.PAUSED: Event.PAUSE,
    State.DIVERGED: Event.DIVERGE,
}


class Worker:
    """Applies what one model's queue holds. Lives on the event loop.

    Attributes:
        waits: it has nothing to do.
        doing: what it does, in one word; the label of a failure.

    Args:
        live: the model's learner.
        lifecycle: moved when the model diverges, rolls back, stalls or settles.
        admission: the queue.
        publisher: publishes what a run did.
        journal: holds runs back while it is blocked.
        checkpointer: says when a copy of the model is due.
        limits: of a run.
        flow_updates: updates between two looks at the gradient flow; 0: never.
    """

    def __init__(
        self,
        live: LiveLearner,
        lifecycle: Lifecycle,
        admission: AdmissionQueue,
        publisher: Publisher,
        journal: JournalWriter,
        checkpointer: Checkpointer,
        limits: Limits,
        flow_updates: int,
    ) -> None:
        self.doing = "learning"
        self._live = live
        self._lifecycle = lifecycle
        self._admission = admission
        self._publisher = publisher
        self._journal = journal
        self._checkpointer = checkpointer
        self._limits = limits
        self._flow = FlowWatch(flow_updates)
        self._to_look_at: Outcome | None = None  # whose gradient flow is to be measured
        self._requests = RequestQueue()
        self._taken: list[TickBatch] = []  # from the queue, for the run that is being made
        self._wake = asyncio.Event()
        self._step_seconds = math.inf  # of runs of one chunk; unknown before the first of them
        self._awaited = 0  # entries put since the last run began whose client waits for them
        self._refusal: ServiceError | None = None  # of all that is still in the queue
        self._roll_back: Callable[[], Awaitable[None]]
        self._must_roll_back = False
        self._has_failed = False
        self._gone: ServiceError | None = None  # why nothing is done any more, once it has failed
        self._on_failure: Callable[[BaseException], None]
        self._task: asyncio.Task[None] | None = None

    def start(
        self,
        *,
        roll_back: Callable[[], Awaitable[None]],
        on_failure: Callable[[BaseException], None],
        must_roll_back: bool,
    ) -> None:
        """Begin to work off the queue.

        Args:
            roll_back: takes a diverged model back to a checkpoint.
            on_failure: called once if the task ends for another reason than a stop.
            must_roll_back: whether that comes before anything else.
        """
        self._roll_back, self._on_failure = roll_back, on_failure
        self._must_roll_back = must_roll_back
        name = f"worker {self._live.definition.model_id}"
        self._task = asyncio.create_task(self._work(), name=name)
        self._task.add_done_callback(self._ended)

    @property
    def waits(self) -> bool:
        """Whether it has nothing to do, so that a run may be made on the event loop."""
        return self._publisher.worker_waits

    @property
    def in_use(self) -> bool:
        """Whether a request or a roll-back waits for it."""
        return bool(self._requests) or self._must_roll_back

    # ------------------------------------------------------------------ its end

    async def _work(self) -> None:
        try:
            await self._loop()
        except Exception as error:  # noqa: BLE001 - its owner is told, at once
            self._fail(error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Hear of an end that the task itself could not tell: it was cancelled, say."""
        if task.cancelled():
            self._fail(asyncio.CancelledError("the worker's task was cancelled"))
        elif (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        self._publisher.worker_waits = False
        self._must_roll_back = False
        self._on_failure(error)

    def refuse_all(self, error: ServiceError) -> None:
        """Answer whatever waits for the worker, once it has ended, and whatever still comes."""
        self._gone = error
        taken, self._taken = self._taken, []
        self._publisher.refuse(taken, error)
        self._publisher.refuse_queue(error)
        self._requests.refuse(error)

    def refuse_queue(self, error: ServiceError) -> None:
        """Answer the queue with an error, while the worker is held back by the journal."""
        if not self._taken:
            self._publisher.refuse_queue(error)
        self._requests.refuse(error)

    def refuse_rest(self, error: ServiceError) -> None:
        """Apply nothing more: the rest of the queue is refused. For a stop without time left."""
        self._refusal = self._refusal or error
        self._wake.set()

    async def ended(self) -> None:
        """Wait until the task has ended; it never raises."""
        if self._task is not None:
            await asyncio.wait([self._task])

    # ------------------------------------------------------------------ what comes in

    def wake(self) -> None:
        """Look again for something to do."""
        self._wake.set()

    def came(self, queued: QueuedChunk) -> None:
        """A chunk was put into the queue: learn it now, or have it learned."""
        if self._is_for_now(queued):
            self._learn_now()
        else:
            self._awaited += queued.pending.alone
            self._wake.set()

    def came_command(self) -> None:
        """A stream command was put into the queue."""
        self._awaited += 1
        self._wake.set()

    def request(self, work: Work, *, after_queue: bool = False) -> asyncio.Future[Any]:
        """Have something done between two runs: see `RequestQueue.put`.

        Raises:
            ServiceError: the worker has failed. The lifecycle does not tell that once the model is
                back, for then it is that of another worker.
        """
        if self._gone is not None:
            raise self._gone
        done = self._requests.put(work, after_queue=after_queue)
        self._wake.set()
        return done

    def settle(self) -> None:
        """Move the model to the state that its journal, settings and figures give."""
        if self._lifecycle.state not in _MAY_SETTLE:
            return
        failure = self._journal.failure
        if failure is not None and self._lifecycle.can(Event.STALL):
            if self._lifecycle.why is not failure:
                self._lifecycle.apply(Event.STALL, failure)
        elif self._requests.wait_for_queue:
            if self._lifecycle.can(Event.RESTORE):  # else it is in RESTORING, and stays there
                self._lifecycle.apply(Event.RESTORE)
        else:
            state = state_of(self._live.settings, self._publisher.published.last_figures)
            if state is not self._lifecycle.state:
                self._lifecycle.apply(_SETTLES[state])

    # ------------------------------------------------------------------ runs

    def _is_for_now(self, queued: QueuedChunk) -> bool:
        """Whether a chunk that was just queued may be learned before `accept` returns.

        Its client waits for this answer alone, nobody else sends, and nothing else is to be done.
        """
        return (
            self._publisher.worker_waits
            and not self._wake.is_set()  # else something waits already that comes before it
            and queued.steps * self._step_seconds <= INLINE_SECONDS
            and queued.pending.alone
            and self._admission.queue.chunks == 1
            and self._publisher.published.knows(queued.stream_id)
            and self._admission.sends_one  # else they form a batch
            and not queued.repeats
            and not queued.chunk.end_of_sequence  # which may learn more than the chunk
            and not (self._requests or self._checkpointer.due)
            and self._lifecycle.state in SETTLED
            and not self._journal.blocked
            and self._live.definition.spec.on_divergence == "stop"
        )

    def _learn_now(self) -> None:
        """Make a run without a turn of the event loop: three of them took as long as the run."""
        self._taken = batches = self._admission.take(1, 1)
        try:
            looks = not self._publisher.published.may_wait
            outcome = run(self._live.learner, batches, looks=looks)
            self._measured(outcome, batches[0].chunks[0].steps)
            self._publish(outcome)
        except Exception as error:  # noqa: BLE001 - nobody may wait for an answer for ever
            assert self._task is not None
            self._fail(error)
            self._task.cancel()
            return
        if self._flow.is_due(outcome):
            self._to_look_at = outcome
            self._wake.set()

    async def _loop(self) -> None:
        while True:
            if await self._between_runs():
                continue
            stuck = self._journal.blocked and self._refusal is None
            if stuck and self._journal.broken is not None:
                self.doing = "journaling"
                raise self._journal.broken
            if stuck or not self._admission.queue:
                if self._is_draining and not self._admission.queue:
                    self._requests.refuse(self._lifecycle.refusal())
                    return
                await self._wait()
                continue
            if self._may_gather():
                await asyncio.sleep(GATHER_SECONDS)
            await self._run()

    async def _between_runs(self) -> bool:
        """Do what has to be done with the learner beside runs; True: look again."""
        if self._must_roll_back:
            self.doing = "rolling_back"
            if self._lifecycle.can(Event.ROLL_BACK):
                self._lifecycle.apply(Event.ROLL_BACK)
            await self._roll_back()
            self._must_roll_back = False
            self.settle()
        if self._checkpointer.due:
            self.doing = "copying"
            self._checkpointer.begin(await self._live.copy(self._journal.last))
        if self._to_look_at is not None:
            self.doing = "gradient_flow"
            outcome, self._to_look_at = self._to_look_at, None
            flow = await self._live.in_thread(self._flow.look, self._live.learner, outcome)
            self._publisher.sink.flow(flow)
        if self._requests and self._journal.failure is not None:
            self._requests.refuse(self._journal.failure)
        request = self._requests.next(
            queue_is_empty=not self._admission.queue,
            may_write=not self._journal.blocked or self._refusal is not None,
        )
        self.doing = "learning" if request is None else "administration"
        if request is not None:
            await self._do(*request)
        return request is not None

    async def _do(self, work: Work, done: asyncio.Future[Any]) -> None:
        try:
            result = await work()
        except ServiceError as error:  # the model is as it was
            if not done.done():
                done.set_exception(error)
        except BaseException:
            if not done.done():
                done.set_exception(ModelFailed("the model failed meanwhile; see the server's log"))
            raise  # the learner is in no known state
        else:
            if not done.done():
                done.set_result(result)

    @property
    def _is_draining(self) -> bool:
        return self._lifecycle.state is State.DRAINING

    async def _wait(self) -> None:
        self._wake.clear()
        self._publisher.worker_waits = True
        try:
            await self._wake.wait()
            self._publisher.published.catch_up()  # before a thread has the learner
        finally:
            self._publisher.worker_waits = False

    def _may_gather(self) -> bool:
        """Whether no client waits for the next run, so that it may begin later and hold more."""
        return (
            not self._awaited
            and self._admission.steps < GATHER_STEPS
            and not self._requests
            and not self._is_draining
            and self._refusal is None
        )

    async def _run(self) -> None:
        """Take the next batches, and apply or refuse them."""
        self._awaited = 0
        self._taken = self._admission.take(self._limits.run_chunks, self._limits.run_steps)
        if self._refusal is not None:
            taken, self._taken = self._taken, []
            self._publisher.refuse(taken, self._refusal)
            return
        outcome = await self._outcome(self._taken)
        self._publish(outcome)
        if not outcome.diverged and self._flow.is_due(outcome):
            self._to_look_at = outcome

    def _publish(self, outcome: Outcome) -> None:
        """Publish a run, and note that it is answered.

        Raises:
            Exception: which ended the run.
        """
        if outcome.failure is not None:
            raise outcome.failure
        if outcome.diverged:  # before its answers tell of the state
            self._must_roll_back = True
            if self._lifecycle.can(Event.ROLL_BACK):
                self._lifecycle.apply(Event.ROLL_BACK)
        self._publisher.publish(outcome, draining=self._is_draining)
        self._taken = []
        self._admission.put_back(outcome.rest)

    async def _outcome(self, batches: list[TickBatch]) -> Outcome:
        """What `run` gives: from a thread, or at once where a thread costs more than it saves."""
        alone = _single(batches)
        if alone is None:
            return await self._live.in_thread(run, self._live.learner, batches)
        if alone.steps * self._step_seconds <= INLINE_SECONDS:
            outcome = run(self._live.learner, batches)
        else:
            outcome = await self._live.in_thread(run, self._live.learner, batches)
        self._measured(outcome, alone.steps)
        return outcome

    def _measured(self, outcome: Outcome, steps: int) -> None:
        measured = outcome.own_seconds / max(1, steps)  # labels may come by themselves
        before = self._step_seconds if math.isfinite(self._step_seconds) else measured
        self._step_seconds = before + (measured - before) / INLINE_MEMORY


def _single(batches: list[TickBatch]) -> QueuedChunk | None:
    """The one chunk of a run of one, unless its sequence ends, which may learn more than it."""
    if len(batches) != 1 or len(batches[0].chunks) != 1:
        return None
    only = batches[0]
    if only.commands or only.duplicates or only.chunks[0].chunk.end_of_sequence:
        return None
    return only.chunks[0]
