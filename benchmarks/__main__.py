"""All benchmarks, or those that are named:  python -m benchmarks [core] [service]."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import os
import platform
from pathlib import Path

from benchmarks import core, service

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
    parser.add_argument("parts", nargs="*", metavar="part", help="core, service; default: both")
    parser.add_argument("--seconds", type=float, default=service.RUN_SECONDS, help="of one run")
    options = parser.parse_args()
    unknown = set(options.parts) - {"core", "service"}
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are core and service")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}")
    if not options.parts or "core" in options.parts:
        print()
        core.run()
    if not options.parts or "service" in options.parts:
        print()
        asyncio.run(service.run(options.seconds))


if __name__ == "__main__":
    main()
