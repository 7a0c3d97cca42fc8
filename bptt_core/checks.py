"""Checks of all arguments from outside, made before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.errors import (
    DtypeError,
    InvalidArgument,
    NonFiniteError,
    ShapeError,
)
from bptt_core.layout import check_byte_order, check_floats, check_layout
from bptt_core.robust import BLOCK_MEAN, MEAN, SCALE_FIELDS
from bptt_core.specs import ModelSpec
from bptt_core.state import INCARNATION, model_shapes, STATISTICS, stream_shapes

Array = NDArray[Any]


def state(arrays: Mapping[str, Array], metadata: Mapping[str, Any], version: int) -> ModelSpec:
    """Check a saved state's arrays against its spec; return the spec."""
    if metadata.get("format") != version:
        raise InvalidArgument("format", metadata.get("format"), f"{version}")
    spec = ModelSpec.from_saved(metadata["spec"])
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
            if 0 in shape:  # of a later version, and not used by this spec
                continue
            raise InvalidArgument(name, "missing", "an array")
        array = np.asarray(arrays[name])
        if array.shape != shape:
            raise ShapeError(name, f"of shape {array.shape}", f"of shape {shape}")
        if array.dtype != dtype:
            raise DtypeError(name, f"of dtype {array.dtype}", dtype)
        check_layout(name, array)
    return spec


def complete(
    spec: ModelSpec, arrays: Mapping[str, Array], metadata: Mapping[str, Any]
) -> dict[str, Array]:
    """A saved state's arrays, with the empty ones that states of earlier versions lack."""
    shapes = {f"model.{name}": shape for name, shape in model_shapes(spec).items()}
    for name, (row, dtype) in stream_shapes(spec).items():
        shapes[f"streams.{name}"] = ((len(metadata["streams"]), *row), dtype)
    missing = {name: np.zeros(*shape) for name, shape in shapes.items() if name not in arrays}
    return {**arrays, **missing}


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


def statistics(spec: ModelSpec, source: Mapping[str, Array]) -> None:
    """Check statistics that scale values.

    Raises:
        InvalidArgument: a name or an array does not match.
    """
    shapes = model_shapes(spec)
    for name in source:
        if name not in STATISTICS:
            raise InvalidArgument(name, "given", "one of " + ", ".join(STATISTICS))
    for name in STATISTICS:
        shape = shapes[name][0]
        if 0 in shape:
            continue
        if name not in source:
            raise InvalidArgument(name, "missing", "an array")
        array = np.asarray(source[name])
        check_floats(name, array)
        if array.shape != shape:
            raise ShapeError(name, f"of shape {array.shape}", f"of shape {shape}")
        if not np.isfinite(array).all():
            raise NonFiniteError(name, "not finite", "finite numbers")
        least = _unsigned(name, array)
        if least.size and least.min() < 0:
            raise InvalidArgument(name, str(least.min()), "at least 0")


def _unsigned(name: str, array: Array) -> Array:
    """The numbers of statistics that cannot be negative: counts, squares and variances."""
    if name == "change_scale":
        return array[..., :SCALE_FIELDS]
    if name in ("changes_inverse", "levels_inverse"):
        return np.diagonal(array, axis1=1, axis2=2)
    if name in ("input_level", "target_level", "expert_level"):
        return np.delete(array, (MEAN, BLOCK_MEAN), axis=-1)
    return array if name.endswith(("count", "m2", "square")) else np.empty(0)


def inputs(
    spec: ModelSpec,
    field: str,
    values: Array,
    shape: tuple[int | None, ...],
) -> Array:
    """Inputs (*shape, D) in float64: numbers, or for tokens their ids."""
    if spec.task == "next_token":
        return _ids(field, values, shape, spec.vocabulary_size, lowest=0)
    shape = (*shape, spec.input_size)
    return _numbers(field, values, shape, nan_allowed=spec.missing_inputs, first_step=0)


def _ids(
    field: str, values: Array, shape: tuple[int | None, ...], count: int, *, lowest: int
) -> Array:
    """Whole numbers of a shape from `lowest` to count - 1, in float64 with one more axis of 1."""
    ids = np.asarray(values)
    if ids.dtype.kind not in "iu":
        raise DtypeError(field, f"of dtype {ids.dtype}", "whole numbers")
    check_byte_order(field, ids)
    check_shape(field, ids, shape)
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
    check_shape(field, array, shape)
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


def check_shape(field: str, array: Array, shape: tuple[int | None, ...], least: int = 1) -> None:
    """Refuse another shape; None in it stands for any length of at least `least`.

    Raises:
        ShapeError: the array has another shape.
    """
    fits = array.ndim == len(shape) and all(
        have >= least if want is None else have == want
        for have, want in zip(array.shape, shape, strict=False)
    )
    if not fits:
        any_length = f"{least} or more"
        wanted = ", ".join(any_length if want is None else str(want) for want in shape)
        raise ShapeError(field, f"of shape {array.shape}", f"of shape ({wanted})")


def _first(field: str, array: Array, wrong: Array) -> tuple[str, Any]:
    """Place and value of the first wrong element."""
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    return field + "".join(f"[{i}]" for i in place), array[place]
