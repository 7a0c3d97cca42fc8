"""Converts between protobuf messages and the engine's chunks, answers and predictions.

No other module of the server but `convert_models` reads or writes fields of messages. Whatever
depends on the model alone is computed once a call, in a reader and a writer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bptt import v1 as pb
from bptt.config import Limits
from bptt.domain import (
    check_source_position,
    check_stream_id,
    FloatArray,
    IncomingChunk,
    IntArray,
    ModelDefinition,
)
from bptt.errors import from_core, InvalidRequest, ServiceError
from bptt_core.errors import LabelTooEarly, LabelTooLate

_LENGTH_DELIMITED = 2  # wire type of packed numbers

Rows = FloatArray | IntArray

Wrong = tuple[npt.NDArray[np.int64], Callable[[int, int], InvalidRequest]] | None
"""Rows with a wrong value, and what gives the error of one of them, from the row and the number of
its step in its chunk. None: no row is wrong."""

_WithInputs = pb.Chunk | pb.ChunkBatch | pb.PredictRequest | pb.PredictBatchRequest

ErrorBand = tuple[FloatArray, FloatArray]
"""As `Snapshot.error_band` gives it."""


class ChunkReader:
    """Converts the chunks and inputs that clients send to one model.

    Args:
        definition: the model's.
        limits: bounds of a chunk.
    """

    def __init__(self, definition: ModelDefinition, limits: Limits) -> None:
        spec = definition.spec
        self._spec = spec
        self._tokens = spec.task == "next_token"
        self._targets_are = {"regression": "values", "classification": "classes"}.get(spec.task)
        self.has_targets = self._targets_are is not None
        """Whether the task has targets."""
        self._label_delay = spec.label_delay
        self._missing_targets = spec.missing_targets or self._label_delay > 0
        self._input_names = definition.input_names
        self._target_names = definition.target_names
        self._limits = limits

    def chunk(self, message: pb.Chunk) -> IncomingChunk:
        """Convert a chunk.

        Raises:
            InvalidRequest: a field is out of its bounds; the error names it.
        """
        stream_id = check_stream_id(message.stream_id)
        targets = self.rows_of_targets(message)
        if targets is not None:
            self._check(self.wrong_targets(targets))
        inputs = self.rows_of_inputs(message)
        self._check(self.wrong_inputs(inputs))
        ends = message.end_of_sequence
        if not len(inputs) and not (self._label_delay and (targets is not None or ends)):
            raise self.empty()
        if self.has_targets and not self._label_delay:
            labels = 0 if targets is None else len(targets)
            if labels != len(inputs):
                raise self.one_a_step(labels, len(inputs))
        first_step = message.first_step if message.HasField("first_step") else None
        first_target = message.first_target_step if message.HasField("first_target_step") else None
        if first_target is not None and not self._label_delay and first_target != first_step:
            raise self.undelayed(first_target)
        if self._label_delay and targets is not None and len(inputs) and first_step is not None:
            labelled = first_step if first_target is None else first_target
            self._check_place(labelled, len(targets), first_step, len(inputs))
        return IncomingChunk(
            stream_id,
            first_step,
            inputs,
            targets,
            ends,
            first_target,
            message.incarnation,
            check_source_position(message.source_position),
        )

    def predict_inputs(self, message: pb.PredictRequest | pb.PredictBatchRequest) -> Rows | None:
        """Return the steps to read before predicting, (T, D) or (T,); None without any.

        Raises:
            InvalidRequest: they are out of their bounds.
        """
        inputs = self.rows_of_inputs(message)
        self._check(self.wrong_inputs(inputs))
        return inputs if len(inputs) else None

    # ------------------------------------------------------------------ rows

    def rows_of_inputs(self, message: _WithInputs, prefix: str = "") -> Rows:
        """Return the inputs of a message, (N, D) or (N,) token ids, with any values.

        Args:
            message: with chunks of any number of streams, or steps to predict from.
            prefix: put before the name of a field in an error.

        Raises:
            InvalidRequest: they are not whole steps, too many, or not what the task takes.
        """
        if self._tokens:
            for field in ("inputs", "input_doubles"):
                if given := len(getattr(message, field)):
                    bound = "left out for task next_token"
                    raise InvalidRequest.of(prefix + field, f"{given} values", bound)
            tokens = np.asarray(message.input_tokens, dtype=np.uint32)
            self._check_steps(prefix + "input_tokens", len(tokens))
            return tokens
        if message.input_tokens:
            value = f"{len(message.input_tokens)} tokens"
            bound = f"left out for task {self._spec.task}"
            raise InvalidRequest.of(prefix + "input_tokens", value, bound)
        field, values = _numbers_of(message, "input", prefix)
        rows = _rows(prefix + field, values, self._spec.input_size, "input_size")
        self._check_steps(prefix + field, len(rows), doubles=rows.dtype == np.float64)
        return rows

    def rows_of_targets(self, message: pb.Chunk | pb.ChunkBatch, prefix: str = "") -> Rows | None:
        """Return the targets of a message, with any values; None if there are none.

        Raises:
            InvalidRequest: as for `rows_of_inputs`.
        """
        values: Any
        if (message.targets or message.target_doubles) and self._targets_are != "values":
            field, values = _numbers_of(message, "target", prefix)
            value, bound = f"{len(values)} values", self._without_targets()
            raise InvalidRequest.of(prefix + field, value, bound, reason="targets")
        if message.target_classes and self._targets_are != "classes":
            value = f"{len(message.target_classes)} classes"
            bound = self._without_targets()
            raise InvalidRequest.of(prefix + "target_classes", value, bound, reason="targets")
        if self._targets_are is None:
            return None
        targets: Rows
        if self._targets_are == "classes":
            field = "target_classes"
            targets = np.asarray(message.target_classes, dtype=np.int32)
        else:
            field, values = _numbers_of(message, "target", prefix)
            width = self._spec.target_count
            targets = _rows(prefix + field, values, width, "output_size", reason="targets")
        self._check_steps(prefix + field, len(targets))
        return targets if len(targets) else None

    def sent_as(self, what: str, message: pb.ChunkBatch) -> tuple[str, int]:
        """Return the field that holds the `inputs` or `targets` of a message, and its width."""
        if what == "inputs":
            if self._tokens:
                return "input_tokens", 1
            return ("input_doubles" if message.input_doubles else what), self._spec.input_size
        if self._targets_are == "classes":
            return "target_classes", 1
        return ("target_doubles" if message.target_doubles else what), self._spec.target_count

    # ------------------------------------------------------------------ values

    def wrong_inputs(self, rows: Rows) -> Wrong:
        """Return the rows with a value that is out of its bounds."""
        if self._tokens:
            return self._wrong_ids("input_tokens", rows, 0, self._spec.vocabulary_size)
        allowed = self._spec.missing_inputs
        return _not_finite("inputs", rows, self._input_names, nan_allowed=allowed)

    def wrong_targets(self, rows: Rows) -> Wrong:
        """Return the rows with a target that is out of its bounds."""
        if self._targets_are == "classes":
            lowest = -1 if self._missing_targets else 0
            return self._wrong_ids("target_classes", rows, lowest, self._spec.target_count)
        allowed = self._missing_targets
        wrong = _not_finite("targets", rows, self._target_names, nan_allowed=allowed)
        if wrong is None and self._spec.loss == "bernoulli":
            with np.errstate(invalid="ignore"):
                outside = (rows < 0) | (rows > 1)
            bound = "numbers from 0 to 1 for loss bernoulli"
            wrong = _out_of_bounds("targets", rows, outside, self._target_names, bound)
        return wrong

    def _wrong_ids(self, field: str, ids: Rows, lowest: int, count: int) -> Wrong:
        if not len(ids) or (ids.max() < count and ids.min() >= lowest):
            return None

        def error(row: int, step: int) -> InvalidRequest:
            bound = f"ids from {lowest} to {count - 1}"
            value = f"{ids[row]} in step {step}"
            return InvalidRequest.of(field, value, bound, reason="unknown_id")

        return np.flatnonzero((ids >= count) | (ids < lowest)), error

    @staticmethod
    def _check(wrong: Wrong) -> None:
        if wrong is not None:
            rows, error = wrong
            raise error(int(rows[0]), int(rows[0]))

    # ------------------------------------------------------------------ faults of a chunk

    def _check_place(self, labelled: int, labels: int, first_step: int, steps: int) -> None:
        """Refuse labels outside the delay window of their own chunk.

        The learner checks them against the window of the stream, but it sees only the new part of a
        chunk that is sent again. This check gives the same result for the first and later times.
        """
        if labelled < max(0, first_step - self._label_delay):
            raise self.too_late(labelled, first_step)
        if labelled > first_step + steps - labels:
            raise self.too_early(labelled, labels, first_step + steps)

    def too_late(self, labelled: int, first_step: int) -> ServiceError:
        """Return the error for labels from step `labelled` on in a chunk that begins later."""
        bound = f"at least {max(0, first_step - self._label_delay)}: older labels come too late"
        return from_core(LabelTooLate("first_target_step", labelled, bound))

    def too_early(self, labelled: int, labels: int, end: int) -> ServiceError:
        """Return the error for labels that go beyond their chunk, which ends before step `end`."""
        bound = f"at most {end - labels}, for the last of {labels} to be of a step that has come"
        return from_core(LabelTooEarly("first_target_step", labelled, bound))

    def _without_targets(self) -> str:
        others = {"values": ": give targets", "classes": ": give target_classes"}
        what = others.get(self._targets_are or "", "")
        return f"left out for task {self._spec.task}{what}"

    def empty(self) -> InvalidRequest:
        """Return the error for a chunk that holds nothing."""
        if self._tokens:
            return InvalidRequest.of("input_tokens", "empty", "at least one token", reason="empty")
        width = self._spec.input_size
        bound = f"a multiple of input_size, {width}, and at least one step"
        return InvalidRequest.of("inputs", "empty", bound, reason="empty")

    def one_a_step(self, targets: int, steps: int) -> InvalidRequest:
        """Return the error for a chunk with another number of targets than of steps."""
        if self._targets_are == "classes":
            value, bound = f"{targets} classes", f"{steps}, one for each step"
            return InvalidRequest.of("target_classes", value, bound, reason="targets")
        width = self._spec.target_count
        bound = f"{steps * width} values, {width} for each of {steps} steps"
        return InvalidRequest.of("targets", f"{targets * width} values", bound, reason="targets")

    def undelayed(self, first_target: int) -> InvalidRequest:
        """Return the error for targets of other steps than their chunk's, without a label_delay."""
        bound = "left out, or first_step, for a model without label_delay"
        return InvalidRequest.of("first_target_step", first_target, bound, reason="targets")

    def _check_steps(self, field: str, steps: int, *, doubles: bool = False) -> None:
        limits = self._limits
        most = limits.steps_of_chunk(self._spec.outputs, doubles=doubles)
        if steps > most:
            limit = f"limits.chunk_steps is {limits.chunk_steps}"
            if most < limits.chunk_steps:
                halved = ", of which a double takes two" if doubles else ""
                limit = f"limits.answer_values is {limits.answer_values}{halved}"
            bound = f"at most {most} steps: the server's {limit}"
            raise InvalidRequest.of(field, f"{steps} steps", bound, reason="too_long")


def _numbers_of(message: Any, what: str, prefix: str) -> tuple[str, Any]:
    """Return the field that holds the inputs or targets of a message, and its content."""
    floats, doubles = getattr(message, f"{what}s"), getattr(message, f"{what}_doubles")
    if not doubles:
        return f"{what}s", np.asarray(floats, dtype=np.float32)
    if floats:
        value = f"{len(doubles)} values beside {len(floats)} {what}s"
        bound = f"left out where there are {what}s"
        raise InvalidRequest.of(f"{prefix}{what}_doubles", value, bound)
    return f"{what}_doubles", np.asarray(doubles, dtype=np.float64)


def _rows(
    field: str, flat: FloatArray, width: int, width_name: str, *, reason: str = "wrong_size"
) -> FloatArray:
    if flat.size % width:
        bound = f"a multiple of {width_name}, {width}"
        raise InvalidRequest.of(field, f"{flat.size} values", bound, reason=reason)
    return flat.reshape(-1, width)


def _not_finite(field: str, rows: Rows, names: tuple[str, ...], *, nan_allowed: bool) -> Wrong:
    """Return the rows with values that are not finite."""
    flat = rows.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        squares = flat.dot(flat)  # takes less than half the time of testing each value
    if math.isfinite(squares):  # else a value is not finite, or the sum has overflowed
        return None
    bad = np.isinf(rows) if nan_allowed else ~np.isfinite(rows)
    bound = "finite numbers, or NaN for what is missing" if nan_allowed else "finite numbers"
    return _out_of_bounds(field, rows, bad, names, bound, reason="not_finite")


def blame(wrong: Wrong, lengths: npt.NDArray[np.int64], errors: dict[int, ServiceError]) -> None:
    """Note the first wrong row of each chunk."""
    if wrong is None:
        return
    rows, error = wrong
    ends = np.cumsum(lengths)
    places = np.searchsorted(ends, rows, side="right")
    starts = ends - lengths
    for row, place in zip(rows.tolist(), places.tolist(), strict=True):
        if place not in errors:
            errors[place] = error(row, row - int(starts[place]))


def _out_of_bounds(
    field: str,
    rows: Rows,
    bad: npt.NDArray[np.bool_],
    names: tuple[str, ...],
    bound: str,
    *,
    reason: str = "invalid",
) -> Wrong:
    """Return the rows with a bad value; the error names step and column of a row's first one."""
    if not bad.any():
        return None

    def error(row: int, step: int) -> InvalidRequest:
        column = int(np.argmax(bad[row]))
        named = f" ({names[column]})" if names else ""
        place = f"{rows[row, column]} in step {step}, column {column}{named}"
        return InvalidRequest.of(field, place, bound, reason=reason)

    return np.flatnonzero(bad.any(axis=1)), error
