"""The learning loop: one asyncio task for each model in memory.

Rules:
- One run at a time uses the learner; between runs only the event loop uses it.
- A run takes all waiting batches up to a limit, so that one wake-up serves many small messages. If
  no client waits for its answer, the run waits shortly for more batches. Neither splitting ticks
  into runs nor joining a stream's chunks changes what is learned.
- A short chunk whose client waits for this one answer is learned before `accept` returns.
- Whatever ends the task (an exception anywhere in it, a cancellation) is reported to `on_failure`
  once. Nothing runs after that, so that no checkpoint of a half-applied model can be written.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
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
from bptt.engine.messages import Outcome, QueuedBatch, Round
from bptt.engine.publisher import Publisher
from bptt.engine.requests import RequestQueue, Work
from bptt.engine.run import run
from bptt.errors import ModelFailed, ServiceError

INLINE_SECONDS = 0.000_3
"""Single-chunk runs below this estimate execute on the event loop. Handing one to a thread and back
costs about as much: with one step a message, round trips took 0.5 ms instead of 0.8 ms. Longer
runs, and runs of several chunks, execute in the thread pool."""

GATHER_SECONDS = 0.001
"""How long a run waits for more chunks if no client waits for its answer. Each run costs a thread
switch and copies for readers: with 3 chunks of 64 steps a run, a fifth of the time of a message."""

GATHER_STEPS = 512
"""Steps in the queue from which on a run begins at once."""

INLINE_MEMORY = 16
"""Runs over which the time of a step is averaged: more than the default k1, to average over
updates."""

_MAY_SETTLE = SETTLED | {State.RECOVERING, State.STALLED, State.RESTORING, State.ROLLING_BACK}

_SETTLES = {
    State.RUNNING: Event.RUN,
    State.PAUSED: Event.PAUSE,
    State.DIVERGED: Event.DIVERGE,
}


class Worker:
    """Applies the chunks and commands in one model's queue. Lives on the event loop.

    Attributes:
        waits: True while the worker is idle.
        doing: the current activity in one word; the label of a failure.

    Args:
        live: the model's learner.
        lifecycle: gets events when the model diverges, rolls back, stalls or settles.
        admission: the model's queue.
        publisher: publishes the outcome of a run.
        journal: runs wait while it is blocked.
        checkpointer: determines when a checkpoint is due.
        limits: bounds of a run.
        flow_updates: updates between two measurements of the gradient flow; 0: never.
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
        self._to_look_at: Outcome | None = None  # the run after which the gradient flow is measured
        self._requests = RequestQueue()
        self._taken: list[Round] = []  # from the queue, for the current run
        self._wake = asyncio.Event()
        self._step_seconds = math.inf  # of single-chunk runs; infinite before the first one
        self._awaited = 0  # entries queued since the last run began whose client waits
        self._refusal: ServiceError | None = None  # the error for all entries still in the queue
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
        """Start the task that works off the queue.

        Args:
            roll_back: rolls a diverged model back to a checkpoint.
            on_failure: called once if the task ends without being stopped.
            must_roll_back: True rolls back before any run.
        """
        self._roll_back, self._on_failure = roll_back, on_failure
        self._must_roll_back = must_roll_back
        name = f"worker {self._live.definition.model_id}"
        self._task = asyncio.create_task(self._work(), name=name)
        self._task.add_done_callback(self._ended)

    @property
    def waits(self) -> bool:
        """True while the worker is idle, so that a run may execute on the event loop."""
        return self._publisher.worker_waits

    @property
    def in_use(self) -> bool:
        """True while a request or a roll-back waits for the worker."""
        return bool(self._requests) or self._must_roll_back

    # ------------------------------------------------------------------ end of the task

    async def _work(self) -> None:
        try:
            await self._loop()
        except Exception as error:  # noqa: BLE001 - reported to the owner at once
            self._fail(error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Report an end that the task itself could not report, for example a cancellation."""
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
        """Answer everything that waits for the worker, which has ended, or comes later."""
        self._gone = error
        taken, self._taken = self._taken, []
        self._publisher.refuse(taken, error)
        self._publisher.refuse_queue(error)
        self._requests.refuse(error)

    def refuse_queue(self, error: ServiceError) -> None:
        """Answer the queue with an error while the journal blocks the worker."""
        if not self._taken:
            self._publisher.refuse_queue(error)
        self._requests.refuse(error)

    def refuse_rest(self, error: ServiceError) -> None:
        """Refuse the rest of the queue instead of applying it. For a stop that runs out of time."""
        self._refusal = self._refusal or error
        self._wake.set()

    async def ended(self) -> None:
        """Wait until the task has ended; never raises."""
        if self._task is not None:
            await asyncio.wait([self._task])

    # ------------------------------------------------------------------ input

    def wake(self) -> None:
        """Wake the task so that it looks for work."""
        self._wake.set()

    def came(self, queued: Sequence[QueuedBatch]) -> None:
        """A message was queued: learn it now if it is short, else wake the task."""
        if len(queued) == 1 and self._is_for_now(queued[0]):
            self._learn_now()
        elif queued:
            self._awaited += queued[0].replies.alone
            self._wake.set()

    def came_command(self) -> None:
        """A stream command was queued."""
        self._awaited += 1
        self._wake.set()

    def request(self, work: Work, *, after_queue: bool = False) -> asyncio.Future[Any]:
        """Request work between two runs: see `RequestQueue.put`.

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
        """Move the model to the state that follows from its journal, settings and figures."""
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

    def _is_for_now(self, queued: QueuedBatch) -> bool:
        """True if a message that was just queued may be learned before `accept` returns.

        Its client waits for this one answer, no other call sends, and no other work is due.
        """
        return (
            self._publisher.worker_waits
            and not self._wake.is_set()  # else other work comes first
            and queued.steps * self._step_seconds <= INLINE_SECONDS
            and queued.replies.alone
            and self._admission.queue.chunks == len(queued.slots)
            and all(map(self._publisher.published.knows, queued.batch.stream_ids))
            and self._admission.streams_sent == len(queued.slots)  # else others join the tick
            and not queued.repeats
            and queued.batch.ends is None  # the end may learn more than the chunk
            and not (self._requests or self._checkpointer.due)
            and self._lifecycle.state in SETTLED
            and not self._journal.blocked
            and self._live.definition.spec.on_divergence == "stop"
        )

    def _learn_now(self) -> None:
        """Execute a run at once: three turns of the event loop took as long as the run."""
        self._taken = rounds = self._admission.take(1, 1)
        try:
            looks = not self._publisher.published.may_wait
            outcome = run(self._live.learner, rounds, looks=looks)
            self._measured(outcome, rounds[0].chunks[0].steps)
            self._publish(outcome)
        except Exception as error:  # noqa: BLE001 - every waiting client gets an answer
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
        """Do one piece of work other than a run; True if there may be more."""
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
        except ServiceError as error:  # the model is unchanged
            if not done.done():
                done.set_exception(error)
        except BaseException:
            if not done.done():
                done.set_exception(ModelFailed("the model failed meanwhile; see the server's log"))
            raise  # the state of the learner is undefined
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
            self._publisher.published.catch_up()  # before a thread uses the learner
        finally:
            self._publisher.worker_waits = False

    def _may_gather(self) -> bool:
        """True if no client waits for the next run, so that it may wait for more chunks."""
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
        """Publish and answer a run.

        Raises:
            Exception: the failure of the run.
        """
        if outcome.failure is not None:
            raise outcome.failure
        if outcome.diverged:  # before its answers show the state
            self._must_roll_back = True
            if self._lifecycle.can(Event.ROLL_BACK):
                self._lifecycle.apply(Event.ROLL_BACK)
        self._publisher.publish(outcome, draining=self._is_draining)
        self._taken = []
        self._admission.put_back(outcome.rest)

    async def _outcome(self, rounds: list[Round]) -> Outcome:
        """Execute a run in a thread, or on the event loop if it is too short for a thread."""
        alone = _single(rounds)
        if alone is None:
            return await self._live.in_thread(run, self._live.learner, rounds)
        if alone.steps * self._step_seconds <= INLINE_SECONDS:
            outcome = run(self._live.learner, rounds)
        else:
            outcome = await self._live.in_thread(run, self._live.learner, rounds)
        self._measured(outcome, alone.steps)
        return outcome

    def _measured(self, outcome: Outcome, steps: int) -> None:
        measured = outcome.own_seconds / max(1, steps)  # a chunk of labels has no steps
        before = self._step_seconds if math.isfinite(self._step_seconds) else measured
        self._step_seconds = before + (measured - before) / INLINE_MEMORY


def _single(rounds: list[Round]) -> QueuedBatch | None:
    """The batch of a run of one message; None if a sequence ends, which may learn more steps."""
    if len(rounds) != 1 or len(rounds[0].chunks) != 1:
        return None
    only = rounds[0]
    if only.commands or only.duplicates or only.chunks[0].batch.ends is not None:
        return None
    return only.chunks[0]
