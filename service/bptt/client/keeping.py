"""Keeps a session's call up: reads its answers, and opens another one when it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from bptt import v1 as pb
from bptt.client import columns as columns_of
from bptt.client import cutting
from bptt.client.batch_buffer import BatchBuffer
from bptt.client.connection import Connection, NewCall
from bptt.client.errors import passes, ServerUnreachable
from bptt.client.lanes import LaneBook, Positions
from bptt.client.notifier import is_being_cancelled
from bptt.client.outbox import Outbox
from bptt.client.receiving import Receiver, TryAgainError
from bptt.client.retransmit import RetransmitBuffer
from bptt.client.types import Answer, Model
from bptt.client.writing import Writer
from bptt.errors import ServerStopping, ServiceError


class Keeper:
    """The task that runs as long as a session does.

    Args:
        connection: to the server.
        outbox: what is to be written.
        buffer: keeps chunks.
        batches: keeps batches.
        book: where the streams of batches stand.
        hand_out: takes answers for the caller.
        ring: is called when something has changed that a task may wait for.
        resume: whether to open another call when one breaks.
        predictions: whether answers have predictions.
    """

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        buffer: RetransmitBuffer,
        batches: BatchBuffer,
        book: LaneBook,
        hand_out: Callable[[list[Answer]], None],
        ring: Callable[[], None],
        *,
        resume: bool,
        predictions: bool,
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._buffer = buffer
        self._batches = batches
        self._book = book
        self._hand_out = hand_out
        self._ring = ring
        self._resume = resume
        self.writer = Writer(connection, outbox, self._may_close, resume=resume)
        self._receiver = Receiver(
            outbox, buffer, batches, book, hand_out, resume=resume, predictions=predictions
        )
        self._task: asyncio.Task[None] | None = None
        self.closing = False
        """True: the caller sends nothing more."""
        self.ended = False
        """True: no more answers come."""
        self.error: Exception | None = None
        """Why the session has ended before it was closed."""
        self.server_stopping = False
        self.reconnections = 0

    def begin(self, new: NewCall, model: Model) -> None:
        """Begin with the first call."""
        self._receiver.model = model
        self._outbox.limits = new.limits
        self._receiver.begin(0)
        self._connection.use(new)
        self._task = asyncio.create_task(self._keep_up(), name="learn session")

    async def wait(self) -> None:
        """Wait until no more answers come."""
        assert self._task is not None
        await asyncio.wait([self._task])

    async def stop(self) -> None:
        """End the call at once."""
        self.writer.stop()
        if self._task is not None:
            self._task.cancel()
        self._connection.end()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _may_close(self) -> bool:
        """Return whether to write `close` now: unanswered chunks may have to be written again."""
        return self.closing and (not self._resume or not self._buffer.unanswered)

    async def _keep_up(self) -> None:
        """Receive answers until the session ends, opening calls as needed."""
        try:
            while (error := await self._receive()) is not None:
                await self._call_again(error)
        except ServiceError as error:
            self.error = error
        except asyncio.CancelledError:
            self.error = self.error or ServerUnreachable("the session was ended")
            raise
        except Exception as error:  # noqa: BLE001 - every waiting task gets the error
            self.error = error
        finally:
            self.ended = True
            self._ring()

    async def _receive(self) -> ServiceError | None:
        """Receive answers until the call ends. Returns why it broke; None if it ended well.

        Raises:
            ServiceError: another call would not help, or is not wanted.
        """
        call = self._connection.call
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("message") == "closed":
                    return self._closed(message.closed)
                self._take(message)
            error = await self._connection.ending()
        except grpc.aio.AioRpcError as broken:
            error = self._connection.broken(broken)
        except TryAgainError as again:
            return again.error
        except asyncio.CancelledError:
            if is_being_cancelled():
                raise
            error = ServerUnreachable("the call was cancelled")  # by a write that was cancelled
        if not self._resume or not passes(error):
            raise error
        return error

    def _closed(self, closed: pb.LearnClosed) -> ServiceError | None:
        if closed.server_stopping and self._resume and (not self.closing or self._buffer.chunks):
            return ServerStopping()
        self.server_stopping = closed.server_stopping
        self._receiver.closed()
        return None

    def _take(self, message: pb.LearnResponse) -> None:
        if self._receiver.take(message):
            self._connection.goes_well()
        self._ring()
        self.writer.after_answers()

    # ------------------------------------------------------------------ calling

    async def _call_again(self, error: ServiceError) -> None:
        """Open calls until one works, then send again what is not durable.

        Raises:
            ServiceError: none worked in time, or none ever will.
        """
        while True:
            self._connection.end()
            await self._connection.lapse(error)
            named = self._buffer.streams()
            try:
                new = await self._connection.open(named, self._book.names)
            except ServiceError as failure:
                if not passes(failure):
                    raise
                error = failure
                continue
            try:
                self._go_on_with(new, named)
            except ServiceError:
                new.call.cancel()
                raise
            return

    def _go_on_with(self, new: NewCall, named: list[str]) -> None:
        """Use a new call: send again what its server does not have.

        Raises:
            StepsLost: the server has forgotten steps that it had acknowledged.
            InvalidRequest: the server takes smaller messages than the one before.
        """
        opened, told = new.opened, Positions.of(new.introduced)
        same_load = opened.load_id == self._connection.load_id
        last = max([opened.last_incarnation, *[each.last_incarnation for each in new.introduced]])
        chunks, ready = self._buffer.resume(named, opened, same_load=same_load)
        cutting.check_again(chunks, new.limits)
        parts, more = self._batches.resume(told, last, new.limits, same_load=same_load)
        for part in parts:
            columns_of.check_again(part.sent.columns, new.limits)
        self.reconnections += 1
        self._receiver.begin(len(new.introduced))
        self._outbox.limits = new.limits
        self._outbox.restart([*chunks, *parts], named, len(told.next_steps))
        if not chunks and not parts:
            self._connection.goes_well()
        self._hand_out(ready)
        self._hand_out(more)
        for message in new.early:
            self._receiver.take(message)
        self._connection.use(new)  # only now, so that nothing is written before what is sent again
        self.writer.begin()
        self._ring()
