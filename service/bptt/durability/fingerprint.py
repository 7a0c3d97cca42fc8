"""Identifies the processor and the libraries, on which the bits of a sum depend beside its numbers.

A model learned again from its journal is the same bit for bit where these are the same. Compilers
choose instructions, and BLAS its kernels, by the processor they find.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

_LIBRARIES = ("numpy", "scipy", "numba", "llvmlite")  # SciPy brings the BLAS that kernels call
_FLAGS = ("flags", "features")  # of Linux on x86, and on ARM
# Environment variables that make Numba, OpenBLAS or NumPy choose code for another processor.
_SETTINGS = (
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
    "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "NPY_ENABLE_CPU_FEATURES",
)


def fingerprint() -> dict[str, str]:
    """Names and versions of the processor and libraries that compute here."""
    return dict(_fingerprint())


def differences(before: Mapping[str, str]) -> list[str]:
    """How an earlier fingerprint differs from today's, one phrase each; empty if it does not."""
    now = _fingerprint()
    names = sorted(before.keys() | now.keys())
    return [
        f"{name} was {_of(name, before)} and is {_of(name, now)}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _of(name: str, found: Mapping[str, str]) -> str:
    return found.get(name, "not set" if name in _SETTINGS else "not known")


@functools.cache
def _fingerprint() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "not installed"
    processor, flags = _processor()
    settings = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    return found | settings | {"processor": processor, "processor_flags": flags}


def _processor() -> tuple[str, str]:
    """The first processor's model, and a digest of what it can do."""
    lines: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            lines.setdefault(name.strip().lower(), value.strip())
    except OSError:
        pass  # not Linux: the machine's name must do
    model = lines.get("model name") or platform.processor() or platform.machine()
    flags = next((lines[name] for name in _FLAGS if name in lines), "")
    digest = hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()
    return model, digest[:16]
