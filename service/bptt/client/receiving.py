"""Takes the answers of a session's calls: which message each belongs to, and what follows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bptt import v1 as pb
from bptt.client import batch_answers, convert
from bptt.client.batch_answers import AnswerColumns
from bptt.client.batch_buffer import BatchBuffer, PassingError
from bptt.client.errors import passes
from bptt.client.grouping import Group
from bptt.client.lanes import LaneBook, Positions
from bptt.client.outbox import Message, Outbox
from bptt.client.retransmit import MOVES_MAX, RetransmitBuffer, Sent
from bptt.client.sent_batch import Part, SentBatch
from bptt.client.types import Answer, Model
from bptt.errors import OutOfOrder, ServiceError, StreamDeleted, StreamInUse


class TryAgainError(Exception):
    """A chunk was refused for a reason that passes: end the call and open another one."""

    def __init__(self, error: ServiceError) -> None:
        self.error = error


class Receiver:
    """Passes answers on to what is kept, and hands out those that are complete.

    Args:
        outbox: knows what was written.
        buffer: keeps chunks.
        batches: keeps batches.
        book: where the streams of batches stand.
        hand_out: takes answers for the caller.
        resume: whether the session sends again.
        predictions: whether answers have predictions.
    """

    model: Model
    """Of the session."""

    def __init__(
        self,
        outbox: Outbox,
        buffer: RetransmitBuffer,
        batches: BatchBuffer,
        book: LaneBook,
        hand_out: Callable[[list[Answer]], None],
        *,
        resume: bool,
        predictions: bool,
    ) -> None:
        self._outbox = outbox
        self._buffer = buffer
        self._batches = batches
        self._book = book
        self._hand_out = hand_out
        self._resume = resume
        self._predictions = predictions
        self._answers = 0  # of the present call
        self._undurable: deque[tuple[int, Part | list[tuple[str, int, int]]]] = deque()
        self.calls = 0
        """How many calls have begun."""

    def begin(self, introduced: int) -> None:
        """Begin with the answers of a new call, of which so many introduced lanes."""
        self.calls += 1
        self._answers = introduced
        self._undurable.clear()

    def take(self, message: pb.LearnResponse) -> bool:
        """Take a message of the server; returns whether it shows that the server works.

        Raises:
            TryAgainError: a chunk was refused for a reason that passes.
            OutOfOrder: another client sends to the same stream.
        """
        kind = message.WhichOneof("message")
        if kind == "acknowledged":
            for each in message.acknowledged.streams:
                self._buffer.acknowledge(each.stream_id, each.durable_step, each.incarnation)
            self._durable(message.acknowledged.durable_answers)
            return False
        if kind not in ("learned", "refused", "introduced", "batch"):
            return False  # a kind of answer that this version does not know
        sent = self._outbox.answered()
        self._answers += 1
        if kind == "learned":
            self._learned(sent, message.learned)
        elif kind == "refused":
            self._refused(sent, message.refused)
        elif kind == "introduced":
            told = Positions.of([message.introduced])
            first = message.introduced.first_lane
            self._book.tell(np.arange(first, first + len(told.next_steps)), told)
        else:
            self._batch(sent, message.batch)
        return True

    def closed(self) -> None:
        """Note that everything that was answered is as durable as it will be."""
        self._buffer.acknowledge_answered()
        self._batches.all_durable()

    # ------------------------------------------------------------------ chunks

    def _learned(self, group: Message, message: pb.ChunkLearned) -> None:
        assert isinstance(group, Group)
        [sent], [attempt] = group.members, group.attempts
        if attempt != sent.attempt:
            return
        answer = sent.answer
        if answer is None:
            answer = convert.learned_from_proto(message, self.model, predictions=self._predictions)
        self._note_learned(sent, answer, message.first_step, message.next_step, message.incarnation)
        self._buffer.acknowledge(sent.stream_id, message.durable_step, message.incarnation)

    def _note_learned(
        self, sent: Sent, answer: Answer, first_step: int, next_step: int, incarnation: int
    ) -> None:
        elsewhere = sent.steps and first_step != sent.first_step
        if sent.placed and not sent.attempt and elsewhere:
            raise OutOfOrder(
                f"stream {sent.stream_id!r} was at step {sent.first_step} when this session began "
                f"to send to it, and at step {first_step} when its steps came: another client "
                "sends to the same stream"
            )
        self._hand_out(self._buffer.learned(sent, answer, next_step, incarnation))
        if not self._resume:
            self._buffer.forget(sent)

    def _refused(self, sent: Message, message: pb.ChunkRefused) -> None:
        """Take the refusal of a chunk, or of a message as a whole."""
        if isinstance(sent, Part):
            count = len(sent.all_places)
            self._batch_answered(sent, batch_answers.refused_whole(message, count))
        elif isinstance(sent, Group):
            if len(sent.members) > 1:  # a fault of the whole: each chunk hears its own by itself
                again = []
                for each, attempt in zip(sent.members, sent.attempts, strict=True):
                    if attempt == each.attempt:
                        each.attempt += 1
                        again.append(each)
                self._outbox.put_first(again)
                return
            [chunk], [attempt] = sent.members, sent.attempts
            self._chunk_refused(chunk, attempt, message)
        else:
            raise convert.refused_from_proto(message, 0).error

    def _chunk_refused(self, sent: Sent, attempt: int, message: pb.ChunkRefused) -> None:
        if attempt != sent.attempt:
            return
        if sent.was_taken(message):
            step = message.expected_step
            incarnation = self._buffer.incarnations.get(sent.stream_id, 0)
            taken = pb.ChunkLearned(stream_id=sent.stream_id, first_step=step, next_step=step)
            learned = convert.learned_from_proto(taken, self.model, predictions=self._predictions)
            self._note_learned(sent, learned, step, step, incarnation)
            return
        answer = convert.refused_from_proto(message, sent.chunk_index)
        if self._resume and self._is_passing(sent.attempt > 0, answer.error):
            raise TryAgainError(answer.error)
        deleted = isinstance(answer.error, StreamDeleted)
        if self._moves_up(sent, answer.error):
            sent.moves += 1
        elif sent.answer is None:
            self._hand_out(self._buffer.refused(sent, answer))
        else:  # learned before, by an incarnation that is deleted
            self._buffer.forget(sent)
        if self._resume:
            again = self._buffer.move_up(sent, message.expected_step, deleted=deleted)
            self._outbox.put_first(again)

    def _moves_up(self, sent: Sent, error: ServiceError) -> bool:
        """Return whether a refused chunk is sent again with another first step.

        A chunk that an earlier call sent to a deleted incarnation may have been learned there.
        """
        if isinstance(error, StreamDeleted):
            again = not sent.resent
        else:
            again = isinstance(error, OutOfOrder)
        return sent.moves_up and again and sent.moves < MOVES_MAX

    def _is_passing(self, was_sent_before: bool, error: ServiceError) -> bool:
        """Return whether the chunk may be accepted in another call."""
        # The server may not have noticed yet that a broken call of this session has ended.
        own = isinstance(error, StreamInUse) and (was_sent_before or self.calls > 1)
        return passes(error) or own

    # ------------------------------------------------------------------ batches

    def _batch(self, sent: Message, message: pb.BatchLearned) -> None:
        answer = batch_answers.answer_of(message, self.model, predictions=self._predictions)
        if isinstance(sent, Part):
            self._batch_answered(sent, answer)
        else:
            assert isinstance(sent, Group)
            self._group_answered(sent, answer, message)
        self._durable(message.durable_answers)

    def _batch_answered(self, part: Part, answer: AnswerColumns) -> None:
        self._undurable.append((self._answers, part))

        def passing(sent: SentBatch, error: ServiceError) -> bool:
            return self._is_passing(sent.resent, error)

        try:
            again, ready = self._batches.answered(part, answer, passing, resume=self._resume)
        except PassingError as passing_error:
            raise TryAgainError(passing_error.error) from None
        self._outbox.put_first(again)
        self._hand_out(ready)

    def _group_answered(
        self, group: Group, answer: AnswerColumns, message: pb.BatchLearned
    ) -> None:
        """Take the answer to a group: each chunk is answered by itself."""
        learned: list[tuple[str, int, int]] = []
        refusals = {each.place: each for each in message.refusals}
        starts = (np.cumsum(answer.new_steps) - answer.new_steps).tolist()
        next_steps, incarnations = answer.next_steps.tolist(), answer.incarnations.tolist()
        for place, sent in enumerate(group.members):
            attempt = group.attempts[place]
            if place in refusals:
                self._chunk_refused(sent, attempt, refusals[place])
            elif attempt == sent.attempt:
                found = sent.answer or replace(
                    batch_answers.learned_of(answer, place, sent.stream_id, starts[place]),
                    durable_step=self._buffer.durable.get(sent.stream_id, 0),
                )
                first_step = int(answer.first_steps[place])
                self._note_learned(sent, found, first_step, next_steps[place], incarnations[place])
                learned.append((sent.stream_id, next_steps[place], incarnations[place]))
        self._undurable.append((self._answers, learned))

    def _durable(self, answers: int) -> None:
        """Note that so many answers of the present call are durable."""
        while self._undurable and self._undurable[0][0] <= answers:
            _, what = self._undurable.popleft()
            if isinstance(what, Part):
                self._batches.is_durable(what)
            else:
                for stream_id, next_step, incarnation in what:
                    self._buffer.acknowledge(stream_id, next_step, incarnation)
