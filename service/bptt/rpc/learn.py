"""Serves one Learn call: one task reads chunks, the handler writes the answers.

Rules:
- Chunks are accepted in the order of arrival and answered in that order.
- A refused chunk is answered and changes nothing; the call continues.
- Only `close` means that the client has sent everything. After a lost connection, or an end of the
  client's messages without `close`, accepted chunks are learned and the call ends with an error.
- While the model's queue or this call's response queue is full, the call reads nothing, so the
  client waits. If the model's queue stays full for too long, or the disk is full, the call ends
  with an error that says when to try again.
- Answers do not wait for the journal. Steps that become durable later are acknowledged with the
  next answer, or in an `acknowledged` if no answer is due. The call ends after its last
  acknowledgement.
- Every answered step is acknowledged, also if its stream has been deleted since: its record in the
  journal is durable before the record of the deletion.
- Steps of chunks that were sent alone are acknowledged by stream; those of batches by the number of
  answers that are durable. Records are numbered in the order in which they become durable, so that
  one number says it for all streams.
- An answer to late labels without steps waits until the labels are durable, because no step number
  could acknowledge them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import grpc.aio
import numpy as np

from bptt import v1 as pb
from bptt.config import Limits, STREAM_ID_BYTES_MAX
from bptt.domain import BatchAnswer, check_stream_id, IncomingBatch, LaneRefused
from bptt.engine.responses import DURABLE_ADVANCED, PendingResponse, ResponseQueue
from bptt.engine.trainer import Trainer
from bptt.errors import InvalidRequest, QueueFull, ServerStopping, ServiceError
from bptt.rpc import convert, convert_answers, convert_batch, convert_models
from bptt.rpc.convert_batch import ReadBatch
from bptt.rpc.lanes import LaneTable

Context = grpc.aio.ServicerContext[pb.LearnRequest, pb.LearnResponse]

_VALUE_BYTES = 8  # of one predicted value in the response queue
_REPORT_BYTES = 256  # of one update's report there
_LANE_BYTES = 32  # of a lane's numbers in the columns of an answer
_ACKNOWLEDGE_SECONDS = 0.005  # an answer that comes within this time carries the acknowledgement
OPEN_STREAMS_MAX = 8192  # stream_ids in OpenLearn: with the longest names 2.3 MB in `opened`


@dataclass(slots=True, eq=False)
class _Unacknowledged:
    """The answered steps of one incarnation of a stream that the client does not know durable."""

    next_step: int
    """The step after the last one that was answered."""
    durable_step: int
    """The last durable step that was sent to the client."""
    lsn: int
    """A record at or after the one that moved the stream to `next_step`."""


@dataclass(slots=True, eq=False)
class _SentChunk:
    """What the answer to a chunk that was sent alone depends on."""

    doubles: bool


@dataclass(slots=True, eq=False)
class _Ready:
    """An answer that waits for its turn only."""

    response: pb.LearnResponse


_Sent = _SentChunk | ReadBatch | _Ready


class LearnCall:
    """One open call."""

    def __init__(
        self, trainer: Trainer, context: Context, opening: pb.OpenLearn, limits: Limits
    ) -> None:
        self._trainer = trainer
        self._context = context
        self._limits = limits
        _check_streams(opening)
        spec = trainer.definition.spec
        self._chunk_reader = convert.ChunkReader(trainer.definition, limits)
        self._batch_reader = convert_batch.BatchReader(trainer.definition, limits)
        self._lanes = LaneTable()
        self._writer = convert_answers.AnswerWriter(
            spec,
            predictions=not opening.omit_predictions,
            top_tokens=convert_answers.top_tokens_of(opening, spec),
        )
        self._step_bytes = spec.outputs * _VALUE_BYTES + _REPORT_BYTES / spec.k1
        self._responses = ResponseQueue(limits.call_answers, limits.call_bytes)
        self._reader: asyncio.Task[None] | None = None
        self._server_stopping = False
        self._brings_labels = spec.label_delay > 0
        self._opening = opening
        self._streams: set[str] = set()  # sent by this call
        self._behind: dict[tuple[str, int], _Unacknowledged] = {}  # by stream and incarnation
        self._sent: deque[_Sent] = deque()  # one for each pending response, in order
        self._counts_answers = False  # from the first batch on
        self._undurable: deque[tuple[int, int]] = deque()  # answers, and the record they wait for
        self._durable_answers = 0
        self._told_durable = 0
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve the call to its end.

        Raises:
            ServiceError: the call ends with this status, after all answers.
        """
        trainer = self._trainer
        trainer.listeners.add(self._model_stops)
        trainer.durable_listeners.add(self._steps_are_durable)
        try:
            await self._context.write(pb.LearnResponse(opened=self._opened()))
            if not self._responses.ended:
                self._reader = asyncio.create_task(self._read(), name="learn call")
            while (answer := await self._responses.next()) is not None:
                if answer is DURABLE_ADVANCED:
                    await self._acknowledge()
                else:
                    await self._answer(answer, self._sent.popleft())
            if self._behind or self._undurable:
                await trainer.durable()
                await self._acknowledge()
            closed = pb.LearnClosed(server_stopping=self._server_stopping)
            await self._context.write(pb.LearnResponse(closed=closed))
        finally:
            trainer.listeners.discard(self._model_stops)
            trainer.durable_listeners.discard(self._steps_are_durable)
            trainer.leave(self, self._streams)
            if self._timer is not None:
                self._timer.cancel()
            if self._reader is not None:
                self._reader.cancel()

    def _opened(self) -> pb.LearnOpened:
        """Return the answer to `open`; steps that are not durable yet are acknowledged later."""
        trainer = self._trainer
        opened = pb.LearnOpened(
            model=convert_models.model_to_proto(trainer.status),
            load_id=trainer.load_id,
            last_incarnation=trainer.last_incarnation,
            limits=convert_answers.limits_to_proto(self._limits, trainer.definition.spec),
        )
        for stream_id in self._opening.stream_ids:
            if stream_id in trainer.views:
                stream = convert_answers.stream_to_proto(trainer, stream_id)
                opened.streams.append(stream)
                if stream.durable_step < stream.next_step:
                    self._behind[stream_id, stream.incarnation] = _Unacknowledged(
                        stream.next_step, stream.durable_step, trainer.lsn
                    )
        return opened

    async def _answer(self, answer: BatchAnswer, sent: _Sent) -> None:
        """Write the answer to a message."""
        trainer = self._trainer
        self._note_answered(answer)
        if isinstance(sent, _Ready):
            response = sent.response
        elif isinstance(sent, ReadBatch):
            refused = self._refused(answer, sent)
            durable, band = self._durable_answers, trainer.error_band()
            self._told_durable = durable
            response = self._writer.batch(answer, sent, refused, durable, trainer.state, band)
        elif answer.refused:
            response = convert_answers.refused_to_proto(answer.refused[0], answer.index)
        else:
            if self._brings_labels and _moved_nothing(answer):
                await trainer.durable()
            response = self._learned(answer, doubles=sent.doubles)
        await self._context.write(response)

    def _note_answered(self, answer: BatchAnswer) -> None:
        """Note that everything learned for the call's answers so far waits for one record."""
        if self._counts_answers:
            self._undurable.append((answer.index + 1, self._trainer.lsn))
            self._count_durable()

    def _count_durable(self) -> None:
        durable_lsn = self._trainer.durable_lsn
        while self._undurable and self._undurable[0][1] <= durable_lsn:
            self._durable_answers, _ = self._undurable.popleft()

    def _refused(self, answer: BatchAnswer, sent: ReadBatch) -> list[LaneRefused]:
        """All refused chunks of a batch, by their place in its message."""
        expected = self._trainer.expected_step
        early = [replace(each, expected_step=expected(each.stream_id)) for each in sent.refused]
        late = [replace(each, lane=sent.place(each.lane)) for each in answer.refused]
        return sorted(early + late, key=lambda each: each.lane)

    def _learned(self, answer: BatchAnswer, *, doubles: bool) -> pb.LearnResponse:
        trainer, behind = self._trainer, self._behind
        stream_id, incarnation = key = answer.stream_ids[0], int(answer.incarnations[0])
        next_step = int(answer.next_steps[0])
        steps = _Unacknowledged(next_step, 0, trainer.lsn)
        durable_step = steps.durable_step = self._durable_step(stream_id, incarnation, steps)
        if durable_step < next_step:
            behind[key] = steps
        else:
            behind.pop(key, None)
        state, band = trainer.state, trainer.error_band()
        return self._writer.learned(answer, durable_step, state, band, doubles=doubles)

    def _durable_step(self, stream_id: str, incarnation: int, steps: _Unacknowledged) -> int:
        trainer = self._trainer
        if trainer.durable_lsn >= steps.lsn:
            return steps.next_step
        if trainer.incarnation(stream_id) == incarnation:
            return min(trainer.durable_step(stream_id), steps.next_step)
        return steps.durable_step  # deleted: known once its last record is durable

    def _steps_are_durable(self) -> None:
        if (self._behind or self._undurable) and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_ACKNOWLEDGE_SECONDS, self._time_to_tell)

    def _time_to_tell(self) -> None:
        self._timer = None
        if self._behind or self._undurable:
            self._responses.notify()

    async def _acknowledge(self) -> None:
        """Tell the client which answered steps have become durable."""
        news = pb.Acknowledged()
        for (stream_id, incarnation), behind in list(self._behind.items()):
            durable_step = self._durable_step(stream_id, incarnation, behind)
            if durable_step >= behind.next_step:
                del self._behind[stream_id, incarnation]
            if durable_step > behind.durable_step:
                behind.durable_step = durable_step
                news.streams.add(
                    stream_id=stream_id, durable_step=durable_step, incarnation=incarnation
                )
        self._count_durable()
        if self._durable_answers > self._told_durable:
            news.durable_answers = self._told_durable = self._durable_answers
        if news.streams or news.durable_answers:
            await self._context.write(pb.LearnResponse(acknowledged=news))

    def _model_stops(self, why: ServiceError) -> None:
        """Stop reading, answer the accepted chunks, then send the client the reason."""
        if self._reader is not None:
            self._reader.cancel()
        if self._responses.ended:  # the client has sent everything: nothing is left for later
            return
        self._server_stopping = isinstance(why, ServerStopping)
        self._responses.end(None if self._server_stopping else why)

    # ------------------------------------------------------------------ reading

    async def _read(self) -> None:
        try:
            await self._read_chunks()
        except ServiceError as error:
            self._responses.end(error)
        except Exception as error:  # noqa: BLE001 - the handler raises it
            self._responses.end(error)

    async def _read_chunks(self) -> None:
        while True:
            message: Any = await self._context.read()
            if message is grpc.aio.EOF:
                raise InvalidRequest.of("message", "none", "close, the last message of the call")
            kind = message.WhichOneof("message")
            has_lanes = message.HasField("lanes")
            if kind == "close" and not has_lanes:
                self._responses.end()
                await self._nothing_follows()
                return
            if kind not in ("chunk", "batch") and not (has_lanes and kind is None):
                raise InvalidRequest.of(
                    "message", kind or "empty", "chunk, batch, lanes or close after open"
                )
            if has_lanes:
                await self._introduce(message.lanes)
            if kind == "chunk":
                await self._chunk(message.chunk)
            elif kind == "batch":
                await self._batch(message.batch)

    async def _nothing_follows(self) -> None:
        message: Any = await self._context.read()
        if message is not grpc.aio.EOF:
            kind = message.WhichOneof("message") or "empty"
            raise InvalidRequest.of("message", kind, "none, because close was the last")

    def _pending(self, weight: int, sent: _Sent) -> PendingResponse:
        self._sent.append(sent)
        return self._responses.pending(weight)

    async def _introduce(self, message: pb.Lanes) -> None:
        await self._room()
        try:
            self._lanes.introduce(message.first_lane, message.stream_ids)
        except ServiceError as error:
            self._refuse(LaneRefused(0, "", None, 0, error))
            return
        introduced = convert_answers.introduced_to_proto(
            self._trainer, message.first_lane, message.stream_ids
        )
        pending = self._pending(introduced.ByteSize(), _Ready(introduced))
        pending.fill(_nothing_learned(pending.index))

    async def _chunk(self, message: pb.Chunk) -> None:
        """Wait for room, then take a place in the response queue and in the stream at once."""
        await self._room()
        try:
            incoming = self._chunk_reader.chunk(message)
        except ServiceError as error:
            first_step = message.first_step if message.HasField("first_step") else None
            told = message.stream_id[:STREAM_ID_BYTES_MAX]
            expected = self._trainer.expected_step(message.stream_id)
            self._refuse(LaneRefused(0, told, first_step, expected, error))
            return
        await self._model_room()
        doubles = bool(message.input_doubles or message.target_doubles)
        self._accept(IncomingBatch.of(incoming), _SentChunk(doubles))

    async def _batch(self, message: pb.ChunkBatch) -> None:
        """Wait for room, then take a place for all well-formed chunks of a batch at once."""
        await self._room()
        self._counts_answers = True
        try:
            sent = self._batch_reader.batch(message, self._lanes)
        except ServiceError as error:
            self._refuse(LaneRefused(0, "", None, 0, error))
            return
        for each in sent.refused:
            self._trainer.sink.refused(each.error.reason)
        if sent.incoming is None:
            pending = self._pending(_REPORT_BYTES * sent.size, sent)
            pending.fill(_nothing_learned(pending.index))
            return
        await self._model_room()
        self._accept(sent.incoming, sent)

    def _accept(self, incoming: IncomingBatch, sent: _Sent) -> None:
        """Hand a message to the model; what the model refuses as a whole is answered here."""
        steps, lanes = len(incoming.inputs), len(incoming.stream_ids)
        weight = int(steps * self._step_bytes) + _REPORT_BYTES + _LANE_BYTES * lanes
        pending = self._pending(weight, sent)
        try:
            self._trainer.accept(incoming, pending, self)
            self._streams.update(incoming.stream_ids)
        except ServiceError as error:
            self._trainer.sink.refused(error.reason)
            pending.fill(self._all_refused(incoming, error, pending.index))

    def _all_refused(self, incoming: IncomingBatch, error: ServiceError, index: int) -> BatchAnswer:
        """The answer to a message of which the model refuses every chunk for the same reason."""
        expected = self._trainer.expected_step
        first_steps = incoming.first_steps.tolist()
        refused = [
            LaneRefused(lane, name, None if first < 0 else first, expected(name), error)
            for lane, (name, first) in enumerate(zip(incoming.stream_ids, first_steps, strict=True))
        ]
        return replace(_nothing_learned(index), refused=tuple(refused))

    async def _room(self) -> None:
        if self._responses.full:
            await self._responses.room()

    async def _model_room(self) -> None:
        """Wait for room in the model's queue.

        Raises:
            ServiceError: there was none within the limit, or the store refuses commits. It ends the
                call, because the chunks behind a refused one would be gaps.
        """
        trainer = self._trainer
        if trainer.full:
            await self._queue_room()
        stalled = trainer.stalled
        if stalled is not None and stalled.retry_seconds:
            trainer.sink.refused(stalled.reason)
            raise stalled

    async def _queue_room(self) -> None:
        """Wait for room in the model's queue.

        Raises:
            QueueFull: there was none within the limit. It ends the call, because the chunks behind
                a refused one would be gaps.
        """
        seconds = self._limits.queue_seconds
        try:
            await asyncio.wait_for(self._trainer.room(), seconds)
        except TimeoutError:
            error = QueueFull.of_model(self._trainer.definition.model_id, seconds)
            self._trainer.sink.refused(error.reason)
            raise error from None

    def _refuse(self, refused: LaneRefused) -> None:
        """Answer a chunk that is not well-formed, or a message that is refused as a whole."""
        self._trainer.sink.refused(refused.error.reason)
        index = self._responses.taken
        response = convert_answers.refused_to_proto(refused, index)
        pending = self._pending(0, _Ready(response))
        pending.fill(_nothing_learned(index))


def _check_streams(opening: pb.OpenLearn) -> None:
    count = len(opening.stream_ids)
    if count > OPEN_STREAMS_MAX:
        raise InvalidRequest.of("stream_ids", f"{count} names", f"at most {OPEN_STREAMS_MAX} names")
    for stream_id in opening.stream_ids:
        check_stream_id(stream_id)


def _moved_nothing(answer: BatchAnswer) -> bool:
    """Return whether a learned chunk had labels only, or nothing new."""
    return bool(answer.first_steps[0] == answer.next_steps[0])


def _nothing_learned(index: int) -> BatchAnswer:
    """The answer to a message of which no chunk was learned."""
    none = np.empty(0, np.int64)
    start, members = np.zeros(1, np.int64), np.empty((0, 2), np.int64)
    return BatchAnswer(index, none, (), none, none, none, start, None, None, (), members)
