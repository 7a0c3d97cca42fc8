"""The single writer of a model: one asyncio task that forms ticks, has them applied, and publishes.

    offer → Batcher → run (in a thread: apply, snapshot) → publish (on the loop) → answers

Rules:
- The learner is touched by one run at a time, and by nothing outside a run.
- Whatever others read (`snapshot`, `views`, `figures`) is replaced on the event loop, all at once:
  a prediction sees a whole run or nothing of it.
- A run takes several ticks when several wait, so that one wake-up serves many small messages. Each
  tick is applied by itself; how ticks fall into runs changes nothing that is learned.
- A chunk is placed in its stream when it is accepted, and what is accepted is applied, whoever
  hangs up.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from bptt_core import Chunk, ChunkResult, Learner
from service.config import ServerConfig
from service.domain import (
    Answer,
    Gauges,
    IncomingChunk,
    ModelDefinition,
    ModelState,
    Refused,
    ReportSink,
)
from service.durability import Store
from service.engine.batcher import Batcher, QueuedChunk, Round, StreamCommand
from service.engine.flow import FlowWatch
from service.engine.outbox import Ticket
from service.engine.recovery import make_checkpoint
from service.engine.run import Outcome, run
from service.errors import (
    LimitReached,
    ModelFailed,
    OutOfOrder,
    ServiceError,
    UnknownStream,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

INLINE_SECONDS = 0.000_3
"""A run of one chunk that is expected to be as short is made on the event loop. Handing it to a
thread and back costs about as much: with one step a message, round trips took 0.5 ms instead of
0.8 ms. Longer runs, and those of several chunks, go to the pool."""

INLINE_MEMORY = 16
"""Runs over which their length is averaged: more than a default k1, so updates are evened out."""


class Trainer:
    """A model at work. Lives on the event loop; `start` it there, and `stop` it in the end.

    Attributes:
        definition: what was asked for.
        snapshot: what predictions read. Immutable.
        views: live state of each stream, as of the snapshot. Immutable values.
        figures: how the model does, as of the snapshot.
        ticks: applied in the life of the model.
        listeners: told why the model stops, when it does.
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
        ticks: int = 0,
    ) -> None:
        self.definition = definition
        self.snapshot = learner.snapshot()
        self.views = {each: learner.stream_view(each) for each in learner.stream_ids()}
        self.figures = learner.figures
        self.parameters = learner.parameter_count
        self.ticks = ticks
        self._learner = learner
        self._executor = executor
        self._store = store
        self._config = config
        self._limits = config.limits
        self._batcher = Batcher()
        self._flow = FlowWatch(config.gradient_flow_updates)
        self._accepted: dict[str, list[int]] = {}  # stream: [step after all accepted, entries]
        self._accepted_steps = 0  # accepted, but not in the snapshot
        self.listeners: set[Callable[[ServiceError], None]] = set()
        self._space: deque[asyncio.Future[None]] = deque()
        self._wake = asyncio.Event()
        self._refusal: ServiceError | None = None  # why nothing more is accepted
        self._step_seconds = math.inf  # of runs of one chunk; unknown before the first of them
        self._give_up_with: ServiceError | None = None  # why what is queued is not learned
        self._failed = False
        self._ending = False
        self._tried_ticks = ticks  # when a checkpoint was last written, or failed to be
        self._unsaved = False
        self._save_due = False
        self._save_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.sink = sink.open_model(definition.model_id, self.figures, self._gauges)

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
            StorageFailed: the checkpoint could not be written.
        """
        self._refusal = refusal
        self._ending = True
        self._wake.set()
        for listener in list(self.listeners):
            listener(refusal)
        if self._save_timer is not None:
            self._save_timer.cancel()
        if math.isfinite(grace):
            asyncio.get_running_loop().call_later(grace, self._run_out_of_time)
        if self._task is not None:
            await self._task
        if save and self._unsaved:
            await self._save()

    def _run_out_of_time(self) -> None:
        self._give_up_with = self._give_up_with or self._refusal

    @property
    def state(self) -> ModelState:
        """The model as of its snapshot."""
        return ModelState(self.definition, self.parameters, len(self.views), self.figures)

    def _gauges(self) -> Gauges:
        return Gauges(len(self.views), self._batcher.chunks, self._accepted_steps)

    # ------------------------------------------------------------------ coming in

    def expected_step(self, stream_id: str) -> int:
        """The step after all that was accepted of a stream; 0 for one that is not known."""
        accepted = self._accepted.get(stream_id)
        if accepted is not None:
            return accepted[0]
        view = self.views.get(stream_id)
        return 0 if view is None else view.next_step

    @property
    def full(self) -> bool:
        """Whether a chunk must wait for room in the queue."""
        queue, limits = self._batcher, self._limits
        return queue.chunks >= limits.queue_chunks or queue.weight >= limits.queue_bytes

    async def room(self) -> None:
        """Wait until the queue has room for a chunk."""
        while self.full:
            waiter = asyncio.get_running_loop().create_future()
            self._space.append(waiter)
            await waiter

    def accept(self, incoming: IncomingChunk, ticket: Ticket) -> None:
        """Give a chunk its place in its stream; the answer fills the ticket.

        Raises:
            ServiceError: the chunk is refused; nothing was changed.
        """
        if self._refusal is not None:
            raise self._refusal
        stream_id, steps = incoming.stream_id, len(incoming.inputs)
        expected = self.expected_step(stream_id)
        first = expected if incoming.first_step is None else incoming.first_step
        if first > expected:
            raise OutOfOrder.of(first, expected)
        if stream_id not in self.views and stream_id not in self._accepted:
            self._check_streams()
        trimmed = min(expected - first, steps)
        inputs, targets, ends = incoming.inputs, incoming.targets, incoming.end_of_sequence
        if trimmed:
            self.sink.duplicate(trimmed)
            inputs = inputs[trimmed:]
            targets = None if targets is None else targets[trimmed:]
            ends = ends and trimmed < steps  # a sequence that had ended does not end again
        chunk = Chunk(stream_id, expected, inputs, targets, ends)
        self._put(QueuedChunk(chunk, ticket), expected + steps - trimmed)
        self._accepted_steps += steps - trimmed

    def _check_streams(self) -> None:
        opening = sum(each not in self.views for each in self._accepted)
        if len(self.views) + opening >= self._limits.streams:
            raise LimitReached.of("streams", self._limits.streams)

    async def command(self, command: StreamCommand) -> int:
        """Reset or delete a stream after what was accepted of it. Its next step then.

        Raises:
            UnknownStream: there is none of that name.
        """
        if self._refusal is not None:
            raise self._refusal
        stream_id = command.stream_id
        if stream_id not in self.views and stream_id not in self._accepted:
            raise UnknownStream.of(stream_id)
        deletes = command.action == "delete"
        self._put(command, 0 if deletes else self.expected_step(stream_id))
        return await command.done

    def _put(self, entry: QueuedChunk | StreamCommand, next_step: int) -> None:
        accepted = self._accepted.setdefault(entry.stream_id, [0, 0])
        accepted[0] = next_step
        accepted[1] += 1
        self._batcher.put(entry)
        self._wake.set()

    def _wake_waiters(self) -> None:
        """Let as many go on as there may be room for; each looks again when its turn comes."""
        count = self._limits.queue_chunks - self._batcher.chunks
        while self._space and count > 0:
            waiter = self._space.popleft()
            if not waiter.done():
                waiter.set_result(None)
                count -= 1

    # ------------------------------------------------------------------ the work

    async def _work(self) -> None:
        while True:
            if self._save_due:
                await self._save_and_go_on()
            if not self._batcher:
                if self._ending:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            rounds = self._batcher.take(self._limits.run_chunks, self._limits.run_steps)
            self._wake_waiters()
            if self._give_up_with is not None:
                self._give_up(rounds, self._give_up_with)
                continue
            try:
                outcome = await self._outcome(rounds)
                self._publish(rounds, outcome)
            except Exception as error:  # noqa: BLE001 - nobody may wait for an answer for ever
                self._fail(rounds, error)
                continue
            if self._flow.is_due(outcome):
                self.sink.flow(await self._in_thread(self._flow.look, self._learner, outcome))

    async def _outcome(self, rounds: list[Round]) -> Outcome:
        """What `run` gives: from a thread, or at once where a thread costs more than it saves."""
        alone = _single(rounds)
        if alone is None:
            return await self._in_thread(run, self._learner, rounds)
        if alone.steps * self._step_seconds <= INLINE_SECONDS:
            outcome = run(self._learner, rounds)
        else:
            outcome = await self._in_thread(run, self._learner, rounds)
        measured = outcome.seconds / alone.steps
        before = self._step_seconds if math.isfinite(self._step_seconds) else measured
        self._step_seconds = before + (measured - before) / INLINE_MEMORY
        return outcome

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *arguments)

    # ------------------------------------------------------------------ going out

    def _publish(self, rounds: list[Round], outcome: Outcome) -> None:
        """On the loop, in one go: the snapshot, then the answers that tell of it."""
        if outcome.snapshot is None or outcome.report is None:
            self._fail(rounds, outcome.failure)
            return
        self.snapshot = outcome.snapshot
        self.figures = outcome.report.figures
        for stream_id, view in outcome.views.items():
            if view is None:
                self.views.pop(stream_id, None)
            else:
                self.views[stream_id] = view
        self.ticks += len(outcome.ticks)
        self._unsaved = self._unsaved or bool(outcome.touched)
        self._answer(outcome)
        self.sink.run(outcome.report)
        self._plan_save()

    def _answer(self, outcome: Outcome) -> None:
        for queued, result in outcome.answers:
            self._leave(queued.stream_id, queued.steps)
            queued.ticket.fill(self._answer_to(queued, result))
        for command, done in outcome.commands:
            self._leave(command.stream_id, 0)
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
                queued.stream_id, queued.chunk.first_step, result, expected, queued.ticket.index
            )
        return result

    def _leave(self, stream_id: str, steps: int) -> None:
        accepted = self._accepted[stream_id]
        accepted[1] -= 1
        if not accepted[1]:
            del self._accepted[stream_id]  # from here on its view says where it is
        self._accepted_steps -= steps

    def _fail(self, rounds: list[Round], failure: Exception | None) -> None:
        """Something broke: stop learning, go on predicting from the last whole snapshot."""
        model_id = self.definition.model_id
        log.error("model %s stopped learning", model_id, exc_info=failure)
        error = ModelFailed(
            f"model {model_id} stopped learning after an internal error; "
            "a restart of the server goes back to its last checkpoint"
        )
        self._failed = True
        self._give_up_with = error
        self._refusal = self._refusal or error
        self._give_up(rounds, error)

    def _give_up(self, rounds: list[Round], error: ServiceError) -> None:
        given_up = Outcome()
        for each in rounds:
            waiting = [q for q in each.chunks + each.duplicates if q.ticket.answer is None]
            given_up.answers += [(queued, error) for queued in waiting]
            given_up.commands += [(command, error) for command in each.commands]
        self._answer(given_up)

    # ------------------------------------------------------------------ checkpoints

    def _plan_save(self) -> None:
        """A checkpoint is due after so many ticks, or so many seconds after the first of them."""
        if self._store is None or not self._unsaved or self._ending:
            return
        if self.ticks - self._tried_ticks >= self._config.checkpoint_ticks:
            self._save_due = True
        elif self._save_timer is None:
            loop = asyncio.get_running_loop()
            seconds = self._config.checkpoint_seconds
            self._save_timer = loop.call_later(seconds, self._save_is_due)

    def _save_is_due(self) -> None:
        self._save_due = True
        self._wake.set()

    async def _save_and_go_on(self) -> None:
        """A checkpoint in passing: should it fail, say so, and try again when the next is due."""
        try:
            await self._save()
        except ServiceError as error:
            log.error("model %s not saved: %s", self.definition.model_id, error.message)
        except Exception:
            log.exception("model %s not saved", self.definition.model_id)
        finally:
            self._tried_ticks = self.ticks
            self._save_due = False
            if self._save_timer is not None:
                self._save_timer.cancel()
                self._save_timer = None
            self._plan_save()

    async def _save(self) -> None:
        if self._store is None or self._failed:
            return
        start = time.perf_counter()
        await self._in_thread(self._write_checkpoint, self._store)
        self._unsaved = False
        self.sink.saved(time.perf_counter() - start)

    def _write_checkpoint(self, store: Store) -> None:
        store.save(make_checkpoint(self.definition, self._learner, self.ticks))


def _single(rounds: list[Round]) -> QueuedChunk | None:
    """The one chunk of a run of one, unless its sequence ends, which may learn more than it."""
    if len(rounds) != 1 or len(rounds[0].chunks) != 1:
        return None
    only = rounds[0]
    if only.commands or only.duplicates or only.chunks[0].chunk.end_of_sequence:
        return None
    return only.chunks[0]
