"""Keeps the batches that a session may have to send again. No connection, clock or event loop.

The rules are those of `retransmit`, for each stream of a batch:
- A batch is kept until each of its streams is answered and durable. After a broken call it is sent
  again as a whole, less what was refused; the server trims the steps that it has.
- Each stream of a batch is answered once. What a stream was answered first counts.
- Streams that the session placed behind a refused chunk of theirs move up to its first step. They
  are sent again as a smaller batch.
- A chunk that was sent to a deleted incarnation and not answered over that connection is never sent
  again. It is answered with `StreamDeleted`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bptt import v1 as pb
from bptt.client.batch_answers import AnswerColumns, RefusedPlace, ResultBuilder
from bptt.client.columns import BatchColumns
from bptt.client.errors import StepsLost
from bptt.client.lanes import LaneBook, Positions
from bptt.client.retransmit import MOVES_MAX, RetransmitBuffer
from bptt.client.sent_batch import LEARNED, OPEN, Part, parts_of, REFUSED, SentBatch
from bptt.client.types import Answer, Int64Array, Refused
from bptt.errors import OutOfOrder, ServiceError, StreamDeleted


class BatchBuffer:
    """The kept batches of one session.

    Args:
        book: the streams.
        buffer: of the same session; it keeps the order of answers, and counts what is kept.
    """

    def __init__(self, book: LaneBook, buffer: RetransmitBuffer) -> None:
        self._book = book
        self._buffer = buffer
        self._kept: dict[int, SentBatch] = {}
        self._written = 0

    @property
    def empty(self) -> bool:
        """Whether nothing is kept."""
        return not self._kept

    def keeps(self, lane: int) -> bool:
        """Return whether a batch with this lane is not answered or not durable."""
        return bool(self._book.kept[lane])

    def add(
        self,
        lanes: Int64Array,
        columns: BatchColumns,
        first_steps: Int64Array | None,
        whole: ResultBuilder,
        streams: Int64Array,
        offset: int,
        *,
        placed: bool,
    ) -> SentBatch:
        """Keep a batch that is about to be sent.

        Args:
            lanes: its streams.
            columns: what is sent.
            first_steps: of its streams; None: where they stand, or whatever the server finds.
            whole: the `send_many` that it belongs to.
            streams: places of its streams there.
            offset: steps of each stream that earlier batches of it hold.
            placed: the session chooses the first steps.
        """
        book = self._book
        incarnations = book.incarnations[lanes] if placed else np.zeros(len(lanes), np.int64)
        if placed:
            first_steps = book.ends[lanes]
        sent = SentBatch(
            self._buffer.taken,
            self._buffer.chunks_taken - (offset > 0),
            lanes,
            columns,
            first_steps,
            placed,
            incarnations,
            columns.size,
            whole,
            streams,
            offset,
        )
        self._buffer.keep_batch(sent, is_first=not offset)
        self._kept[sent.index] = sent
        book.kept[lanes] += 1
        if first_steps is not None:
            ends = book.ends[lanes]
            follows = first_steps <= ends
            if not placed and not follows.all():
                sent.gaps_after = np.where(follows | ~book.known[lanes], -1, ends)
            reached = np.maximum(ends, first_steps + columns.steps)
            book.ends[lanes] = np.where(follows, reached, ends)
        return sent

    def write(self, part: Part) -> pb.LearnRequest | None:
        """Return the message of a part that is being written now; None: nothing is left of it."""
        sent = part.sent
        if (sent.states == REFUSED).any():
            places = part.all_places
            part.places = places[sent.states[places] != REFUSED]
            if not len(part.places):
                return None
        self._written += 1
        part.flight = self._written
        if part.places is None:
            sent.flights[:] = part.flight
        else:
            sent.flights[part.places] = part.flight
        sent.undurable += 1
        return sent.message(part.places)

    # ------------------------------------------------------------------ answers

    def answered(
        self,
        part: Part,
        answer: AnswerColumns,
        passes: Callable[[SentBatch, ServiceError], bool],
        *,
        resume: bool,
    ) -> tuple[list[Part], list[Answer]]:
        """Take the answer to a part.

        Args:
            part: the part.
            answer: its columns.
            passes: whether a refused stream may be accepted in another call.
            resume: whether streams move up behind refused ones.

        Returns:
            Parts to write once more, before all that waits to be written, and the answers to hand
            out now.

        Raises:
            PassingError: a stream was refused for a reason that passes; nothing was changed.
            OutOfOrder: another client sends to a stream.
        """
        sent, places = part.sent, part.all_places
        mine = sent.flights[places] == part.flight
        refused = [_told(sent, places, each) for each in answer.refused if mine[each.place]]
        fresh = mine & (sent.states[places] == OPEN)
        for each in refused:
            if fresh[each.place] and resume and passes(sent, each.error):
                raise PassingError(each.error)
        counted = mine.copy()
        moved: list[_Moved] = []
        ready: list[Answer] = []
        for each in refused:
            counted[each.place] = False
            place = int(places[each.place])
            if not fresh[each.place]:
                sent.states[place] = REFUSED  # learned before, by an incarnation that is deleted
                continue
            if self._was_taken(sent, place, each):
                self._learn_taken(sent, place, each.expected_step)
                continue
            moves = self._moves(sent, each.error)
            if not moves:
                ready += self._refuse(sent, place, self._refused_stream(sent, place, each))
            deleted = isinstance(each.error, StreamDeleted)
            moved.append(_Moved(int(sent.lanes[place]), each.expected_step, moves, deleted))
        self._learn(sent, places, counted, answer)
        again = self._move_up(sent, moved) if resume and moved else []
        ready += self._finish(sent)
        if not resume and sent.is_answered:
            self._forget(sent)
        return again, ready

    def _refuse(self, sent: SentBatch, place: int, refused: Refused) -> list[Answer]:
        """Give up a stream of a `send_many`; returns answers that are complete now.

        Of its later batches the stream is given up, too, because its steps would not fit.
        """
        sent.states[place] = REFUSED
        stream = int(sent.streams[place])
        sent.whole.refuse(stream, refused)
        ready: list[Answer] = []
        for later in [each for each in self._kept.values() if each.index > sent.index]:
            if later.whole is sent.whole:
                found = np.flatnonzero((later.streams == stream) & (later.states == OPEN))
                if len(found):
                    later.states[found] = REFUSED
                    later.flights[found] = 0
                    ready += self._finish(later)
        return ready

    def _refused_stream(self, sent: SentBatch, place: int, each: RefusedPlace) -> Refused:
        first = None if sent.first_steps is None else int(sent.first_steps[place])
        name = self._book.names[int(sent.lanes[place])]
        return Refused(sent.chunk_index, name, first, each.expected_step, each.error)

    def _moves(self, sent: SentBatch, error: ServiceError) -> bool:
        """Return whether a refused stream is sent again with another first step."""
        if isinstance(error, StreamDeleted):
            again = not sent.resent
        else:
            again = isinstance(error, OutOfOrder)
        return sent.moves_up and again and sent.moves < MOVES_MAX

    def _was_taken(self, sent: SentBatch, place: int, refused: RefusedPlace) -> bool:
        """As `Sent.was_taken`."""
        columns = sent.columns
        if refused.field != "first_target_step" or not sent.resent or columns.steps[place]:
            return False
        if columns.first_targets is None or columns.labels is None:
            return False
        return bool(columns.first_targets[place] + columns.labels[place] <= refused.expected_step)

    def _learn_taken(self, sent: SentBatch, place: int, step: int) -> None:
        sent.states[place] = LEARNED
        sent.next_steps[place] = step
        sent.learned_by[place] = self._book.incarnations[sent.lanes[place]]
        sent.whole.taken(int(sent.streams[place]), step)

    def _learn(
        self,
        sent: SentBatch,
        places: Int64Array,
        counted: NDArray[np.bool_],
        answer: AnswerColumns,
    ) -> None:
        """Note the streams that an answer says are learned, some of them once more."""
        if not counted.any():
            return
        fresh = counted & (sent.states[places] == OPEN)
        self._check_alone(sent, places, fresh, answer)
        chosen = places[counted]
        next_steps, incarnations = answer.next_steps[counted], answer.incarnations[counted]
        sent.states[chosen] = LEARNED
        sent.next_steps[chosen] = next_steps
        sent.learned_by[chosen] = incarnations
        book, lanes = self._book, sent.lanes[chosen]
        replaced = (book.incarnations[lanes] != incarnations) & (book.incarnations[lanes] != 0)
        for place in np.flatnonzero(replaced).tolist():
            if not self._is_open_after(sent, int(lanes[place])):
                book.ends[lanes[place]] = next_steps[place]
        book.incarnations[lanes] = incarnations
        book.ends[lanes] = np.maximum(book.ends[lanes], next_steps)
        book.known[lanes] = True
        if fresh.any():
            lengths = sent.columns.steps[places]
            sent.whole.learn(sent.streams[places], sent.offset, lengths, fresh, answer)

    def _check_alone(
        self,
        sent: SentBatch,
        places: Int64Array,
        learned: NDArray[np.bool_],
        answer: AnswerColumns,
    ) -> None:
        """Raise if a placed chunk was trimmed that no call had sent before."""
        if not sent.placed or sent.resent or sent.first_steps is None:
            return
        first_steps = sent.first_steps[places]
        elsewhere = (answer.first_steps != first_steps) & learned
        elsewhere &= sent.columns.steps[places] > 0
        if elsewhere.any():
            place = int(np.argmax(elsewhere))
            name = self._book.names[int(sent.lanes[places[place]])]
            raise OutOfOrder(
                f"stream {name!r} was at step {first_steps[place]} when this session began to send "
                f"to it, and at step {answer.first_steps[place]} when its steps came: another "
                "client sends to the same stream"
            )

    def _is_open_after(self, sent: SentBatch, lane: int) -> bool:
        later = [each for each in self._kept.values() if each.index > sent.index]
        places = [(each, each.place(lane)) for each in later]
        return any(place is not None and each.states[place] == OPEN for each, place in places)

    def _finish(self, sent: SentBatch) -> list[Answer]:
        if sent.answer is not None or not sent.is_answered:
            return []
        ready = self._buffer.answer(sent, True)
        if sent.undurable == 0:
            self._forget(sent)
        return ready

    def _forget(self, sent: SentBatch) -> None:
        if self._kept.pop(sent.index, None) is not None:
            self._book.kept[sent.lanes] -= 1
            self._buffer.drop_batch(sent)

    # ------------------------------------------------------------------ streams that move up

    def _move_up(self, refused: SentBatch, moved: list[_Moved]) -> list[Part]:
        """Give streams of later batches, and of the refused one, another first step.

        Returns:
            The parts to write once more, in order.
        """
        again: dict[int, list[int]] = {}
        refused.moves += any(each.moves for each in moved)
        later = [
            (sent, {lane: place for place, lane in enumerate(sent.lanes.tolist())})
            for sent in self._kept.values()
            if sent.index >= refused.index
        ]
        for each in moved:
            if each.deleted:
                self._book.incarnations[each.lane] = 0
            end = each.expected_step
            for sent, places in later:
                place = places.get(each.lane)
                if place is None or sent.states[place] != OPEN or (each.deleted and sent.resent):
                    continue
                if sent is refused and not each.moves:
                    continue
                end = self._move(sent, place, end, deleted=each.deleted, again=again)
            self._book.ends[each.lane] = end
        return [Part(self._kept[index], np.array(sorted(again[index]))) for index in sorted(again)]

    def _move(
        self, sent: SentBatch, place: int, end: int, *, deleted: bool, again: dict[int, list[int]]
    ) -> int:
        """Move one stream of a batch behind step `end`; returns the step after its own."""
        first_steps = sent.first_steps
        assert first_steps is not None
        stale = deleted and sent.incarnations[place] != 0
        if sent.moves_up and (first_steps[place] != end or stale):
            first_steps[place] = end
            if deleted:
                sent.incarnations[place] = 0
            if sent.flights[place]:
                sent.flights[place] = 0
                again.setdefault(sent.index, []).append(place)
        if first_steps[place] <= end:
            end = max(end, int(first_steps[place] + sent.columns.steps[place]))
        return end

    # ------------------------------------------------------------------ durability

    def is_durable(self, part: Part) -> None:
        """Note that everything learned for the answer to a part is durable."""
        sent, book = part.sent, self._book
        places = part.all_places
        places = places[(sent.states[places] == LEARNED) & (sent.flights[places] == part.flight)]
        lanes, next_steps = sent.lanes[places], sent.next_steps[places]
        current = book.incarnations[lanes] == sent.learned_by[places]
        lanes, next_steps = lanes[current], next_steps[current]
        book.durable[lanes] = np.maximum(book.durable[lanes], next_steps)
        sent.undurable -= 1
        if sent.undurable == 0 and sent.answer is not None:
            self._forget(sent)

    def all_durable(self) -> None:
        """Note that everything that was answered is as durable as it will be."""
        for sent in list(self._kept.values()):
            if sent.answer is None:
                continue
            learned = sent.states == LEARNED
            lanes, next_steps = sent.lanes[learned], sent.next_steps[learned]
            self._book.durable[lanes] = np.maximum(self._book.durable[lanes], next_steps)
            self._forget(sent)

    # ------------------------------------------------------------------ a new call

    def resume(
        self,
        told: Positions,
        last_incarnation: int,
        limits: pb.ChunkLimits,
        *,
        same_load: bool,
    ) -> tuple[list[Part], list[Answer]]:
        """Compare the kept batches with where their streams stand when a new call is open.

        Args:
            told: where the streams of lanes stand, from lane 0 on.
            last_incarnation: as LearnOpened tells.
            limits: of the server.
            same_load: True: the server still has everything that it answered.

        Returns:
            The parts to send, in the order in which they were sent first, and the answers to hand
            out now.

        Raises:
            StepsLost: the server has forgotten steps that it had acknowledged.
        """
        book, incarnations = self._book, told.incarnations
        lanes = np.arange(len(incarnations))
        book.tell(lanes, told)
        waiting = book.kept[lanes] > 0
        known, durable = book.incarnations[lanes], book.durable[lanes]
        lost = waiting & (known == incarnations) & (known != 0) & (told.next_steps < durable)
        if lost.any():
            lane = int(np.argmax(lost))
            next_step = int(told.next_steps[lane])
            raise StepsLost.of(book.names[lane], next_step, int(durable[lane]))
        ready: list[Answer] = []
        for lane in np.flatnonzero(waiting & (known != incarnations) & (known != 0)).tolist():
            gone = not same_load and not incarnations[lane]
            if gone and durable[lane] and last_incarnation < known[lane]:
                raise StepsLost.of(book.names[lane], 0, int(durable[lane]))
            if not (gone and not durable[lane]):
                next_step = int(told.next_steps[lane])
                ready += self._give_up_deleted(lane, int(known[lane]), next_step)
                book.durable[lane] = 0
        book.incarnations[lanes] = np.where(waiting, incarnations, known)
        there = waiting & (incarnations != 0)
        raised = np.maximum(book.durable[lanes], told.durable_steps)
        book.durable[lanes] = np.where(there, raised, book.durable[lanes])
        again: list[Part] = []
        for sent in list(self._kept.values()):
            ready += self._refuse_gaps(sent)
            again += self._again(sent, limits)
        return again, ready

    def _refuse_gaps(self, sent: SentBatch) -> list[Answer]:
        """Answer chunks that did not follow and whose refusal was lost with the call.

        Sent again, they might follow by now: chunks that were sent after them were learned.
        """
        if sent.gaps_after is None:
            return []
        written = (sent.flights > 0) | sent.resent
        ready: list[Answer] = []
        found = (sent.states == OPEN) & (sent.gaps_after >= 0) & written
        for place in np.flatnonzero(found).tolist():
            assert sent.first_steps is not None
            expected = int(sent.gaps_after[place])
            error = OutOfOrder.of(int(sent.first_steps[place]), expected)
            fault = RefusedPlace(place, error, "first_step", expected)
            ready += self._refuse(sent, place, self._refused_stream(sent, place, fault))
        return ready + self._finish(sent) if found.any() else ready

    def _again(self, sent: SentBatch, limits: pb.ChunkLimits) -> list[Part]:
        """Return the parts of a batch to send in a new call; forget it if there are none."""
        sent.resent = sent.resent or sent.undurable > 0 or bool(sent.flights.any())
        sent.flights[:] = 0
        sent.undurable = 0
        book, lanes = self._book, sent.lanes
        # next_steps do not tell whether chunks without steps, labels only, are durable.
        durable = (sent.states == LEARNED) & (sent.columns.steps > 0)
        durable &= sent.learned_by == book.incarnations[lanes]
        durable &= sent.next_steps <= book.durable[lanes]
        places = np.flatnonzero((sent.states != REFUSED) & ~durable)
        if not len(places):
            self._forget(sent)
            return []
        if sent.resent or sent.placed:
            sent.incarnations = book.incarnations[lanes]
        return parts_of(sent, None if len(places) == len(lanes) else places, limits)

    def _give_up_deleted(self, lane: int, known: int, next_step: int) -> list[Answer]:
        """Give up what was sent of a deleted incarnation, and place what was never written."""
        book, end = self._book, next_step
        ready: list[Answer] = []
        for sent in list(self._kept.values()):
            place = sent.place(lane)
            if place is None or sent.states[place] == REFUSED:
                continue
            if sent.states[place] == LEARNED:
                sent.states[place] = REFUSED  # of no further interest; its answer stays
            elif sent.resent or sent.flights[place]:
                deleted = StreamDeleted.of(book.names[lane], known)
                text = f"{deleted.message}; the chunk may have been learned before that"
                error = StreamDeleted(text, deleted.violations)
                fault = RefusedPlace(place, error, "incarnation", next_step)
                ready += self._refuse(sent, place, self._refused_stream(sent, place, fault))
                ready += self._finish(sent)
            else:
                sent.incarnations[place] = 0
                if sent.moves_up and sent.first_steps is not None:
                    sent.first_steps[place] = end
                    end += int(sent.columns.steps[place])
        book.ends[lane] = end
        return ready


@dataclass(frozen=True, slots=True)
class _Moved:
    """A stream that was refused."""

    lane: int
    expected_step: int
    moves: bool
    """Its chunk is sent again itself."""
    deleted: bool
    """It was refused because its incarnation is deleted."""


def _told(sent: SentBatch, places: Int64Array, refused: RefusedPlace) -> RefusedPlace:
    """Return a refused place with the step that its stream expects."""
    if refused.expected_step >= 0:
        return refused
    step = 0 if sent.first_steps is None else int(sent.first_steps[places[refused.place]])
    return replace(refused, expected_step=step)


class PassingError(Exception):
    """A stream was refused for a reason that passes: another call may be accepted."""

    def __init__(self, error: ServiceError) -> None:
        self.error = error
