"""A server in a process of its own, which never outlives this one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

READY_SECONDS = 60.0  # importing the server's libraries for the first time on a slow disk
STOP_SECONDS = 10.0  # a clean stop takes well under a second here


class ChildFailed(Exception):
    """The server did not start, or ended by itself; the message holds its last words."""


class ServerChild:
    """`bptt serve` on free loopback ports with a temporary data folder, as an `async with` block.

    The child stops when its standard input ends, so that even a `kill -9` of this process leaves no
    server behind.
    """

    address: str
    """Where gRPC listens."""
    metrics_address: str
    """Where Prometheus finds /metrics."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._stack = contextlib.ExitStack()
        self._process: Any = None
        self._log: Any = None

    async def __aenter__(self) -> Self:
        """Start it and wait until it is ready.

        Raises:
            ChildFailed: it is not.
        """
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bptt-demo-")))
        self._log = self._stack.enter_context((folder / "server.log").open("w+b"))
        command = ["-m", "bptt.cli", "serve", "--json", "--until-input-ends"]
        ports = ["--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                *ports,
                "--data",
                str(folder / "data"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,  # a Ctrl-C is ours; we stop the child when we are through
            )
            await self._ready()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it, and remove its folder."""
        await self._stop()

    async def ended(self) -> None:
        """Wait until it ends by itself.

        Raises:
            ChildFailed: always, once it has.
        """
        await self._process.wait()
        raise self._failure("ended")

    async def _ready(self) -> None:
        try:
            async with asyncio.timeout(READY_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise self._failure("was not ready in time") from None
        if not line:
            await self._process.wait()
            raise self._failure("did not start")
        facts = json.loads(line)
        self.address = facts["address"]
        self.metrics_address = facts["metrics_address"]

    def _failure(self, what: str) -> ChildFailed:
        self._log.seek(0)
        words = self._log.read().decode(errors="replace").strip().splitlines()
        return ChildFailed(f"the server {what}" + (f": {words[-1]}" if words else ""))

    async def _stop(self) -> None:
        try:
            if self._process is not None and self._process.returncode is None:
                self._process.stdin.close()
                try:
                    async with asyncio.timeout(STOP_SECONDS):
                        await self._process.wait()
                except (TimeoutError, asyncio.CancelledError):
                    with contextlib.suppress(ProcessLookupError):
                        self._process.kill()
                    await self._process.wait()
        finally:
            self._stack.close()
