"""Reads a kernel's arrays from the table of addresses that `backend.Compiled` keeps.

The table lists the fields of `Model`, `Streams`, `Work` and `Room`, then the forecast's columns and
the numbers of `Sizes`. The functions that read a tuple back are generated from its fields, so that
no place in the table is written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from bptt_core.kernels import addresses, sizes
from bptt_core.kernels.jit import compiled
from bptt_core.kernels.sizes import Room, Sizes, Work
from bptt_core.specs import ModelSpec
from bptt_core.state import Model, new_model, new_streams, Streams

Array = NDArray[Any]

MODEL = 0
STREAMS = MODEL + len(Model._fields)
WORK = STREAMS + len(Streams._fields)
ROOM = WORK + len(Work._fields)
COLUMNS = ROOM + len(Room._fields)
SIZES = COLUMNS + 1
"""Where each tuple begins in the table, in slots."""

_SPEC = ModelSpec(hidden_size=1, dtype="float32")
_ARRAYS = {"float32": "like", "float64": "real", "int64": "table"}
"""An array of a field's dtype in the generated code; float32 in `_SPEC` is the spec's dtype."""
_CONVERTED = {int: "int({})", bool: "{} != 0", float: "{}"}


def _generated(head: str, first_line: str, result: type, fields: Sequence[str]) -> Any:
    """The function that `head` declares; it returns a `result` of these expressions."""
    lines = [f"def {head}:", f"    {first_line}", "    return result("]
    lines += [f"        {field}," for field in fields]
    names: dict[str, Any] = {
        **vars(addresses), "__name__": __name__, "float64": np.float64, "result": result
    }  # fmt: skip
    exec(compile("\n".join([*lines, "    )"]), __file__, "exec"), names)  # noqa: S102 - our own text
    return names[head.partition("(")[0]]


def _reader(name: str, example: Any, first: int) -> Callable[[Array, Array], Any]:
    """The function `name(table, like)` that reads a tuple of arrays; `like` has the spec's dtype.

    Args:
        name: of the function.
        example: such a tuple; its arrays' axes and dtypes count.
        first: the slot of the first field.
    """
    fields = [
        f"array_{array.ndim}d(table, {slot}, {_ARRAYS[str(array.dtype)]})"
        for slot, array in enumerate(example, first)
    ]
    read: Callable[[Array, Array], Any] = _generated(
        f"{name}(table, like)", "real = table.view(float64)", type(example), fields
    )
    return read


def _sizes_reader() -> Callable[[Array], Sizes]:
    """The function `sizes_at(table)`; the table leads to the numbers as float64."""
    fields = [
        _CONVERTED[kind].format(f"n[{place}]")
        for place, kind in enumerate(get_type_hints(Sizes).values())
    ]
    numbers = f"n = array_1d(table, {SIZES}, table.view(float64))"
    read: Callable[[Array], Sizes] = _generated("sizes_at(table)", numbers, Sizes, fields)
    return read


sizes_at = compiled(_sizes_reader())
model_at = compiled(_reader("model_at", new_model(_SPEC), MODEL))
streams_at = compiled(_reader("streams_at", new_streams(_SPEC, 1), STREAMS))
work_at = compiled(_reader("work_at", sizes.work(_SPEC, 1, 1), WORK))
room_at = compiled(_reader("room_at", sizes.room(_SPEC, 1, 1, 1), ROOM))
