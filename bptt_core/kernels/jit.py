"""Compiles kernels without the GIL, and caches them on disk.

Numba's cache is invalidated only by changes of the function's own file, not of the files of its
callees or constants. The name of the cache folder therefore contains a digest of all sources: any
change compiles everything again.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np

from bptt_core.kernels.linking import Entry, EntryCompiler, Part, PartCompiler

Function = TypeVar("Function", bound=Callable[..., Any])

# Allows reordered sums and fused multiplications, which vectorisation needs. NaN and infinity keep
# their meaning, because kernels test for them.
FAST_MATH = {"reassoc", "contract", "arcp", "nsz", "afn"}


def cache_folder() -> Path:
    """The folder of compiled kernels, in NUMBA_CACHE_DIR or in the user's cache."""
    digest = hashlib.sha256(sys.version.encode() + numba.__version__.encode())
    core = Path(__file__).parents[1]
    for source in sorted(core.rglob("*.py")):
        digest.update(source.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = os.environ.get("NUMBA_CACHE_DIR") or str(Path(home) / "bptt")
    return Path(root) / f"kernels-{digest.hexdigest()[:16]}"


_FOLDER = str(cache_folder())


OPTIONS = {
    "nopython": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": FAST_MATH,
    "no_cfunc_wrapper": True,  # nothing but Python and Numba calls them
    "_nrt": False,  # no kernel allocates, so none counts references
}


def compiled(function: Function) -> Function:
    """Compile into the entries that call it, on first use."""
    if numba.config.DISABLE_JIT:
        return function
    options = OPTIONS | {"no_cpython_wrapper": True}
    return Part(function, targetoptions=options, pipeline_class=PartCompiler)  # type: ignore[return-value]


def entry(function: Function) -> Function:
    """Compile on first use and cache on disk, for kernels that Python calls.

    It has the same bits when it was compiled in this process and when it was loaded.
    """
    if numba.config.DISABLE_JIT:
        return function
    made = Entry(function, targetoptions=OPTIONS, pipeline_class=EntryCompiler)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _FOLDER
    try:
        made.enable_caching()
    finally:
        numba.config.CACHE_DIR = before
    return made  # type: ignore[return-value]


def expanded(function: Function) -> Function:
    """Compile into each call: for functions that return an array, which no part can do."""
    if numba.config.DISABLE_JIT:
        return function
    options = OPTIONS | {"no_cpython_wrapper": True, "inline": "always"}
    return Part(function, targetoptions=options, pipeline_class=PartCompiler)  # type: ignore[return-value]


inlined = compiled


@compiled
def whole(n: int) -> int:
    """The number n, not typed as a literal: Numba compiles a callee again for each literal."""
    return np.int64(n)  # type: ignore[return-value]


@compiled
def truth(n: int) -> bool:
    """Whether n is not 0, not typed as a literal; see `whole`."""
    return n != 0
