"""A `Learn` session: chunks go out, answers come in, neither waits for the other.

A session outlives its call. When the connection breaks, or the server stops or is killed, the
session calls again, asks where its streams stand, and sends again what is not durable yet. See
`ledger` for the rules.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import ArrayLike

from bptt import v1 as pb
from bptt.client import convert
from bptt.client.backoff import Backoff
from bptt.client.errors import (
    from_broken_call,
    from_rpc_error,
    passes,
    ServerUnreachable,
    StepsLost,
)
from bptt.client.retransmit import MOVES_MAX, RetransmitBuffer, Sent
from bptt.client.types import Answer, Learned, Model, Refused
from bptt.errors import NotFound, OutOfOrder, ServerStopping, ServiceError

UNANSWERED_MAX = 256  # chunks on their way: keeps a fast server busy, and a stop short
UNREAD_MAX = 4096  # answers nobody has read yet; 10 MB at 64 steps of 8 outputs
KEPT_CHUNKS_MAX = 4096  # answered and not durable yet: a second of small ones
KEPT_BYTES_MAX = 64 << 20  # the same in bytes: sixteen of the largest chunks
RECONNECT_SECONDS = 60.0  # what a restart takes, with much to recover
ASK_SECONDS = 10.0  # for a stream's next step

_BROKEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError)


class LearnSession:
    """A session, used as `async with client.learn(model_id) as session`.

    `send` waits while `UNANSWERED_MAX` chunks have no answer yet, or too much is not durable yet,
    so a slow server slows its client down. Answers are read with `async for answer in session`,
    from another task than the one that sends or after it; the loop ends once `close` was called and
    all is answered. Leaving the block closes the session and waits until everything that was sent
    is learned and durable; a refusal that nobody has read is raised then, so that none is lost.
    """

    model: Model
    """The model as it stood when the session opened."""

    def __init__(
        self,
        stub: Any,
        address: str,
        opening: pb.OpenLearn,
        *,
        resume: bool = True,
        reconnect_seconds: float = RECONNECT_SECONDS,
    ) -> None:
        """`Client.learn` makes it."""
        self._stub = stub
        self._address = address
        self._opening = opening
        self._resume = resume
        self._reconnect_seconds = reconnect_seconds
        self._call: Any = None
        self._keeper: asyncio.Task[None] | None = None
        self._buffer = RetransmitBuffer()
        self._waiting: deque[Sent] = deque()  # to be written
        self._flight: deque[tuple[Sent, int]] = deque()  # written, and its attempt
        self._writing = False
        self._placing = asyncio.Lock()
        self._backoff = Backoff()
        self._failing_since: float | None = None
        self._answers: deque[Answer] = deque()
        self._news = Notifier()  # for who reads answers
        self._progress = Notifier()  # for who waits for room or for acknowledgements
        self._closing = False
        self._close_written = False  # in the present call
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Task[Any] | None = None
        self.server_stopping = False
        """The server was stopping when the session ended: what it accepted is answered, the rest
        should be sent later. Only without `resume`."""
        self.reconnections = 0
        """How often the session has called again."""

    async def __aenter__(self) -> Self:
        """Open the model.

        Raises:
            NotFound: no such model.
            ServerUnreachable: nobody answers; the first call is not repeated.
        """
        self._call = await self._open()
        self._keeper = asyncio.create_task(self._keep_up(), name="learn session")
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
            if self._keeper is not None:
                self._keeper.cancel()
            if self._call is not None:
                self._call.cancel()
            if self._keeper is not None:
                await asyncio.gather(self._keeper, return_exceptions=True)

    # ------------------------------------------------------------------ for the caller

    async def send(
        self,
        stream_id: str,
        inputs: ArrayLike | None = None,
        targets: ArrayLike | None = None,
        *,
        first_step: int | None = None,
        first_target_step: int | None = None,
        end_of_sequence: bool = False,
    ) -> None:
        """Send consecutive steps of one stream; a stream that is not there yet is opened.

        Args:
            stream_id: the stream, 1 to 256 bytes.
            inputs: (T, input_size) numbers, read as float32; next token: (T,) token ids. None: no
                steps, only targets or an end of sequence, for a model with a label_delay.
            targets: regression: (S, output_size) numbers; classification: (S,) class ids. NaN or -1
                where there is none, if the model allows it.
            first_step: where the steps belong. What the stream already has is trimmed away, a gap
                is refused. None: at the stream's end.
            first_target_step: the step of the first target, for a model with a label_delay: at most
                so many steps before first_step, which should be given, too. None: first_step.
            end_of_sequence: learn the unfinished window, then reset the stream's state.

        Raises:
            InvalidRequest: arrays of another shape; nothing was sent.
            Unavailable: the server is stopping or gone, and did not come back in time.
        """
        chunk, steps, labels = convert.chunk(
            self.model,
            stream_id,
            inputs,
            targets,
            first_step=first_step,
            first_target_step=first_target_step,
            end_of_sequence=end_of_sequence,
        )
        placed = self._resume and first_step is None
        await self._room()
        if placed:
            await self._place(chunk)
        sent = self._buffer.add(pb.LearnRequest(chunk=chunk), steps, labels, placed=placed)
        self._waiting.append(sent)
        await self._write()

    async def close(self) -> None:
        """Say that everything was sent. Answers still come; a second call changes nothing."""
        if not self._closing and not self._ended:
            self._closing = True
            await self._write()

    def durable_step(self, stream_id: str) -> int:
        """The step before which all of a stream is durable, as last told; 0 before that."""
        return self._buffer.durable.get(stream_id, 0)

    async def acknowledged(self, stream_id: str) -> int:
        """Wait until all that was sent of a stream is answered and durable.

        Returns:
            The step before which all of it is durable.

        Raises:
            ServiceError: the session has failed.
        """
        await self._progress.until(lambda: self._ended or not self._buffer.keeps(stream_id))
        if self._buffer.keeps(stream_id):
            raise self._error or ServerStopping()
        return self.durable_step(stream_id)

    def __aiter__(self) -> Self:
        """The answers, in the order in which their chunks were sent."""
        return self

    async def __anext__(self) -> Answer:
        """The next answer."""
        self._reader = asyncio.current_task()
        await self._news.until(lambda: bool(self._answers) or self._ended)
        if self._answers:
            if len(self._answers) >= UNREAD_MAX:
                self._progress.ring()
            return self._answers.popleft()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    # ------------------------------------------------------------------ sending

    async def _room(self) -> None:
        """Wait until one more chunk may be on its way."""
        if self._closing:
            raise ValueError("the session is closed: nothing more can be sent")
        nobody_reads = self._reader in (None, asyncio.current_task())
        if len(self._answers) >= UNREAD_MAX and nobody_reads:
            raise RuntimeError(
                f"{UNREAD_MAX} answers wait to be read: read them in another task while sending"
            )
        await self._progress.until(lambda: self._ended or self._has_room(nobody_reads))
        if self._error is not None:
            raise self._error
        if self._ended:
            raise ServerStopping

    def _has_room(self, nobody_reads: bool) -> bool:
        buffer = self._buffer
        return (
            buffer.unanswered < UNANSWERED_MAX
            and buffer.chunks < KEPT_CHUNKS_MAX
            and buffer.size < KEPT_BYTES_MAX
            and (nobody_reads or len(self._answers) < UNREAD_MAX)
        )

    async def _place(self, chunk: pb.Chunk) -> None:
        """Give a chunk its place at the end of its stream, finding out where that is."""
        stream_id = chunk.stream_id
        if stream_id not in self._buffer.ends:
            async with self._placing:
                buffer = self._buffer
                await self._progress.until(lambda: self._ended or not buffer.awaits(stream_id))
                while stream_id not in buffer.ends and not self._ended:
                    try:
                        buffer.ends[stream_id] = await self._next_step(stream_id)
                    except ServiceError as error:
                        if not passes(error):
                            raise
                        await self._lapse(error)
        if self._error is not None:
            raise self._error
        chunk.first_step = self._buffer.ends.get(stream_id, 0)

    async def _write(self) -> None:
        """Write what waits, unless somebody does already. What breaks, the keeper sees too."""
        if self._writing:
            return
        self._writing = True
        try:
            while (self._waiting or self._may_close()) and (call := self._call) is not None:
                try:
                    if self._waiting:
                        sent = self._waiting.popleft()
                        sent.written = True
                        self._flight.append((sent, sent.attempt))
                        await call.write(sent.message)
                    else:
                        self._close_written = True
                        await call.write(pb.LearnRequest(close=pb.CloseLearn()))
                        await call.done_writing()
                except _BROKEN:
                    if not self._resume:
                        raise await self._ending() from None
                    if self._call is call:  # else there is a new call already: go on with that
                        return
        finally:
            self._writing = False

    def _may_close(self) -> bool:
        """Whether to write `close` now: chunks that are not answered might have to move up."""
        last = not self._resume or not self._buffer.unanswered
        return self._closing and not self._close_written and last

    # ------------------------------------------------------------------ receiving

    async def _keep_up(self) -> None:
        """Take answers until the session ends, over as many calls as it takes."""
        try:
            while (error := await self._receive()) is not None:
                await self._call_again(error)
        except ServiceError as error:
            self._error = error
        except asyncio.CancelledError:
            self._error = self._error or ServerUnreachable("the session was ended")
            raise
        except Exception as error:  # noqa: BLE001 - those who wait must hear of it, whatever it is
            self._error = error
        finally:
            self._ended = True
            self._news.ring()
            self._progress.ring()

    async def _receive(self) -> ServiceError | None:
        """Take answers off the wire until the call ends; why it did, None if it ended well.

        Raises:
            ServiceError: calling again would not help, or is not wanted.
        """
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("message") == "closed":
                    return self._closed(message.closed)
                self._take(message)
            error = await self._ending()
        except grpc.aio.AioRpcError as broken:
            error = from_broken_call(broken, self._address)
        except _Again as again:
            return again.error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            error = ServerUnreachable("the call was cancelled")  # with a write that was
        if not self._resume or not passes(error):
            raise error
        return error

    def _closed(self, closed: pb.LearnClosed) -> ServiceError | None:
        if closed.server_stopping and self._resume and (not self._closing or self._buffer.chunks):
            return ServerStopping()
        self.server_stopping = closed.server_stopping
        self._buffer.acknowledge_answered()
        return None

    def _take(self, message: pb.LearnResponse) -> None:
        kind = message.WhichOneof("message")
        if kind == "learned":
            self._learned(message.learned)
        elif kind == "refused":
            self._refused(message.refused)
        elif kind == "acknowledged":
            for each in message.acknowledged.streams:
                self._buffer.acknowledge(each.stream_id, each.durable_step)
        else:
            return  # a kind of answer that this version does not know yet
        self._progress.ring()
        if self._may_close():
            self._spawn_write()

    def _learned(self, message: pb.ChunkLearned) -> None:
        self._goes_well()
        sent, attempt = self._flight.popleft()
        if attempt != sent.attempt:
            return
        elsewhere = sent.steps and message.first_step != sent.first_step
        if sent.placed and not sent.attempt and elsewhere:
            raise OutOfOrder(
                f"stream {sent.stream_id!r} was at step {sent.first_step} when this session began "
                f"to send to it, and at step {message.first_step} when its steps came: another "
                "client sends to the same stream"
            )
        self._answered(sent, sent.answer or self._answer(message), message.next_step)
        self._buffer.acknowledge(sent.stream_id, message.durable_step)
        if not self._resume:
            self._buffer.forget(sent)

    def _answer(self, message: pb.ChunkLearned) -> Learned:
        asked = not self._opening.omit_predictions
        return convert.learned_from_proto(message, self.model, predictions=asked)

    def _refused(self, message: pb.ChunkRefused) -> None:
        sent, attempt = self._flight.popleft()
        if attempt != sent.attempt:
            return
        if sent.was_taken(message):
            step = message.expected_step
            taken = pb.ChunkLearned(stream_id=sent.stream_id, first_step=step, next_step=step)
            self._goes_well()
            self._answered(sent, sent.answer or self._answer(taken), step)
            return
        answer = convert.refused_from_proto(message, sent.index)
        if self._resume and self._is_passing(sent, answer.error):
            raise _Again(answer.error)
        self._goes_well()
        gap = isinstance(answer.error, OutOfOrder)
        if sent.moves_up and gap and sent.moves < MOVES_MAX:
            sent.moves += 1
        elif sent.answer is None:
            self._answered(sent, answer, 0)
            self._buffer.forget(sent)
        if self._resume:
            again = self._buffer.move_up(sent, message.expected_step)
            if again:
                self._waiting.extendleft(reversed(again))
                self._spawn_write()

    def _is_passing(self, sent: Sent, error: ServiceError) -> bool:
        """Whether a refusal may be another one the next time."""
        # A broken call of ours may still have the stream: its server has not noticed its end yet.
        own = error.code == "ABORTED" and (sent.attempt > 0 or self.reconnections > 0)
        return passes(error) or own

    def _answered(self, sent: Sent, answer: Answer, next_step: int) -> None:
        ready = self._buffer.answered(sent, answer, next_step)
        if ready:
            self._answers.extend(ready)
            self._news.ring()

    def _spawn_write(self) -> None:
        """Write from the keeper, which must go on reading meanwhile."""
        task = asyncio.ensure_future(self._write())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    # ------------------------------------------------------------------ calling

    async def _open(self) -> Any:
        """Call, and open the model."""
        call = self._stub.Learn()
        try:
            await call.write(pb.LearnRequest(open=self._opening))
            answer = await call.read()
        except _BROKEN:
            answer = grpc.aio.EOF
        except asyncio.CancelledError:
            call.cancel()
            raise
        if answer is grpc.aio.EOF or answer.WhichOneof("message") != "opened":
            raise await _why(call, self._address, opened=False)
        if self._keeper is None:
            self.model = convert.model_from_proto(answer.opened.model)
        return call

    async def _call_again(self, error: ServiceError) -> None:
        """Call until it works, then send again what is not durable.

        Raises:
            ServiceError: it did not work in time, or never will.
        """
        while True:
            call, self._call = self._call, None
            if call is not None:
                call.cancel()
            await self._lapse(error)
            try:
                new = await self._open()
                try:
                    steps = await self._next_steps()
                except BaseException:
                    new.cancel()
                    raise
            except ServiceError as failure:
                if not passes(failure):
                    raise
                error = failure
                continue
            again = self._buffer.to_send_again(steps)
            opened = [sent for sent in self._waiting if sent.stream_id not in steps]  # meanwhile
            self.reconnections += 1
            self._flight.clear()
            self._waiting = deque(sorted(again + opened, key=lambda sent: sent.index))
            self._close_written = False
            self._call = new  # only now: what is sent meanwhile must not come before these
            if not again:
                self._goes_well()
            self._spawn_write()
            self._progress.ring()
            return

    async def _next_steps(self) -> dict[str, int]:
        """Where the streams of which something is kept stand now.

        Raises:
            StepsLost: the server has forgotten what it had acknowledged.
        """
        found = {}
        for stream_id in self._buffer.streams():
            next_step = found[stream_id] = await self._next_step(stream_id)
            durable_step = self._buffer.durable.get(stream_id, 0)
            if next_step < durable_step:
                raise StepsLost.of(stream_id, next_step, durable_step)
        return found

    async def _next_step(self, stream_id: str) -> int:
        request = pb.GetStreamRequest(model_id=self._opening.model_id, stream_id=stream_id)
        try:
            answer = await self._stub.GetStream(request, timeout=ASK_SECONDS)
        except grpc.aio.AioRpcError as broken:
            error = from_rpc_error(broken, self._address)
            if isinstance(error, NotFound):
                return 0
            raise error from None
        return int(answer.stream.next_step)

    async def _lapse(self, error: ServiceError) -> None:
        """Wait a little before trying again; raise `error` if that has gone on for too long."""
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
        seconds = self._backoff.next(error.retry_seconds)
        if now + seconds > self._failing_since + self._reconnect_seconds:
            raise error
        await asyncio.sleep(seconds)

    def _goes_well(self) -> None:
        if self._failing_since is not None:
            self._failing_since = None
            self._backoff.reset()

    async def _ending(self) -> ServiceError:
        """Why the call has ended before it was closed."""
        return await _why(self._call, self._address, opened=True)

    async def _finish(self) -> None:
        """Close and wait for the last answer; raise what nobody has read and should have."""
        await self.close()
        assert self._keeper is not None
        await asyncio.wait([self._keeper])
        if self._error is not None:
            raise self._error
        for answer in self._answers:
            if isinstance(answer, Refused):
                raise answer.error


class _Again(Exception):
    """A chunk was refused for a reason that passes: end the call, and try again in another."""

    def __init__(self, error: ServiceError) -> None:
        self.error = error


class Notifier:
    """Wakes whoever waits for something to become true."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it is true, looking whenever the bell rings."""
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def ring(self) -> None:
        """Something has changed."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


async def _why(call: Any, address: str, *, opened: bool) -> ServiceError:
    """Why a call has ended."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return ServerUnreachable(f"the server at {address} stopped")
    error = grpc.aio.AioRpcError(
        code,
        await call.initial_metadata(),
        await call.trailing_metadata(),
        details=await call.details(),
    )
    return (from_broken_call if opened else from_rpc_error)(error, address)
