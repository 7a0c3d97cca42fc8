"""Matrix products by BLAS, for kernels.

Numba's `np.dot` cannot add to a result, and returns it, which a kernel without reference counts
cannot do. To add, the product calls the same function of Numba's run-time library with beta = 1: it
saves a buffer for the product, and two passes over it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin
from numba.np.linalg import dot_3_mm, ensure_blas
from numpy.typing import NDArray

Array = NDArray[Any]

_KINDS = {types.float32: "s", types.float64: "d"}  # BLAS's letters of the types


def add_product(a: Array, b: Array, out: Array) -> None:
    """Add a (n, k) · b (k, m) to out (n, m), which is C-contiguous; a and b may be transposed."""
    out += a @ b


def fill_product(a: Array, b: Array, out: Array) -> None:
    """Fill out (n, m) with a (n, k) · b (k, m); as `add_product` otherwise."""
    np.dot(a, b, out)


@infer_global(add_product)
@infer_global(fill_product)
class _Product(AbstractTemplate):  # type: ignore[misc]
    """The type of both functions in kernels."""

    def generic(self, args: Any, kws: Any) -> Any:  # pragma: no cover - Numba calls it
        return signature(types.none, *args)


@lower_builtin(fill_product, types.Array, types.Array, types.Array)
def _fill_product(  # pragma: no cover - Numba calls it
    context: Any, builder: Any, typed: Any, arguments: Any
) -> Any:
    ensure_blas()
    dot_3_mm(context, builder, signature(typed.args[2], *typed.args), arguments)
    return context.get_dummy_value()


@lower_builtin(add_product, types.Array, types.Array, types.Array)
def _add_product(  # pragma: no cover - Numba calls it
    context: Any, builder: Any, typed: Any, arguments: Any
) -> Any:
    pointer, size = cgutils.voidptr_t, context.get_value_type(types.intp)
    letter, status = ir.IntType(8), ir.IntType(32)
    kinds = [letter] * 3 + [size] * 3
    places = [pointer, pointer, size, pointer, size, pointer, pointer, size]
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(status, kinds + places), "numba_xxgemm"
    )
    shapes, where = [], []
    for kind, value in zip(typed.args, arguments, strict=True):
        array = context.make_array(kind)(context, builder, value)
        shapes.append(cgutils.unpack_tuple(builder, array.shape, 2))
        where.append(builder.bitcast(array.data, pointer))
    out = typed.args[2]
    number = context.get_value_type(out.dtype)
    one = cgutils.alloca_once_value(builder, ir.Constant(number, 1.0))
    one = builder.bitcast(one, pointer)

    def factor(kind: Any, index: int) -> tuple[Any, Any]:
        turned = kind.layout == "F"
        stride = shapes[index][0] if turned else shapes[index][1]
        return ir.Constant(letter, ord("t" if turned else "n")), stride

    # BLAS stores columns one after another: it computes outᵀ = bᵀ aᵀ.
    turn_b, stride_b = factor(typed.args[1], 1)
    turn_a, stride_a = factor(typed.args[0], 0)
    kind = ir.Constant(letter, ord(_KINDS[out.dtype]))
    n, m, k = shapes[2][0], shapes[2][1], shapes[0][1]
    builder.call(
        function,
        [kind, turn_b, turn_a, m, n, k, one, where[1], stride_b, where[0], stride_a, one,
         where[2], m],
    )  # fmt: skip
    return context.get_dummy_value()
