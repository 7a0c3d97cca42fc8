"""A TCP proxy on loopback whose connections a test can break."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

PIECE_BYTES = 1 << 16


class Proxy:
    """Passes bytes between clients and a server until told to drop them."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self.target = target
        self.accepted = 0
        self.mute = False
        """Throw away what the server says: the next connection should hear it, so `drop` then."""
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def drop(self) -> int:
        """Break all connections at once; how many there were."""
        count = len(self._open) // 2
        for writer in self._open:
            writer.transport.abort()
        return count

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, to its end."""
        self.accepted += 1
        host, _, port = self.target.rpartition(":")
        try:
            upstream = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, upstream[1]}
        self._open |= pair
        ways = (self._pass(reader, upstream[1]), self._pass(upstream[0], writer, answers=True))
        tasks = [asyncio.ensure_future(way) for way in ways]
        self._tasks.update(tasks)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for each in pair:
            each.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.difference_update(tasks)
        self._open -= pair

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                if not (answers and self.mute):
                    writer.write(piece)
                    await writer.drain()


@contextlib.asynccontextmanager
async def proxy(target: str) -> AsyncIterator[Proxy]:
    """A proxy to the address `target`."""
    found = Proxy(target)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found.address = f"127.0.0.1:{port}"
    try:
        yield found
    finally:
        found.drop()
        server.close()
        await server.wait_closed()
