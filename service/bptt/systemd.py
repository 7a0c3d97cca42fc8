"""Tells systemd how the server is: sd_notify's protocol, one datagram a message.

Without the variables that systemd sets for a service of Type=notify, nothing is sent.

Source:
    sd_notify(3) and sd_watchdog_enabled(3) of systemd.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping

log = logging.getLogger(__name__)

PINGS = 2  # in the time after which systemd takes a service for hung, as its manual advises


class Notifier:
    """Sends messages to the socket that systemd named.

    Args:
        environment: has NOTIFY_SOCKET and, with a watchdog, WATCHDOG_USEC; None: the process's.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        found = os.environ if environment is None else environment
        path = found.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._watchdog_seconds = 0.0
        if found.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self._watchdog_seconds = int(found.get("WATCHDOG_USEC", "0")) / 1e6

    def ready(self, status: str) -> None:
        """The service answers requests."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Say in one line what the service does, for `systemctl status`."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The service has begun to stop."""
        self._send("STOPPING=1", "STATUS=stopping")

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """While the block runs, prove to a watchdog that the event loop turns."""
        task = asyncio.create_task(self._ping(), name="watchdog")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _ping(self) -> None:
        while self._address and self._watchdog_seconds > 0:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_seconds / PINGS)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        data = "\n".join(" ".join(line.splitlines()) for line in lines).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(data, self._address)
        except OSError as error:  # the service works without it
            log.warning("systemd was not told %s: %s", lines[0], error.strerror)
