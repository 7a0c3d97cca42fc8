"""A `Learn` call: chunks go out, answers come in, neither waits for the other."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import ArrayLike

from protos.bptt.v1 import bptt_pb2 as pb
from service.client import convert
from service.client.errors import from_broken_call, from_rpc_error, ServerUnreachable
from service.client.types import Answer, Float32Array, Model, Refused
from service.errors import ServerStopping, ServiceError

UNANSWERED_MAX = 256  # chunks on their way: keeps a fast server busy, and a stop short
UNREAD_MAX = 4096  # answers nobody has read yet; 10 MB at 64 steps of 8 outputs


class LearnSession:
    """One `Learn` call, used as `async with client.learn(model_id) as session`.

    `send` waits while `UNANSWERED_MAX` chunks have no answer yet, so a slow server slows its
    client down. Answers are read with `async for answer in session`, from another task than the one
    that sends or after it; the loop ends once `close` was called and all is answered. Leaving the
    block closes the session and waits until everything that was sent is learned; a refusal that
    nobody has read is raised then, so that none is lost.
    """

    model: Model
    """The model as it stood when the session opened."""

    def __init__(self, stub: Any, address: str, model_id: str, *, predictions: bool) -> None:
        """`Client.learn` makes it."""
        self._stub = stub
        self._address = address
        self._model_id = model_id
        self._with_predictions = predictions
        self._call: Any = None
        self._receiver: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._answers: deque[Answer] = deque()
        self._unanswered = 0
        self._closing = False
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Task[Any] | None = None
        self.server_stopping = False
        """The server is stopping: what it accepted is answered, the rest should be sent later."""

    async def __aenter__(self) -> Self:
        """Open the model.

        Raises:
            NotFound: no such model.
        """
        self._call = self._stub.Learn()
        opened = pb.OpenLearn(model_id=self._model_id, omit_predictions=not self._with_predictions)
        try:
            await self._call.write(pb.LearnRequest(open=opened))
            answer = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            answer = grpc.aio.EOF
        except asyncio.CancelledError:
            self._call.cancel()
            raise
        if answer is grpc.aio.EOF or answer.WhichOneof("message") != "opened":
            raise await self._ending()
        self.model = convert.model_from_proto(answer.opened.model)
        self._receiver = asyncio.create_task(self._receive())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close, and wait until all is learned; after an exception, end the call at once."""
        try:
            if error is None:
                await self._finish()
        finally:
            self._call.cancel()
            if self._receiver is not None:
                self._receiver.cancel()
                await asyncio.gather(self._receiver, return_exceptions=True)

    async def send(
        self,
        stream_id: str,
        inputs: ArrayLike,
        targets: ArrayLike | None = None,
        *,
        first_step: int | None = None,
        end_of_sequence: bool = False,
    ) -> None:
        """Send consecutive steps of one stream; a stream that is not there yet is opened.

        Args:
            stream_id: the stream, 1 to 256 bytes.
            inputs: (T, input_size) numbers; read as float32.
            targets: regression: (T, output_size) numbers.
            first_step: where the steps belong. What the stream already has is trimmed away, a gap
                is refused. None: at the stream's end.
            end_of_sequence: learn the unfinished window, then reset the stream's state.

        Raises:
            InvalidRequest: arrays of another shape; nothing was sent.
            Unavailable: the server is stopping or gone.
        """
        width = self.model.spec["input_size"]
        steps = convert.rows("inputs", inputs, width)
        wanted: Float32Array | None = None
        if targets is not None:
            wanted = convert.rows("targets", targets, self.model.targets)
        request = convert.chunk_request(stream_id, steps, wanted, first_step, end_of_sequence)
        await self._room()
        self._unanswered += 1
        await self._write(request)

    async def close(self) -> None:
        """Say that everything was sent. Answers still come; a second call changes nothing."""
        if not self._closing and not self._ended:
            self._closing = True
            await self._write(pb.LearnRequest(close=pb.CloseLearn()))
            await self._call.done_writing()

    def __aiter__(self) -> Self:
        """The answers, in the order in which they come."""
        return self

    async def __anext__(self) -> Answer:
        """The next answer."""
        self._reader = asyncio.current_task()
        async with self._changed:
            await self._changed.wait_for(lambda: self._answers or self._ended)
            if self._answers:
                self._changed.notify_all()
                return self._answers.popleft()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def _room(self) -> None:
        """Wait until one more chunk may be on its way."""
        if self._closing:
            raise ValueError("the session is closed: nothing more can be sent")
        nobody_reads = self._reader in (None, asyncio.current_task())
        if len(self._answers) >= UNREAD_MAX and nobody_reads:
            raise RuntimeError(
                f"{UNREAD_MAX} answers wait to be read: read them in another task while sending"
            )
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    self._ended
                    or (
                        self._unanswered < UNANSWERED_MAX
                        and (nobody_reads or len(self._answers) < UNREAD_MAX)
                    )
                )
            )
        if self._error is not None:
            raise self._error
        if self._ended:
            raise ServerStopping

    async def _write(self, request: pb.LearnRequest) -> None:
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self._ending() from None

    async def _receive(self) -> None:
        """Take answers off the wire until the call ends, whoever reads them."""
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                kind = message.WhichOneof("message")
                if kind == "closed":
                    self.server_stopping = message.closed.server_stopping
                    break
                await self._take(message, kind)
            else:
                self._error = await self._ending()
        except grpc.aio.AioRpcError as error:
            self._error = from_broken_call(error, self._address)
        except Exception as error:  # noqa: BLE001 - those who wait must hear of it, whatever it is
            self._error = error
        self._ended = True
        async with self._changed:
            self._changed.notify_all()

    async def _take(self, message: pb.LearnResponse, kind: str | None) -> None:
        answer: Answer
        if kind == "learned":
            answer = convert.learned_from_proto(
                message.learned,
                self.model.horizon,
                self.model.targets,
                with_predictions=self._with_predictions,
            )
        elif kind == "refused":
            answer = convert.refused_from_proto(message.refused)
        else:
            return  # a kind of answer that this version does not know yet
        async with self._changed:
            self._answers.append(answer)
            self._unanswered -= 1
            self._changed.notify_all()

    async def _ending(self) -> ServiceError:
        """Why the call has ended before it was closed."""
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return ServerUnreachable(f"the server at {self._address} stopped")
        error = grpc.aio.AioRpcError(
            code,
            await self._call.initial_metadata(),
            await self._call.trailing_metadata(),
            details=await self._call.details(),
        )
        opened = self._receiver is not None
        return (from_broken_call if opened else from_rpc_error)(error, self._address)

    async def _finish(self) -> None:
        """Close and wait for the last answer; raise what nobody has read and should have."""
        await self.close()
        assert self._receiver is not None
        await self._receiver
        if self._error is not None:
            raise self._error
        for answer in self._answers:
            if isinstance(answer, Refused):
                raise answer.error
