"""Checks that an array has the memory layout that the kernels read without a copy.

Arrays must be C-contiguous, in the machine's byte order and writeable. Numba would compile a kernel
again for any other layout, which takes half a minute in the middle of a stream, and a silent copy
would cost time on every call. Other layouts are refused; the error names the NumPy call that
converts them.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from bptt_core.errors import DtypeError, LayoutError

Array = NDArray[Any]


def check_floats(field: str, array: Array) -> None:
    """Refuse any dtype other than float32 and float64.

    Raises:
        DtypeError: another dtype, or a foreign byte order.
    """
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise DtypeError(field, f"of dtype {array.dtype}", "float32 or float64")
    check_byte_order(field, array)


def check_byte_order(field: str, array: Array) -> None:
    """Refuse a foreign byte order.

    Raises:
        DtypeError: the array is not in the machine's byte order.
    """
    if not array.dtype.isnative:
        native = array.dtype.newbyteorder("=")
        bound = f"in the machine's own byte order, as .astype({str(native)!r}) gives it"
        raise DtypeError(field, f"of dtype {array.dtype}", bound)


def check_layout(field: str, array: Array) -> None:
    """Refuse a strided or read-only array.

    Raises:
        LayoutError: it is not C-contiguous, or not writeable.
    """
    if not array.flags.c_contiguous:
        value = f"not contiguous: of shape {array.shape} and strides {array.strides}"
        raise LayoutError(field, value, "C-contiguous, as np.ascontiguousarray gives it")
    if not array.flags.writeable:
        raise LayoutError(field, "read-only", "writeable, as np.array gives it")
