"""The columns of one batch in the client: chunks of B streams, and their message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bptt import v1 as pb
from bptt.client import convert
from bptt.client.digits import number_array
from bptt.client.types import FloatArray, Int64Array, Model
from bptt.errors import InvalidRequest

NUMBER_BYTES = 8  # of one number of a column; what a batch holds beside its values

Rows = NDArray[Any]
"""Inputs or targets, (N, width), or (N,) ids."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchColumns:
    """Values of B streams, stream after stream: N steps and M targets."""

    steps: Int64Array
    """(B,) number of steps of each stream."""
    inputs: Rows | None
    """None: no stream has steps."""
    targets: Rows | None
    labels: Int64Array | None
    """(B,) number of targets of each stream; None: as many as steps, or no targets."""
    ends: NDArray[np.bool_] | None
    """(B,) None: no sequence ends."""
    first_targets: Int64Array | None
    """(B,) step of the first target of each stream; None: the first step."""
    shape: tuple[int, ...]
    """Of the axes that name a step: (B,), (B, T) or (N,)."""

    @property
    def size(self) -> int:
        """Bytes that it holds, approximately."""
        held = 0 if self.inputs is None else self.inputs.nbytes
        held += 0 if self.targets is None else self.targets.nbytes
        return held + 4 * NUMBER_BYTES * len(self.steps)

    def only(self, places: Int64Array) -> BatchColumns:
        """Return the columns of some of the streams, which stand at rising places."""
        chosen = np.zeros(len(self.steps), bool)
        chosen[places] = True

        def of(column: NDArray[Any] | None) -> Any:
            return None if column is None else column[places]

        def rows(values: Rows | None, lengths: Int64Array) -> Rows | None:
            return None if values is None else values[np.repeat(chosen, lengths)]

        steps = self.steps[places]
        labels = self.steps if self.labels is None else self.labels
        return BatchColumns(
            steps,
            rows(self.inputs, self.steps),
            rows(self.targets, labels),
            of(self.labels),
            of(self.ends),
            of(self.first_targets),
            (int(steps.sum()),),
        )


def columns_of(
    model: Model,
    values: ArrayLike | None,
    targets: ArrayLike | None,
    *,
    streams: int,
    steps: ArrayLike | None = None,
    ends: ArrayLike | None = None,
) -> BatchColumns:
    """Lay out the arrays of `send_many`.

    Args:
        model: that they are for.
        values: (B, D) or (B, T, D) numbers, (B,) or (B, T) token ids; with `steps` (N, D) or (N,).
        targets: the same with output_size in place of D; (B,) or (B, T) class ids.
        streams: B.
        steps: (B,) number of steps of each stream, where `values` holds one stream after another.
        ends: (B,) or one for all: whether the stream's sequence ends.

    Raises:
        InvalidRequest: an array has another shape, or holds no numbers.
    """
    lengths = None if steps is None else _lengths(steps, streams)
    inputs, shape = _inputs(model, values, streams, lengths)
    if lengths is None:
        each = int(np.prod(shape[1:], dtype=np.int64)) if inputs is not None else 0
        lengths = np.full(streams, each)
    wanted, labels = _targets(model, targets, streams, lengths)
    ended: NDArray[np.bool_] | None = None
    if ends is not None:
        ended = np.broadcast_to(np.asarray(ends, bool), (streams,))
        ended = ended if ended.any() else None
    return BatchColumns(lengths, inputs, wanted, labels, ended, None, shape)


def _lengths(steps: ArrayLike, streams: int) -> Int64Array:
    lengths = np.asarray(steps)
    if lengths.shape != (streams,) or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        value = f"of shape {lengths.shape} and dtype {lengths.dtype}"
        bound = f"whole numbers, 0 or more, of shape ({streams},): one for each stream"
        raise InvalidRequest.of("steps", value, bound)
    return lengths.astype(np.int64)


def _inputs(
    model: Model, values: ArrayLike | None, streams: int, lengths: Int64Array | None
) -> tuple[Rows | None, tuple[int, ...]]:
    """Return the steps of all streams one after another, and the axes that name a step."""
    if values is None:
        return None, (streams, 0) if lengths is None else (0,)
    if model.task == "next_token":
        return _rows_of("values", _ids("values", values), (), streams, lengths)
    width = model.spec["input_size"]
    return _rows_of("values", number_array("values", values), (width,), streams, lengths)


def _targets(
    model: Model, targets: ArrayLike | None, streams: int, lengths: Int64Array
) -> tuple[Rows | None, Int64Array | None]:
    """Return the targets, and how many each stream has if they are not as many as its steps."""
    if targets is None:
        return None, None
    width: tuple[int, ...] = ()
    array: Rows
    if model.task == "classification":
        array = _ids("targets", targets)
    else:
        width = (model.targets,)
        array = number_array("targets", targets)
    if array.shape == (int(lengths.sum()), *width):
        return np.ascontiguousarray(array), None
    rows, shape = _rows_of("targets", array, width, streams, None)
    each = int(np.prod(shape[1:], dtype=np.int64))
    labels = np.full(streams, each)
    return rows, None if (labels == lengths).all() else labels


def _rows_of(
    field: str,
    array: Rows,
    width: tuple[int, ...],
    streams: int,
    lengths: Int64Array | None,
) -> tuple[Rows, tuple[int, ...]]:
    axes = array.ndim - len(width)
    if lengths is not None:
        wanted: tuple[Any, ...] = (int(lengths.sum()), *width)
        fits = array.shape == wanted
    else:
        fits = axes in (1, 2) and array.shape[0] == streams and array.shape[axes:] == width
        wanted = (streams, *width)
    if not fits:
        shown = str(wanted)
        if lengths is None:
            shown += " or " + str((streams, "T", *width)).replace("'", "")
        raise InvalidRequest.of(field, f"of shape {array.shape}", f"of shape {shown}")
    return np.ascontiguousarray(array).reshape(-1, *width), array.shape[:axes]


def _ids(field: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise InvalidRequest.of(field, f"of dtype {array.dtype}", "whole numbers")
    low, high = (0, 2**32 - 1) if field == "values" else (-1, 2**31 - 1)
    if array.size and (array.min() < low or array.max() > high):
        wrong = array.min() if array.min() < low else array.max()
        raise InvalidRequest.of(field, wrong, f"whole numbers from {low} to {high}")
    return array


def to_proto(
    columns: BatchColumns,
    lanes: Int64Array,
    first_steps: Int64Array | None,
    incarnations: Int64Array,
) -> pb.ChunkBatch:
    """Return the message of a batch."""
    message = pb.ChunkBatch(lanes=lanes.tolist())
    steps = columns.steps
    if (steps != 1).any():
        one_for_all = len(steps) > 1 and (steps == steps[0]).all()
        message.steps.extend(steps[:1].tolist() if one_for_all else steps.tolist())
    if first_steps is not None:
        message.first_steps.extend(first_steps.tolist())
    if incarnations.any():
        message.incarnations.extend(incarnations.tolist())
    if columns.ends is not None:
        message.ends_of_sequence.extend(columns.ends.tolist())
    if columns.labels is not None:
        message.target_steps.extend(columns.labels.tolist())
    if columns.first_targets is not None:
        message.first_target_steps.extend(columns.first_targets.tolist())
    _add_rows(message, "input", columns.inputs)
    _add_rows(message, "target", columns.targets)
    return message


def _add_rows(message: pb.ChunkBatch, what: str, rows: Rows | None) -> None:
    if rows is None:
        return
    if rows.dtype.kind == "f":
        floats: FloatArray = rows
        message.MergeFromString(convert.packed(pb.ChunkBatch, what, floats))
    elif what == "input":
        message.input_tokens.extend(rows.tolist())
    else:
        message.target_classes.extend(rows.tolist())
