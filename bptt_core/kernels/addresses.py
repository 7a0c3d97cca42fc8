"""Passes arrays to kernels by address.

Each array argument costs a quarter of a microsecond per call, and a call needs fifty arrays. A
table holds their addresses and shapes instead. It is made once; kernels read the arrays from it.
The caller keeps the arrays alive.
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

SLOT = 5  # numbers of one array in a table: its address, and up to four lengths


def table(arrays: Iterable[Array]) -> Array:
    """(SLOT n,) int64: address and shape of each of n arrays, which must be C-contiguous."""
    numbers: list[int] = []
    for array in arrays:
        assert array.flags.c_contiguous
        lengths = [*array.shape, *[0] * (SLOT - 1 - array.ndim)]
        numbers += [array.__array_interface__["data"][0], *lengths]
    return np.array(numbers, np.int64)


def array_at(address: int, shape: tuple[int, ...], like: Array) -> Array:
    """The array at an address, with the dtype of `like`; does not keep the memory alive."""
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
    """The one-dimensional array in a slot of a table, with the dtype of `like`."""
    at = SLOT * slot
    return array_at(numbers[at], (numbers[at + 1],), like)


@inlined
def array_2d(numbers: Array, slot: int, like: Array) -> Array:
    """As `array_1d`, with two axes."""
    at = SLOT * slot
    return array_at(numbers[at], (numbers[at + 1], numbers[at + 2]), like)


@inlined
def array_3d(numbers: Array, slot: int, like: Array) -> Array:
    """As `array_1d`, with three axes."""
    at = SLOT * slot
    return array_at(numbers[at], (numbers[at + 1], numbers[at + 2], numbers[at + 3]), like)


@inlined
def array_4d(numbers: Array, slot: int, like: Array) -> Array:
    """As `array_1d`, with four axes."""
    at = SLOT * slot
    shape = (numbers[at + 1], numbers[at + 2], numbers[at + 3], numbers[at + 4])
    return array_at(numbers[at], shape, like)
