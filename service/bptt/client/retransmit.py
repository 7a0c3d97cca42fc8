"""What a session has sent and may have to send again. Pure: no connection, clock or event loop.

Rules:
- A chunk is kept until it is answered and durable; what is kept is bounded.
- Every kept chunk has a place, the step at which it begins. Sending it again is then safe: the
  server trims away what it has.
- Answers are handed out in the order of the chunks, once each, however often a chunk was sent.
- Chunks that the session placed behind one that was refused move up to where that one began; but
  not those with late labels, which name steps by their number.
- Labels without steps may be refused as too late when they are sent again: then they were taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from bptt import v1 as pb
from bptt.client.types import Answer

MOVES_MAX = 8  # of one chunk: more often only if somebody else deletes its stream again and again


@dataclass(slots=True, eq=False)
class Sent:
    """One chunk, from the moment its caller sends it until it need not be kept."""

    index: int
    """Its place in the session."""
    message: pb.LearnRequest
    stream_id: str
    steps: int
    placed: bool
    """By the session, because its caller gave no first_step."""
    size: int
    """Bytes, about."""
    labels: int = 0
    """Targets."""
    resent: bool = False
    """In a call before the present one it was sent already."""
    attempt: int = 0
    """Answers to attempts before this one say nothing."""
    written: bool = False
    """On its way in the present call; else it waits to be written."""
    moves: int = 0
    answer: Answer | None = None

    @property
    def first_step(self) -> int:
        """Where it begins."""
        return self.message.chunk.first_step

    @property
    def end(self) -> int:
        """The step after its last."""
        return self.message.chunk.first_step + self.steps

    @property
    def moves_up(self) -> bool:
        """Whether it may be placed anew."""
        return self.placed and not self.message.chunk.HasField("first_target_step")

    def was_taken(self, refused: pb.ChunkRefused) -> bool:
        """Whether it is refused because it was learned before, in a call that broke.

        Steps that come again are trimmed away. Labels by themselves are judged as they are: those
        that came in their time, and whose time is over, did not come too early.
        """
        last = self.message.chunk.first_target_step + self.labels
        late = refused.field == "first_target_step" and last <= refused.expected_step
        return late and self.resent and not self.steps


class RetransmitBuffer:
    """The books of one session.

    Attributes:
        ends: the step after all that was sent of a stream, where that is known.
        durable: the step before which all of a stream is durable, as last told.
        unanswered: chunks without an answer.
        chunks: chunks kept.
        size: their bytes.
    """

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}
        self.durable: dict[str, int] = {}
        self.unanswered = 0
        self.chunks = 0
        self.size = 0
        self._taken = 0
        self._order: deque[Sent] = deque()  # whose answers were not handed out
        self._kept: dict[str, deque[Sent]] = {}

    def add(self, message: pb.LearnRequest, steps: int, labels: int, *, placed: bool) -> Sent:
        """A chunk that is about to be sent."""
        chunk, size = message.chunk, message.ByteSize()
        sent = Sent(self._taken, message, chunk.stream_id, steps, placed, size, labels)
        self._taken += 1
        self.unanswered += 1
        self.chunks += 1
        self.size += sent.size
        self._order.append(sent)
        self._kept.setdefault(sent.stream_id, deque()).append(sent)
        end = self.ends.get(sent.stream_id)
        if end is not None and chunk.first_step <= end:  # else it will be refused, being a gap
            self.ends[sent.stream_id] = max(end, sent.end)
        return sent

    def answered(self, sent: Sent, answer: Answer, next_step: int) -> list[Answer]:
        """The answer of a chunk is there; answers that may be handed out now.

        Args:
            sent: the chunk; one that was answered before keeps its first answer.
            answer: the answer.
            next_step: of its stream, as the answer tells.
        """
        if sent.answer is None:
            sent.answer = answer
            self.unanswered -= 1
        self.ends[sent.stream_id] = max(self.ends.get(sent.stream_id, 0), next_step)
        ready = []
        while self._order and (first := self._order[0].answer) is not None:
            self._order.popleft()
            ready.append(first)
        return ready

    def forget(self, sent: Sent) -> None:
        """A chunk was refused: it need not be kept."""
        kept = self._kept.get(sent.stream_id)
        if kept is not None and sent in kept:
            kept.remove(sent)
            self._drop(sent)
            if not kept:
                del self._kept[sent.stream_id]

    def acknowledge(self, stream_id: str, durable_step: int) -> None:
        """All of a stream before a step is durable."""
        self.durable[stream_id] = durable_step
        kept = self._kept.get(stream_id)
        if kept is None:
            return
        while kept and kept[0].answer is not None and kept[0].end <= durable_step:
            self._drop(kept.popleft())
        if not kept:
            del self._kept[stream_id]

    def acknowledge_answered(self) -> None:
        """All that was answered is as durable as it will be."""
        for stream_id in list(self._kept):
            self.acknowledge(stream_id, max(self._ends_answered(stream_id)))

    def _ends_answered(self, stream_id: str) -> Iterator[int]:
        yield self.durable.get(stream_id, 0)
        for sent in self._kept[stream_id]:
            if sent.answer is not None:
                yield sent.end

    def _drop(self, sent: Sent) -> None:
        self.chunks -= 1
        self.size -= sent.size

    def keeps(self, stream_id: str) -> bool:
        """Whether something of a stream is not answered or not durable."""
        return stream_id in self._kept

    def awaits(self, stream_id: str) -> bool:
        """Whether something of a stream is not answered."""
        return any(sent.answer is None for sent in self._kept.get(stream_id, ()))

    def streams(self) -> list[str]:
        """Those of which something is kept."""
        return list(self._kept)

    def move_up(self, refused: Sent, expected_step: int) -> list[Sent]:
        """Place anew what follows a chunk that was refused, and the chunk itself if it is kept.

        Returns:
            Chunks to be written once more, in order, before all that waits to be written.
        """
        end, again = expected_step, []
        for sent in self._kept.get(refused.stream_id, ()):
            if sent.index < refused.index or sent.answer is not None:
                continue
            if sent.moves_up and sent.first_step != end:
                sent.message.chunk.first_step = end
                sent.attempt += 1
                if sent.written:
                    sent.written = False
                    again.append(sent)
            if sent.first_step <= end:
                end = max(end, sent.end)
        self.ends[refused.stream_id] = end
        return again

    def to_send_again(self, next_steps: dict[str, int]) -> list[Sent]:
        """What a new call begins with, in the order in which it was sent at first.

        Args:
            next_steps: of each stream of which something is kept, as the server has it now.
        """
        again = []
        for stream_id, next_step in next_steps.items():
            for sent in self._kept.get(stream_id, ()):
                # A chunk without steps holds labels only, and next_step does not tell of it.
                if sent.answer is None or sent.end > next_step or not sent.steps:
                    sent.attempt += 1
                    sent.resent = sent.resent or sent.written
                    again.append(sent)
                sent.written = False
        return sorted(again, key=lambda sent: sent.index)
