"""What comes from outside is checked here, whole, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core import state as state_arrays
from bptt_core.errors import DtypeError, InvalidArgument, NonFiniteError, OrderError, ShapeError
from bptt_core.layout import check_byte_order, check_floats, check_layout
from bptt_core.specs import ModelSpec
from bptt_core.ticks import Chunk

Array = NDArray[Any]


def tick(
    spec: ModelSpec, chunks: Sequence[Chunk], next_step: Callable[[str], int]
) -> list[tuple[Array, Array | None]]:
    """Inputs (T, D) and targets (T, target_width) of each chunk in float64."""
    if not chunks:
        raise InvalidArgument("tick", "empty", "at least one chunk")
    if len({chunk.stream_id for chunk in chunks}) != len(chunks):
        raise InvalidArgument("tick", "two chunks of one stream", "at most one chunk a stream")
    result = []
    for chunk in chunks:
        x = inputs(spec, "inputs", chunk.inputs, (None,))
        y = _targets(spec, chunk.targets, (len(x),))
        expected = next_step(chunk.stream_id)
        if chunk.first_step != expected:
            raise OrderError(chunk.stream_id, chunk.first_step, expected)
        result.append((x, y))
    return result


def feed(spec: ModelSpec, x: Array, target: Array | None) -> tuple[Array, Array | None]:
    """Inputs (T, B, D) and targets (T, B, target_width) in float64."""
    x = inputs(spec, "x", x, (None, None))
    return x, _targets(spec, target, x.shape[:2])


def state(arrays: Mapping[str, Array], metadata: Mapping[str, Any], version: int) -> ModelSpec:
    """The spec of a saved state whose arrays all fit it."""
    if metadata.get("format") != version:
        raise InvalidArgument("format", metadata.get("format"), f"{version}")
    spec = ModelSpec.from_dict(metadata["spec"])
    names = metadata.get("streams")
    if not isinstance(names, list):
        raise InvalidArgument("streams", names, "a list of names")
    expected = {f"model.{k}": v for k, v in state_arrays.new_model(spec)._asdict().items()}
    streams = state_arrays.new_streams(spec, len(names))
    expected |= {f"streams.{k}": v for k, v in streams._asdict().items()}
    for name, like in expected.items():
        if name not in arrays:
            raise InvalidArgument(name, "missing", "an array")
        array = np.asarray(arrays[name])
        if array.shape != like.shape:
            raise ShapeError(name, f"of shape {array.shape}", f"of shape {like.shape}")
        if array.dtype != like.dtype:
            raise DtypeError(name, f"of dtype {array.dtype}", str(like.dtype))
        check_layout(name, array)
    return spec


def _targets(spec: ModelSpec, target: Array | None, steps: tuple[int, ...]) -> Array | None:
    """Targets (*steps, target_width) in float64, or None for a forecast."""
    if spec.task in ("forecast", "next_token"):
        if target is not None:
            raise InvalidArgument("targets", "given", f"left out for task {spec.task}")
        return None
    if target is None:
        raise InvalidArgument("targets", "left out", f"given for task {spec.task}")
    if spec.task == "regression":
        missing = spec.missing_targets
        y = _numbers("targets", target, (*steps, spec.outputs), nan_allowed=missing)
        if spec.loss == "bernoulli":
            outside = (y < 0) | (y > 1)
            if outside.any():
                where, wrong = _first("targets", y, outside)
                raise InvalidArgument(where, str(wrong), "a number from 0 to 1 for loss bernoulli")
        return y
    lowest = -1 if spec.missing_targets else 0
    ids = _ids("targets", target, steps, spec.outputs, lowest=lowest)
    return np.where(ids < 0, np.nan, ids)


def inputs(spec: ModelSpec, field: str, values: Array, shape: tuple[int | None, ...]) -> Array:
    """Inputs (*shape, D) in float64: numbers, or for tokens their ids."""
    if spec.task == "next_token":
        return _ids(field, values, shape, spec.vocabulary_size, lowest=0)
    return _numbers(field, values, (*shape, spec.input_size))


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
    field: str, values: Array, shape: tuple[int | None, ...], *, nan_allowed: bool = False
) -> Array:
    """Values in float64 of a shape, where None is any length of at least 1."""
    array = np.asarray(values)
    check_floats(field, array)
    _check_shape(field, array, shape)
    check_layout(field, array)
    array = array.astype(np.float64, copy=False)
    if not np.isfinite(array).all():
        bad = np.isinf(array) if nan_allowed else ~np.isfinite(array)
        if bad.any():
            where, wrong = _first(field, array, bad)
            raise NonFiniteError(where, str(wrong), "a finite number")
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
