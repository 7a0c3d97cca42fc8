"""A real server in a process of its own, started as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

STOP_SECONDS = 30.0  # the grace that the server itself gives its clients, and a little


@dataclass(frozen=True, slots=True)
class Served:
    """Where a server listens, and its process."""

    address: str
    metrics_address: str
    process: subprocess.Popen[str]


@contextmanager
def serving(
    *options: str,
    python: str | Path = sys.executable,
    folder: Path | None = None,
    log: IO[str] | None = None,
) -> Iterator[Served]:
    """`bptt serve` on free ports of loopback with these options; stopped at the end of the block.

    `python` is the server's interpreter, `folder` its working directory. `log`, open
    for reading and writing, gets what it prints on standard error. A server that died, or
    that does not stop when asked, fails the test with what it printed.
    """
    command = [python, "-m", "bptt.cli", "serve", "--json", "--until-input-ends"]
    free = ["--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    with (
        tempfile.TemporaryFile("w+") as unnamed,
        subprocess.Popen(
            [*command, *free, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log or unnamed,
            text=True,
            cwd=folder,
        ) as process,
    ):
        log = log or unnamed
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ready = process.stdout.readline()
            if not ready:
                process.wait(timeout=STOP_SECONDS)
                log.seek(0)
                raise AssertionError(f"no server, status {process.returncode}\n{log.read()}")
            where = json.loads(ready)
            yield Served(where["address"], where["metrics_address"], process)
            process.stdin.close()
            process.wait(timeout=STOP_SECONDS)
        finally:
            process.kill()
        log.seek(0)
        assert process.returncode == 0, f"status {process.returncode}\n{log.read()}"
