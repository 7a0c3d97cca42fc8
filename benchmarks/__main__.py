"""Runs all benchmarks, or the named parts: `python -m benchmarks [part ...]`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import io
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import accuracy, characters, core, durability, fleet, limits, scale, service

PARTS = (
    *("core", "limits", "rivals", "accuracy", "characters"),
    *("service", "fleet", "durability", "scale"),
)
RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MARK = "<!-- below: written by make bench -->"
SECTION = re.compile(
    r"^### (?P<part>\w+)\n\n```text\n(?P<figures>.*?)```$", re.MULTILINE | re.DOTALL
)
PACKAGES = ("numpy", "numba", "grpcio", "protobuf")


def processor() -> str:
    """Return the processor's name."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class Tee(io.TextIOBase):
    """Writes to standard output and keeps a copy."""

    def __init__(self) -> None:
        self.kept = io.StringIO()

    def write(self, text: str) -> int:
        """Write text to both."""
        sys.__stdout__.write(text)  # type: ignore[union-attr]
        return self.kept.write(text)

    def flush(self) -> None:
        """Flush standard output."""
        sys.__stdout__.flush()  # type: ignore[union-attr]


def machine() -> str:
    """Describe the machine and the library versions in one line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def measure(parts: Sequence[str], seconds: float) -> dict[str, str]:
    """Print the figures of each part and return them by part."""
    runs: dict[str, Callable[[], object]] = {
        "core": core.run,
        "limits": limits.run,
        "rivals": core.run_rivals,
        "accuracy": accuracy.run,
        "characters": characters.run,
        "service": lambda: asyncio.run(service.run(seconds)),
        "fleet": lambda: fleet.run(seconds),
        "durability": lambda: durability.run(seconds),
        "scale": lambda: scale.run(seconds),
    }
    figures = {}
    for part in parts:
        tee = Tee()
        with contextlib.redirect_stdout(tee):
            print(machine())
            runs[part]()
            print(flush=True)
        figures[part] = tee.kept.getvalue().rstrip() + "\n"
    return figures


def updated(page: str, figures: Mapping[str, str]) -> str:
    """Return the page with new figures; those of other parts are unchanged."""
    head, _, tail = page.partition(MARK)
    kept = {match["part"]: match["figures"] for match in SECTION.finditer(tail)} | dict(figures)
    sections = [f"### {part}\n\n```text\n{kept[part]}```\n" for part in PARTS if part in kept]
    return "\n".join([f"{head}{MARK}\n", *sections])


def main() -> None:
    """Measure, and with --write update docs/benchmarks.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; default: all"
    )
    parser.add_argument(
        "--seconds", type=float, default=service.RUN_SECONDS, help="duration of one run"
    )
    parser.add_argument(
        "--write", action="store_true", help="write the figures to docs/benchmarks.md"
    )
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    figures = measure(options.parts or PARTS, options.seconds)
    if options.write:
        RESULTS.write_text(updated(RESULTS.read_text(), figures))


if __name__ == "__main__":
    main()
