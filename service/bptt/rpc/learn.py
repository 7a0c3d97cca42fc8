"""One Learn call: a task that reads chunks, and the handler itself, which writes the answers.

Rules:
- Chunks are accepted in the order in which they come, and answered in that order.
- What is refused is answered and changes nothing; the call goes on.
- Only `close` means that all was sent. The end of the client's messages without it, or a lost
  connection, does not: what was accepted is learned, and the call does not end well.
- Nothing is read while the model's queue or this call's outbox is full, so the client waits. If
  the queue stays full for too long the call ends, and says when to come back; so it does when the
  disk is full.
- Answers do not wait for the journal. What has become durable since is told with the next answers,
  or in an `acknowledged` of its own if none has come by then; the end of a call waits for it.
- Late labels that come without steps have no step that would tell: their answer waits.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from bptt import v1 as pb
from bptt.config import Limits, STREAM_ID_BYTES_MAX
from bptt.domain import Answer, Refused
from bptt.engine.responses import DURABLE_ADVANCED, PendingResponse, ResponseQueue
from bptt.engine.trainer import Trainer
from bptt.errors import InvalidRequest, QueueFull, ServerStopping, ServiceError
from bptt.rpc import convert, convert_models
from bptt_core import ChunkResult

Context = grpc.aio.ServicerContext[pb.LearnRequest, pb.LearnResponse]

_VALUE_BYTES = 8  # of a prediction, until it is sent
_REPORT_BYTES = 256  # of an update's report, likewise
_ACKNOWLEDGE_SECONDS = 0.005  # in which an answer may come that says the same


class LearnCall:
    """One open call."""

    def __init__(
        self, trainer: Trainer, context: Context, opening: pb.OpenLearn, limits: Limits
    ) -> None:
        self._trainer = trainer
        self._context = context
        self._limits = limits
        spec = trainer.definition.spec
        self._chunk_reader = convert.ChunkReader(trainer.definition)
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
        self._streams: set[str] = set()  # sent by this call
        self._behind: dict[str, tuple[int, int]] = {}  # stream: next step, durable step, as told
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
            opened = pb.LearnOpened(model=convert_models.model_to_proto(self._trainer.state))
            await self._context.write(pb.LearnResponse(opened=opened))
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

    def _message(self, answer: Answer) -> pb.LearnResponse:
        if isinstance(answer, Refused):
            return convert.refused_to_proto(answer)
        stream_id, next_step = answer.stream_id, answer.next_step
        durable_step = min(self._trainer.durable_step(stream_id), next_step)
        if durable_step < next_step:
            self._behind[stream_id] = next_step, durable_step
        else:
            self._behind.pop(stream_id, None)
        trainer = self._trainer
        return self._writer.learned(answer, durable_step, trainer.condition, trainer.error_band())

    def _steps_are_durable(self) -> None:
        if self._behind and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_ACKNOWLEDGE_SECONDS, self._time_to_tell)

    def _time_to_tell(self) -> None:
        self._timer = None
        if self._behind:
            self._responses.notify()

    async def _acknowledge(self) -> None:
        """Say what has become durable of what was answered, where that has not been said."""
        news = pb.Acknowledged()
        for stream_id, (next_step, told) in list(self._behind.items()):
            durable_step = min(self._trainer.durable_step(stream_id), next_step)
            if durable_step >= next_step:
                del self._behind[stream_id]
            if durable_step > told:
                news.streams.add(stream_id=stream_id, durable_step=durable_step)
                if stream_id in self._behind:
                    self._behind[stream_id] = next_step, durable_step
        if news.streams:
            await self._context.write(pb.LearnResponse(acknowledged=news))

    def _model_stops(self, why: ServiceError) -> None:
        """Read no more, answer what was accepted, and tell the client."""
        if self._reader is not None:
            self._reader.cancel()
        if self._responses.ended:  # all was sent already: nothing is left for later
            return
        self._server_stopping = isinstance(why, ServerStopping)
        self._responses.end(None if self._server_stopping else why)

    # ------------------------------------------------------------------ reading

    async def _read(self) -> None:
        try:
            await self._read_chunks()
        except ServiceError as error:
            self._responses.end(error)
        except Exception as error:  # noqa: BLE001 - told to the handler, which knows what to do
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
        """Wait for room, then take a place in the outbox and in the stream in one go."""
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
            raise stalled  # which ends the call, as QueueFull does: chunks that follow were gaps
        weight = len(incoming.inputs) * self._step_bytes + _REPORT_BYTES
        pending = self._responses.pending(int(weight))
        try:
            trainer.accept(incoming, pending, self)
            self._streams.add(incoming.stream_id)
        except ServiceError as error:
            self._refuse(message, error, pending)

    async def _queue_room(self) -> None:
        """Wait for room in the model's queue, within the limit.

        Raises:
            QueueFull: there was none. It ends the call: chunks that follow one that was refused
                would be gaps.
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


def _moved_nothing(answer: Answer) -> bool:
    """Whether a chunk was learned that had labels only, or nothing new."""
    return isinstance(answer, ChunkResult) and answer.first_step == answer.next_step
