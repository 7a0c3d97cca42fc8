"""The columns of one batch in the client: chunks of B streams, and their message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bptt import v1 as pb
from bptt.client import convert
from bptt.client.cutting import FRAME_BYTES
from bptt.client.digits import number_array
from bptt.client.types import FloatArray, Int64Array, Model
from bptt.errors import InvalidRequest

NUMBER_BYTES = 8  # of one number of a column; what a batch holds beside its values
LANE_BYTES = 48  # of a message for each stream, beside its values: at most six numbers, packed
ID_BYTES = 5  # of a token or class id, at most
BATCH_STREAMS_MAX = 16_384  # the server's bound
SOURCE_POSITION_BYTES_MAX = 256  # the server's bound

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
    sources: Sequence[bytes] | None = None
    """(B,) source position of each stream after its steps; None: no stream has one."""
    order: Int64Array | None = None
    """(N,) of a table: its row that each row of `inputs` is. None: not of a table."""

    @property
    def size(self) -> int:
        """Bytes that it holds, approximately."""
        held = 0 if self.inputs is None else self.inputs.nbytes
        held += 0 if self.targets is None else self.targets.nbytes
        return held + 4 * NUMBER_BYTES * len(self.steps)

    @property
    def label_counts(self) -> Int64Array:
        """(B,) number of targets of each stream."""
        if self.targets is None:
            return np.zeros_like(self.steps)
        return self.steps if self.labels is None else self.labels

    @property
    def doubles(self) -> bool:
        """Whether inputs or targets are float64."""
        both = (self.inputs, self.targets)
        return any(each is not None and each.dtype == np.float64 for each in both)

    def only(self, places: Int64Array) -> BatchColumns:
        """Return the columns of some of the streams, which stand at rising places."""
        chosen = np.zeros(len(self.steps), bool)
        chosen[places] = True

        def of(column: NDArray[Any] | None) -> Any:
            return None if column is None else column[places]

        def rows(values: Rows | None, lengths: Int64Array) -> Rows | None:
            return None if values is None else values[np.repeat(chosen, lengths)]

        steps = self.steps[places]
        sources = self.sources
        return BatchColumns(
            steps,
            rows(self.inputs, self.steps),
            rows(self.targets, self.label_counts),
            of(self.labels),
            of(self.ends),
            of(self.first_targets),
            (int(steps.sum()),),
            None if sources is None else [sources[place] for place in places.tolist()],
        )

    def rounds(self, longest: int) -> Iterator[tuple[int, Int64Array, BatchColumns]]:
        """Cut streams that have more than `longest` steps; a round has at most so many of each.

        Targets go with their steps. The last steps of a stream end its sequence and have its
        source position.

        Returns:
            Of each round the number of steps before it, its streams' places, and its columns.
        """
        starts = np.cumsum(self.steps) - self.steps
        for first in range(0, int(self.steps.max()), longest):
            places = np.flatnonzero(self.steps > first)
            steps = np.minimum(self.steps[places] - first, longest)
            rows = np.repeat(starts[places] + first - (np.cumsum(steps) - steps), steps)
            rows += np.arange(int(steps.sum()))
            last = self.steps[places] == first + steps
            ends = None if self.ends is None else self.ends[places] & last
            sources: list[bytes] | None = None
            if self.sources is not None:
                told = zip(places.tolist(), last.tolist(), strict=True)
                sources = [self.sources[place] if is_last else b"" for place, is_last in told]
            inputs = None if self.inputs is None else self.inputs[rows]
            targets = None if self.targets is None else self.targets[rows]
            shape = (len(rows),)
            yield (
                first,
                places,
                BatchColumns(steps, inputs, targets, None, ends, None, shape, sources),
            )

    def pieces(self, places: Int64Array | None, limits: pb.ChunkLimits) -> list[Int64Array | None]:
        """Return the places of the streams that each message holds; None: all streams in one.

        Args:
            places: of the streams to send; None: all.
            limits: of the server. A stream that exceeds them by itself has a message of its own.
        """
        rows = np.maximum(self.steps, self.label_counts)
        size = self.steps * _row_bytes(self.inputs) + self.label_counts * _row_bytes(self.targets)
        size += LANE_BYTES
        if self.sources is not None:
            size += np.array([len(each) for each in self.sources])
        room = limits.message_bytes - FRAME_BYTES
        longest = rows_max(self, limits)
        chosen = np.arange(len(rows)) if places is None else places
        found: list[Int64Array | None] = []
        while len(chosen):
            count = min(
                int(np.searchsorted(np.cumsum(size[chosen]), room, side="right")),
                int(np.searchsorted(np.cumsum(rows[chosen]), longest, side="right")),
                BATCH_STREAMS_MAX,
            )
            count = max(count, 1)
            if count == len(rows):
                return [None]
            found.append(chosen[:count])
            chosen = chosen[count:]
        return found


def rows_max(columns: BatchColumns, limits: pb.ChunkLimits) -> int:
    """Return the most steps, or targets, in one message."""
    return (limits.double_steps or limits.steps) if columns.doubles else limits.steps


def steps_of_stream_max(columns: BatchColumns, limits: pb.ChunkLimits) -> int:
    """Return the most steps of one stream, with their targets, in one message; at least 1."""
    width = _row_bytes(columns.inputs)
    if columns.labels is None:
        width += _row_bytes(columns.targets)
    room = limits.message_bytes - FRAME_BYTES - LANE_BYTES - SOURCE_POSITION_BYTES_MAX
    return max(1, min(rows_max(columns, limits), room // max(width, 1)))


def check_again(columns: BatchColumns, limits: pb.ChunkLimits) -> None:
    """Check that a batch which has to be sent again still fits.

    Raises:
        InvalidRequest: the server takes smaller messages than the one before.
    """
    most, longest = int(columns.steps.max()), steps_of_stream_max(columns, limits)
    if most > longest:
        value = f"{most} steps of a stream that have to be sent again"
        bound = f"at most {longest} steps of a stream in a message"
        raise InvalidRequest.of("batch", value, bound, reason="too_long")


def _row_bytes(rows: Rows | None) -> int:
    if rows is None:
        return 0
    if rows.dtype.kind != "f":
        return ID_BYTES
    return int(rows.itemsize * np.prod(rows.shape[1:], dtype=np.int64))


def columns_of(
    model: Model,
    values: ArrayLike | None,
    targets: ArrayLike | None,
    *,
    streams: int,
    steps: ArrayLike | None = None,
    target_steps: ArrayLike | None = None,
    first_target_steps: ArrayLike | None = None,
    ends: ArrayLike | None = None,
    sources: Sequence[bytes] | None = None,
) -> BatchColumns:
    """Lay out the arrays of `send_many`.

    Args:
        model: that they are for.
        values: (B, D) or (B, T, D) numbers, (B,) or (B, T) token ids; with `steps` (N, D) or (N,).
        targets: the same with output_size in place of D; (B,) or (B, T) class ids. With
            `target_steps`, or as many as `steps`: (M, output_size) or (M,).
        streams: B.
        steps: (B,) number of steps of each stream, where `values` holds one stream after another.
        target_steps: (B,) number of targets of each stream.
        first_target_steps: (B,) step of the first target of each stream.
        ends: (B,) or one for all: whether the stream's sequence ends.
        sources: (B,) source positions.

    Raises:
        InvalidRequest: an array has another shape, or holds no numbers.
    """
    lengths = None if steps is None else _lengths("steps", steps, streams)
    inputs, shape = _inputs(model, values, streams, lengths)
    if lengths is None:
        each = int(np.prod(shape[1:], dtype=np.int64)) if inputs is not None else 0
        lengths = np.full(streams, each)
    counts = None if target_steps is None else _lengths("target_steps", target_steps, streams)
    wanted, labels = _targets(model, targets, streams, lengths, counts)
    firsts = None
    if first_target_steps is not None:
        firsts = step_numbers("first_target_steps", first_target_steps, streams)
    ended: NDArray[np.bool_] | None = None
    if ends is not None:
        given = np.asarray(ends, bool)
        if given.shape not in ((), (streams,)):
            bound = f"one for all, or of shape ({streams},)"
            raise InvalidRequest.of("ends_of_sequence", f"of shape {given.shape}", bound)
        ended = np.broadcast_to(given, (streams,))
        ended = ended if ended.any() else None
    return BatchColumns(
        lengths, inputs, wanted, labels, ended, firsts, shape, _sources(sources, streams)
    )


def in_rows_of_table(columns: BatchColumns, order: Int64Array) -> BatchColumns:
    """Return the columns of a table whose row `order[i]` is row i of the inputs."""
    return replace(columns, order=order, shape=(len(order),))


def step_numbers(field: str, given: ArrayLike, streams: int) -> Int64Array:
    """Return step numbers, one for each stream.

    Raises:
        InvalidRequest: they are something else.
    """
    return _lengths(field, np.broadcast_to(given, (streams,)) if np.ndim(given) == 0 else given,
                    streams)  # fmt: skip


def _sources(sources: Sequence[bytes] | None, streams: int) -> Sequence[bytes] | None:
    if sources is None or not any(sources):
        return None
    if len(sources) != streams:
        bound = f"{streams}, one for each stream"
        raise InvalidRequest.of("source_positions", f"{len(sources)} positions", bound)
    longest = max(map(len, sources))
    if longest > SOURCE_POSITION_BYTES_MAX:
        bound = f"at most {SOURCE_POSITION_BYTES_MAX} bytes each"
        raise InvalidRequest.of("source_positions", f"{longest} bytes", bound)
    return list(sources)


def _lengths(field: str, given: ArrayLike, streams: int) -> Int64Array:
    lengths = np.asarray(given)
    if lengths.shape != (streams,) or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        value = f"of shape {lengths.shape} and dtype {lengths.dtype}"
        if lengths.dtype.kind in "iu" and (lengths < 0).any():
            value = f"{lengths.min()}"
        bound = f"whole numbers, 0 or more, of shape ({streams},): one for each stream"
        raise InvalidRequest.of(field, value, bound)
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
    model: Model,
    targets: ArrayLike | None,
    streams: int,
    lengths: Int64Array,
    counts: Int64Array | None,
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
    if counts is not None:
        rows, _ = _rows_of("targets", array, width, streams, counts)
        return rows, None if (counts == lengths).all() else counts
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
    if columns.sources is not None:
        message.source_positions.extend(columns.sources)
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
