"""An HTTP server of the test's own, and raw connections to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message

from bptt.observability.history import History
from bptt.web.health import ServerHealth
from bptt.web.server import HttpServer


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, of whichever status."""

    status: int
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True, slots=True)
class Web:
    """A running HTTP server; `loop` stands for the event loop that answers gRPC."""

    server: HttpServer
    health: ServerHealth
    loop: asyncio.AbstractEventLoop

    @property
    def target(self) -> tuple[str, int]:
        host, port = self.server.address.rsplit(":", 1)
        return host, int(port)

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return fetch(f"http://{self.server.address}{path}", method, named)

    def connect(self, sent: bytes = b"", receive_bytes: int | None = None) -> socket.socket:
        """Open a connection and send this much of a request."""
        client = socket.socket()
        if receive_bytes is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.settimeout(30.0)
        client.connect(self.target)
        client.sendall(sent)
        return client


def fetch(url: str, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
    request = urllib.request.Request(url, method=method, headers=dict(headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


@contextlib.contextmanager
def web(
    render: Callable[[], bytes] = lambda: b"a 1\n", history: History | None = None
) -> Iterator[Web]:
    """Serve on a free port; stopped at the end of the block."""
    loop = asyncio.new_event_loop()
    turning = threading.Thread(target=loop.run_forever)
    turning.start()
    health = ServerHealth(loop)
    try:
        server = HttpServer("127.0.0.1:0", render, health, history)
        try:
            yield Web(server, health, loop)
        finally:
            server.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        turning.join()
        loop.close()


def is_closed(client: socket.socket) -> bool:
    """Wait until the server closes a connection; what it sends before is dropped."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True
