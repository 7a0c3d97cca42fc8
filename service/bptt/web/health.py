"""What the probes `/livez` and `/readyz` answer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib

ALIVE_SECONDS = 2.0
"""The event loop answers in a few milliseconds even under load. Kubernetes waits 1 s by default and
takes three failures in a row for death."""


class ServerHealth:
    """Whether the server accepts requests, and whether its event loop turns.

    `starting`, `recovering`, `ready` and `stopping` are called on the server's event loop; the HTTP
    side reads from its own thread. The state is one tuple, replaced as a whole.

    Args:
        loop: the event loop that answers gRPC.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._state = (False, "starting")

    def recovering(self, progress: str) -> None:
        """Models are being recovered; `progress` says how far it is."""
        self._state = (False, progress)

    def ready(self) -> None:
        """All models are recovered and requests are answered."""
        self._state = (True, "ready")

    def stopping(self) -> None:
        """The server finishes accepted work and takes no more."""
        self._state = (False, "stopping")

    @property
    def readiness(self) -> tuple[bool, str]:
        """Whether requests are answered, and the reason as one line of text."""
        return self._state

    async def is_alive(self) -> bool:
        """Return whether the server's event loop runs a callback within `ALIVE_SECONDS`."""
        turned: concurrent.futures.Future[None] = concurrent.futures.Future()

        def turn() -> None:
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # given up meanwhile
                turned.set_result(None)

        try:
            self._loop.call_soon_threadsafe(turn)
        except RuntimeError:  # the loop is closed
            return False
        try:
            await asyncio.wait_for(asyncio.wrap_future(turned), ALIVE_SECONDS)
        except TimeoutError:
            return False
        return True
