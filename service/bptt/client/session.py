"""A `Learn` session: sends chunks and receives answers, neither waiting for the other.

A session outlives its call. When the connection breaks, or the server stops or is killed, the
session opens another call, learns from its first answer where its streams stand, and sends again
what is not durable. `retransmit` has the rules.
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
from bptt.client import convert, cutting
from bptt.client.backoff import Backoff
from bptt.client.errors import (
    from_broken_call,
    from_rpc_error,
    passes,
    ServerUnreachable,
)
from bptt.client.retransmit import MOVES_MAX, RetransmitBuffer, Sent
from bptt.client.types import Answer, Model, Refused
from bptt.errors import (
    OutOfOrder,
    ServerStopping,
    ServiceError,
    StreamDeleted,
    StreamInUse,
    UnknownStream,
)

UNANSWERED_MAX = 256  # chunks in flight: enough for a fast server, few enough for a quick stop
UNREAD_MAX = 4096  # answers that the caller has not read; 10 MB at 64 steps of 8 outputs
KEPT_CHUNKS_MAX = 4096  # chunks that are not durable: a second of small ones
KEPT_BYTES_MAX = 64 << 20  # their bytes: sixteen of the largest chunks
RECONNECT_SECONDS = 60.0  # as long as a restart with a long journal takes
ASK_SECONDS = 10.0  # for a stream's position

_BROKEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError)


class LearnSession:
    """A session, used as `async with client.learn(model_id) as session`.

    `send` waits while `UNANSWERED_MAX` chunks have no answer or too many are not durable, so a slow
    server slows its client down. Read the answers with `async for answer in session`, in another
    task than the one that sends, or after sending; the loop ends when `close` was called and every
    chunk is answered. Leaving the block closes the session and waits until everything that was sent
    is learned and durable; it raises the error of a refusal that was not read.
    """

    model: Model
    """The model at the time when the session opened."""

    def __init__(
        self,
        stub: Any,
        address: str,
        opening: pb.OpenLearn,
        *,
        resume: bool = True,
        reconnect_seconds: float = RECONNECT_SECONDS,
    ) -> None:
        """Use `Client.learn` instead."""
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
        self._load_id = 0  # of the model, as the present call told
        self._limits = cutting.UNTOLD  # of the server, as the present call told
        self._writing = False
        self._placing = asyncio.Lock()
        self._backoff = Backoff()
        self._failing_since: float | None = None
        self._answers: deque[Answer] = deque()
        self._news = Notifier()  # wakes readers of answers
        self._progress = Notifier()  # wakes tasks that wait for room or for acknowledgements
        self._closing = False
        self._close_written = False  # in the present call
        self._ended = False
        self._error: Exception | None = None
        self._reader: asyncio.Task[Any] | None = None
        self.server_stopping = False
        """True: the server was stopping when the session ended. It has answered what it accepted;
        send the rest later. Only without `resume`."""
        self.reconnections = 0
        """How many further calls the session has opened."""

    async def __aenter__(self) -> Self:
        """Open the model.

        Raises:
            UnknownModel: no such model.
            ServerUnreachable: no server answers; the first call is not repeated.
        """
        self._call, opened = await self._open([])
        self.model = convert.model_from_proto(opened.model)
        self._load_id, self._limits = opened.load_id, cutting.limits_of(opened)
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
        source_position: bytes = b"",
    ) -> None:
        """Send consecutive steps of one stream; a stream that does not exist is opened.

        A chunk that is larger than the server takes is sent in pieces and answered once, as if it
        had been one message. It is copied, and may exceed what the session otherwise keeps.

        Args:
            stream_id: the stream, 1 to 256 bytes.
            inputs: (T, input_size) numbers, read as float32; next token: (T,) token ids. None: no
                steps, only targets or an end of sequence, for a model with a label_delay.
            targets: regression: (S, output_size) numbers; classification: (S,) class ids. NaN or -1
                is a missing target, if the model allows it.
            first_step: number of the first step. Steps that the stream has already are trimmed
                away; a gap is refused. None: the stream's next step.
            first_target_step: number of the step of the first target, for a model with a
                label_delay: at most that many steps before first_step, which should be given, too.
                None: first_step.
            end_of_sequence: learn the unfinished window, then reset the stream's state.
            source_position: where your source stands after these steps, in a form of your own, at
                most 256 bytes. It is stored with the steps, exactly as durable, and told by
                `Client.get_stream`: a program that was killed goes on from there.

        Raises:
            InvalidRequest: an array has another shape, or one step is larger than the server takes;
                nothing was sent.
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
            source_position=source_position,
        )
        placed = self._resume and first_step is None
        await self._room()
        large = cutting.is_too_large(chunk, steps, labels, self._limits)
        if large and not self._resume:  # chunks without first_step leave no trace in `ends`
            self._buffer.ends.pop(stream_id, None)
        if placed or (large and first_step is None):
            await self._place(chunk)
        if large:
            self._add_in_pieces(chunk, steps, labels, placed=placed)
        else:
            sent = self._buffer.add(pb.LearnRequest(chunk=chunk), steps, labels, placed=placed)
            self._waiting.append(sent)
        await self._write()

    def _add_in_pieces(self, chunk: pb.Chunk, steps: int, labels: int, *, placed: bool) -> None:
        """Add the pieces of a chunk that is too large; refuse it if one would be refused."""
        buffer = self._buffer
        if (error := cutting.problem(self.model, chunk, steps, labels)) is not None:
            sent = buffer.add(pb.LearnRequest(chunk=chunk), 0, 0, placed=placed)
            expected = buffer.ends.get(chunk.stream_id, chunk.first_step)
            refused = Refused(sent.chunk_index, chunk.stream_id, chunk.first_step, expected, error)
            self._hand_out(buffer.refused(sent, refused))
            return
        pieces = cutting.cut(chunk, steps, labels, self._limits)
        whole = cutting.Whole(len(pieces))
        for place, (piece, its_steps, its_labels) in enumerate(pieces):
            sent = buffer.add(
                pb.LearnRequest(chunk=piece),
                its_steps,
                its_labels,
                placed=placed,
                whole=whole,
                is_first=place == 0,
            )
            self._waiting.append(sent)

    async def close(self) -> None:
        """Tell the server that everything was sent. Answers still arrive. May be called twice."""
        if not self._closing and not self._ended:
            self._closing = True
            await self._write()

    def durable_step(self, stream_id: str) -> int:
        """The step before which all of a stream is durable, as last told; 0 if it was not told."""
        return self._buffer.durable.get(stream_id, 0)

    async def acknowledged(self, stream_id: str) -> int:
        """Wait until everything that was sent of a stream is answered and durable.

        If another client deletes the stream, that still holds: a step is durable before its
        stream's deletion is. Only if the connection breaks as well, steps that were answered before
        the deletion may be left out of the returned step, because that can no longer be known.

        Returns:
            The step before which all of the stream is durable, as last told.

        Raises:
            ServiceError: the session has failed.
        """
        await self._progress.until(lambda: self._ended or not self._buffer.keeps(stream_id))
        if self._buffer.keeps(stream_id):
            raise self._error or ServerStopping()
        return self.durable_step(stream_id)

    def __aiter__(self) -> Self:
        """Iterate over the answers, in the order of their chunks."""
        return self

    async def __anext__(self) -> Answer:
        """Return the next answer."""
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
        """Wait until one more chunk may be sent."""
        if self._closing:
            raise ValueError("the session is closed: nothing more can be sent")
        no_reader = self._reader in (None, asyncio.current_task())
        if len(self._answers) >= UNREAD_MAX and no_reader:
            raise RuntimeError(
                f"{UNREAD_MAX} answers are not read: read them in another task while sending"
            )
        await self._progress.until(lambda: self._ended or self._has_room(no_reader))
        if self._error is not None:
            raise self._error
        if self._ended:
            raise ServerStopping

    def _has_room(self, no_reader: bool) -> bool:
        buffer = self._buffer
        return (
            buffer.unanswered < UNANSWERED_MAX
            and buffer.chunks < KEPT_CHUNKS_MAX
            and buffer.size < KEPT_BYTES_MAX
            and (no_reader or len(self._answers) < UNREAD_MAX)
        )

    async def _place(self, chunk: pb.Chunk) -> None:
        """Set a chunk's first step to its stream's end, which is asked for if it is not known."""
        stream_id = chunk.stream_id
        if stream_id not in self._buffer.ends:
            async with self._placing:
                buffer = self._buffer
                await self._progress.until(lambda: self._ended or not buffer.awaits(stream_id))
                while stream_id not in buffer.ends and not self._ended:
                    try:
                        await self._find(stream_id)
                    except ServiceError as error:
                        if not passes(error):
                            raise
                        await self._lapse(error)
        if self._error is not None:
            raise self._error
        chunk.first_step = self._buffer.ends.get(stream_id, 0)

    async def _write(self) -> None:
        """Write the waiting chunks, unless another task does. The keeper sees a broken call too."""
        if self._writing:
            return
        self._writing = True
        try:
            while (self._waiting or self._may_close()) and (call := self._call) is not None:
                try:
                    if self._waiting:
                        sent = self._waiting.popleft()
                        if sent.given_up:
                            continue
                        sent.written = True
                        self._flight.append((sent, sent.attempt))
                        await call.write(sent.message)
                    else:
                        self._close_written = True
                        await call.write(pb.LearnRequest(close=pb.CloseLearn()))
                        await call.done_writing()
                except (*_BROKEN, asyncio.CancelledError) as error:
                    # A write to a call that the keeper cancels raises CancelledError, too.
                    if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
                        raise
                    if not self._resume:
                        raise await self._ending() from None
                    if self._call is call:  # else there is a new call already: go on with that
                        return
        finally:
            self._writing = False

    def _may_close(self) -> bool:
        """Return whether to write `close` now: unanswered chunks may have to be written again."""
        last = not self._resume or not self._buffer.unanswered
        return self._closing and not self._close_written and last

    # ------------------------------------------------------------------ receiving

    async def _keep_up(self) -> None:
        """Receive answers until the session ends, opening calls as needed."""
        try:
            while (error := await self._receive()) is not None:
                await self._call_again(error)
        except ServiceError as error:
            self._error = error
        except asyncio.CancelledError:
            self._error = self._error or ServerUnreachable("the session was ended")
            raise
        except Exception as error:  # noqa: BLE001 - every waiting task gets the error
            self._error = error
        finally:
            self._ended = True
            self._news.ring()
            self._progress.ring()

    async def _receive(self) -> ServiceError | None:
        """Receive answers until the call ends. Returns why it broke; None if it ended well.

        Raises:
            ServiceError: another call would not help, or is not wanted.
        """
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("message") == "closed":
                    return self._closed(message.closed)
                self._take(message)
            error = await self._ending()
        except grpc.aio.AioRpcError as broken:
            error = from_broken_call(broken, self._address)
        except _TryAgainError as again:
            return again.error
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            error = ServerUnreachable("the call was cancelled")  # by a write that was cancelled
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
                self._buffer.acknowledge(each.stream_id, each.durable_step, each.incarnation)
        else:
            return  # a kind of answer that this version does not know
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
        self._note_learned(sent, message)
        self._buffer.acknowledge(sent.stream_id, message.durable_step, message.incarnation)
        if not self._resume:
            self._buffer.forget(sent)

    def _note_learned(self, sent: Sent, message: pb.ChunkLearned) -> None:
        answer = sent.answer
        if answer is None:
            asked = not self._opening.omit_predictions
            answer = convert.learned_from_proto(message, self.model, predictions=asked)
        self._hand_out(self._buffer.learned(sent, answer, message.next_step, message.incarnation))

    def _refused(self, message: pb.ChunkRefused) -> None:
        sent, attempt = self._flight.popleft()
        if attempt != sent.attempt:
            return
        if sent.was_taken(message):
            step = message.expected_step
            incarnation = self._buffer.incarnations.get(sent.stream_id, 0)
            taken = pb.ChunkLearned(
                stream_id=sent.stream_id, first_step=step, next_step=step, incarnation=incarnation
            )
            self._goes_well()
            self._note_learned(sent, taken)
            return
        answer = convert.refused_from_proto(message, sent.chunk_index)
        if self._resume and self._is_passing(sent, answer.error):
            raise _TryAgainError(answer.error)
        self._goes_well()
        deleted = isinstance(answer.error, StreamDeleted)
        if self._moves_up(sent, answer.error):
            sent.moves += 1
        elif sent.answer is None:
            self._hand_out(self._buffer.refused(sent, answer))
        else:  # learned before, by an incarnation that is deleted
            self._buffer.forget(sent)
        if self._resume:
            again = self._buffer.move_up(sent, message.expected_step, deleted=deleted)
            if again:
                self._waiting.extendleft(reversed(again))
                self._spawn_write()

    def _moves_up(self, sent: Sent, error: ServiceError) -> bool:
        """Return whether a refused chunk is sent again with another first step.

        A chunk that an earlier call sent to a deleted incarnation may have been learned there.
        """
        if isinstance(error, StreamDeleted):
            again = not sent.resent
        else:
            again = isinstance(error, OutOfOrder)
        return sent.moves_up and again and sent.moves < MOVES_MAX

    def _is_passing(self, sent: Sent, error: ServiceError) -> bool:
        """Return whether the chunk may be accepted in another call."""
        # The server may not have noticed yet that a broken call of this session has ended.
        own = isinstance(error, StreamInUse) and (sent.attempt > 0 or self.reconnections > 0)
        return passes(error) or own

    def _hand_out(self, ready: list[Answer]) -> None:
        if ready:
            self._answers.extend(ready)
            self._news.ring()

    def _spawn_write(self) -> None:
        """Write in another task, so that the keeper goes on reading."""
        task = asyncio.ensure_future(self._write())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    # ------------------------------------------------------------------ calling

    async def _open(self, streams: list[str]) -> tuple[Any, pb.LearnOpened]:
        """Open a call; returns it with its first answer, which tells where the streams stand."""
        call = self._stub.Learn()
        opening = pb.LearnRequest(open=self._opening)
        opening.open.stream_ids.extend(streams)
        try:
            await call.write(opening)
            answer = await call.read()
        except _BROKEN:
            answer = grpc.aio.EOF
        except asyncio.CancelledError:
            call.cancel()
            raise
        if answer is grpc.aio.EOF or answer.WhichOneof("message") != "opened":
            raise await _why(call, self._address, opened=False)
        return call, answer.opened

    async def _call_again(self, error: ServiceError) -> None:
        """Open calls until one works, then send again what is not durable.

        Raises:
            ServiceError: none worked in time, or none ever will.
        """
        while True:
            call, self._call = self._call, None
            if call is not None:
                call.cancel()
            await self._lapse(error)
            named = self._buffer.streams()
            try:
                new, opened = await self._open(named)
            except ServiceError as failure:
                if not passes(failure):
                    raise
                error = failure
                continue
            try:
                self._go_on_with(new, opened, named)
            except ServiceError:
                new.cancel()
                raise
            return

    def _go_on_with(self, call: Any, opened: pb.LearnOpened, named: list[str]) -> None:
        """Use a new call: send again what its server does not have.

        Raises:
            StepsLost: the server has forgotten steps that it had acknowledged.
            InvalidRequest: the server takes smaller messages than the one before.
        """
        same_load = opened.load_id == self._load_id
        again, ready = self._buffer.resume(named, opened, same_load=same_load)
        limits = cutting.limits_of(opened)
        for sent in again:
            chunk = sent.message.chunk
            if cutting.is_too_large(chunk, sent.steps, sent.labels, limits):
                what = f"a chunk of {sent.steps} steps that has to be sent again"
                rows = max(sent.steps, sent.labels)
                raise cutting.too_large(chunk, what, rows, limits)
        self._load_id, self._limits = opened.load_id, cutting.limits_of(opened)
        # Streams that were sent for the first time while the call was being opened.
        others = [sent for sent in self._waiting if sent.stream_id not in named]
        self.reconnections += 1
        self._flight.clear()
        self._waiting = deque(sorted(again + others, key=lambda sent: sent.index))
        self._close_written = False
        self._call = call  # only now, so that nothing is written before what is sent again
        if not again:
            self._goes_well()
        self._hand_out(ready)
        self._spawn_write()
        self._progress.ring()

    async def _find(self, stream_id: str) -> None:
        """Ask where a stream stands."""
        request = pb.GetStreamRequest(model_id=self._opening.model_id, stream_id=stream_id)
        buffer = self._buffer
        try:
            stream = (await self._stub.GetStream(request, timeout=ASK_SECONDS)).stream
        except grpc.aio.AioRpcError as broken:
            error = from_rpc_error(broken, self._address)
            if not isinstance(error, UnknownStream):
                raise error from None
            buffer.ends[stream_id] = 0
        else:
            buffer.ends[stream_id] = stream.next_step
            buffer.incarnations[stream_id] = stream.incarnation

    async def _lapse(self, error: ServiceError) -> None:
        """Wait before trying again; raise `error` if this has gone on for too long."""
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
        """Return why the call has ended before it was closed."""
        return await _why(self._call, self._address, opened=True)

    async def _finish(self) -> None:
        """Close, wait for the last answer, and raise the error of a refusal that was not read."""
        await self.close()
        assert self._keeper is not None
        await asyncio.wait([self._keeper])
        if self._error is not None:
            raise self._error
        for answer in self._answers:
            if isinstance(answer, Refused):
                raise answer.error


class _TryAgainError(Exception):
    """A chunk was refused for a reason that passes: end the call and open another one."""

    def __init__(self, error: ServiceError) -> None:
        self.error = error


class Notifier:
    """Wakes tasks that wait for a condition."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is true, testing it at each `ring`."""
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def ring(self) -> None:
        """Have all waiting tasks test their conditions."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


def _is_being_cancelled() -> bool:
    """Whether the current task itself is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _why(call: Any, address: str, *, opened: bool) -> ServiceError:
    """Return why a call has ended."""
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
