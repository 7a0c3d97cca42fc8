"""How an array must lie in memory to be taken: as the kernels read it, without a copy.

What is computed on is C-contiguous, in the machine's byte order and writeable. Numba compiles a
kernel once more for every other layout it meets, which takes half a minute in the middle of a
stream, and a copy made in silence costs on every call. So what lies otherwise is refused, and the
error says which call gives an array that is taken.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from bptt_core.errors import DtypeError, LayoutError

Array = NDArray[Any]


def check_floats(field: str, array: Array) -> None:
    """Refuse what is not float32 or float64.

    Raises:
        DtypeError: it is something else, or in another byte order.
    """
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise DtypeError(field, f"of dtype {array.dtype}", "float32 or float64")
    check_byte_order(field, array)


def check_byte_order(field: str, array: Array) -> None:
    """Refuse a foreign byte order.

    Raises:
        DtypeError: the bytes of an element stand the other way round.
    """
    if not array.dtype.isnative:
        native = array.dtype.newbyteorder("=")
        bound = f"in the machine's own byte order, as .astype({str(native)!r}) gives it"
        raise DtypeError(field, f"of dtype {array.dtype}", bound)


def check_layout(field: str, array: Array) -> None:
    """Refuse what is strided or read-only.

    Raises:
        LayoutError: it is not C-contiguous, or not writeable.
    """
    if not array.flags.c_contiguous:
        value = f"not contiguous: of shape {array.shape} and strides {array.strides}"
        raise LayoutError(field, value, "C-contiguous, as np.ascontiguousarray gives it")
    if not array.flags.writeable:
        raise LayoutError(field, "read-only", "writeable, as np.array gives it")
