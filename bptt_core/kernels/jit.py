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
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

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


class _Whole(JITCodeLibrary):  # type: ignore[misc]
    """Machine code with private copies of everything it calls.

    Numba links callees into a function and optimises these copies again, which may change the order
    of sums. All copies of a callee share one name, and the loader binds a call to the first copy
    that was loaded. A process that compiles would then get other last bits than one that loads
    everything from disk. Private copies have no such name. (Copies with internal linkage do: a call
    from elsewhere would reach them, with arguments that were optimised away.)
    """

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage.name == "linkonce_odr":
                function.linkage = "private"
        super()._optimize_final_module()


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """Machine code that is optimised only as part of the entry that calls it.

    Optimising each kernel by itself as well took a third of the compile time.
    """

    def _optimize_final_module(self) -> None:
        pass


class _WholeCompiler(Compiler):  # type: ignore[misc]
    def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
        library = _cached(_Whole, target) if library is None else library
        super().__init__(typing, target, library, *rest)


class _PartCompiler(Compiler):  # type: ignore[misc]
    def __init__(self, typing: Any, target: Any, library: Any, *rest: Any) -> None:
        library = _cached(_Part, target) if library is None else library
        super().__init__(typing, target, library, *rest)


def _cached(kind: type[JITCodeLibrary], target: Any) -> Any:  # pragma: no cover - for Numba
    library = kind(target.codegen(), "kernel")
    library.enable_object_caching()
    return library


def compiled(function: Function, pipeline: type[Compiler] = _PartCompiler) -> Function:
    """Compile on first use and cache on disk; leaves Numba's settings in the process unchanged."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _FOLDER
    try:
        return numba.njit(  # type: ignore[no-any-return]
            nogil=True,
            cache=True,
            error_model="numpy",
            fastmath=FAST_MATH,
            no_cfunc_wrapper=True,  # nothing but Python and Numba calls them
            pipeline_class=pipeline,
        )(function)
    finally:
        numba.config.CACHE_DIR = before


def entry(function: Function) -> Function:
    """As `compiled`, for kernels that Python calls: the same bits when compiled or when loaded."""
    return compiled(function, _WholeCompiler)


def inlined(function: Function) -> Function:
    """As `compiled`, but inlined into each caller.

    A call costs 10 ns for each array argument, mostly for reference counts: as much as the whole
    work on a small vector.
    """
    return numba.njit(  # type: ignore[no-any-return]
        nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always"
    )(function)


@compiled
def whole(n: int) -> int:
    """The number n, not typed as a literal: Numba compiles a callee again for each literal."""
    return np.int64(n)  # type: ignore[return-value]


@compiled
def truth(n: int) -> bool:
    """Whether n is not 0, not typed as a literal; see `whole`."""
    return n != 0
