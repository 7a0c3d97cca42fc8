"""Admits chunks: to their position in their stream, and to the queue of their model.

Rules:
- A chunk follows all accepted steps of its stream, learned or not: repeated steps are trimmed, and
  a chunk after a gap is refused.
- From a call's first chunk of a stream until the call ends, no other call may send the stream.
- The queue is bounded; waiters for room are served in order of arrival.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from bptt.config import Limits
from bptt.domain import FloatArray, IncomingChunk, IntArray
from bptt.engine.fair_queue import FairQueue
from bptt.engine.messages import QueuedChunk, Response, StreamCommand, TickBatch
from bptt.engine.published import PublishedState
from bptt.errors import LimitReached, OutOfOrder, StreamDeleted, StreamInUse, UnknownStream
from bptt_core import bytes_of_stream, Chunk, ModelSpec

ANY_INCARNATION = -1


class AdmissionQueue:
    """The admission queue of one model. Lives on the event loop.

    Attributes:
        queue: chunks and commands that wait for the worker.
        steps: steps that are accepted but not learned yet.

    Args:
        spec: the model's spec.
        limits: bounds of the queue and of streams.
        published: positions of streams that have nothing queued.
        duplicate: called with the number of repeated steps in a chunk.
    """

    def __init__(
        self,
        spec: ModelSpec,
        limits: Limits,
        published: PublishedState,
        duplicate: Callable[[int], None],
    ) -> None:
        self.queue = FairQueue()
        self.steps = 0
        self._label_delay = spec.label_delay
        self._limits = limits
        self._published = published
        self._duplicate = duplicate
        by_bytes = limits.streams_bytes // bytes_of_stream(spec)
        self._streams_max = min(limits.streams, max(1, by_bytes))
        # stream: [step after all accepted steps, entries, incarnation that one of them deletes]
        self._accepted: dict[str, list[int]] = {}
        self._senders: dict[str, object] = {}  # stream: the open call that sends it
        self._space: deque[asyncio.Future[None]] = deque()

    @property
    def in_use(self) -> bool:
        """Whether a chunk is queued or unanswered, or a call waits for room."""
        return bool(self._accepted or self._space)

    @property
    def sends_one(self) -> bool:
        """True if exactly one stream is being sent."""
        return len(self._senders) == 1

    def expected_step(self, stream_id: str) -> int:
        """The step after all accepted steps of a stream; 0 for an unknown stream."""
        accepted = self._accepted.get(stream_id)
        if accepted is not None:
            return accepted[0]
        return self._published.next_step(stream_id)

    # ------------------------------------------------------------------ room

    @property
    def full(self) -> bool:
        """Whether a chunk must wait: the queue is full, or earlier calls wait for room."""
        return bool(self._space) or self._is_full

    @property
    def _is_full(self) -> bool:
        queue, limits = self.queue, self._limits
        return queue.chunks >= limits.queue_chunks or queue.weight >= limits.queue_bytes

    async def room(self) -> None:
        """Wait, in order of arrival, until the queue has room for a chunk."""
        if not self.full:
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._space.append(waiter)
        try:
            await waiter
            while self._is_full:  # another chunk took the room: this call stays first in line
                waiter = loop.create_future()
                self._space.appendleft(waiter)
                await waiter
        finally:
            if waiter in self._space:  # cancelled: later waiters must not wait for it
                self._space.remove(waiter)
            loop.call_soon(self._wake_waiters)  # room that it leaves is for the next

    def _wake_waiters(self) -> None:
        """Wake the first waiter, if there is room; it wakes the next one once it is served."""
        while self._space and not self._is_full:
            waiter = self._space.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    # ------------------------------------------------------------------ positions

    def place(
        self,
        incoming: IncomingChunk,
        pending: Response,
        sender: object,
    ) -> QueuedChunk:
        """Queue a chunk at the end of its stream.

        Raises:
            ServiceError: the chunk is refused; nothing was changed.
        """
        stream_id, steps = incoming.stream_id, len(incoming.inputs)
        if self._senders.get(stream_id, sender) is not sender:
            raise StreamInUse.of(stream_id)
        if incoming.incarnation:
            self._check_incarnation(stream_id, incoming.incarnation)
        expected = self.expected_step(stream_id)
        first = expected if incoming.first_step is None else incoming.first_step
        if first > expected:
            raise OutOfOrder.of(first, expected)
        if stream_id not in self._accepted and not self._published.knows(stream_id):
            self._check_streams()
        trimmed = min(expected - first, steps)
        inputs, targets, ends = incoming.inputs, incoming.targets, incoming.end_of_sequence
        labelled = incoming.first_target_step if self._label_delay else None
        if first < expected:
            if trimmed:
                self._duplicate(trimmed)
            inputs = inputs[trimmed:]
            if self._label_delay:
                targets, labelled = self._still_in_time(incoming, first, expected)
            elif targets is not None:
                targets = targets[trimmed:]
            ends = ends and trimmed < steps  # a sequence that has ended does not end again
        # A chunk that repeats known steps only does not move the source back.
        source = incoming.source_position if trimmed < steps or not steps else b""
        chunk = Chunk(stream_id, expected, inputs, targets, ends, labelled, source)
        queued = QueuedChunk(chunk, pending)
        self._put(queued, expected + steps - trimmed)
        self.steps += steps - trimmed
        if sender is not None:
            self._senders[stream_id] = sender
        return queued

    def _still_in_time(
        self, incoming: IncomingChunk, first: int, expected: int
    ) -> tuple[FloatArray | IntArray | None, int | None]:
        """The targets of a repeated chunk that may still be learned, and the step of the first.

        A chunk that repeats known steps only has no such targets: they were accepted with it
        before. A chunk with some new steps keeps the targets within the delay window; the older
        ones may have been accepted before. Whether a chunk without steps is a repetition is
        unknown, so all its targets are kept.
        """
        targets, steps = incoming.targets, len(incoming.inputs)
        if targets is None or 0 < steps <= expected - first:
            return None, None
        labelled = first if incoming.first_target_step is None else incoming.first_target_step
        if not steps:
            return targets, labelled
        past = max(0, expected - self._label_delay - labelled)
        return (targets[past:], labelled + past) if past < len(targets) else (None, None)

    def put(self, command: StreamCommand) -> None:
        """Queue a command after all accepted chunks of its stream.

        Raises:
            UnknownStream: the model has no stream of that name.
        """
        stream_id = command.stream_id
        if stream_id not in self._accepted and not self._published.knows(stream_id):
            raise UnknownStream.of(stream_id)
        if command.action == "reset":
            self._put(command, self.expected_step(stream_id))
            return
        self._put(command, 0)
        # A stream whose first chunk is queued has no number yet, so no chunk can name it.
        self._accepted[stream_id][2] = self._published.incarnation(stream_id) or ANY_INCARNATION

    def _check_incarnation(self, stream_id: str, incarnation: int) -> None:
        """Refuse a chunk of an incarnation that is deleted, or that a queued command deletes."""
        accepted = self._accepted.get(stream_id)
        deleted = accepted is not None and accepted[2] in (incarnation, ANY_INCARNATION)
        if deleted or self._published.incarnation(stream_id) != incarnation:
            raise StreamDeleted.of(stream_id, incarnation)

    def _put(self, entry: QueuedChunk | StreamCommand, next_step: int) -> None:
        accepted = self._accepted.setdefault(entry.stream_id, [0, 0, 0])
        accepted[0] = next_step
        accepted[1] += 1
        self.queue.put(entry)

    def _check_streams(self) -> None:
        if len(self._published) + len(self._accepted) < self._streams_max:  # at most
            return
        opening = sum(not self._published.knows(each) for each in self._accepted)
        if len(self._published) + opening >= self._streams_max:
            raise LimitReached.of("streams", self._streams_max)

    def take(self, chunks_max: int, steps_max: int) -> list[TickBatch]:
        """As `FairQueue.take`; also wakes waiters for room."""
        batches = self.queue.take(chunks_max, steps_max)
        self._wake_waiters()
        return batches

    def put_back(self, batches: Sequence[TickBatch]) -> None:
        """See `FairQueue.put_back`."""
        self.queue.put_back(batches)

    def done(self, stream_id: str, steps: int) -> None:
        """Note that an entry of a stream was answered."""
        accepted = self._accepted[stream_id]
        accepted[1] -= 1
        if not accepted[1]:
            del self._accepted[stream_id]  # from here on the published state has its position
        self.steps -= steps

    def leave(self, sender: object, stream_ids: Iterable[str]) -> None:
        """Release the streams of a call that has ended: other calls may send them."""
        for stream_id in stream_ids:
            if self._senders.get(stream_id) is sender:
                del self._senders[stream_id]
