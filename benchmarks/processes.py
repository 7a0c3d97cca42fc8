"""Starts servers in child processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def started(
    *module_and_arguments: str, python: str = sys.executable, **variables: str
) -> Iterator[str]:
    """Run `python -m …` as a child that ends with its standard input; yield its first line.

    Args:
        module_and_arguments: the module and its arguments.
        python: the interpreter.
        variables: of its environment, beside those of this process.
    """
    with subprocess.Popen(
        [python, "-m", *module_and_arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
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
    """Run `bptt serve` on free ports with a temporary data folder; yield its address."""
    free = ("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
    with tempfile.TemporaryDirectory(prefix="bptt-benchmark-") as folder:
        options = ("--json", "--until-input-ends", *free, "--data", folder)
        with started("bptt.cli", "serve", *options) as ready:
            yield str(json.loads(ready)["address"])
