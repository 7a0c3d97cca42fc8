"""Packs chunks into a batch, and checks a batch before anything is changed.

A fault of the batch as a whole (columns that do not fit one another) is raised. A fault in one lane
is returned with the number of the lane, so that a caller may leave that lane out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core import checks
from bptt_core.errors import (
    BpttError,
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
from bptt_core.ticks import Batch, Chunk, offsets_of

Array = NDArray[Any]
Errors = dict[int, BpttError]


class Checked(NamedTuple):
    """The values of a valid batch."""

    x: Array
    """(N, D) float64."""
    y: Array | None
    """(N, target_width) float64, targets of the same steps; None for a forecast and for tokens."""
    earlier: Array | None = None
    """(n, target_width) float64 late labels of steps before the batch."""
    earlier_lanes: Array | None = None
    """(n,) int64, the lane of each late label."""
    earlier_steps: Array | None = None
    """(n,) int64, the step of each late label."""


def pack(spec: ModelSpec, chunks: Sequence[Chunk]) -> Batch:
    """Pack a tick's chunks, once their arrays fit the spec and one another.

    Raises:
        InvalidArgument: there is no chunk, or a chunk's arrays have another type, shape or layout.
    """
    for chunk in chunks:
        _check_inputs(spec, chunk.inputs, chunk.targets is not None or chunk.end_of_sequence)
        steps = None if spec.label_delay else len(chunk.inputs)
        if chunk.targets is not None or not spec.label_delay:
            _check_targets(spec, chunk.targets, steps)
        first = chunk.first_target_step
        if first is None:
            continue
        if spec.label_delay and chunk.targets is None:
            bound = "left out where there are no targets"
            raise InvalidArgument("first_target_step", first, bound)
        if isinstance(first, bool) or not isinstance(first, (int, np.integer)):
            raise InvalidArgument("first_target_step", first, "a whole number")
        if first < 0 and spec.label_delay:
            raise LabelTooLate("first_target_step", first, "at least 0")
    if not chunks:
        raise InvalidArgument("tick", "empty", "at least one chunk")
    return Batch.of(chunks)


def pack_side_by_side(
    spec: ModelSpec, x: Array, target: Array | None, first_steps: Array, ends: bool
) -> Batch:
    """Pack inputs (T, B, D), and targets (T, B, n) or None, of streams "0" to "B-1".

    Args:
        spec: the model's.
        x: the inputs; (T, B) token ids.
        target: of the same steps; (T, B) class ids.
        first_steps: (at least B,) int64, the next step of each stream.
        ends: the sequences end with these steps.

    Raises:
        InvalidArgument: an array has another type, shape or layout.
    """
    _check_inputs(spec, x, may_be_empty=False, field="x", axes=(None, None))
    _check_targets(spec, target, *np.shape(x)[:2])
    T, B = x.shape[:2]
    return Batch(
        tuple(map(str, range(B))),
        first_steps,
        np.full(B, T),
        _by_stream(x),
        None if target is None else _by_stream(target),
        ends=np.full(B, ends),
    )


def _by_stream(steps: Array) -> Array:
    """Reshape (T, B, …) to (B T, …), stream after stream."""
    T, B, *rest = steps.shape
    return np.ascontiguousarray(steps.swapaxes(0, 1)).reshape(B * T, *rest)


def check(
    spec: ModelSpec, batch: Batch, next_steps: Array, sequence_steps: Array
) -> tuple[Checked, Errors]:
    """Check a batch.

    Args:
        spec: the model's.
        batch: the batch.
        next_steps: (B,) int64, the next step of each lane's stream.
        sequence_steps: (B,) int64, the steps since its sequence began.

    Returns:
        The values, and the error of each lane that has one.

    Raises:
        InvalidArgument: the batch as a whole is not valid.
    """
    _check_columns(spec, batch)
    errors: Errors = {}
    offsets = offsets_of(batch.lengths)
    x = _inputs(spec, batch, offsets, errors)
    _check_lengths(spec, batch, errors)
    y = _targets(spec, batch, errors)
    _check_order(spec, batch, next_steps, errors)
    if not spec.label_delay:
        return Checked(x, y), errors
    if y is None:
        return Checked(x, np.full((len(x), spec.target_width), np.nan)), errors
    return _late(spec, batch, x, y, sequence_steps, errors), errors


def _check_columns(spec: ModelSpec, batch: Batch) -> None:
    """Refuse columns that do not fit the spec or one another."""
    if not len(batch):
        raise InvalidArgument("tick", "empty", "at least one chunk")
    if len(set(batch.stream_ids)) != len(batch):
        raise InvalidArgument("tick", "two chunks of one stream", "at most one chunk a stream")
    columns = {
        "first_steps": batch.first_steps,
        "lengths": batch.lengths,
        "target_lengths": batch.target_lengths,
        "first_target_steps": batch.first_target_steps,
        "ends": batch.ends,
    }
    for name, column in columns.items():
        if column is not None and column.shape != (len(batch),):
            raise ShapeError(name, f"of shape {column.shape}", f"of shape ({len(batch)},)")
    sources = batch.source_positions
    if sources is not None and len(sources) != len(batch):
        raise ShapeError("source_positions", f"{len(sources)} positions", f"{len(batch)}")
    steps = int(batch.lengths.sum())
    if len(batch.inputs) != steps:
        bound = f"{steps}, the sum of lengths"
        raise ShapeError("inputs", f"{len(batch.inputs)} steps", bound)
    _check_inputs(spec, batch.inputs, may_be_empty=True)
    if batch.target_lengths is not None and not spec.label_delay:
        short = np.flatnonzero(batch.target_lengths != batch.lengths)
        if len(short):
            lane = int(short[0])
            value = f"{batch.target_lengths[lane]} in lane {lane}"
            raise InvalidArgument("target_lengths", value, f"lengths, {batch.lengths[lane]}")
    counts = batch.lengths if batch.target_lengths is None else batch.target_lengths
    if batch.targets is not None or not spec.label_delay:
        _check_targets(spec, batch.targets, int(counts.sum()))


def _check_inputs(
    spec: ModelSpec,
    values: Array,
    may_be_empty: bool,
    field: str = "inputs",
    axes: tuple[None, ...] = (None,),
) -> None:
    """Check type, shape and layout of inputs, which have these axes before the columns."""
    array = np.asarray(values)
    least = 0 if spec.label_delay and may_be_empty else 1
    if spec.task == "next_token":
        _check_ids(field, array)
        checks.check_shape(field, array, axes, least)
    else:
        check_floats(field, array)
        checks.check_shape(field, array, (*axes, spec.input_size), least)
    if array.size:
        check_layout(field, array)


def _check_targets(spec: ModelSpec, target: Array | None, *steps: int | None) -> None:
    """Check type, shape and layout of targets; `steps` None: any number of them."""
    if spec.task in ("forecast", "next_token"):
        if target is not None:
            raise InvalidArgument("targets", "given", f"left out for task {spec.task}")
        return
    if target is None:
        raise InvalidArgument("targets", "left out", f"given for task {spec.task}")
    array = np.asarray(target)
    if spec.task == "regression":
        check_floats("targets", array)
        checks.check_shape("targets", array, (*steps, spec.outputs))
    else:
        _check_ids("targets", array)
        checks.check_shape("targets", array, steps)
    check_layout("targets", array)


def _check_ids(field: str, array: Array) -> None:
    if array.dtype.kind not in "iu":
        raise DtypeError(field, f"of dtype {array.dtype}", "whole numbers")
    check_byte_order(field, array)


def _inputs(spec: ModelSpec, batch: Batch, offsets: Array, errors: Errors) -> Array:
    """Inputs (N, D) in float64."""
    if spec.task == "next_token":
        high = spec.vocabulary_size
        _check_range("inputs", batch.inputs, offsets, 0, high, errors)
        return batch.inputs[:, np.newaxis].astype(np.float64)
    x = batch.inputs.astype(np.float64, copy=False)
    if not np.isfinite(x).all():
        bad = np.isinf(x) if spec.missing_inputs else ~np.isfinite(x)
        _refuse_values("inputs", x, bad, offsets, errors, batch.first_steps)
    return x


def _targets(spec: ModelSpec, batch: Batch, errors: Errors) -> Array | None:
    """Targets (M, target_width) in float64; None if there are none."""
    if batch.targets is None:
        return None
    counts = batch.lengths if batch.target_lengths is None else batch.target_lengths
    offsets = offsets_of(counts)
    may_be_missing = spec.missing_targets or spec.label_delay > 0
    if spec.task == "classification":
        lowest = -1 if may_be_missing else 0
        _check_range("targets", batch.targets, offsets, lowest, spec.outputs, errors)
        ids = batch.targets[:, np.newaxis]
        return np.where(ids < 0, np.nan, ids)
    y = batch.targets.astype(np.float64, copy=False)
    if not np.isfinite(y).all():
        bad = np.isinf(y) if may_be_missing else ~np.isfinite(y)
        _refuse_values("targets", y, bad, offsets, errors)
    if spec.loss == "bernoulli":
        outside = (y < 0) | (y > 1)
        for lane, row, place in _first_in_lanes(outside, offsets):
            bound = "a number from 0 to 1 for loss bernoulli"
            column = place[-1]
            value = str(y[row, column])
            errors.setdefault(
                lane,
                InvalidArgument(f"targets[{row - offsets[lane]}][{column}]", value, bound),
            )
    return y


def _check_range(
    field: str, ids: Array, offsets: Array, lowest: int, count: int, errors: Errors
) -> None:
    if not len(ids) or (int(ids.min()) >= lowest and int(ids.max()) < count):
        return
    outside = (ids < lowest) | (ids >= count)
    for lane, row, _ in _first_in_lanes(outside, offsets):
        bound = f"an id from {lowest} to {count - 1}"
        errors.setdefault(
            lane, InvalidArgument(f"{field}[{row - offsets[lane]}]", str(ids[row]), bound)
        )


def _refuse_values(
    field: str,
    values: Array,
    bad: Array,
    offsets: Array,
    errors: Errors,
    first_steps: Array | None = None,
) -> None:
    """Note the first value that is not finite in each lane; name its step if that is known."""
    for lane, row, place in _first_in_lanes(bad, offsets):
        step = row - int(offsets[lane])
        bound = "a finite number"
        if first_steps is not None:
            bound += f" (step {first_steps[lane] + step}, column {place[-1]})"
        where = f"{field}[{step}][{place[-1]}]"
        errors.setdefault(lane, NonFiniteError(where, str(values[row, place[-1]]), bound))


def _first_in_lanes(bad: Array, offsets: Array) -> list[tuple[int, int, list[int]]]:
    """The first bad place in each lane: its lane, its row, and its index."""
    places = np.argwhere(bad)
    if not len(places):
        return []
    # Lanes without rows share an offset with the next: `right` finds the one that has the row.
    lanes = np.searchsorted(offsets, places[:, 0], side="right") - 1
    _, first = np.unique(lanes, return_index=True)
    return [(int(lanes[i]), int(places[i, 0]), places[i].tolist()) for i in first.tolist()]


def _check_lengths(spec: ModelSpec, batch: Batch, errors: Errors) -> None:
    """Refuse lanes without steps, unless they bring late labels or an end."""
    for lane in np.flatnonzero(batch.lengths < 1).tolist():
        labels = batch.target_lengths
        brings = (labels is not None and labels[lane] > 0) or (
            batch.ends is not None and bool(batch.ends[lane])
        )
        if batch.lengths[lane] < 0 or not (spec.label_delay and brings):
            shape = "(0,)" if spec.task == "next_token" else f"(0, {spec.input_size})"
            error = ShapeError("inputs", f"of shape {shape}", "at least one step")
            errors.setdefault(lane, error)


def _check_order(spec: ModelSpec, batch: Batch, next_steps: Array, errors: Errors) -> None:
    places = batch.first_target_steps
    if places is not None and not spec.label_delay:
        for lane in np.flatnonzero((places >= 0) & (places != batch.first_steps)).tolist():
            bound = f"left out, or first_step, which is {batch.first_steps[lane]}"
            error = InvalidArgument("first_target_step", int(places[lane]), bound)
            errors.setdefault(lane, error)
    for lane in np.flatnonzero(batch.first_steps != next_steps).tolist():
        first, expected = int(batch.first_steps[lane]), int(next_steps[lane])
        errors.setdefault(lane, OrderError(batch.stream_ids[lane], first, expected))


def _late(
    spec: ModelSpec, batch: Batch, x: Array, labels: Array, sequence_steps: Array, errors: Errors
) -> Checked:
    """Split late labels into those of the batch's own steps and those of earlier steps."""
    first_steps, lengths = batch.first_steps, batch.lengths
    counts = lengths if batch.target_lengths is None else batch.target_lengths
    places = batch.first_target_steps
    first = first_steps if places is None else np.where(places < 0, first_steps, places)
    oldest = first_steps - np.minimum(spec.label_delay, sequence_steps)
    newest = first_steps + lengths - 1
    has = counts > 0
    for lane in np.flatnonzero(has & (first < oldest)).tolist():
        bound = f"at least {oldest[lane]}: older labels come too late"
        error: BpttError = LabelTooLate("first_target_step", int(first[lane]), bound)
        errors.setdefault(lane, error)
    for lane in np.flatnonzero(has & (first + counts - 1 > newest)).tolist():
        n = int(counts[lane])
        bound = f"at most {newest[lane] - n + 1}, for the last of {n} to be of a step that has come"
        error = LabelTooEarly("first_target_step", int(first[lane]), bound)
        errors.setdefault(lane, error)
    own = np.full((len(x), spec.target_width), np.nan)
    if errors:
        return Checked(x, own)
    lanes = np.repeat(np.arange(len(batch)), counts)
    label_offsets, offsets = offsets_of(counts), offsets_of(lengths)
    steps = np.arange(len(labels)) + np.repeat(first - label_offsets[:-1], counts)
    after = steps - first_steps[lanes]  # steps after the lane's first one
    mine = after >= 0
    own[offsets[lanes[mine]] + after[mine]] = labels[mine]
    before = ~mine
    if not before.any():
        return Checked(x, own)
    return Checked(x, own, labels[before], lanes[before], steps[before])
