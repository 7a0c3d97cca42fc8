"""Decorators that compile kernels, without the GIL and without reference counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from bptt_core.kernels.cache import Folder, root_folder
from bptt_core.kernels.linking import Entry, Part

Function = TypeVar("Function", bound=Callable[..., Any])

# Allows reordered sums and fused multiplications, which vectorisation needs. NaN and infinity keep
# their meaning, because kernels test for them.
FAST_MATH = {"reassoc", "contract", "arcp", "nsz", "afn"}

FOLDER = Folder(root_folder())

ENTRIES = 2  # kernels of a model that Python calls

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
    return _part(function, {})


def inlined(function: Function) -> Function:
    """As `compiled`, for small functions: LLVM copies them into each caller."""
    return _part(function, {})


def expanded(function: Function) -> Function:
    """As `compiled`, copied by Numba: for functions that return an array, which no part can do."""
    return _part(function, {"inline": "always"})


def _part(function: Function, options: dict[str, Any]) -> Function:
    if numba.config.DISABLE_JIT:
        return function
    return Part(function, OPTIONS | options, FOLDER)  # pragma: no cover - where lines count


def entry(number: int) -> Callable[[Function], Function]:
    """Compile on first use and keep on disk, for kernels that Python calls.

    A kernel has the same bits when it was compiled in this process and when it was loaded.

    Args:
        number: of the kernel, from 1 to ENTRIES: `compilation.Event.number`.
    """

    def decorate(function: Function) -> Function:
        if numba.config.DISABLE_JIT:
            return function
        return Entry(function, OPTIONS, FOLDER, number, ENTRIES)  # pragma: no cover - as above

    return decorate


@compiled
def whole(n: int) -> int:
    """The number n, not typed as a literal: Numba compiles a callee again for each literal."""
    return np.int64(n)  # type: ignore[return-value]


@compiled
def truth(n: int) -> bool:
    """Whether n is not 0, not typed as a literal; see `whole`."""
    return n != 0
