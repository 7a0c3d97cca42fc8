"""What a session has to write, in order, and what it has written that is not answered yet.

Small chunks of a caller who does not wait for answers are written together, as one batch (Nagle's
algorithm): while a message has no answer, small chunks wait for more of their kind, but for no
longer than HOLD_SECONDS. A chunk of the stream that was written last does not wait: a caller of one
stream gains nothing by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from bptt import v1 as pb
from bptt.client import connection, cutting
from bptt.client.batch_buffer import BatchBuffer
from bptt.client.grouping import Group
from bptt.client.lanes import LaneBook
from bptt.client.retransmit import Sent
from bptt.client.sent_batch import Part

HOLD_SECONDS = 0.002  # the longest that a small chunk waits for more: a few round trips


@dataclass(slots=True)
class SentLanes:
    """Lanes that a message of the present call introduces."""

    message: pb.LearnRequest


Message = Group | Part | SentLanes


class Outbox:
    """The queue of messages of one session. No connection, clock or event loop.

    Args:
        batches: of the session.
        book: its lanes.
    """

    def __init__(self, batches: BatchBuffer, book: LaneBook) -> None:
        self._batches = batches
        self._book = book
        self._queue: deque[Message] = deque()
        self._flight: deque[Message] = deque()
        self._last_stream = ""
        self._lanes_put = 0
        self.limits = cutting.UNTOLD
        """What one message may have at most."""

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._queue

    @property
    def quiet(self) -> bool:
        """Whether everything that was written is answered."""
        return not self._flight

    # ------------------------------------------------------------------ what is to be written

    def put(self, sent: Sent) -> None:
        """Add a chunk at the end."""
        tail = self._queue[-1] if self._queue else None
        if not (isinstance(tail, Group) and tail.take(sent, self.limits)):
            self._queue.append(Group.of(sent))

    def put_part(self, part: Part) -> None:
        """Add a batch, or a part of one, at the end."""
        self._queue.append(part)

    def put_lanes(self) -> None:
        """Have the lanes introduced that the present call does not know."""
        for message in connection.lanes_messages(self._book.names, self._lanes_put, self.limits):
            self._queue.append(SentLanes(message))
        self._lanes_put = len(self._book)

    def put_first(self, again: Sequence[Sent | Part]) -> None:
        """Add what is written once more, before all that waits."""
        for each in reversed(again):
            self._queue.appendleft(Group([each]) if isinstance(each, Sent) else each)

    # ------------------------------------------------------------------ writing and answers

    def take(self, *, held_long: bool) -> pb.LearnRequest | None:
        """Return the next message, which is written now; None if there is none, or it is held.

        Args:
            held_long: the first chunk that waits has waited for HOLD_SECONDS.
        """
        while self._queue and not (self.holds and not held_long):
            held_long = False
            each = self._queue.popleft()
            if isinstance(each, Group):
                message = each.write()
                if message is None:
                    continue
                single = len(each.members) == 1
                self._last_stream = each.members[0].stream_id if single else ""
            elif isinstance(each, Part):
                message = self._batches.write(each)
            else:
                message = each.message
            self._flight.append(each)
            return message
        return None

    @property
    def holds(self) -> bool:
        """Whether the next message waits for more chunks."""
        head = self._queue[0] if len(self._queue) == 1 else None
        return (
            isinstance(head, Group)
            and head.is_open
            and bool(self._flight)
            and not (len(head.members) == 1 and head.members[0].stream_id == self._last_stream)
        )

    def answered(self) -> Message:
        """Return the message that an answer belongs to: the oldest one without an answer."""
        return self._flight.popleft()

    # ------------------------------------------------------------------ a new call

    def restart(self, again: Sequence[Sent | Part], named: Sequence[str], introduced: int) -> None:
        """Begin another call.

        Args:
            again: what has to be sent again of the streams that were named, and of all lanes.
            named: streams of chunks that were compared with the server's positions.
            introduced: how many lanes the call knows.
        """
        compared = set(named)
        others: list[Sent | Part] = []  # sent for the first time while the call was being opened
        for group in self._queue:
            if isinstance(group, Group):
                others += [sent for sent in group.members if sent.stream_id not in compared]
        self._flight.clear()
        self._queue.clear()
        self._last_stream = ""
        self._lanes_put = introduced
        self.put_lanes()
        for each in sorted([*again, *others], key=lambda each: each.index):
            if isinstance(each, Sent):
                self.put(each)
            else:
                self.put_part(each)
