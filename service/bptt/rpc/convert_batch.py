"""Converts batches of chunks between messages and the engine's columns, one pass a column.

A fault of the whole message raises. A fault of one chunk becomes a `LaneRefused`, and the batch
goes on without the chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bptt import v1 as pb
from bptt.config import (
    BATCH_CHUNKS_MAX,
    Limits,
    SOURCE_POSITION_BYTES_MAX,
    STREAM_ID_BYTES_MAX,
)
from bptt.domain import (
    BoolArray,
    check_source_position,
    check_stream_id,
    FloatArray,
    IncomingBatch,
    IntArray,
    LaneRefused,
    ModelDefinition,
)
from bptt.errors import InvalidRequest, ServiceError
from bptt.rpc import convert
from bptt.rpc.lanes import LaneTable

Int64 = npt.NDArray[np.int64]
Rows = FloatArray | IntArray

_INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, eq=False)
class ReadBatch:
    """A batch as it was sent: its well-formed chunks, and those that are refused already."""

    size: int
    """N, the number of chunks that were sent."""
    lanes: Int64 | None
    """(N,); None: the batch names its streams."""
    good: Int64 | None
    """(B,) places of the chunks in `incoming`; None: all of them."""
    incoming: IncomingBatch | None
    """None: every chunk is refused."""
    refused: tuple[LaneRefused, ...]
    """By place in the message; `expected_step` is 0, because it is not known here."""
    doubles: bool
    """The answer has doubles."""
    tell_members: bool
    """The answer tells which chunks took part in which update."""

    def place(self, lane: int) -> int:
        """Return the place in the message of a lane of `incoming`."""
        return lane if self.good is None else int(self.good[lane])


@dataclass(slots=True, eq=False)
class _Columns:
    """The columns of one message, B chunks."""

    names: npt.NDArray[np.object_]
    steps: Int64
    first_steps: Int64
    """-1: append."""
    inputs: Rows
    targets: Rows | None
    labels: Int64
    """Number of targets of each chunk."""
    first_targets: Int64 | None
    ends: BoolArray
    incarnations: Int64 | None
    sources: npt.NDArray[np.object_] | None
    """Source positions."""


class BatchReader:
    """Converts the batches that clients send to one model."""

    def __init__(self, definition: ModelDefinition, limits: Limits) -> None:
        self._reader = convert.ChunkReader(definition, limits)
        self._spec = definition.spec

    def batch(self, message: pb.ChunkBatch, table: LaneTable) -> ReadBatch:
        """Convert a batch.

        Args:
            message: as it was sent.
            table: the lanes of its call.

        Raises:
            InvalidRequest: a fault of the whole message: its columns do not fit each other.
        """
        errors: dict[int, ServiceError] = {}
        lanes, names = self._streams(message, table, errors)
        columns = self._columns(message, names)
        self._check_values(columns, errors)  # first, as for a chunk sent alone
        self._check_chunks(columns, errors)
        delayed = self._spec.label_delay > 0
        good: Int64 | None = None
        incoming: IncomingBatch | None = None
        if not errors:
            incoming = _incoming(columns, delayed=delayed)
        else:
            kept = np.ones(len(names), bool)
            kept[list(errors)] = False
            good = np.flatnonzero(kept)
            if len(good):
                incoming = _incoming(_only(columns, kept), delayed=delayed)
        refused = tuple(
            LaneRefused(place, _told(names[place]), _sent_step(columns, place), 0, errors[place])
            for place in sorted(errors)
        )
        doubles = bool(message.input_doubles or message.target_doubles)
        return ReadBatch(len(names), lanes, good, incoming, refused, doubles, message.tell_members)

    # ------------------------------------------------------------------ columns

    def _streams(
        self, message: pb.ChunkBatch, table: LaneTable, errors: dict[int, ServiceError]
    ) -> tuple[Int64 | None, npt.NDArray[np.object_]]:
        """Return the lanes and the names of the chunks' streams; a name may be missing."""
        by_lane, by_name = len(message.lanes), len(message.stream_ids)
        if by_lane and by_name:
            value = f"{by_name} names beside {by_lane} lanes"
            raise InvalidRequest.of("batch.stream_ids", value, "left out where there are lanes")
        count = by_lane or by_name
        if not count:
            raise InvalidRequest.of("batch.lanes", "empty", "at least one chunk", reason="empty")
        if count > BATCH_CHUNKS_MAX:
            field = "batch.lanes" if by_lane else "batch.stream_ids"
            bound = f"at most {BATCH_CHUNKS_MAX} in a batch"
            raise InvalidRequest.of(field, f"{count} chunks", bound, reason="too_long")
        lanes: Int64 | None = None
        if by_lane:
            lanes = np.asarray(message.lanes, dtype=np.int64)
            names = table.names(lanes)
            if not all(names):
                for place in np.flatnonzero(names == None).tolist():  # noqa: E711 - by element
                    bound = "a lane that was introduced in this call"
                    errors[place] = InvalidRequest.of("lanes", int(lanes[place]), bound)
        else:
            names = np.array(message.stream_ids, object)
            for place, name in enumerate(message.stream_ids):
                if not 1 <= len(name.encode()) <= STREAM_ID_BYTES_MAX:
                    errors[place] = _error_of(check_stream_id, name)
        self._check_once(lanes, names, errors)
        return lanes, names

    def _check_once(
        self, lanes: Int64 | None, names: npt.NDArray[np.object_], errors: dict[int, ServiceError]
    ) -> None:
        """Refuse each chunk of a stream that an earlier chunk of the batch belongs to."""
        count = len(names)
        if lanes is not None:
            distinct = bool((lanes[1:] > lanes[:-1]).all()) or len(np.unique(lanes)) == count
        else:
            distinct = len(set(names.tolist())) == count
        if distinct:
            return
        seen: set[Any] = set()
        for place, key in enumerate((names if lanes is None else lanes).tolist()):
            if key in seen and place not in errors:
                field = "stream_ids" if lanes is None else "lanes"
                value = f"{key!r} a second time"
                bound = "each stream at most once in a batch"
                errors[place] = InvalidRequest.of(field, value, bound, reason="duplicate")
            seen.add(key)

    def _columns(self, message: pb.ChunkBatch, names: npt.NDArray[np.object_]) -> _Columns:
        """Return the columns of a message, which fit each other.

        Raises:
            InvalidRequest: they do not.
        """
        count = len(names)
        steps = _column(message, "steps", count)
        steps = np.ones(count, np.int64) if steps is None else steps
        inputs = self._reader.rows_of_inputs(message, "batch.")
        total = int(steps.sum())
        if total != len(inputs):
            self._refuse_rows("inputs", len(inputs), total, "steps", message)
        targets = self._reader.rows_of_targets(message, "batch.")
        labels = _column(message, "target_steps", count)
        if labels is None:
            labels = steps if targets is not None else np.zeros(count, np.int64)
        given = 0 if targets is None else len(targets)
        if int(labels.sum()) != given:
            self._refuse_rows("targets", given, int(labels.sum()), "target_steps", message)
        first_steps = _column(message, "first_steps", count)
        ends = _column(message, "ends_of_sequence", count)
        return _Columns(
            names,
            steps,
            np.full(count, -1) if first_steps is None else first_steps,
            inputs,
            targets,
            labels,
            _column(message, "first_target_steps", count),
            np.zeros(count, bool) if ends is None else ends.astype(bool),
            _column(message, "incarnations", count),
            _sources(message, count),
        )

    def _refuse_rows(
        self, what: str, given: int, wanted: int, column: str, message: pb.ChunkBatch
    ) -> None:
        """Refuse a message whose values are not as many as its column of lengths says."""
        name, width = self._reader.sent_as(what, message)
        by = f"as the column {column} says" if getattr(message, column) else "one for each chunk"
        if width == 1:
            value, bound = f"{given}", f"{wanted}, {by}"
        else:
            value = f"{given * width} values, {given} steps"
            bound = f"{wanted * width} values, {width} for each of {wanted} steps, {by}"
        reason = "targets" if what == "targets" else "wrong_size"
        raise InvalidRequest.of(f"batch.{name}", value, bound, reason=reason)

    # ------------------------------------------------------------------ faults of single chunks

    def _check_chunks(self, columns: _Columns, errors: dict[int, ServiceError]) -> None:
        """Refuse chunks that are empty, or whose targets do not belong to their steps."""
        steps, labels = columns.steps, columns.labels
        if columns.sources is not None:
            for place, position in enumerate(columns.sources.tolist()):
                if len(position) > SOURCE_POSITION_BYTES_MAX:
                    errors.setdefault(place, _error_of(check_source_position, position))
        delay = self._spec.label_delay
        empty = steps == 0
        if delay:
            empty &= (labels == 0) & ~columns.ends
        if empty.any():
            for place in np.flatnonzero(empty).tolist():
                errors.setdefault(place, self._reader.empty())
        if not delay:
            self._check_undelayed(columns, errors)
        elif columns.targets is not None:
            self._check_places(columns, errors)

    def _check_undelayed(self, columns: _Columns, errors: dict[int, ServiceError]) -> None:
        steps, labels = columns.steps, columns.labels
        if self._reader.has_targets and labels is not steps:
            for place in np.flatnonzero(labels != steps).tolist():
                error = self._reader.one_a_step(int(labels[place]), int(steps[place]))
                errors.setdefault(place, error)
        if columns.first_targets is not None:
            wrong = (columns.first_targets != columns.first_steps) & (labels > 0)
            for place in np.flatnonzero(wrong).tolist():
                error = self._reader.undelayed(int(columns.first_targets[place]))
                errors.setdefault(place, error)

    def _check_places(self, columns: _Columns, errors: dict[int, ServiceError]) -> None:
        """Refuse labels outside the delay window of their own chunk; see `ChunkReader`."""
        first, steps, labels = columns.first_steps, columns.steps, columns.labels
        given = columns.first_targets
        labelled = first if given is None else given
        oldest = np.maximum(0, first - self._spec.label_delay)
        newest = first + steps - labels
        checked = (labels > 0) & (steps > 0) & (first >= 0)
        for place in np.flatnonzero(checked & (labelled < oldest)).tolist():
            error = self._reader.too_late(int(labelled[place]), int(first[place]))
            errors.setdefault(place, error)
        for place in np.flatnonzero(checked & (labelled > newest)).tolist():
            end = int(first[place] + steps[place])
            error = self._reader.too_early(int(labelled[place]), int(labels[place]), end)
            errors.setdefault(place, error)

    def _check_values(self, columns: _Columns, errors: dict[int, ServiceError]) -> None:
        """Refuse chunks with values out of their bounds: one pass over all rows."""
        if columns.targets is not None:
            convert.blame(self._reader.wrong_targets(columns.targets), columns.labels, errors)
        convert.blame(self._reader.wrong_inputs(columns.inputs), columns.steps, errors)


def _column(message: pb.ChunkBatch, field: str, count: int) -> Int64 | None:
    """Return a column with one entry for each chunk; None if it was left out.

    Raises:
        InvalidRequest: it has another number of entries.
    """
    entries = _entries(message, field, count)
    if not len(entries):
        return None
    column = np.asarray(entries)
    if column.dtype == np.uint64:  # what no step number can be stays what none can be
        column = np.minimum(column, np.uint64(_INT64_MAX))
    column = column.astype(np.int64)
    return column if len(column) == count else np.full(count, column[0])


def _sources(message: pb.ChunkBatch, count: int) -> npt.NDArray[np.object_] | None:
    """Return the source position of each chunk; None if they were left out.

    Raises:
        InvalidRequest: there is another number of them.
    """
    entries = _entries(message, "source_positions", count)
    if not len(entries):
        return None
    column = np.empty(count, object)
    column[:] = entries if len(entries) == count else [entries[0]] * count
    return column


def _entries(message: pb.ChunkBatch, field: str, count: int) -> Any:
    """Return the entries of a column: none, one for all chunks, or one for each."""
    entries = getattr(message, field)
    if len(entries) not in (0, 1, count):
        bound = f"{count}, one for each chunk, or one for all, or none"
        value = f"{len(entries)} entries"
        raise InvalidRequest.of(f"batch.{field}", value, bound, reason="wrong_size")
    return entries


def _incoming(columns: _Columns, *, delayed: bool) -> IncomingBatch:
    """Return the columns in the engine's form.

    Args:
        columns: of well-formed chunks.
        delayed: whether the model has a label_delay.
    """
    labels: Int64 | None = None
    first_targets: Int64 | None = None
    if delayed and columns.targets is not None:
        labels = columns.labels
        if columns.first_targets is not None:
            first_targets = np.where(labels > 0, columns.first_targets, -1)
    return IncomingBatch(
        tuple(columns.names.tolist()),
        columns.first_steps,
        columns.steps,
        columns.inputs,
        columns.targets,
        columns.ends,
        labels,
        first_targets,
        columns.incarnations,
        None if columns.sources is None else tuple(columns.sources.tolist()),
    )


def _only(columns: _Columns, good: BoolArray) -> _Columns:
    """Return the columns of some chunks."""

    def of(column: Int64 | None) -> Int64 | None:
        return None if column is None else column[good]

    targets = columns.targets
    if targets is not None:
        targets = targets[np.repeat(good, columns.labels)]
    return _Columns(
        columns.names[good],
        columns.steps[good],
        columns.first_steps[good],
        columns.inputs[np.repeat(good, columns.steps)],
        targets if targets is None or len(targets) else None,
        columns.labels[good],
        of(columns.first_targets),
        columns.ends[good],
        of(columns.incarnations),
        None if columns.sources is None else columns.sources[good],
    )


def _sent_step(columns: _Columns, place: int) -> int | None:
    step = int(columns.first_steps[place])
    return None if step < 0 else step


def _told(name: str | None) -> str:
    return "" if name is None else name[:STREAM_ID_BYTES_MAX]


def _error_of(check: Callable[[Any], Any], value: str | bytes) -> ServiceError:
    try:
        check(value)
    except ServiceError as error:
        return error
    raise AssertionError(f"{value!r} is valid")
