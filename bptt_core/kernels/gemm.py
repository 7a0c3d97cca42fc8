"""A matrix product that adds to its result, from BLAS; Numba's `np.dot` can only overwrite it.

The product calls the same function of Numba's run-time library as `np.dot` does, with beta = 1. It
saves a buffer for the product, and two passes over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

Array = NDArray[Any]

_KINDS = {types.float32: "s", types.float64: "d"}  # BLAS's letters of the types


def add_product(a: Array, b: Array, out: Array) -> None:
    """Add a (n, k) · b (k, m) to out (n, m), which is C-contiguous; a and b may be transposed."""
    out += a @ b


@intrinsic
def _gemm(typing: Any, a: Any, b: Any, out: Any) -> Any:  # pragma: no cover - Numba calls it
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, size = cgutils.voidptr_t, context.get_value_type(types.intp)
        letter, status = ir.IntType(8), ir.IntType(32)
        kinds = [letter] * 3 + [size] * 3
        places = [pointer, pointer, size, pointer, size, pointer, pointer, size]
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(status, kinds + places), "numba_xxgemm"
        )
        shapes, where = [], []
        for kind, value in zip(signature.args, arguments, strict=True):
            array = context.make_array(kind)(context, builder, value)
            shapes.append(cgutils.unpack_tuple(builder, array.shape, 2))
            where.append(builder.bitcast(array.data, pointer))
        number = context.get_value_type(out.dtype)
        one = cgutils.alloca_once_value(builder, ir.Constant(number, 1.0))
        one = builder.bitcast(one, pointer)

        def factor(kind: Any, index: int) -> tuple[Any, Any]:
            turned = kind.layout == "F"
            stride = shapes[index][0] if turned else shapes[index][1]
            return ir.Constant(letter, ord("t" if turned else "n")), stride

        # BLAS stores columns one after another: it computes outᵀ = bᵀ aᵀ.
        turn_b, stride_b = factor(signature.args[1], 1)
        turn_a, stride_a = factor(signature.args[0], 0)
        kind = ir.Constant(letter, ord(_KINDS[out.dtype]))
        n, m, k = shapes[2][0], shapes[2][1], shapes[0][1]
        builder.call(
            function,
            [kind, turn_b, turn_a, m, n, k, one, where[1], stride_b, where[0], stride_a, one,
             where[2], m],
        )  # fmt: skip
        return context.get_dummy_value()

    return types.void(a, b, out), generate


@overload(add_product)
def _add_product(a: Any, b: Any, out: Any) -> Callable[..., None]:
    def product(a: Any, b: Any, out: Any) -> None:
        _gemm(a, b, out)

    return product
