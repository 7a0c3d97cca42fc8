"""Where the streams of a session stand: found before the first steps of a stream are sent.

A stream is sent to by single chunks or by batches. Either keeps its own account of the stream, the
`RetransmitBuffer` or the `LaneBook`, so a stream changes from one to the other only when nothing of
it is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from bptt.client.connection import Connection
from bptt.client.errors import passes
from bptt.client.lanes import LaneBook
from bptt.client.notifier import Notifier
from bptt.client.outbox import Outbox
from bptt.client.retransmit import RetransmitBuffer
from bptt.client.types import Int64Array
from bptt.errors import ServiceError


class Placer:
    """Knows or asks where streams stand.

    Args:
        connection: to the server.
        outbox: introduces lanes.
        buffer: the account of streams that are sent to by chunks.
        book: the account of those that are sent to by batches.
        progress: rings when an answer has come.
        ended: whether the session has ended, so that nobody need wait any longer.
    """

    def __init__(
        self,
        connection: Connection,
        outbox: Outbox,
        buffer: RetransmitBuffer,
        book: LaneBook,
        progress: Notifier,
        ended: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._buffer = buffer
        self._book = book
        self._progress = progress
        self._finding = asyncio.Lock()
        self._ended = ended

    def durable_step(self, stream_id: str) -> int:
        """Return the step before which all of a stream is durable, as last told."""
        lane = self._book.lane(stream_id)
        if lane is None or lane in self._book.lent:
            return self._buffer.durable.get(stream_id, 0)
        return int(self._book.durable[lane])

    def keeps(self, stream_id: str) -> bool:
        """Return whether something of a stream is not answered or not durable."""
        lane = self._book.lane(stream_id)
        return self._buffer.keeps(stream_id) or (lane is not None and bool(self._book.kept[lane]))

    # ------------------------------------------------------------------ chunks

    async def find(self, stream_id: str) -> None:
        """Ask for a stream's end if it is not known.

        Raises:
            ServiceError: the server does not tell it in time.
        """
        buffer = self._buffer
        if stream_id in buffer.ends:
            return
        async with self._finding:
            await self._progress.until(lambda: self._ended() or not buffer.awaits(stream_id))
            while stream_id not in buffer.ends and not self._ended():
                try:
                    found = await self._connection.find(stream_id)
                except ServiceError as error:
                    if not passes(error):
                        raise
                    await self._connection.lapse(error)
                    continue
                buffer.ends[stream_id] = 0 if found is None else found.next_step
                if found is not None:
                    buffer.incarnations[stream_id] = found.incarnation

    def may_lend(self, stream_id: str) -> bool:
        """Return whether a stream may be sent to by chunks now."""
        lane = self._book.lane(stream_id)
        return lane is None or lane in self._book.lent or not self._book.kept[lane]

    def lend(self, stream_id: str) -> None:
        """Have a stream sent to by chunks from now on."""
        book, buffer = self._book, self._buffer
        lane = book.lane(stream_id)
        if lane is None or lane in book.lent:
            return
        book.lent.add(lane)
        if book.known[lane]:
            buffer.ends[stream_id] = int(book.ends[lane])
            buffer.durable[stream_id] = int(book.durable[lane])
            if book.incarnations[lane]:
                buffer.incarnations[stream_id] = int(book.incarnations[lane])

    # ------------------------------------------------------------------ batches

    def introduce(self, stream_ids: Sequence[str]) -> Int64Array:
        """Return the lanes of streams; new ones are about to be introduced.

        Raises:
            InvalidRequest: a name is not valid.
            LimitReached: a session can have no more lanes.
        """
        book = self._book
        lanes = book.lanes(stream_ids)
        if lanes is None:
            for name in book.add(stream_ids):
                if name in self._buffer.ends or self._buffer.keeps(name):
                    book.lent.add(book.lanes([name])[0])  # type: ignore[index]
            self._outbox.put_lanes()
            lanes = book.lanes(stream_ids)
            assert lanes is not None
        return lanes

    def are_ready(self, lanes: Int64Array, *, placed: bool) -> bool:
        """Return whether streams may be sent to by batches now.

        Args:
            lanes: the streams.
            placed: they are placed where they end, which must be known.
        """
        book = self._book
        if placed and not book.known[lanes].all():
            return False
        return not any(self._buffer.keeps(book.names[lane]) for lane in self._lent(lanes))

    def take_back(self, lanes: Int64Array) -> None:
        """Have streams sent to by batches from now on."""
        book, buffer = self._book, self._buffer
        for lane in self._lent(lanes):
            name = book.names[lane]
            book.lent.discard(lane)
            if name in buffer.ends:
                book.ends[lane] = buffer.ends[name]
                book.durable[lane] = buffer.durable.get(name, 0)
                book.incarnations[lane] = buffer.incarnations.get(name, 0)

    def _lent(self, lanes: Int64Array) -> list[int]:
        lent = self._book.lent
        return [lane for lane in lanes.tolist() if lane in lent] if lent else []
