"""Converts between protobuf messages and the engine's chunks, answers and predictions.

No other module of the server but `convert_models` reads or writes fields of messages. Whatever
depends on the model alone is computed once a call, in a reader and a writer.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from bptt import v1 as pb
from bptt.config import Limits, TOP_TOKENS_DEFAULT, TOP_TOKENS_MAX
from bptt.domain import (
    check_source_position,
    check_stream_id,
    FloatArray,
    IncomingChunk,
    IntArray,
    ModelDefinition,
    ModelState,
    Refused,
)
from bptt.engine.trainer import Trainer
from bptt.errors import from_core, InvalidRequest
from bptt.rpc.convert_models import state_to_proto
from bptt_core import ChunkResult, ModelSpec, Snapshot, UpdateReport
from bptt_core.errors import LabelTooEarly, LabelTooLate

_LENGTH_DELIMITED = 2  # wire type of packed numbers

Rows = FloatArray | IntArray

ErrorBand = tuple[FloatArray, FloatArray]
"""As `Snapshot.error_band` gives it."""


# ---------------------------------------------------------------------- requests


class ChunkReader:
    """Converts the chunks and inputs that clients send to one model.

    Args:
        definition: the model's.
        limits: bounds of a chunk.
    """

    def __init__(self, definition: ModelDefinition, limits: Limits) -> None:
        spec = definition.spec
        self._spec = spec
        self._width = spec.input_size
        self._tokens = spec.task == "next_token"
        self._targets_are = {"regression": "values", "classification": "classes"}.get(spec.task)
        self._label_delay = spec.label_delay
        self._missing_targets = spec.missing_targets or self._label_delay > 0
        self._input_names = definition.input_names
        self._target_names = definition.target_names
        self._limits = limits
        self._steps_max = limits.steps_of_chunk(spec.outputs)

    def chunk(self, message: pb.Chunk) -> IncomingChunk:
        """Convert a chunk.

        Raises:
            InvalidRequest: a field is out of its bounds; the error names it.
        """
        stream_id = check_stream_id(message.stream_id)
        targets = self._targets(message)
        inputs = self._inputs(message)
        ends = message.end_of_sequence
        if not len(inputs) and not (self._label_delay and (targets is not None or ends)):
            raise self._empty()
        if targets is not None and not self._label_delay and len(targets) != len(inputs):
            raise self._one_a_step(len(targets), len(inputs))
        first_step = message.first_step if message.HasField("first_step") else None
        first_target = message.first_target_step if message.HasField("first_target_step") else None
        if first_target is not None and not self._label_delay and first_target != first_step:
            bound = "left out, or first_step, for a model without label_delay"
            raise InvalidRequest.of("first_target_step", first_target, bound, reason="targets")
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

    def predict_inputs(self, message: pb.PredictRequest) -> Rows | None:
        """Return the steps to read before predicting, (T, D) or (T,); None without any.

        Raises:
            InvalidRequest: they are out of their bounds.
        """
        inputs = self._inputs(message)
        return inputs if len(inputs) else None

    def _inputs(self, message: pb.Chunk | pb.PredictRequest) -> Rows:
        if self._tokens:
            if message.inputs:
                value = f"{len(message.inputs)} values"
                raise InvalidRequest.of("inputs", value, "left out for task next_token")
            tokens = np.asarray(message.input_tokens, dtype=np.uint32)
            self._check_steps("input_tokens", len(tokens))
            self._check_ids("input_tokens", tokens, 0, self._spec.vocabulary_size)
            return tokens
        if message.input_tokens:
            value = f"{len(message.input_tokens)} tokens"
            raise InvalidRequest.of("input_tokens", value, f"left out for task {self._spec.task}")
        rows = _rows("inputs", message.inputs, self._width, "input_size")
        self._check_steps("inputs", len(rows))
        _check_numbers("inputs", rows, self._input_names, nan_allowed=self._spec.missing_inputs)
        return rows

    def _targets(self, message: pb.Chunk) -> Rows | None:
        """Return the targets; None if the task has none or the chunk has none."""
        if message.targets and self._targets_are != "values":
            value = f"{len(message.targets)} values"
            raise InvalidRequest.of("targets", value, self._without_targets(), reason="targets")
        if message.target_classes and self._targets_are != "classes":
            value = f"{len(message.target_classes)} classes"
            bound = self._without_targets()
            raise InvalidRequest.of("target_classes", value, bound, reason="targets")
        if self._targets_are is None:
            return None
        targets: Rows
        if self._targets_are == "classes":
            targets = np.asarray(message.target_classes, dtype=np.int32)
            lowest = -1 if self._missing_targets else 0
            self._check_ids("target_classes", targets, lowest, self._spec.target_count)
        else:
            width = self._spec.target_count
            targets = _rows("targets", message.targets, width, "output_size", reason="targets")
            allowed = self._missing_targets
            _check_numbers("targets", targets, self._target_names, nan_allowed=allowed)
        if not len(targets) and self._label_delay:
            return None
        field = "target_classes" if self._targets_are == "classes" else "targets"
        self._check_steps(field, len(targets))
        return targets

    def _check_place(self, labelled: int, labels: int, first_step: int, steps: int) -> None:
        """Refuse labels outside the delay window of their own chunk.

        The learner checks them against the window of the stream, but it sees only the new part of a
        chunk that is sent again. This check gives the same result for the first and later times.
        """
        oldest = max(0, first_step - self._label_delay)
        if labelled < oldest:
            bound = f"at least {oldest}: older labels come too late"
            raise from_core(LabelTooLate("first_target_step", labelled, bound))
        newest = first_step + steps - labels
        if labelled > newest:
            bound = f"at most {newest}, for the last of {labels} to be of a step that has come"
            raise from_core(LabelTooEarly("first_target_step", labelled, bound))

    def _without_targets(self) -> str:
        others = {"values": ": give targets", "classes": ": give target_classes"}
        what = others.get(self._targets_are or "", "")
        return f"left out for task {self._spec.task}{what}"

    def _empty(self) -> InvalidRequest:
        if self._tokens:
            return InvalidRequest.of("input_tokens", "empty", "at least one token", reason="empty")
        bound = f"a multiple of input_size, {self._width}, and at least one step"
        return InvalidRequest.of("inputs", "empty", bound, reason="empty")

    def _one_a_step(self, targets: int, steps: int) -> InvalidRequest:
        if self._targets_are == "classes":
            value, bound = f"{targets} classes", f"{steps}, one for each step"
            return InvalidRequest.of("target_classes", value, bound, reason="targets")
        width = self._spec.target_count
        bound = f"{steps * width} values, {width} for each of {steps} steps"
        return InvalidRequest.of("targets", f"{targets * width} values", bound, reason="targets")

    def _check_steps(self, field: str, steps: int) -> None:
        if steps > self._steps_max:
            limit = f"limits.chunk_steps is {self._limits.chunk_steps}"
            if self._steps_max < self._limits.chunk_steps:
                limit = f"limits.answer_values is {self._limits.answer_values}"
            bound = f"at most {self._steps_max} steps: the server's {limit}"
            raise InvalidRequest.of(field, f"{steps} steps", bound, reason="too_long")

    def _check_ids(self, field: str, ids: IntArray, lowest: int, count: int) -> None:
        if not len(ids) or (ids.max() < count and ids.min() >= lowest):
            return
        step = int(np.argmax((ids >= count) | (ids < lowest)))
        bound = f"ids from {lowest} to {count - 1}"
        raise InvalidRequest.of(field, f"{ids[step]} in step {step}", bound, reason="unknown_id")


def _rows(
    field: str, values: Any, width: int, width_name: str, *, reason: str = "wrong_size"
) -> npt.NDArray[np.float32]:
    flat = np.asarray(values, dtype=np.float32)
    if flat.size % width:
        bound = f"a multiple of {width_name}, {width}"
        raise InvalidRequest.of(field, f"{flat.size} values", bound, reason=reason)
    return flat.reshape(-1, width)


def _check_numbers(
    field: str, rows: npt.NDArray[np.float32], names: tuple[str, ...], *, nan_allowed: bool
) -> None:
    """Refuse values that are not finite; the error names step and column of the first."""
    flat = rows.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        squares = flat.dot(flat)  # takes less than half the time of testing each value
    if math.isfinite(squares):  # else a value is not finite, or the sum has overflowed
        return
    bad = np.isinf(rows) if nan_allowed else ~np.isfinite(rows)
    if not bad.any():
        return
    step, column = (int(place) for place in np.argwhere(bad)[0])
    named = f" ({names[column]})" if names else ""
    place = f"{rows[step, column]} in step {step}, column {column}{named}"
    bound = "finite numbers, or NaN for what is missing" if nan_allowed else "finite numbers"
    raise InvalidRequest.of(field, place, bound, reason="not_finite")


# ---------------------------------------------------------------------- answers


def top_tokens_of(message: pb.OpenLearn | pb.PredictRequest, spec: ModelSpec) -> int:
    """Return how many of the likeliest tokens an answer names; 0 for other tasks.

    Raises:
        InvalidRequest: `top_tokens` is out of its bounds, or given for another task.
    """
    given = message.top_tokens if message.HasField("top_tokens") else None
    if spec.task != "next_token":
        if given is not None:
            raise InvalidRequest.of("top_tokens", given, f"left out for task {spec.task}")
        return 0
    if given is not None and not 1 <= given <= TOP_TOKENS_MAX:
        raise InvalidRequest.of("top_tokens", given, f"a number from 1 to {TOP_TOKENS_MAX}")
    return min(given or TOP_TOKENS_DEFAULT, spec.vocabulary_size)


def likeliest(rows: npt.NDArray[Any], count: int) -> tuple[IntArray, FloatArray]:
    """Return the likeliest classes of each row and their probabilities, (T, count), descending."""
    split = rows.shape[1] - count
    found = np.argpartition(rows, split, axis=1)[:, split:] if split else None
    if found is None:
        found = np.broadcast_to(np.arange(count), rows.shape)
    chosen = np.take_along_axis(rows, found, axis=1)
    order = np.argsort(-chosen, axis=1, kind="stable")
    ids = np.take_along_axis(found, order, axis=1)
    return ids, np.take_along_axis(chosen, order, axis=1).astype(np.float32)


class AnswerWriter:
    """Converts the answers of one call to messages.

    Args:
        spec: the model's.
        predictions: True: answers have predictions, error bands and anomaly scores.
        top_tokens: number of tokens that an answer names for each step.
    """

    def __init__(self, spec: ModelSpec, *, predictions: bool, top_tokens: int) -> None:
        self._tokens = spec.task == "next_token"
        self._predictions = predictions
        self._top = top_tokens
        self._band = Band()

    def learned(
        self, result: ChunkResult, durable_step: int, state: ModelState, band: ErrorBand
    ) -> pb.LearnResponse:
        """Return the answer to a learned chunk, with the newest error band."""
        response = pb.LearnResponse(
            learned=pb.ChunkLearned(
                stream_id=result.stream_id,
                first_step=result.first_step,
                next_step=result.next_step,
                updates=[_update_to_proto(each) for each in result.updates],
                durable_step=durable_step,
                model_state=state_to_proto(state),
                incarnation=result.incarnation,
            )
        )
        if self._predictions and result.predictions is not None:
            self._add_predictions(response.learned, result, result.predictions, band)
        return response

    def _add_predictions(
        self,
        learned: pb.ChunkLearned,
        result: ChunkResult,
        rows: npt.NDArray[Any],
        band: ErrorBand,
    ) -> None:
        if self._tokens:
            _add_top_tokens(learned, rows, self._top)
            return
        data = packed(pb.ChunkLearned, "predictions", rows)
        data += self._band.packed(pb.ChunkLearned, band)
        if result.anomaly_scores is not None:
            data += packed(pb.ChunkLearned, "anomaly_scores", result.anomaly_scores)
        learned.MergeFromString(data)


class Band:
    """Encodes error bands, and keeps the encoding of the last one.

    Every answer carries the band, which changes about every 32 errors.
    """

    def __init__(self) -> None:
        self._seen: ErrorBand | None = None
        self._of = b""
        self._data = b""

    def packed(self, kind: type[Message], band: ErrorBand) -> bytes:
        """Return the encoded fields `error_low` and `error_high`; empty without a band."""
        if band is self._seen:
            return self._data
        self._seen = low, high = band
        of = low.tobytes() + high.tobytes()
        if of != self._of:
            self._data = b""
            if len(low):
                self._data = packed(kind, "error_low", low) + packed(kind, "error_high", high)
            self._of = of
        return self._data


def _add_top_tokens(
    message: pb.ChunkLearned | pb.PredictResponse, rows: npt.NDArray[Any], count: int
) -> None:
    if len(rows):
        ids, probabilities = likeliest(rows, count)
        message.top_tokens.extend(ids.ravel().tolist())
        message.MergeFromString(packed(type(message), "top_probabilities", probabilities))


def packed(kind: type[Message], field: str, values: npt.NDArray[Any]) -> bytes:
    """Return the encoding of a field of packed floats, to be merged into a message.

    For 512 floats that takes 2 µs; adding them as a list takes 12.
    """
    data = values.astype("<f4").tobytes()
    return _tag(kind, field) + _varint(len(data)) + data


_TAGS: dict[tuple[type[Message], str], bytes] = {}


def _tag(kind: type[Message], field: str) -> bytes:
    tag = _TAGS.get((kind, field))
    if tag is None:
        number = kind.DESCRIPTOR.fields_by_name[field].number
        tag = _TAGS[kind, field] = _varint(number << 3 | _LENGTH_DELIMITED)
    return tag


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _update_to_proto(report: UpdateReport) -> pb.UpdateReport:
    return pb.UpdateReport(
        update=report.update,
        steps=report.steps,
        streams=report.streams,
        loss=report.loss,
        gradient_norm=report.gradient_norm,
        clipped_gradient_norm=report.clipped_gradient_norm,
        clipped=report.clipped,
        skipped=report.skipped,
    )


def refused_to_proto(refused: Refused) -> pb.LearnResponse:
    """Return the answer to a refused chunk."""
    error = refused.error
    violation = error.violations[0] if error.violations else None
    return pb.LearnResponse(
        refused=pb.ChunkRefused(
            stream_id=refused.stream_id,
            first_step=refused.first_step,
            code=grpc.StatusCode[error.code].value[0],
            message=error.message,
            expected_step=refused.expected_step,
            chunk_index=refused.chunk_index,
            reason=error.reason.upper(),
            **({} if violation is None else dataclasses.asdict(violation)),
        )
    )


def limits_to_proto(limits: Limits, spec: ModelSpec) -> pb.ChunkLimits:
    """Return what a chunk of a model may have at most."""
    steps = limits.steps_of_chunk(spec.outputs)
    return pb.ChunkLimits(message_bytes=limits.message_bytes, steps=steps)


def stream_to_proto(trainer: Trainer, stream_id: str) -> pb.Stream:
    """Return where a stream that exists stands, as of the snapshot."""
    next_step = trainer.views.next_step(stream_id)
    source_position, source_step = trainer.views.source(stream_id)
    return pb.Stream(
        stream_id=stream_id,
        next_step=next_step,
        durable_step=min(next_step, trainer.durable_step(stream_id)),
        incarnation=trainer.incarnation(stream_id),
        source_position=source_position,
        source_step=source_step,
    )


def prediction_to_proto(
    rows: npt.NDArray[Any], snapshot: Snapshot, next_step: int, top_tokens: int
) -> pb.PredictResponse:
    """Return the answer to Predict, with the snapshot's error band."""
    spec = snapshot.spec
    response = pb.PredictResponse(
        next_step=next_step,
        update=snapshot.update,
        horizon=spec.horizon,
        targets=spec.target_count,
    )
    if spec.task == "next_token":
        _add_top_tokens(response, rows, top_tokens)
    else:
        data = packed(pb.PredictResponse, "predictions", rows)
        response.MergeFromString(data + Band().packed(pb.PredictResponse, snapshot.error_band()))
    return response
