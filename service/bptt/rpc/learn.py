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
- An answer to late labels without steps waits until the labels are durable, because no step number
  could acknowledge them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc.aio

from bptt import v1 as pb
from bptt.config import Limits, STREAM_ID_BYTES_MAX
from bptt.domain import Answer, check_stream_id, Refused
from bptt.engine.responses import DURABLE_ADVANCED, PendingResponse, ResponseQueue
from bptt.engine.trainer import Trainer
from bptt.errors import InvalidRequest, QueueFull, ServerStopping, ServiceError
from bptt.rpc import convert, convert_models
from bptt_core import ChunkResult

Context = grpc.aio.ServicerContext[pb.LearnRequest, pb.LearnResponse]

_VALUE_BYTES = 8  # of one predicted value in the response queue
_REPORT_BYTES = 256  # of one update's report there
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
        self._writer = convert.AnswerWriter(
            spec,
            predictions=not opening.omit_predictions,
            top_tokens=convert.top_tokens_of(opening, spec),
        )
        self._step_bytes = spec.outputs * _VALUE_BYTES + _REPORT_BYTES / spec.k1
        self._responses = ResponseQueue(limits.call_answers, limits.call_bytes)
        self._reader: asyncio.Task[None] | None = None
        self._server_stopping = False
        self._brings_labels = spec.label_delay > 0
        self._opening = opening
        self._streams: set[str] = set()  # sent by this call
        self._behind: dict[tuple[str, int], _Unacknowledged] = {}  # by stream and incarnation
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
                    if self._brings_labels and _moved_nothing(answer):
                        await trainer.durable()
                    await self._context.write(self._message(answer))
            if self._behind:
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
            limits=convert.limits_to_proto(self._limits, trainer.definition.spec),
        )
        for stream_id in self._opening.stream_ids:
            if stream_id in trainer.views:
                stream = convert.stream_to_proto(trainer, stream_id)
                opened.streams.append(stream)
                if stream.durable_step < stream.next_step:
                    self._behind[stream_id, stream.incarnation] = _Unacknowledged(
                        stream.next_step, stream.durable_step, trainer.lsn
                    )
        return opened

    def _message(self, answer: Answer) -> pb.LearnResponse:
        if isinstance(answer, Refused):
            return convert.refused_to_proto(answer)
        trainer, behind = self._trainer, self._behind
        stream_id, incarnation = key = answer.stream_id, answer.incarnation
        steps = _Unacknowledged(answer.next_step, 0, trainer.lsn)
        durable_step = steps.durable_step = self._durable_step(stream_id, incarnation, steps)
        if durable_step < answer.next_step:
            behind[key] = steps
        else:
            behind.pop(key, None)
        return self._writer.learned(answer, durable_step, trainer.state, trainer.error_band())

    def _durable_step(self, stream_id: str, incarnation: int, steps: _Unacknowledged) -> int:
        trainer = self._trainer
        if trainer.durable_lsn >= steps.lsn:
            return steps.next_step
        if trainer.incarnation(stream_id) == incarnation:
            return min(trainer.durable_step(stream_id), steps.next_step)
        return steps.durable_step  # deleted: known once its last record is durable

    def _steps_are_durable(self) -> None:
        if self._behind and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_ACKNOWLEDGE_SECONDS, self._time_to_tell)

    def _time_to_tell(self) -> None:
        self._timer = None
        if self._behind:
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
        if news.streams:
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
            if kind == "close":
                self._responses.end()
                await self._nothing_follows()
                return
            if kind != "chunk":
                raise InvalidRequest.of("message", kind or "empty", "chunk or close after open")
            await self._chunk(message.chunk)

    async def _nothing_follows(self) -> None:
        message: Any = await self._context.read()
        if message is not grpc.aio.EOF:
            kind = message.WhichOneof("message") or "empty"
            raise InvalidRequest.of("message", kind, "none, because close was the last")

    async def _chunk(self, message: pb.Chunk) -> None:
        """Wait for room, then take a place in the response queue and in the stream at once."""
        if self._responses.full:
            await self._responses.room()
        trainer = self._trainer
        try:
            incoming = self._chunk_reader.chunk(message)
        except ServiceError as error:
            self._refuse(message, error, self._responses.pending(0))
            return
        if trainer.full:
            await self._queue_room()
        stalled = trainer.stalled
        if stalled is not None and stalled.retry_seconds:
            trainer.sink.refused(stalled.reason)
            raise stalled  # ends the call, as QueueFull does: the next chunks would be gaps
        weight = len(incoming.inputs) * self._step_bytes + _REPORT_BYTES
        pending = self._responses.pending(int(weight))
        try:
            trainer.accept(incoming, pending, self)
            self._streams.add(incoming.stream_id)
        except ServiceError as error:
            self._refuse(message, error, pending)

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

    def _refuse(self, message: pb.Chunk, error: ServiceError, pending: PendingResponse) -> None:
        trainer, stream_id = self._trainer, message.stream_id
        trainer.sink.refused(error.reason)
        first_step = message.first_step if message.HasField("first_step") else None
        expected = trainer.expected_step(stream_id)
        told = stream_id[:STREAM_ID_BYTES_MAX]
        pending.fill(Refused(told, first_step, error, expected, pending.index))


def _check_streams(opening: pb.OpenLearn) -> None:
    count = len(opening.stream_ids)
    if count > OPEN_STREAMS_MAX:
        raise InvalidRequest.of("stream_ids", f"{count} names", f"at most {OPEN_STREAMS_MAX} names")
    for stream_id in opening.stream_ids:
        check_stream_id(stream_id)


def _moved_nothing(answer: Answer) -> bool:
    """Return whether a learned chunk had labels only, or nothing new."""
    return isinstance(answer, ChunkResult) and answer.first_step == answer.next_step
