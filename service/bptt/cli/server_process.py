"""Runs a server in a child process that never outlives this one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

READY_SECONDS = 60.0  # importing the server's libraries for the first time on a slow disk
STOP_SECONDS = 10.0  # a clean stop takes well under a second here


class ServerProcessFailed(Exception):
    """The server did not start, or ended by itself; the message quotes its last log line."""


class ServerProcess:
    """`bptt serve` on free loopback ports with a temporary data folder, as an `async with` block.

    The server stops when its standard input ends, so even a `kill -9` of this process leaves no
    server behind.
    """

    address: str
    """host:port of gRPC."""
    metrics_address: str
    """host:port of /metrics."""

    def __init__(self) -> None:
        """Prepare the process; `async with` starts it."""
        self._stack = contextlib.ExitStack()
        self._process: Any = None
        self._log: Any = None

    async def __aenter__(self) -> Self:
        """Start the server and wait until it is ready.

        Raises:
            ServerProcessFailed: it did not become ready.
        """
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bptt-demo-")))
        self._log = self._stack.enter_context((folder / "server.log").open("w+b"))
        command = ["-m", "bptt.cli", "serve", "--json", "--until-input-ends"]
        ports = ["--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
        # The settings of this machine's own server are not for this one.
        environment = {name: os.environ[name] for name in os.environ if name[:5] != "BPTT_"}
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                *ports,
                "--config",
                os.devnull,
                "--data",
                str(folder / "data"),
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,  # Ctrl-C reaches this process only, which stops the server
            )
            await self._wait_until_ready()
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
        """Stop the server and remove its folder."""
        await self._stop()

    async def wait_for_exit(self) -> None:
        """Wait until the server ends by itself.

        Raises:
            ServerProcessFailed: always, once it has ended.
        """
        await self._process.wait()
        raise self._failure("ended")

    async def _wait_until_ready(self) -> None:
        try:
            async with asyncio.timeout(READY_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise self._failure(f"was not ready within {READY_SECONDS:.0f} s") from None
        if not line:
            await self._process.wait()
            raise self._failure("did not start")
        facts = json.loads(line)
        self.address = facts["address"]
        self.metrics_address = facts["metrics_address"]

    def _failure(self, event: str) -> ServerProcessFailed:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return ServerProcessFailed(f"the server {event}" + (f": {lines[-1]}" if lines else ""))

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
