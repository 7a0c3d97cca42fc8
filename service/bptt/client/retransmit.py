"""Keeps the chunks that a session may have to send again. No connection, clock or event loop.

Rules:
- A chunk is kept until it is answered and durable. The session bounds how much is kept.
- Every kept chunk has a first step, and an incarnation where one is known. Sending it again is then
  safe: the server trims the steps that it has, and refuses the chunk if its incarnation is deleted.
- Answers are handed out in the order of the chunks, one for each, however often a chunk was sent.
- Chunks that the session placed behind a refused one move up to its first step. Chunks with late
  labels do not move, because they name steps by number.
- Labels without steps that are refused as too late when sent again had been learned before.
- A chunk that is sent in pieces is kept piece by piece, and answered once. When a piece is refused,
  the later ones are given up. When one is learned, the later ones are for its incarnation only.
- A chunk that was sent to a deleted incarnation and not answered over that connection is never sent
  again, because it may have been learned. It is answered with `StreamDeleted`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from bptt import v1 as pb
from bptt.client.cutting import Whole
from bptt.client.errors import StepsLost
from bptt.client.types import Answer, Refused
from bptt.errors import OutOfOrder, StreamDeleted

MOVES_MAX = 8  # of one chunk; more only if another client deletes the stream again and again


class Ordered(Protocol):
    """What is answered in order: a chunk or a batch."""

    size: int
    """Bytes, approximately."""
    index: int
    """Number in the session among chunks, pieces and batches, from 0."""
    answer: Any
    """None: not answered yet."""
    whole: Any
    """What joins the answers of pieces; None: it is answered by itself."""


@dataclass(slots=True, eq=False)
class Sent:
    """One kept chunk, or a piece of one."""

    index: int
    """Its number in the session among chunks, pieces and batches, from 0."""
    chunk_index: int
    """The chunk's number in the session, from 0."""
    message: pb.LearnRequest
    stream_id: str
    steps: int
    placed: bool
    """True: the session chose first_step, because the caller gave none."""
    size: int
    """Bytes, approximately."""
    labels: int = 0
    """Number of targets."""
    resent: bool = False
    """True: it was written in an earlier call."""
    attempt: int = 0
    """Number of the latest attempt; answers to earlier ones are ignored."""
    written: bool = False
    """True: written in the present call. False: it waits to be written."""
    moves: int = 0
    """How often it was given another first step after a refusal."""
    answer: Answer | None = None
    incarnation: int = 0
    """The incarnation that learned it, as its answer tells."""
    whole: Whole | None = None
    """Of a piece: its chunk."""
    gap_after: int | None = None
    """The step that its stream expects, if it does not follow; the server will refuse it."""
    given_up: bool = False
    """True: an earlier piece of its chunk was refused. It is not written any more."""

    @property
    def first_step(self) -> int:
        """The number of its first step."""
        return self.message.chunk.first_step

    @property
    def end(self) -> int:
        """The number of the step after its last."""
        return self.message.chunk.first_step + self.steps

    @property
    def moves_up(self) -> bool:
        """Whether it may be given another first step."""
        late = self.message.chunk.HasField("first_target_step")
        return self.placed and not late and not self._goes_on

    @property
    def _goes_on(self) -> bool:
        """Whether an earlier piece of its chunk was learned."""
        return self.whole is not None and self.whole.begun

    @property
    def is_bound(self) -> bool:
        """Whether an incarnation may have learned it, or has learned a part of its chunk."""
        return self.written or self.resent or self._goes_on

    def was_taken(self, refused: pb.ChunkRefused) -> bool:
        """Return whether it was refused because an earlier call had learned it already.

        The server trims steps that it has, but not labels without steps. Sent again, such labels
        may be refused as too late although they were in time before.
        """
        last = self.message.chunk.first_target_step + self.labels
        late = refused.field == "first_target_step" and last <= refused.expected_step
        return late and self.resent and not self.steps


class RetransmitBuffer:
    """The kept chunks of one session, and what is known of their streams.

    Attributes:
        ends: by stream, the step after everything that was sent, where that is known.
        durable: by stream, the step before which everything is durable, as last told.
        incarnations: by stream, its incarnation, as last told.
        unanswered: number of chunks without an answer.
        chunks: number of kept chunks.
        size: their bytes.
        taken: number of chunks, pieces and batches that were added; the index of the next one.
        chunks_taken: number of chunks and batches that were added.
    """

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}
        self.durable: dict[str, int] = {}
        self.incarnations: dict[str, int] = {}
        self.unanswered = 0
        self.chunks = 0
        self.size = 0
        self.taken = 0
        self.chunks_taken = 0
        self._order: deque[Ordered] = deque()  # whose answers were not handed out
        self._kept: dict[str, deque[Sent]] = {}

    def add(
        self,
        message: pb.LearnRequest,
        steps: int,
        labels: int,
        *,
        placed: bool,
        whole: Whole | None = None,
        is_first: bool = True,
    ) -> Sent:
        """Keep a chunk that is about to be sent.

        A chunk that the session places names the stream's incarnation. A caller who names a step
        may mean an incarnation that is still to be opened.

        Args:
            message: the request.
            steps: number of steps.
            labels: number of targets.
            placed: the session chose first_step.
            whole: of a piece, its chunk.
            is_first: False: a further piece of the chunk that was added last.
        """
        self.chunks_taken += is_first
        chunk = message.chunk
        if placed and (incarnation := self.incarnations.get(chunk.stream_id)):
            chunk.incarnation = incarnation
        size = message.ByteSize()
        sent = Sent(
            self.taken,
            self.chunks_taken - 1,
            message,
            chunk.stream_id,
            steps,
            placed,
            size,
            labels,
            whole=whole,
        )
        self.taken += 1
        self.unanswered += 1
        self.chunks += 1
        self.size += sent.size
        self._order.append(sent)
        self._kept.setdefault(sent.stream_id, deque()).append(sent)
        end = self.ends.get(sent.stream_id)
        if end is not None and chunk.first_step <= end:
            self.ends[sent.stream_id] = max(end, sent.end)
        elif end is not None and not placed:
            sent.gap_after = end
        return sent

    def keep_batch(self, sent: Ordered, *, is_first: bool) -> None:
        """Keep the place of a batch among the answers, and count it.

        Args:
            sent: the batch.
            is_first: False: a further batch of the `send_many` that was added last.
        """
        self.taken += 1
        self.chunks_taken += is_first
        self.unanswered += 1
        self.chunks += 1
        self.size += sent.size
        self._order.append(sent)

    def drop_batch(self, sent: Ordered) -> None:
        """Count a batch no longer."""
        self._drop(sent)

    def learned(self, sent: Sent, answer: Answer, next_step: int, incarnation: int) -> list[Answer]:
        """Note that a chunk was learned.

        Args:
            sent: the chunk; one that was answered before keeps its first answer.
            answer: the answer.
            next_step: the stream's next step, as the answer tells.
            incarnation: the stream's incarnation, as the answer tells.

        Returns:
            The answers to hand out now.
        """
        stream_id = sent.stream_id
        sent.incarnation = incarnation
        if sent.whole is not None:
            sent.whole.begun = True
        if self.incarnations.get(stream_id) != incarnation:
            self.incarnations[stream_id] = incarnation
            if not any(other.answer is None for other in self._after(sent)):
                self.ends[stream_id] = next_step
        self.ends[stream_id] = max(self.ends.get(stream_id, 0), next_step)
        return self.answer(sent, answer)

    def _after(self, sent: Sent) -> list[Sent]:
        return [each for each in self._kept.get(sent.stream_id, ()) if each.index > sent.index]

    def refused(self, sent: Sent, answer: Refused) -> list[Answer]:
        """Note that a chunk was refused for good, and forget it; the answers to hand out now."""
        for later in [each for each in self._pieces() if _follows(each, sent)]:
            self.unanswered -= later.answer is None
            later.answer = later.answer or answer
            later.given_up = True
            later.attempt += 1
            self.forget(later)
        ready = self.answer(sent, answer)
        self.forget(sent)
        return ready

    def _pieces(self) -> list[Sent]:
        return [each for each in self._order if isinstance(each, Sent) and each.whole is not None]

    def answer(self, sent: Ordered, answer: Answer | bool) -> list[Answer]:
        """Note the answer to a chunk or a batch; returns the answers to hand out now."""
        if sent.answer is None:
            sent.answer = answer
            self.unanswered -= 1
        ready: list[Answer] = []
        while self._order and (first := self._order[0].answer) is not None:
            whole = self._order.popleft().whole
            ready += [first] if whole is None else whole.take(first)
        return ready

    def forget(self, sent: Sent) -> None:
        """Keep a chunk no longer."""
        kept = self._kept.get(sent.stream_id)
        if kept is not None and sent in kept:
            kept.remove(sent)
            self._drop(sent)
            if not kept:
                del self._kept[sent.stream_id]

    def acknowledge(self, stream_id: str, durable_step: int, incarnation: int) -> None:
        """Note that an incarnation's steps before `durable_step` are durable."""
        current = incarnation == self.incarnations.get(stream_id)
        if current and (durable_step or stream_id not in self.durable):
            self.durable[stream_id] = durable_step
        kept = self._kept.get(stream_id)
        if kept is None:
            return
        while kept and _is_durable(kept[0], durable_step, incarnation):
            self._drop(kept.popleft())
        if kept and kept[0].incarnation not in (0, incarnation):  # an earlier one comes first
            for sent in [each for each in kept if _is_durable(each, durable_step, incarnation)]:
                kept.remove(sent)
                self._drop(sent)
        if not kept:
            del self._kept[stream_id]

    def acknowledge_answered(self) -> None:
        """Note that everything that was answered is as durable as it will be."""
        for stream_id, kept in list(self._kept.items()):
            current = self.incarnations.get(stream_id, 0)
            ends = [each.end for each in kept if each.answer and each.incarnation == current]
            self.durable[stream_id] = max([self.durable.get(stream_id, 0), *ends])
            for sent in [each for each in kept if each.answer is not None]:
                self.forget(sent)

    def _drop(self, sent: Ordered) -> None:
        self.chunks -= 1
        self.size -= sent.size

    def keeps(self, stream_id: str) -> bool:
        """Return whether a chunk of a stream is not answered or not durable."""
        return stream_id in self._kept

    def awaits(self, stream_id: str) -> bool:
        """Return whether a chunk of a stream is not answered."""
        return any(sent.answer is None for sent in self._kept.get(stream_id, ()))

    def streams(self) -> list[str]:
        """Return the streams that have kept chunks."""
        return list(self._kept)

    def move_up(self, refused: Sent, expected_step: int, *, deleted: bool = False) -> list[Sent]:
        """Give the chunks behind a refused one, and that one if it is kept, another first step.

        Args:
            refused: the refused chunk.
            expected_step: the stream's next step.
            deleted: True: it was refused because its incarnation is deleted. Then the chunks that
                earlier calls sent stay as they are, so that the server refuses them, too.

        Returns:
            Chunks to write once more, in order, before all that waits to be written.
        """
        stream_id = refused.stream_id
        if deleted and self.incarnations.get(stream_id) == refused.message.chunk.incarnation:
            del self.incarnations[stream_id]
        end, again = expected_step, []
        for sent in self._kept.get(stream_id, ()):
            if sent.index < refused.index or sent.answer is not None or (deleted and sent.resent):
                continue
            chunk = sent.message.chunk
            stale = deleted and chunk.incarnation != 0
            if sent.moves_up and (sent.first_step != end or stale):
                chunk.first_step = end
                if deleted:
                    chunk.incarnation = 0
                sent.attempt += 1
                if sent.written:
                    sent.written = False
                    again.append(sent)
            if sent.first_step <= end:
                end = max(end, sent.end)
        self.ends[stream_id] = end
        return again

    # ------------------------------------------------------------------ a new call

    def resume(
        self, named: list[str], opened: pb.LearnOpened, *, same_load: bool
    ) -> tuple[list[Sent], list[Answer]]:
        """Compare the kept chunks with where their streams stand when a new call is open.

        Args:
            named: the streams that were asked for; the others have nothing kept from before.
            opened: where they stand.
            same_load: True: the server still has everything that it answered.

        Returns:
            The chunks to send, in the order in which they were sent first, and the answers to hand
            out now.

        Raises:
            StepsLost: the server has forgotten steps that it had acknowledged.
        """
        positions = {each.stream_id: each for each in opened.streams}
        again: list[Sent] = []
        ready: list[Answer] = []
        for stream_id in named:
            if stream_id not in self._kept:
                continue
            position = positions.get(stream_id, pb.Stream(stream_id=stream_id))
            known = self.incarnations.get(stream_id, 0)
            if known and position.incarnation != known:
                if self._is_lost(position, known, opened.last_incarnation, same_load=same_load):
                    self.incarnations.pop(stream_id)
                else:
                    ready += self._give_up_deleted(position, known)
            self._continue(position)
            ready += self._refuse_gaps(stream_id)
            again += self._to_send(position)
        return sorted(again, key=lambda sent: sent.index), ready

    def _is_lost(
        self, position: pb.Stream, known: int, last_incarnation: int, *, same_load: bool
    ) -> bool:
        """Return whether an incarnation that is gone was lost with its server, not deleted.

        Lost are steps that were not durable when a server was killed. If another stream was opened
        since, the incarnation's number may be in use again, so a number alone does not tell.

        Raises:
            StepsLost: steps that had been acknowledged are lost.
        """
        if same_load or position.incarnation:
            return False
        durable_step = self.durable.get(position.stream_id, 0)
        if durable_step and last_incarnation < known:
            raise StepsLost.of(position.stream_id, 0, durable_step)
        return not durable_step

    def _give_up_deleted(self, position: pb.Stream, known: int) -> list[Answer]:
        """Forget the chunks of a deleted incarnation, and place those that were never written."""
        stream_id, ready, end = position.stream_id, [], position.next_step
        for sent in list(self._kept[stream_id]):
            chunk = sent.message.chunk
            if sent.answer is not None:
                self.forget(sent)
            elif sent.is_bound:
                first_step = chunk.first_step if chunk.HasField("first_step") else None
                deleted = StreamDeleted.of(stream_id, known)
                text = f"{deleted.message}; the chunk may have been learned before that"
                error = StreamDeleted(text, deleted.violations)
                refused = Refused(
                    sent.chunk_index, stream_id, first_step, position.next_step, error
                )
                ready += self.refused(sent, refused)
            else:
                chunk.incarnation = 0
                if sent.moves_up:
                    chunk.first_step = end
                    end = sent.end
        self.ends[stream_id] = end
        self.durable[stream_id] = self.durable.get(stream_id, 0)
        if position.incarnation:
            self.durable[stream_id] = position.durable_step
        self.incarnations.pop(stream_id, None)
        return ready

    def _continue(self, position: pb.Stream) -> None:
        """Note where a stream stands.

        Raises:
            StepsLost: the server has forgotten what it had acknowledged of this incarnation.
        """
        stream_id = position.stream_id
        if not position.incarnation:
            return
        if self.incarnations.get(stream_id) == position.incarnation:
            durable_step = self.durable.get(stream_id, 0)
            if position.next_step < durable_step:
                raise StepsLost.of(stream_id, position.next_step, durable_step)
        self.incarnations[stream_id] = position.incarnation
        self.acknowledge(stream_id, position.durable_step, position.incarnation)

    def _refuse_gaps(self, stream_id: str) -> list[Answer]:
        """Answer chunks that did not follow and whose refusal was lost with the call.

        Sent again, they might follow by now: chunks that were sent after them were learned.
        """
        ready: list[Answer] = []
        for sent in list(self._kept.get(stream_id, ())):
            if sent.gap_after is not None and sent.answer is None and sent.is_bound:
                error = OutOfOrder.of(sent.first_step, sent.gap_after)
                index, first_step = sent.chunk_index, sent.first_step
                refused = Refused(index, stream_id, first_step, sent.gap_after, error)
                ready += self.refused(sent, refused)
        return ready

    def _to_send(self, position: pb.Stream) -> list[Sent]:
        again = []
        for sent in self._kept.get(position.stream_id, ()):
            # next_step does not tell whether a chunk without steps, labels only, was learned.
            if sent.answer is None or sent.end > position.next_step or not sent.steps:
                sent.attempt += 1
                sent.resent = sent.resent or sent.written
                if sent.resent or sent.placed:
                    sent.message.chunk.incarnation = position.incarnation
                again.append(sent)
            sent.written = False
        return again


def _follows(sent: Sent, piece: Sent) -> bool:
    """Return whether `sent` is a later piece of the chunk of `piece`."""
    return sent.whole is not None and sent.whole is piece.whole and sent.index > piece.index


def _is_durable(sent: Sent, durable_step: int, incarnation: int) -> bool:
    learned = sent.answer is not None and sent.incarnation == incarnation
    return learned and sent.end <= durable_step
