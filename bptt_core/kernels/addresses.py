"""Arrays by their addresses: what a kernel works on, written down once.

Every array among a call's arguments costs a quarter of a microsecond, and a call needs fifty. So
their addresses and shapes stand in a table that is made once and that kernels take apart; whoever
calls keeps the arrays themselves alive.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from bptt_core.kernels.jit import inlined

Array = NDArray[Any]

SLOT = 5  # an array takes so many numbers in a table: its address, and up to four lengths


def table(arrays: Iterable[Array]) -> Array:
    """(SLOT n,) int64: address and shape of each of n arrays, which must be C-contiguous."""
    numbers: list[int] = []
    for array in arrays:
        assert array.flags.c_contiguous
        lengths = [*array.shape, *[0] * (SLOT - 1 - array.ndim)]
        numbers += [array.__array_interface__["data"][0], *lengths]
    return np.array(numbers, np.int64)


def array_at(address: int, shape: tuple[int, ...], like: Array) -> Array:
    """The array of that address, shape and the dtype of `like`; its memory is not held."""
    there = (ctypes.c_char * (math.prod(shape) * like.itemsize)).from_address(int(address))
    return np.ndarray(shape, like.dtype, memoryview(there))


@overload(array_at, strict=False)
def _array_at(address: Any, shape: Any, like: Any) -> Callable[..., Any]:
    @intrinsic
    def pointer(typing_context: Any, number: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)

        return types.voidptr(number), code

    def made(address, shape, like):  # type: ignore[no-untyped-def]
        return carray(pointer(address), shape, like.dtype)

    return made


@inlined
def array_1d(numbers: Array, slot: int, like: Array) -> Array:
    """The array of a slot of a table, one axis, of the dtype of `like`."""
    at = SLOT * slot
    return array_at(numbers[at], (numbers[at + 1],), like)


@inlined
def array_2d(numbers: Array, slot: int, like: Array) -> Array:
    """As `array_1d`, of two axes."""
    at = SLOT * slot
    return array_at(numbers[at], (numbers[at + 1], numbers[at + 2]), like)


@inlined
def array_3d(numbers: Array, slot: int, like: Array) -> Array:
    """As `array_1d`, of three axes."""
    at = SLOT * slot
    return array_at(numbers[at], (numbers[at + 1], numbers[at + 2], numbers[at + 3]), like)


@inlined
def array_4d(numbers: Array, slot: int, like: Array) -> Array:
    """As `array_1d`, of four axes."""
    at = SLOT * slot
    shape = (numbers[at + 1], numbers[at + 2], numbers[at + 3], numbers[at + 4])
    return array_at(numbers[at], shape, like)
