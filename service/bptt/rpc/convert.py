"""Between protobuf messages and what the engine speaks of: chunks, answers, predictions.

Protobuf stops here, and in `convert_models`. What depends on the model alone is worked out once a
call: a reader for what comes in, a writer for what goes out.
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
from bptt.config import ANSWER_VALUES_MAX, CHUNK_STEPS_MAX, TOP_TOKENS_DEFAULT, TOP_TOKENS_MAX
from bptt.domain import (
    check_stream_id,
    FloatArray,
    IncomingChunk,
    IntArray,
    ModelDefinition,
    ModelState,
    Refused,
)
from bptt.errors import from_core, InvalidRequest
from bptt.rpc.convert_models import condition_to_proto
from bptt_core import ChunkResult, ModelSpec, Snapshot, UpdateReport
from bptt_core.errors import LabelTooEarly, LabelTooLate

_LENGTH_DELIMITED = 2  # wire type of packed numbers

Rows = FloatArray | IntArray

ErrorBand = tuple[FloatArray, FloatArray]
"""As `Snapshot.error_band` gives it."""


# ---------------------------------------------------------------------- coming in


class ChunkReader:
    """Makes arrays of one model's messages."""

    def __init__(self, definition: ModelDefinition) -> None:
        spec = definition.spec
        self._spec = spec
        self._width = spec.input_size
        self._tokens = spec.task == "next_token"
        self._targets_are = {"regression": "values", "classification": "classes"}.get(spec.task)
        self._label_delay = spec.label_delay
        self._missing_targets = spec.missing_targets or self._label_delay > 0
        self._input_names = definition.input_names
        self._target_names = definition.target_names
        self._steps_max = max(1, min(CHUNK_STEPS_MAX, ANSWER_VALUES_MAX // spec.outputs))

    def chunk(self, message: pb.Chunk) -> IncomingChunk:
        """A well-formed chunk.

        Raises:
            InvalidRequest: one of its fields is not what it must be; the error names it.
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
        return IncomingChunk(stream_id, first_step, inputs, targets, ends, first_target)

    def predict_inputs(self, message: pb.PredictRequest) -> Rows | None:
        """The steps to read before predicting, (T, D) or (T,); None where there are none.

        Raises:
            InvalidRequest: they are not what they must be.
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
        """None where the task has none, or none came."""
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
        self._check_steps("targets", len(targets))
        return targets

    def _check_place(self, labelled: int, labels: int, first_step: int, steps: int) -> None:
        """Refuse labels that are out of the delay window of their own chunk.

        The learner looks at the window of the stream. But of a chunk that is sent once more it
        sees only what is new, and what is wrong now was wrong then.
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
            bound = f"at most {self._steps_max} steps, so that the answer fits in a message"
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
    """Refuse what is not a number, naming the first of them by step and column."""
    flat = rows.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        squares = flat.dot(flat)  # less than half of what looking at each value takes
    if math.isfinite(squares):  # else it may have overflown: then we look
        return
    bad = np.isinf(rows) if nan_allowed else ~np.isfinite(rows)
    if not bad.any():
        return
    step, column = (int(place) for place in np.argwhere(bad)[0])
    named = f" ({names[column]})" if names else ""
    place = f"{rows[step, column]} in step {step}, column {column}{named}"
    bound = "finite numbers, or NaN for what is missing" if nan_allowed else "finite numbers"
    raise InvalidRequest.of(field, place, bound, reason="not_finite")


# ---------------------------------------------------------------------- going out


def top_tokens_of(message: pb.OpenLearn | pb.PredictRequest, spec: ModelSpec) -> int:
    """How many of the likeliest tokens an answer names; 0 where the task has no tokens.

    Raises:
        InvalidRequest: it is out of its bounds, or the task has none.
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
    """The likeliest classes of each row and their probabilities, (T, count), likeliest first."""
    split = rows.shape[1] - count
    found = np.argpartition(rows, split, axis=1)[:, split:] if split else None
    if found is None:
        found = np.broadcast_to(np.arange(count), rows.shape)
    chosen = np.take_along_axis(rows, found, axis=1)
    order = np.argsort(-chosen, axis=1, kind="stable")
    ids = np.take_along_axis(found, order, axis=1)
    return ids, np.take_along_axis(chosen, order, axis=1).astype(np.float32)


class AnswerWriter:
    """Makes messages of one call's answers.

    Args:
        spec: of the model.
        predictions: whether they are part of the answers, and with them error bands and anomaly
            scores.
        top_tokens: how many tokens an answer names for each step.
    """

    def __init__(self, spec: ModelSpec, *, predictions: bool, top_tokens: int) -> None:
        self._tokens = spec.task == "next_token"
        self._predictions = predictions
        self._top = top_tokens
        self._band = Band()

    def learned(
        self, result: ChunkResult, durable_step: int, condition: ModelState, band: ErrorBand
    ) -> pb.LearnResponse:
        """The answer to a chunk that was learned; the error band is the newest there is."""
        response = pb.LearnResponse(
            learned=pb.ChunkLearned(
                stream_id=result.stream_id,
                first_step=result.first_step,
                next_step=result.next_step,
                updates=[_update_to_proto(each) for each in result.updates],
                durable_step=durable_step,
                model_state=condition_to_proto(condition),
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
    """The wire form of error bands, kept until the next one.

    A band is worked out anew every 32 errors or so, and goes into every answer.
    """

    def __init__(self) -> None:
        self._seen: ErrorBand | None = None
        self._of = b""
        self._data = b""

    def packed(self, kind: type[Message], band: ErrorBand) -> bytes:
        """The fields `error_low` and `error_high` of a message; nothing where there is no band."""
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
    """The wire form of a field of packed floats, to be merged into a message.

    That takes 2 µs for 512, where a list of them takes 12.
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
    """The answer to a chunk that was refused."""
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
            **({} if violation is None else dataclasses.asdict(violation)),
        )
    )


def prediction_to_proto(
    rows: npt.NDArray[Any], snapshot: Snapshot, next_step: int, top_tokens: int
) -> pb.PredictResponse:
    """The answer to Predict: what a snapshot has predicted, with its error band."""
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
