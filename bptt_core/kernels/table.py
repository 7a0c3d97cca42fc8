"""Reads a kernel's arrays from the table of addresses that `backend.Compiled` keeps.

The table lists the fields of `Model`, `Streams`, `Work` and `Room`, then the forecast's columns and
the numbers of `Sizes`. In a kernel, these tuples are records: one pointer each, through which a
field is read where it is used. As tuples of all their arrays they would be two hundred values that
every call passes on, which took most of the time of compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.typing import signature
from numba.core.typing.templates import (
    AbstractTemplate,
    AttributeTemplate,
    infer_getattr,
    infer_global,
)
from numba.extending import lower_builtin, lower_getattr_generic, models, register_model
from numba.np.arrayobj import make_array
from numba.np.numpy_support import from_dtype
from numpy.typing import NDArray

from bptt_core.kernels import sizes
from bptt_core.kernels.addresses import array_at, contiguous, SLOT, table
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


class Field(NamedTuple):
    """Where a record has one of its arrays."""

    slot: int
    axes: int
    dtype: str | None
    """None: the spec's."""


def _fields(example: Any, first: int) -> dict[str, Field]:
    """The fields of a tuple of arrays that begins in slot `first`; `_SPEC` has float32."""
    return {
        name: Field(slot, array.ndim, None if array.dtype == np.float32 else str(array.dtype))
        for slot, (name, array) in enumerate(example._asdict().items(), first)
    }


_RECORDS: dict[type, dict[str, Field]] = {
    Model: _fields(new_model(_SPEC), MODEL),
    Streams: _fields(new_streams(_SPEC, 1), STREAMS),
    Work: _fields(sizes.work(_SPEC, 1, 1), WORK),
    Room: _fields(sizes.room(_SPEC, 1, 1, 1), ROOM),
}
_NUMBERS: dict[str, type] = get_type_hints(Sizes)


def work_table(work: Work, numbers: Array) -> Array:
    """A table for kernels that need no more than these buffers and `Sizes`."""
    arrays: list[Array | None] = [None] * (SIZES + 1)
    arrays[WORK:ROOM] = work
    arrays[SIZES] = numbers
    return table(arrays)


def _read(kind: type, numbers: Array, like: Array) -> Any:
    """A tuple of arrays from a table; `like` has the spec's dtype."""
    arrays = []
    for slot, axes, dtype in _RECORDS[kind].values():
        at = SLOT * slot
        shape = tuple(numbers[at + 1 : at + 1 + axes].tolist())
        arrays.append(array_at(numbers[at], shape, np.empty(0, dtype or like.dtype)))
    return kind(*arrays)


def model_at(numbers: Array, like: Array) -> Model:
    """The model of a table; `like` is any array of the spec's dtype."""
    found: Model = _read(Model, numbers, like)
    return found


def streams_at(numbers: Array, like: Array) -> Streams:
    """As `model_at`, the streams."""
    found: Streams = _read(Streams, numbers, like)
    return found


def work_at(numbers: Array, like: Array) -> Work:
    """As `model_at`, the buffers of a window."""
    found: Work = _read(Work, numbers, like)
    return found


def room_at(numbers: Array, like: Array) -> Room:
    """As `model_at`, the buffers of a call."""
    found: Room = _read(Room, numbers, like)
    return found


def sizes_at(numbers: Array) -> Sizes:
    """The spec's numbers of a table."""
    at = SLOT * SIZES
    found = array_at(numbers[at], (int(numbers[at + 1]),), np.empty(0))
    return Sizes(*(kind(n) for kind, n in zip(_NUMBERS.values(), found, strict=True)))


# The same in kernels.


class RecordType(types.Type):  # type: ignore[misc]
    """Numba's type of a record."""

    def __init__(self, kind: type, like: Any) -> None:
        self.kind, self.like = kind, like
        super().__init__(name=f"Record({kind.__name__}, {like})")

    def field(self, name: str) -> Any:
        """Numba's type of a field."""
        if self.kind is Sizes:
            return {int: types.intp, bool: types.boolean, float: types.float64}[_NUMBERS[name]]
        _, axes, dtype = _RECORDS[self.kind][name]
        return types.Array(from_dtype(np.dtype(dtype)) if dtype else self.like, axes, "C")


@register_model(RecordType)
class _RecordModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        number = ir.DoubleType() if kind.kind is Sizes else ir.IntType(64)
        super().__init__(manager, kind, number.as_pointer())


@infer_getattr
class _Fields(AttributeTemplate):  # type: ignore[misc]
    key = RecordType

    def generic_resolve(self, record: Any, name: str) -> Any:  # pragma: no cover - for Numba
        return record.field(name)


def _load(builder: Any, pointer: Any, at: int) -> Any:  # pragma: no cover - for Numba
    """A number of the table, which no kernel changes: LLVM may read it once for a whole loop."""
    place = builder.gep(pointer, [ir.Constant(ir.IntType(64), at)])
    number = builder.load(place)
    number.set_metadata("invariant.load", builder.module.add_metadata([]))
    return number


@lower_getattr_generic(RecordType)
def _field(  # pragma: no cover - for Numba
    context: Any, builder: Any, record: Any, pointer: Any, name: str
) -> Any:
    kind = record.field(name)
    if record.kind is Sizes:
        number = _load(builder, pointer, list(_NUMBERS).index(name))
        return context.cast(builder, number, types.float64, kind)
    slot, axes, _ = _RECORDS[record.kind][name]
    at = SLOT * slot
    data = context.get_data_type(kind.dtype).as_pointer()
    address = builder.inttoptr(_load(builder, pointer, at), data)
    lengths = [_load(builder, pointer, at + 1 + axis) for axis in range(axes)]
    return contiguous(context, builder, kind, address, lengths)


def _define(function: Callable[..., Any], kind: type) -> None:
    """Make a compiled call of `function` the record of this kind."""

    class Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:  # pragma: no cover - for Numba
            like = args[1].dtype if len(args) > 1 else None
            return signature(RecordType(kind, like), *args)

    infer_global(function)(Template)

    @lower_builtin(function, types.Array, types.VarArg(types.Any))
    def code(context: Any, builder: Any, typed: Any, arguments: Any) -> Any:  # pragma: no cover
        pointer = make_array(typed.args[0])(context, builder, arguments[0]).data
        if kind is not Sizes:
            return pointer
        numbers = _load(builder, pointer, SLOT * SIZES)
        return builder.inttoptr(numbers, ir.DoubleType().as_pointer())


for _function, _kind in (
    (model_at, Model), (streams_at, Streams), (work_at, Work), (room_at, Room), (sizes_at, Sizes)
):  # fmt: skip
    _define(_function, _kind)
