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
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import accuracy, characters, core, durability, limits, scale, service

PARTS = ("core", "limits", "rivals", "accuracy", "characters", "service", "durability", "scale")
RESULTS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
MARK = "<!-- below: written by make bench -->"
SECTION = re.compile(
    r"^### (?P<part>\w+)\n\n```text\n(?P<figures>.*?)```$", re.MULTILINE | re.DOTALL
)
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


def machine() -> str:
    """What figures were measured on, in a line."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def measure(parts: Sequence[str], seconds: float) -> dict[str, str]:
    """Print each part's figures; and they by part."""
    runs: dict[str, Callable[[], object]] = {
        "core": core.run,
        "limits": limits.run,
        "rivals": core.run_rivals,
        "accuracy": accuracy.run,
        "characters": characters.run,
        "service": lambda: asyncio.run(service.run(seconds)),
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


def written(page: str, figures: Mapping[str, str]) -> str:
    """The page with these figures; those of other parts stay."""
    head, _, tail = page.partition(MARK)
    kept = {match["part"]: match["figures"] for match in SECTION.finditer(tail)} | dict(figures)
    sections = [f"### {part}\n\n```text\n{kept[part]}```\n" for part in PARTS if part in kept]
    return "\n".join([f"{head}{MARK}\n", *sections])


def main() -> None:
    """Measure, and write the figures down if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--seconds", type=float, default=service.RUN_SECONDS, help="of one run")
    parser.add_argument("--write", action="store_true", help="write them to docs/benchmarks.md")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    figures = measure(options.parts or PARTS, options.seconds)
    if options.write:
        RESULTS.write_text(written(RESULTS.read_text(), figures))


if __name__ == "__main__":
    main()
