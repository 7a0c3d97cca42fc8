"""How kernels are compiled: without the GIL, kept on disk, and never stale.

Numba looks only at the file of a function to see whether its compiled form is still good, not at
the files of what it calls, nor of the constants that it holds. So the cache's folder carries a
digest of all sources: a change anywhere compiles anew.
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

# Sums may be reordered and multiplications fused, or nothing would vectorise. NaN and infinity keep
# their meaning: they are looked for.
FAST_MATH = {"reassoc", "contract", "arcp", "nsz", "afn"}


def cache_folder() -> Path:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR, or the user's cache."""
    digest = hashlib.sha256(sys.version.encode() + numba.__version__.encode())
    core = Path(__file__).parents[1]
    for source in sorted(core.rglob("*.py")):
        digest.update(source.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = os.environ.get("NUMBA_CACHE_DIR") or str(Path(home) / "bptt")
    return Path(root) / f"kernels-{digest.hexdigest()[:16]}"


_FOLDER = str(cache_folder())


class _Whole(JITCodeLibrary):  # type: ignore[misc]
    """Machine code that calls nothing but itself.

    Numba links what a function calls into it, and optimises that copy once more: sums may then be
    taken in another order than in the callee's own code. Which of the copies a call ends up in is
    decided when code is loaded, for the name that all share: the first that was there. So a process
    that compiled would have other last bits than one that found all of it on the disk. Private
    copies have no name to be found by. (Internal ones have: a call from elsewhere would find them,
    with arguments that were optimised away.)
    """

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage.name == "linkonce_odr":
                function.linkage = "private"
        super()._optimize_final_module()


class _Part(JITCodeLibrary):  # type: ignore[misc]
    """Machine code that is optimised where it is called from, with all the rest, and only there.

    To optimise each kernel on its own as well took a third of the time of compiling.
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
    """Compile on first use and keep it; Numba's own settings stay as the host process has them."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _FOLDER
    try:
        return numba.njit(  # type: ignore[no-any-return]
            nogil=True,
            cache=True,
            error_model="numpy",
            fastmath=FAST_MATH,
            no_cfunc_wrapper=True,  # nothing outside of Python calls them
            pipeline_class=pipeline,
        )(function)
    finally:
        numba.config.CACHE_DIR = before


def entry(function: Function) -> Function:
    """As `compiled`, for what Python calls: the same bits whether it was compiled now or before."""
    return compiled(function, _WholeCompiler)


def inlined(function: Function) -> Function:
    """As `compiled`, but part of each caller.

    A call with arrays costs 10 ns an array, mostly for counting references: as long as a small
    vector's whole work.
    """
    return numba.njit(  # type: ignore[no-any-return]
        nogil=True, error_model="numpy", fastmath=FAST_MATH, inline="always"
    )(function)


@compiled
def whole(n: int) -> int:
    """The number n, typed as any other: a literal would have its callee compiled once more."""
    return np.int64(n)  # type: ignore[return-value]


@compiled
def truth(n: int) -> bool:
    """Whether n is not 0, typed as any other truth value: see `whole`."""
    return n != 0
