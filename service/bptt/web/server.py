"""The HTTP server, on an address and in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable

import uvicorn

from bptt.config import split_address
from bptt.errors import AddressInUse, CannotListen
from bptt.observability.history import History, SAMPLE_SECONDS
from bptt.web.connections import BoundedProtocol, end_stalled, REQUEST_BYTES
from bptt.web.health import ServerHealth
from bptt.web.page import Page
from bptt.web.pages import AtMost, pages
from bptt.web.scrapes import Scrapes

BACKLOG = 128  # connections that the system holds until they are accepted
CLOSE_SECONDS = 1.0  # for answers that are being sent when the server stops


class HttpServer:
    """Serves the pages until it is closed.

    It has a thread and an event loop of its own, so that its clients delay no gRPC call.

    Args:
        address: host:port where to listen; port 0 picks a free one.
        render: renders the metrics page, on a thread of its own.
        health: what the probes answer.
        history: the figures of the page for people; None: there is no such page.

    Attributes:
        address: host:port where it listens, with the real port.

    Raises:
        AddressInUse: another program has the address.
        CannotListen: listening there failed for another reason.
    """

    def __init__(
        self,
        address: str,
        render: Callable[[], bytes],
        health: ServerHealth,
        history: History | None = None,
    ) -> None:
        self._socket = listen("metrics_address", address)
        host, port = self._socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._scrapes = Scrapes(render)
        self._history = history
        page = None if history is None else Page(history)
        self._server = uvicorn.Server(
            uvicorn.Config(
                AtMost(pages(health, self._scrapes, page), self._end_stalled),
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                h11_max_incomplete_event_size=REQUEST_BYTES,
            )
        )
        # A warning for each invalid request would let a client fill the log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._run, name="http")
        self._thread.start()
        self._running.wait()

    def close(self) -> None:
        """Stop serving and free the address. Answers that are being sent get `CLOSE_SECONDS`.

        Blocks for that long at most, and until a rendering that runs has ended.
        """
        self._server.should_exit = True
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it ended meanwhile, and closed its loop
                self._loop.call_soon_threadsafe(self._close_connections)
            self._thread.join()
        self._scrapes.close()

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._server.server_state.connections)

    def _run(self) -> None:
        with contextlib.closing(self._socket):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running.set()
        sampling = asyncio.create_task(self._sample(), name="history")
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            sampling.cancel()

    async def _sample(self) -> None:
        while self._history is not None:
            self._history.sample(time.time())
            await asyncio.sleep(SAMPLE_SECONDS)

    def _close_connections(self) -> None:
        for each in list(self._server.server_state.connections):
            each.transport.abort()

    def _end_stalled(self) -> bool:
        return end_stalled(self._server.server_state.connections)


def listen(field: str, address: str) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        InvalidRequest: it is no address; the error names `field`.
        AddressInUse: another program has the address.
        CannotListen: it cannot be bound for another reason.
    """
    host, port = split_address(field, address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, target = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(target)
            bound.listen(BACKLOG)  # from now on another program that binds it gets an error
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse.at(field, address) from error
        raise CannotListen.of(field, address, error.strerror or str(error)) from error
    return bound
