"""Passes arrays to kernels by address, and cuts arrays out of buffers.

Each array argument costs a quarter of a microsecond per call, and a call needs fifty arrays. A
table holds their addresses and shapes instead. It is made once; kernels read the arrays from it.
The caller keeps the arrays alive.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin
from numba.np.arrayobj import make_array, populate_array
from numpy.typing import NDArray

from bptt_core.kernels.jit import expanded

Array = NDArray[Any]

SLOT = 5  # numbers of one array in a table: its address, and up to four lengths


def table(arrays: Iterable[Array | None]) -> Array:
    """(SLOT n,) int64: address and shape of each of n arrays, which must be C-contiguous.

    The slot of a None is empty.
    """
    numbers: list[int] = []
    for array in arrays:
        if array is None:
            numbers += [0] * SLOT
            continue
        assert array.flags.c_contiguous
        lengths = [*array.shape, *[0] * (SLOT - 1 - array.ndim)]
        numbers += [array.__array_interface__["data"][0], *lengths]
    return np.array(numbers, np.int64)


def array_at(address: int, shape: tuple[int, ...], like: Array) -> Array:
    """The array at an address, with the dtype of `like`; does not keep the memory alive."""
    there = (ctypes.c_char * (math.prod(shape) * like.itemsize)).from_address(int(address))
    return np.ndarray(shape, like.dtype, memoryview(there))


def cut(source: Array, start: int, shape: tuple[int, ...]) -> Array:
    """The array of a shape that begins at element `start` of a C-contiguous array.

    It shares the memory. Numba's slices and `reshape` check what is known here, and take longer to
    compile than the kernel that uses them.
    """
    assert source.flags.c_contiguous
    return source.reshape(source.size)[start : start + math.prod(shape)].reshape(shape)


@expanded
def array_1d(numbers: Array, slot: int, like: Array) -> Array:
    """The one-dimensional array in a slot of a table, with the dtype of `like`."""
    at = SLOT * slot
    return array_at(numbers[at], (numbers[at + 1],), like)


# The types of the functions in kernels, and their code.


@infer_global(array_at)
class _ArrayAt(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:  # pragma: no cover - Numba calls it
        address, shape, like = args
        return signature(types.Array(like.dtype, len(shape), "C"), address, shape, like)


@infer_global(cut)
class _Cut(AbstractTemplate):  # type: ignore[misc]
    def generic(self, args: Any, kws: Any) -> Any:  # pragma: no cover - Numba calls it
        source, start, shape = args
        if source.layout != "C":
            return None  # Numba reports that there is no such function
        return signature(types.Array(source.dtype, len(shape), "C"), source, start, shape)


@lower_builtin(array_at, types.Integer, types.BaseTuple, types.Array)
def _array_at(context: Any, builder: Any, typed: Any, arguments: Any) -> Any:  # pragma: no cover
    address, shape, _ = arguments
    made = make_array(typed.return_type)(context, builder)
    data = builder.inttoptr(address, made.data.type)
    return contiguous(
        context, builder, typed.return_type, data, _lengths(builder, shape, context, typed.args[1])
    )


@lower_builtin(cut, types.Array, types.Integer, types.BaseTuple)
def _cut(context: Any, builder: Any, typed: Any, arguments: Any) -> Any:  # pragma: no cover
    source, start, shape = arguments
    data = make_array(typed.args[0])(context, builder, source).data
    start = context.cast(builder, start, typed.args[1], types.intp)
    lengths = _lengths(builder, shape, context, typed.args[2])
    return contiguous(context, builder, typed.return_type, builder.gep(data, [start]), lengths)


def _lengths(builder: Any, shape: Any, context: Any, typed: Any) -> list[Any]:  # pragma: no cover
    values = zip(cgutils.unpack_tuple(builder, shape), typed, strict=True)
    return [context.cast(builder, value, kind, types.intp) for value, kind in values]


def contiguous(  # pragma: no cover - Numba's compiler calls it
    context: Any, builder: Any, kind: Any, data: Any, lengths: list[Any]
) -> Any:
    """Code of a C-contiguous array that owns no memory.

    Args:
        context: of Numba.
        builder: of the code.
        kind: Numba's type of the array.
        data: pointer to its first element.
        lengths: of its axes.
    """
    made = make_array(kind)(context, builder)
    itemsize = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    strides = [context.get_constant(types.intp, itemsize)]
    for length in lengths[:0:-1]:
        strides.insert(0, builder.mul(strides[0], length))
    populate_array(made, data, lengths, strides, itemsize, None)
    return made._getvalue()
