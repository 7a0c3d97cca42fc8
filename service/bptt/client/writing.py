"""Writes what waits in a session's outbox, in whichever task has something to send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bptt import v1 as pb
from bptt.client.connection import BROKEN, Connection
from bptt.client.notifier import is_being_cancelled
from bptt.client.outbox import HOLD_SECONDS, Outbox


class Writer:
    """Writes to the present call; one task at a time does it.

    Args:
        connection: has the call.
        outbox: what is to be written.
        may_close: whether the last message of the call is due.
        resume: whether the session opens another call when this one breaks.
    """

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        may_close: Callable[[], bool],
        *,
        resume: bool,
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._may_close = may_close
        self._resume = resume
        self._writing = False
        self._close_written = False  # in the present call
        self._held_long = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Begin with a new call."""
        self._close_written = False
        self.spawn()

    async def write(self) -> None:
        """Write what waits, unless another task does. Whoever reads sees a broken call too.

        Raises:
            ServiceError: the call is broken, and the session does not resume.
        """
        if self._writing:
            return
        self._writing = True
        try:
            while (call := self._connection.call) is not None:
                message = self._next()
                if message is None:
                    return
                try:
                    await call.write(message)
                    if message.WhichOneof("message") == "close":
                        await call.done_writing()
                except (*BROKEN, asyncio.CancelledError) as error:
                    # A write to a call that is cancelled by its reader raises CancelledError, too.
                    if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
                        raise
                    if not self._resume:
                        raise await self._connection.ending() from None
                    if self._connection.call is call:  # else go on with the new call
                        return
        finally:
            self._writing = False

    def _next(self) -> pb.LearnRequest | None:
        message = self._outbox.take(held_long=self._held_long or self._may_close())
        if message is not None:
            self.stop()
            return message
        if not self._outbox.empty:
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(HOLD_SECONDS, self._hold_ends)
        elif self._may_close() and not self._close_written:
            self._close_written = True
            return pb.LearnRequest(close=pb.CloseLearn())
        return None

    def _hold_ends(self) -> None:
        self._timer = None
        self._held_long = True
        self.spawn()

    def stop(self) -> None:
        """Hold nothing back any more."""
        self._held_long = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def after_answers(self) -> None:
        """Write, after answers came, what need not wait any longer, in another task."""
        if self._writing or self._connection.call is None:
            return
        if not self._outbox.empty:
            if not self._outbox.holds:
                self.spawn()
        elif self._may_close() and not self._close_written:
            self.spawn()

    def spawn(self) -> None:
        """Write in another task."""
        task = asyncio.ensure_future(self.write())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
