"""Admits messages: each lane to its position in its stream, and to the queue of the model.

Rules:
- A lane follows all accepted steps of its stream, learned or not: repeated steps are trimmed, and
  a lane after a gap is refused. A refused lane changes nothing, and the others of its message are
  admitted.
- From a call's first chunk of a stream until the call ends, no other call may send the stream.
- The queue is bounded; waiters for room are served in order of arrival.
- What is known of a stream is in columns over slots (`slots.py`): a message of many lanes takes a
  few operations on arrays, and one of a single lane the same.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.config import Limits
from bptt.domain import IncomingBatch, tick_lanes
from bptt.engine.fair_queue import FairQueue
from bptt.engine.messages import QueuedBatch, Response, Round, StreamCommand, weight
from bptt.engine.published import PublishedState
from bptt.engine.replies import MessageReplies
from bptt.engine.trimming import lanes_of, trimmed
from bptt.errors import (
    InvalidRequest,
    LimitReached,
    OutOfOrder,
    ServiceError,
    StreamDeleted,
    StreamInUse,
    UnknownStream,
)
from bptt_core import Batch, bytes_of_stream, ModelSpec

IntArray = NDArray[np.int64]

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
        duplicate: called with the number of repeated steps in a message.
        refused: called with the reason of each lane that is refused.
    """

    def __init__(
        self,
        spec: ModelSpec,
        limits: Limits,
        published: PublishedState,
        duplicate: Callable[[int], None],
        refused: Callable[[str], None],
    ) -> None:
        self.queue = FairQueue()
        self.steps = 0
        self._slots = published.slots
        self._label_delay = spec.label_delay
        self._limits = limits
        self._published = published
        self._duplicate = duplicate
        self._refused = refused
        self._tick_lanes = tick_lanes(spec, limits)
        by_bytes = limits.streams_bytes // bytes_of_stream(spec)
        self._streams_max = min(limits.streams, max(1, by_bytes))
        self._entries = 0  # lanes and commands that are not answered
        self._opening: set[str] = set()  # streams with entries that are not published
        self._deleting: dict[str, int] = {}  # streams with a deletion queued, and its incarnation
        self._senders: dict[object, int] = {}  # numbers of the open calls that send
        self._calls = 0
        self._sent = 0  # streams that a call sends
        self._space: deque[asyncio.Future[None]] = deque()
        self.begins_anew()  # a recovered model's streams are where its published state says

    @property
    def in_use(self) -> bool:
        """Whether a chunk is queued or unanswered, or a call waits for room."""
        return bool(self._entries or self._space)

    @property
    def streams_sent(self) -> int:
        """The number of streams that open calls send."""
        return self._sent

    def expected_step(self, stream_id: str) -> int:
        """The step after all accepted steps of a stream; 0 for an unknown stream."""
        slot = self._slots.numbers.get(stream_id)
        return 0 if slot is None else int(self._slots.accepted[slot])

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
        self, incoming: IncomingBatch, response: Response, sender: object
    ) -> list[QueuedBatch]:
        """Queue the lanes of a message at the ends of their streams.

        A lane that is refused becomes part of the answer; nothing of it was changed.

        Returns:
            The queued lanes: one batch for each round, and for lanes with nothing to learn.
        """
        table, replies = self._slots, MessageReplies(incoming, response)
        ids = incoming.stream_ids
        slots = table.open_all(ids)
        number = self._number(sender)
        expected, sent = table.accepted[slots], incoming.first_steps
        first = np.where(sent < 0, expected, sent)
        errors = self._errors(incoming, slots, number, first, expected)
        if errors:
            kept = self._refuse(incoming, replies, errors)
            incoming, slots = lanes_of(incoming, kept), slots[kept]
            first, expected = first[kept], expected[kept]
        else:
            kept = _first_lanes(len(slots))
        queued: list[QueuedBatch] = []
        if len(slots):
            batch = self._batch(incoming, first, expected)
            self._accept(slots, number, batch)
            steps = len(batch.inputs)
            queued = self._queue(QueuedBatch(batch, slots, kept, replies, steps, weight(batch)))
        for lane in errors:  # they may have opened slots
            table.release(ids[lane])
        return queued

    def _errors(
        self,
        incoming: IncomingBatch,
        slots: IntArray,
        number: int,
        first: IntArray,
        expected: IntArray,
    ) -> dict[int, ServiceError]:
        """The error of each lane that is refused: the first rule that it breaks."""
        table, ids = self._slots, incoming.stream_ids
        errors: dict[int, ServiceError] = {}
        senders = table.sender[slots]
        others = (senders != number) & (senders != 0)
        if np.count_nonzero(others):
            for lane in np.flatnonzero(others).tolist():
                errors[lane] = StreamInUse.of(ids[lane])
        if len(set(ids)) < len(ids):
            self._twice(ids, errors)
        if incoming.incarnations is not None:
            self._check_incarnations(incoming, slots, errors)
        gaps = first > expected
        if np.count_nonzero(gaps):
            for lane in np.flatnonzero(gaps).tolist():
                error = OutOfOrder.of(int(first[lane]), int(expected[lane]))
                errors.setdefault(lane, error)
        new = (table.incarnation[slots] == 0) & (table.entries[slots] == 0)
        if np.count_nonzero(new):
            self._check_streams(np.flatnonzero(new).tolist(), errors)
        return errors

    @staticmethod
    def _twice(ids: Sequence[str], errors: dict[int, ServiceError]) -> None:
        """Refuse the second and later lanes of a stream."""
        seen: dict[str, int] = {}
        for lane, stream_id in enumerate(ids):
            earlier = seen.setdefault(stream_id, lane)
            if earlier != lane:
                bound = f"in one lane of a message, and lane {earlier} is of this stream"
                errors.setdefault(lane, InvalidRequest.of("stream_id", repr(stream_id), bound))

    def _check_incarnations(
        self, incoming: IncomingBatch, slots: IntArray, errors: dict[int, ServiceError]
    ) -> None:
        """Refuse lanes of an incarnation that is deleted, or that a queued command deletes."""
        wanted = incoming.incarnations
        assert wanted is not None
        wrong = (wanted != 0) & (wanted != self._slots.incarnation[slots])
        if np.count_nonzero(wrong):
            for lane in np.flatnonzero(wrong).tolist():
                error = StreamDeleted.of(incoming.stream_ids[lane], int(wanted[lane]))
                errors.setdefault(lane, error)
        if self._deleting:
            for lane, stream_id in enumerate(incoming.stream_ids):
                deleted = self._deleting.get(stream_id)
                if wanted[lane] and deleted in (int(wanted[lane]), ANY_INCARNATION):
                    error = StreamDeleted.of(stream_id, int(wanted[lane]))
                    errors.setdefault(lane, error)

    def _check_streams(self, new: Sequence[int], errors: dict[int, ServiceError]) -> None:
        """Refuse lanes that would open more streams than the model may have."""
        room = self._streams_max - len(self._published) - len(self._opening)
        for lane in new:
            if lane in errors:
                continue
            if room <= 0:
                errors[lane] = LimitReached.of("streams", self._streams_max)
            room -= 1

    def _refuse(
        self, incoming: IncomingBatch, replies: MessageReplies, errors: dict[int, ServiceError]
    ) -> IntArray:
        """Answer the refused lanes; return the others."""
        kept = np.ones(len(incoming.stream_ids), np.bool_)
        for lane, error in errors.items():
            kept[lane] = False
            self._refused(error.reason)
            replies.refused(lane, error, self.expected_step(incoming.stream_ids[lane]))
        return np.flatnonzero(kept)

    def _batch(self, incoming: IncomingBatch, first: IntArray, expected: IntArray) -> Batch:
        """The lanes at their positions, without steps that were accepted before."""
        if np.count_nonzero(first != expected):
            incoming, repeated = trimmed(incoming, first, expected, self._label_delay)
            if repeated:
                self._duplicate(repeated)
        return Batch(
            incoming.stream_ids,
            expected,
            incoming.lengths,
            incoming.inputs,
            incoming.targets,
            incoming.target_lengths if self._label_delay else None,
            incoming.first_target_steps if self._label_delay else None,
            incoming.ends if np.count_nonzero(incoming.ends) else None,
            incoming.source_positions,
        )

    def _accept(self, slots: IntArray, number: int, batch: Batch) -> None:
        """Move the ends of the streams behind the batch."""
        table = self._slots
        table.accepted[slots] = batch.first_steps + batch.lengths
        unknown = table.incarnation[slots] == 0
        if np.count_nonzero(unknown):
            self._opening.update(batch.stream_ids[lane] for lane in np.flatnonzero(unknown))
        table.entries[slots] += 1
        self._entries += len(slots)
        self.steps += len(batch.inputs)
        if number:
            self._sent += len(slots) - int(np.count_nonzero(table.sender[slots]))
            table.sender[slots] = number

    def _queue(self, queued: QueuedBatch) -> list[QueuedBatch]:
        """Put lanes into their rounds."""
        table, head, slots = self._slots, self.queue.head, queued.slots
        last = table.round[slots]
        if not np.count_nonzero(last >= head):
            table.round[slots] = head
            parts = [(head, queued)]
        else:
            rounds = np.maximum(last + 1, head)
            table.round[slots] = rounds
            numbers = np.unique(rounds).tolist()
            parts = [(numbers[0], queued)]
            if len(numbers) > 1:
                places = (np.flatnonzero(rounds == number) for number in numbers)
                parts = [
                    (number, queued.select(mine))
                    for number, mine in zip(numbers, places, strict=True)
                ]
        done = []
        for number, part in parts:
            for entry in _by_what_they_hold(part):
                self.queue.put(entry, number)
                done.append(entry)
        return done

    def put(self, command: StreamCommand) -> None:
        """Queue a command after all accepted chunks of its stream.

        Raises:
            UnknownStream: the model has no stream of that name.
        """
        stream_id, table = command.stream_id, self._slots
        slot = table.numbers.get(stream_id)
        if slot is None or not (table.incarnation[slot] or table.entries[slot]):
            raise UnknownStream.of(stream_id)
        table.entries[slot] += 1
        self._entries += 1
        number = max(int(table.round[slot]) + 1, self.queue.head)
        table.round[slot] = number
        self.queue.put(command, number)
        if command.action == "delete":
            table.accepted[slot] = 0
            # A stream whose first chunk is queued has no number yet, so no chunk can name it.
            self._deleting[stream_id] = int(table.incarnation[slot]) or ANY_INCARNATION

    def take(self, chunks_max: int, steps_max: int) -> list[Round]:
        """As `FairQueue.take`; also wakes waiters for room."""
        rounds = self.queue.take(chunks_max, steps_max, self._tick_lanes, self._limits.tick_steps)
        self._wake_waiters()
        return rounds

    def put_back(self, rounds: Sequence[Round]) -> None:
        """See `FairQueue.put_back`."""
        self.queue.put_back(rounds)

    def done(self, queued: QueuedBatch) -> None:
        """Note that these lanes are about to be answered, after their run was published."""
        self.steps -= queued.steps
        self._done(queued.slots, queued.batch.stream_ids)

    def command_done(self, command: StreamCommand) -> None:
        """Note that a command is about to be answered, after its run was published."""
        slot = self._slots.numbers[command.stream_id]
        self._done(np.array([slot]), (command.stream_id,))

    def _done(self, slots: IntArray, stream_ids: Sequence[str]) -> None:
        table = self._slots
        left = table.entries[slots] - 1
        table.entries[slots] = left
        self._entries -= len(slots)
        idle = slots[left == 0] if np.count_nonzero(left) else slots
        table.accepted[idle] = table.next_step[idle]
        if self._opening or self._deleting:
            for stream_id, slot in zip(stream_ids, slots.tolist(), strict=True):
                self._is_idle(stream_id, slot)

    def _is_idle(self, stream_id: str, slot: int) -> None:
        """Forget what was noted of a stream until it had no entries, or was published."""
        table = self._slots
        if table.entries[slot] and not table.incarnation[slot]:
            self._opening.add(stream_id)
        else:
            self._opening.discard(stream_id)
        if not table.entries[slot]:
            self._deleting.pop(stream_id, None)
            table.release(stream_id)

    def begins_anew(self) -> None:
        """The published state was replaced: streams without entries are where it says."""
        table = self._slots
        idle = table.entries == 0
        table.accepted[idle] = table.next_step[idle]

    def leave(self, sender: object, stream_ids: Iterable[str]) -> None:
        """Release the streams of a call that has ended: other calls may send them."""
        number, table = self._senders.pop(sender, 0), self._slots
        if not number:
            return
        for stream_id in stream_ids:
            slot = table.numbers.get(stream_id)
            if slot is not None and table.sender[slot] == number:
                table.sender[slot] = 0
                self._sent -= 1
                table.release(stream_id)

    def _number(self, sender: object) -> int:
        """The number of an open call; 0 for no call."""
        if sender is None:
            return 0
        number = self._senders.get(sender)
        if number is None:
            self._calls += 1
            number = self._senders[sender] = self._calls
        return number


_LANES = np.arange(1024)
_LANES.flags.writeable = False


def _first_lanes(count: int) -> IntArray:
    """The numbers of `count` lanes. Not to be written to."""
    return _LANES[:count] if count <= len(_LANES) else np.arange(count)


def _by_what_they_hold(queued: QueuedBatch) -> Sequence[QueuedBatch]:
    """Separate lanes that have nothing to learn, if there are any."""
    batch = queued.batch
    empty: NDArray[Any] = batch.lengths == 0
    if np.count_nonzero(empty) and batch.ends is not None:
        empty = empty & ~batch.ends
    if np.count_nonzero(empty) and batch.target_lengths is not None:
        empty = empty & (batch.target_lengths == 0)
    if not np.count_nonzero(empty):
        return (queued,)
    if np.count_nonzero(empty) == len(empty):
        queued.repeats = True
        return (queued,)
    rest, repeats = queued.select(np.flatnonzero(~empty)), queued.select(np.flatnonzero(empty))
    repeats.repeats = True
    return rest, repeats
