"""Servers in processes of their own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def started(*module_and_arguments: str) -> Iterator[str]:
    """`python -m …` as a child that ends with its standard input; the first line it prints."""
    with subprocess.Popen(
        [sys.executable, "-m", *module_and_arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{module_and_arguments[0]} did not start")
            yield line.strip()
        finally:
            process.stdin.close()


@contextlib.contextmanager
def service_address() -> Iterator[str]:
    """A server as users start it, on free ports, with a folder of its own; its address."""
    free = ("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
    with tempfile.TemporaryDirectory(prefix="bptt-benchmark-") as folder:
        options = ("--json", "--until-input-ends", *free, "--data", folder)
        with started("bptt.cli", "serve", *options) as ready:
            yield str(json.loads(ready)["address"])
