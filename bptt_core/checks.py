"""Checks of all arguments from outside, made before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core.errors import (
    DtypeError,
    InvalidArgument,
    LabelTooEarly,
    LabelTooLate,
    NonFiniteError,
    OrderError,
    ShapeError,
)
from bptt_core.layout import check_byte_order, check_floats, check_layout
from bptt_core.specs import ModelSpec
from bptt_core.state import INCARNATION, model_shapes, stream_shapes
from bptt_core.ticks import Chunk

Array = NDArray[Any]


class Checked(NamedTuple):
    """The arrays of a valid chunk."""

    x: Array
    """(T, D) float64."""
    y: Array | None
    """(T, target_width) float64, targets of the same steps; None for a forecast and for tokens."""
    earlier: Array | None = None
    """(n, target_width) float64 late labels of the n steps from `first_earlier` on."""
    first_earlier: int = 0


def tick(
    spec: ModelSpec, chunks: Sequence[Chunk], position: Callable[[str], tuple[int, int]]
) -> list[Checked]:
    """Check a tick's chunks.

    Args:
        spec: the model's.
        chunks: the tick.
        position: returns a stream's next step and the number of steps in its sequence.
    """
    if not chunks:
        raise InvalidArgument("tick", "empty", "at least one chunk")
    if len({chunk.stream_id for chunk in chunks}) != len(chunks):
        raise InvalidArgument("tick", "two chunks of one stream", "at most one chunk a stream")
    result = []
    for chunk in chunks:
        expected, sequence_step = position(chunk.stream_id)
        empty_allowed = spec.label_delay > 0 and (
            chunk.targets is not None or chunk.end_of_sequence
        )
        x = inputs(spec, "inputs", chunk.inputs, (None,), chunk.first_step, empty_allowed)
        if spec.label_delay:
            y = None if chunk.targets is None else _targets(spec, chunk.targets, (None,))
        else:
            y = _targets(spec, chunk.targets, (len(x),))
            if chunk.first_target_step not in (None, chunk.first_step):
                bound = f"left out, or first_step, which is {chunk.first_step}"
                raise InvalidArgument("first_target_step", chunk.first_target_step, bound)
        if chunk.first_step != expected:
            raise OrderError(chunk.stream_id, chunk.first_step, expected)
        checked = Checked(x, y)
        if spec.label_delay:
            checked = _late(spec, chunk, x, y, sequence_step)
        result.append(checked)
    return result


def _late(
    spec: ModelSpec, chunk: Chunk, x: Array, labels: Array | None, sequence_step: int
) -> Checked:
    """Split late labels into those of the chunk's own steps and those of earlier steps."""
    T = len(x)
    own = np.full((T, spec.target_width), np.nan)
    if labels is None:
        if chunk.first_target_step is not None:
            bound = "left out where there are no targets"
            raise InvalidArgument("first_target_step", chunk.first_target_step, bound)
        return Checked(x, own)
    first = chunk.first_step if chunk.first_target_step is None else chunk.first_target_step
    if isinstance(first, bool) or not isinstance(first, (int, np.integer)):
        raise InvalidArgument("first_target_step", first, "a whole number")
    oldest = chunk.first_step - min(spec.label_delay, sequence_step)
    if first < oldest:
        bound = f"at least {oldest}: older labels come too late"
        raise LabelTooLate("first_target_step", first, bound)
    newest = chunk.first_step + T - 1
    if first + len(labels) - 1 > newest:
        bound = f"at most {newest - len(labels) + 1}, for the last of {len(labels)} to be of a step"
        raise LabelTooEarly("first_target_step", first, f"{bound} that has come")
    before = max(0, chunk.first_step - first)
    start = max(0, first - chunk.first_step)
    rest = labels[before:]
    own[start : start + len(rest)] = rest
    return Checked(x, own, labels[:before], first)


def feed(spec: ModelSpec, x: Array, target: Array | None) -> tuple[Array, Array | None]:
    """Inputs (T, B, D) and targets (T, B, target_width) in float64."""
    x = inputs(spec, "x", x, (None, None))
    return x, _targets(spec, target, x.shape[:2])


def state(arrays: Mapping[str, Array], metadata: Mapping[str, Any], version: int) -> ModelSpec:
    """Check a saved state's arrays against its spec; return the spec."""
    if metadata.get("format") != version:
        raise InvalidArgument("format", metadata.get("format"), f"{version}")
    spec = ModelSpec.from_dict(metadata["spec"])
    names = metadata.get("streams")
    if not isinstance(names, list):
        raise InvalidArgument("streams", names, "a list of names")
    count = (len(names),)
    last = metadata.get("last_incarnation", len(names))  # older states have none
    if isinstance(last, bool) or not isinstance(last, int) or last < len(names):
        bound = f"a whole number, at least the number of streams, which is {len(names)}"
        raise InvalidArgument("last_incarnation", last, bound)
    expected = {f"model.{name}": shape for name, shape in model_shapes(spec).items()}
    for name, (row, dtype) in stream_shapes(spec).items():
        expected[f"streams.{name}"] = (count + row, dtype)
    if "last_incarnation" in metadata or f"streams.{INCARNATION}" in arrays:  # not in older states
        expected[f"streams.{INCARNATION}"] = (count, "int64")
    for name, (shape, dtype) in expected.items():
        if name not in arrays:
            raise InvalidArgument(name, "missing", "an array")
        array = np.asarray(arrays[name])
        if array.shape != shape:
            raise ShapeError(name, f"of shape {array.shape}", f"of shape {shape}")
        if array.dtype != dtype:
            raise DtypeError(name, f"of dtype {array.dtype}", dtype)
        check_layout(name, array)
    return spec


def sources(metadata: Mapping[str, Any]) -> dict[str, tuple[bytes, int]]:
    """The source positions of a saved state; a state without any, or an older one, has none.

    Raises:
        InvalidArgument: they have another form.
    """
    try:
        return {
            str(name): (bytes.fromhex(position), int(step))
            for name, (position, step) in metadata.get("sources", {}).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidArgument("sources", str(error), "positions and steps by stream") from error


def _targets(spec: ModelSpec, target: Array | None, steps: tuple[int | None, ...]) -> Array | None:
    """Targets (*steps, target_width) in float64, or None for a forecast."""
    if spec.task in ("forecast", "next_token"):
        if target is not None:
            raise InvalidArgument("targets", "given", f"left out for task {spec.task}")
        return None
    if target is None:
        raise InvalidArgument("targets", "left out", f"given for task {spec.task}")
    may_be_missing = spec.missing_targets or spec.label_delay > 0
    if spec.task == "regression":
        y = _numbers("targets", target, (*steps, spec.outputs), nan_allowed=may_be_missing)
        if spec.loss == "bernoulli":
            outside = (y < 0) | (y > 1)
            if outside.any():
                where, wrong = _first("targets", y, outside)
                raise InvalidArgument(where, str(wrong), "a number from 0 to 1 for loss bernoulli")
        return y
    lowest = -1 if may_be_missing else 0
    ids = _ids("targets", target, steps, spec.outputs, lowest=lowest)
    return np.where(ids < 0, np.nan, ids)


def inputs(
    spec: ModelSpec,
    field: str,
    values: Array,
    shape: tuple[int | None, ...],
    first_step: int = 0,
    empty_allowed: bool = False,
) -> Array:
    """Inputs (*shape, D) in float64: numbers, or for tokens their ids."""
    if spec.task == "next_token":
        return _ids(field, values, shape, spec.vocabulary_size, lowest=0)
    if empty_allowed and np.shape(values) == (0, spec.input_size):
        return np.empty((0, spec.input_size))
    shape = (*shape, spec.input_size)
    return _numbers(field, values, shape, nan_allowed=spec.missing_inputs, first_step=first_step)


def _ids(
    field: str, values: Array, shape: tuple[int | None, ...], count: int, *, lowest: int
) -> Array:
    """Whole numbers of a shape from `lowest` to count - 1, in float64 with one more axis of 1."""
    ids = np.asarray(values)
    if ids.dtype.kind not in "iu":
        raise DtypeError(field, f"of dtype {ids.dtype}", "whole numbers")
    check_byte_order(field, ids)
    _check_shape(field, ids, shape)
    check_layout(field, ids)
    outside = (ids < lowest) | (ids >= count)
    if outside.any():
        where, wrong = _first(field, ids, outside)
        raise InvalidArgument(where, str(wrong), f"an id from {lowest} to {count - 1}")
    return ids[..., np.newaxis].astype(np.float64)


def _numbers(
    field: str,
    values: Array,
    shape: tuple[int | None, ...],
    *,
    nan_allowed: bool = False,
    first_step: int | None = None,
) -> Array:
    """Values in float64 of a shape, where None is any length of at least 1.

    With `first_step`, the number of the first of them, an error names the step and the column.
    """
    array = np.asarray(values)
    check_floats(field, array)
    _check_shape(field, array, shape)
    check_layout(field, array)
    array = array.astype(np.float64, copy=False)
    if not np.isfinite(array).all():
        bad = np.isinf(array) if nan_allowed else ~np.isfinite(array)
        if bad.any():
            where, wrong = _first(field, array, bad)
            bound = "a finite number"
            if first_step is not None:
                place = np.argwhere(bad)[0].tolist()
                bound += f" (step {first_step + place[0]}, column {place[-1]})"
            raise NonFiniteError(where, str(wrong), bound)
    return array


def _check_shape(field: str, array: Array, shape: tuple[int | None, ...]) -> None:
    fits = array.ndim == len(shape) and all(
        have >= 1 if want is None else have == want
        for have, want in zip(array.shape, shape, strict=False)
    )
    if not fits:
        wanted = ", ".join("1 or more" if want is None else str(want) for want in shape)
        raise ShapeError(field, f"of shape {array.shape}", f"of shape ({wanted})")


def _first(field: str, array: Array, wrong: Array) -> tuple[str, Any]:
    """Place and value of the first wrong element."""
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    return field + "".join(f"[{i}]" for i in place), array[place]
