"""Converts between protobuf messages and the client's own types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from google.protobuf.message import Message
from numpy.typing import ArrayLike

from bptt import v1 as pb
from bptt.client.digits import number_array
from bptt.client.errors import code_name
from bptt.client.types import (
    Checkpoint,
    Float32Array,
    FloatArray,
    Int64Array,
    Learned,
    Model,
    ModelSpec,
    ModelState,
    Prediction,
    Refused,
    Stream,
    UpdateReport,
)
from bptt.errors import from_status, InvalidRequest, Violation

_ENUMS: dict[str, tuple[Any, str]] = {
    "task": (pb.Task, "TASK_"),
    "cell": (pb.Cell, "CELL_"),
    "loss": (pb.Loss, "LOSS_"),
    "reduction": (pb.Reduction, "REDUCTION_"),
    "optimizer": (pb.Optimizer, "OPTIMIZER_"),
    "clip": (pb.Clip, "CLIP_"),
    "on_divergence": (pb.Divergence, "DIVERGENCE_"),
    "combine": (pb.Combine, "COMBINE_"),
}
Predicted = pb.ChunkLearned | pb.BatchLearned | pb.PredictResponse | pb.PredictBatchResponse
"""Answers with predictions."""

_REPEATED = ("target_columns", "input_names", "target_names")
_LENGTH_DELIMITED = 2  # wire type of packed numbers


def rows(field: str, values: ArrayLike, width: int) -> FloatArray:
    """Return `values` as (T, width); one dimension holds T steps one after the other.

    They are float32, or float64 where float32 would lose digits.

    Raises:
        InvalidRequest: `values` are not numbers, or of another width.
    """
    array = number_array(field, values)
    if array.ndim <= 1:
        array = array.reshape(-1, width) if array.size % width == 0 else array.reshape(1, -1)
    if array.ndim != 2 or array.shape[1] != width:
        raise InvalidRequest.of(field, f"of shape {array.shape}", f"of shape (T, {width})")
    return array


def packed(kind: type[Message], what: str, array: FloatArray) -> bytes:
    """Return the encoding of a message that holds only this array.

    A packed field of little-endian floats is a tag, a length and the array's memory. For 512
    numbers parsing that takes 1 µs; adding them as a list takes 12.

    Args:
        kind: the message.
        what: `input`, `target` or `prediction`: the field for float64 is called `…_doubles`.
        array: float32 or float64.
    """
    doubles = array.dtype.itemsize == np.dtype(np.float64).itemsize
    field = f"{what}_doubles" if doubles else f"{what}s"
    data = array.astype("<f8" if doubles else "<f4", copy=False).tobytes()
    number = kind.DESCRIPTOR.fields_by_name[field].number
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def ids(field: str, values: ArrayLike, lowest: int, highest: int) -> list[int]:
    """Return `values` as a list of whole numbers.

    Raises:
        InvalidRequest: `values` are not whole numbers in one dimension, or out of bounds.
    """
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.size == 0:
        return []
    if array.dtype.kind not in "iu" or array.ndim != 1:
        shown = f"of dtype {array.dtype} and shape {array.shape}"
        raise InvalidRequest.of(field, shown, "whole numbers, of shape (T,)")
    low, high = int(array.min()), int(array.max())
    if low < lowest or high > highest:
        wrong = low if low < lowest else high
        raise InvalidRequest.of(field, wrong, f"whole numbers from {lowest} to {highest}")
    found: list[int] = array.tolist()
    return found


def chunk(
    model: Model,
    stream_id: str,
    inputs: ArrayLike | None,
    targets: ArrayLike | None,
    *,
    first_step: int | None,
    first_target_step: int | None,
    end_of_sequence: bool,
    source_position: bytes = b"",
) -> tuple[pb.Chunk, int, int]:
    """Return the message for one chunk, and its numbers of steps and targets.

    Raises:
        InvalidRequest: the model does not take an argument.
    """
    message = pb.Chunk(
        stream_id=stream_id, end_of_sequence=end_of_sequence, source_position=source_position
    )
    for field, step in (("first_step", first_step), ("first_target_step", first_target_step)):
        if step is not None:
            if not 0 <= step < 2**64:
                raise InvalidRequest.of(field, step, "a whole number, 0 or more")
            setattr(message, field, step)
    steps = 0
    if inputs is not None:
        if model.task == "next_token":
            steps = add_tokens(message, inputs)
        else:
            steps = add_steps(message, rows("inputs", inputs, model.spec["input_size"]))
    labels = 0
    if targets is not None:
        if model.task == "classification":
            classes = ids("targets", targets, -1, 2**31 - 1)
            message.target_classes.extend(classes)
            labels = len(classes)
        else:
            wanted = rows("targets", targets, model.targets)
            message.MergeFromString(packed(pb.Chunk, "target", wanted))
            labels = len(wanted)
    return message, steps, labels


def add_steps(message: pb.Chunk | pb.PredictRequest, steps: FloatArray) -> int:
    """Add (T, D) inputs, or (T·D,), to a message; returns their length."""
    message.MergeFromString(packed(type(message), "input", steps))
    return len(steps)


def add_tokens(message: pb.Chunk | pb.PredictRequest, tokens: ArrayLike) -> int:
    """Add (T,) token ids to a message; returns T.

    Raises:
        InvalidRequest: they are not whole numbers, or out of bounds.
    """
    found = ids("tokens", tokens, 0, 2**32 - 1)
    message.input_tokens.extend(found)
    return len(found)


def spec_to_proto(spec: Mapping[str, Any]) -> pb.ModelSpec:
    """Return the message of a spec.

    Raises:
        InvalidRequest: a field or choice is unknown, or a value has another type.
    """
    message = pb.ModelSpec()
    for name, value in spec.items():
        if name not in pb.ModelSpec.DESCRIPTOR.fields_by_name:
            known = list(pb.ModelSpec.DESCRIPTOR.fields_by_name)
            raise InvalidRequest.unknown_field(name, value, known)
        if value is None:
            continue
        if name in _ENUMS:
            value = _choice(name, value)
        try:
            if name in _REPEATED:
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)
        except (TypeError, ValueError) as error:
            raise InvalidRequest.of(name, value, _kind(name)) from error
    return message


def _choice(name: str, value: object) -> int:
    enum, prefix = _ENUMS[name]
    choices: dict[object, int] = {
        key[len(prefix) :].lower(): number for key, number in enum.items() if number
    }
    if value not in choices:
        raise InvalidRequest.of(name, value, "one of " + ", ".join(map(str, choices)))
    return choices[value]


def _kind(name: str) -> str:
    field = pb.ModelSpec.DESCRIPTOR.fields_by_name[name]
    if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        return "whole numbers, 0 or more" if name in _REPEATED else "a whole number, 0 or more"
    if field.cpp_type == field.CPPTYPE_STRING:
        return "a list of names"
    return "true or false" if field.cpp_type == field.CPPTYPE_BOOL else "a number"


def spec_from_proto(message: pb.ModelSpec) -> ModelSpec:
    """Return the spec of a message, with the names of choices in lower case."""
    spec: dict[str, Any] = {}
    filled = {field.name for field, _ in message.ListFields()}
    for field in pb.ModelSpec.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.name in _ENUMS:
            if value:
                enum, prefix = _ENUMS[field.name]
                spec[field.name] = enum.Name(value).removeprefix(prefix).lower()
        elif field.name in _REPEATED:
            spec[field.name] = list(value)
        elif field.name in filled:
            spec[field.name] = value
    return cast(ModelSpec, spec)


def model_from_proto(message: pb.Model) -> Model:
    """Convert a model."""
    return Model(
        model_id=message.model_id,
        spec=spec_from_proto(message.spec),
        parameters=message.parameters,
        steps=message.steps,
        updates=message.updates,
        clipped_updates=message.clipped_updates,
        skipped_updates=message.skipped_updates,
        limited_inputs=message.limited_inputs,
        streams=message.streams,
        skill_ratio=message.skill_ratio,
        loss=message.loss,
        gradient_norm=message.gradient_norm,
        state=state_from_proto(message.state),
        learning_rate=message.learning_rate,
        clip=pb.Clip.Name(message.clip).removeprefix("CLIP_").lower(),
        clip_threshold=message.clip_threshold,
        accuracy=message.accuracy,
        cross_entropy_bits=message.cross_entropy_bits,
        state_reason=message.state_reason,
        network_skill_ratio=message.network_skill_ratio,
        expert_weights=dict(
            sorted(message.expert_weights.items(), key=lambda each: (-each[1], each[0]))
        ),
    )


def target_names(model: Model) -> tuple[str, ...]:
    """Return a name for each target, made from its number where the model has no names.

    For next_token, whose answers have no column for each token, there are none.
    """
    if model.task == "next_token":
        return ()
    spec, count = model.spec, model.targets
    names = list(spec.get("target_names", ()))
    inputs = spec.get("input_names", ())
    if not names and model.task == "forecast" and inputs:
        names = [inputs[place] for place in spec.get("target_columns", ()) or range(count)]
    if len(names) != count:
        what = "class" if model.task == "classification" else "target"
        names = [f"{what}_{number}" for number in range(count)]
    return tuple(names)


def state_from_proto(number: int) -> ModelState:
    """Return the name of a state; `unspecified` for one that this version does not know."""
    return _STATES.get(number, "unspecified")


_STATES: dict[int, ModelState] = {
    number: cast(ModelState, name.removeprefix("MODEL_STATE_").lower())
    for name, number in pb.ModelState.items()
}


def checkpoint_from_proto(message: pb.Checkpoint) -> Checkpoint:
    """Convert a checkpoint."""
    return Checkpoint(
        lsn=message.lsn,
        steps=message.steps,
        updates=message.updates,
        skill_ratio=message.skill_ratio,
        loss=message.loss,
        size_bytes=message.size_bytes,
        best=message.best,
    )


def stream_from_proto(message: pb.Stream) -> Stream:
    """Convert a stream."""
    return Stream(
        message.stream_id,
        message.next_step,
        message.durable_step,
        message.incarnation,
        message.source_position,
        message.source_step,
    )


def prediction_from_proto(message: pb.PredictResponse, steps: int) -> Prediction:
    """Convert a prediction; `steps` is the number of given steps, or 1 if none were given."""
    horizon, targets = message.horizon or 1, message.targets or 1
    if message.top_tokens:
        targets = 0  # the answer holds the likeliest tokens only, in fields of their own
    return Prediction(
        values=predictions_of(message, horizon, targets),
        next_step=message.next_step,
        update=message.update,
        **extras(message, steps, horizon, targets),
    )


def predictions_of(message: Predicted, horizon: int, targets: int) -> FloatArray:
    """Return the predictions of an answer, (T, horizon, targets)."""
    array: FloatArray
    if message.prediction_doubles:
        array = np.asarray(message.prediction_doubles, dtype=np.float64)
    else:
        array = np.asarray(message.predictions, dtype=np.float32)
    return array.reshape(-1 if targets else 0, horizon, targets)


NO_TOKENS: Int64Array = np.zeros((0, 0), np.int64)
NO_PROBABILITIES: Float32Array = np.zeros((0, 0), np.float32)
NO_SCORES: Float32Array = np.zeros(0, np.float32)


def extras(message: Predicted, steps: int, horizon: int, targets: int) -> dict[str, Any]:
    """Return error band, likeliest tokens and their probabilities, by field name."""
    band = horizon if message.error_low else 0
    low = np.asarray(message.error_low, dtype=np.float32).reshape(band, targets)
    high = np.asarray(message.error_high, dtype=np.float32).reshape(band, targets)
    tokens, chances = NO_TOKENS, NO_PROBABILITIES
    if message.top_tokens:
        tokens = np.asarray(message.top_tokens, dtype=np.int64).reshape(steps, -1)
        chances = np.asarray(message.top_probabilities, dtype=np.float32).reshape(tokens.shape)
    return {
        "error_low": low,
        "error_high": high,
        "top_tokens": tokens,
        "top_probabilities": chances,
    }


def learned_from_proto(message: pb.ChunkLearned, model: Model, *, predictions: bool) -> Learned:
    """Convert the answer to a learned chunk."""
    steps = message.next_step - message.first_step
    tokens = model.task == "next_token"
    horizon, targets = model.horizon, 0 if tokens else model.targets
    return Learned(
        stream_id=message.stream_id,
        first_step=message.first_step,
        next_step=message.next_step,
        predictions=predictions_of(message, horizon, targets) if predictions else None,
        updates=tuple([report_from_proto(each) for each in message.updates]),
        durable_step=message.durable_step,
        **extras(message, steps, horizon, targets),
        anomaly_scores=np.asarray(message.anomaly_scores, dtype=np.float32),
        model_state=state_from_proto(message.model_state),
    )


def report_from_proto(report: pb.UpdateReport) -> UpdateReport:
    """Convert the report of one update."""
    return UpdateReport(
        update=report.update,
        steps=report.steps,
        streams=report.streams,
        loss=report.loss,
        gradient_norm=report.gradient_norm,
        clipped_gradient_norm=report.clipped_gradient_norm,
        clipped=report.clipped,
        skipped=report.skipped,
    )


def refused_from_proto(message: pb.ChunkRefused, index: int) -> Refused:
    """Convert the answer to a refused chunk; `index` is the chunk's number in its session."""
    code = code_name(message.code)
    violations = [Violation(message.field, message.value, message.bound)] if message.field else []
    return Refused(
        chunk_index=index,
        stream_id=message.stream_id,
        first_step=message.first_step if message.HasField("first_step") else None,
        expected_step=message.expected_step,
        error=from_status(code, message.message, violations, reason=message.reason.lower()),
    )
