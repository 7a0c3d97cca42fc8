"""All benchmarks, or those that are named:  python -m benchmarks [core] [rivals] [service]."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform
from pathlib import Path

from benchmarks import core, service

PARTS = ("core", "rivals", "service")
PACKAGES = ("numpy", "numba", "grpcio", "protobuf")


def processor() -> str:
    """What the machine calls its processor."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Print what the figures were measured on, then each part's figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="part", help="core, rivals, service; default: all"
    )
    parser.add_argument("--seconds", type=float, default=service.RUN_SECONDS, help="of one run")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}")
    wanted = options.parts or PARTS
    if "core" in wanted:
        print()
        core.run()
    if "rivals" in wanted:
        print()
        core.run_rivals()
    if "service" in wanted:
        print()
        asyncio.run(service.run(options.seconds))


if __name__ == "__main__":
    main()
