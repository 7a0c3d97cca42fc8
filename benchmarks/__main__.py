"""All benchmarks, or those that are named.

Run as `python -m benchmarks [part ...]`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import io
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import accuracy, characters, core, durability, limits, service

PARTS = ("core", "limits", "rivals", "accuracy", "characters", "service", "durability")
RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MARK = "<!-- below: written by make bench -->"
PACKAGES = ("numpy", "numba", "grpcio", "protobuf")


def processor() -> str:
    """What the machine calls its processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Tee(io.TextIOBase):
    """Writes to standard output, and keeps it."""

    def __init__(self) -> None:
        self.kept = io.StringIO()

    def write(self, text: str) -> int:
        """Write to both."""
        sys.__stdout__.write(text)  # type: ignore[union-attr]
        return self.kept.write(text)

    def flush(self) -> None:
        """Show what was written."""
        sys.__stdout__.flush()  # type: ignore[union-attr]


def measure(parts: Sequence[str], seconds: float) -> None:
    """Print what the figures were measured on, then each part's figures."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}")
    runs: dict[str, Callable[[], object]] = {
        "core": core.run,
        "limits": limits.run,
        "rivals": core.run_rivals,
        "accuracy": accuracy.run,
        "characters": characters.run,
        "service": lambda: asyncio.run(service.run(seconds)),
        "durability": lambda: durability.run(seconds),
    }
    for part in parts:
        print(flush=True)
        runs[part]()


def main() -> None:
    """Measure, and write the figures down if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--seconds", type=float, default=service.RUN_SECONDS, help="of one run")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md anew")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    tee = Tee()
    with contextlib.redirect_stdout(tee):
        measure(options.parts or PARTS, options.seconds)
    if options.write:
        head, _, _ = RESULTS.read_text().partition(MARK)
        RESULTS.write_text(f"{head}{MARK}\n\n```text\n{tee.kept.getvalue()}```\n")


if __name__ == "__main__":
    main()
