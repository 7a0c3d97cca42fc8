"""Between protobuf messages and the client's own types. Protobuf stops here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from google.protobuf.message import Message
from numpy.typing import ArrayLike

from protos.bptt.v1 import bptt_pb2 as pb
from service.client.errors import code_name
from service.client.types import (
    Float32Array,
    Learned,
    Model,
    ModelSpec,
    Prediction,
    Refused,
    Stream,
    UpdateReport,
)
from service.errors import from_status, InvalidRequest, Violation

_ENUMS = {
    "task": pb.Task,
    "cell": pb.Cell,
    "loss": pb.Loss,
    "reduction": pb.Reduction,
    "optimizer": pb.Optimizer,
    "clip": pb.Clip,
}
_REPEATED = ("target_columns", "input_names")
_LENGTH_DELIMITED = 2  # wire type of packed numbers


def float32(field: str, values: ArrayLike) -> Float32Array:
    """`values` as float32, in the byte order of the wire.

    Raises:
        InvalidRequest: not numbers.
    """
    try:
        with np.errstate(over="ignore"):  # becomes infinity, which the server refuses by name
            return np.asarray(values, dtype="<f4")
    except (TypeError, ValueError) as error:
        raise InvalidRequest.of(field, type(values).__name__, "an array of numbers") from error


def rows(field: str, values: ArrayLike, width: int) -> Float32Array:
    """`values` as (T, width) float32; one dimension is read as T steps of that width in a row.

    Raises:
        InvalidRequest: not numbers, or of another width.
    """
    array = float32(field, values)
    if array.ndim <= 1:
        array = array.reshape(-1, width) if array.size % width == 0 else array.reshape(1, -1)
    if array.ndim != 2 or array.shape[1] != width:
        raise InvalidRequest.of(field, f"of shape {array.shape}", f"of shape (T, {width})")
    return array


def packed(kind: type[Message], field: str, array: Float32Array) -> bytes:
    """The wire form of a message that holds just this field.

    A packed field of little-endian floats is the array's own memory behind a tag and a length;
    parsing that costs 1 µs where a list of 512 numbers costs 12.
    """
    data = array.tobytes()
    number = kind.DESCRIPTOR.fields_by_name[field].number
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def chunk_request(
    stream_id: str,
    inputs: Float32Array,
    targets: Float32Array | None,
    first_step: int | None,
    end_of_sequence: bool,
) -> pb.LearnRequest:
    """The message for one chunk."""
    chunk = pb.Chunk(stream_id=stream_id, end_of_sequence=end_of_sequence)
    if first_step is not None:
        if not 0 <= first_step < 2**64:
            raise InvalidRequest.of("first_step", first_step, "a whole number, 0 or more")
        chunk.first_step = first_step
    chunk.MergeFromString(packed(pb.Chunk, "inputs", inputs))
    if targets is not None:
        chunk.MergeFromString(packed(pb.Chunk, "targets", targets))
    return pb.LearnRequest(chunk=chunk)


def spec_to_proto(spec: Mapping[str, Any]) -> pb.ModelSpec:
    """The message of a spec.

    Raises:
        InvalidRequest: no such field or choice, or a value of another type.
    """
    message = pb.ModelSpec()
    for name, value in spec.items():
        if name not in pb.ModelSpec.DESCRIPTOR.fields_by_name:
            raise InvalidRequest.of(name, value, "left out: no such field")
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
    enum = _ENUMS[name]
    prefix = name.upper() + "_"
    choices = {key[len(prefix) :].lower(): number for key, number in enum.items() if number}
    if value not in choices:
        raise InvalidRequest.of(name, value, "one of " + ", ".join(choices))
    return choices[value]


def _kind(name: str) -> str:
    field = pb.ModelSpec.DESCRIPTOR.fields_by_name[name]
    if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        return "whole numbers, 0 or more" if name in _REPEATED else "a whole number, 0 or more"
    if field.cpp_type == field.CPPTYPE_STRING:
        return "a list of names"
    return "true or false" if field.cpp_type == field.CPPTYPE_BOOL else "a number"


def spec_from_proto(message: pb.ModelSpec) -> ModelSpec:
    """The spec of a message, with the names of choices in lower case."""
    spec: dict[str, Any] = {}
    filled = {field.name for field, _ in message.ListFields()}
    for field in pb.ModelSpec.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.name in _ENUMS:
            if value:
                label = _ENUMS[field.name].Name(value)
                spec[field.name] = label[len(field.name) + 1 :].lower()
        elif field.name in _REPEATED:
            spec[field.name] = list(value)
        elif field.name in filled:
            spec[field.name] = value
    return cast(ModelSpec, spec)


def model_from_proto(message: pb.Model) -> Model:
    """A model."""
    return Model(
        model_id=message.model_id,
        spec=spec_from_proto(message.spec),
        parameters=message.parameters,
        steps=message.steps,
        updates=message.updates,
        clipped_updates=message.clipped_updates,
        skipped_updates=message.skipped_updates,
        streams=message.streams,
        skill_ratio=message.skill_ratio,
        loss=message.loss,
        gradient_norm=message.gradient_norm,
    )


def stream_from_proto(message: pb.Stream) -> Stream:
    """A stream."""
    return Stream(message.stream_id, message.next_step)


def prediction_from_proto(message: pb.PredictResponse) -> Prediction:
    """A prediction."""
    values = _predictions(message.predictions, message.horizon or 1, message.targets or 1)
    return Prediction(values, message.next_step, message.update)


def _predictions(values: Sequence[float], horizon: int, targets: int) -> Float32Array:
    return np.asarray(values, dtype=np.float32).reshape(-1, horizon, targets)


def learned_from_proto(
    message: pb.ChunkLearned, horizon: int, targets: int, *, with_predictions: bool
) -> Learned:
    """The answer to a chunk that was learned."""
    return Learned(
        stream_id=message.stream_id,
        first_step=message.first_step,
        next_step=message.next_step,
        predictions=(
            _predictions(message.predictions, horizon, targets) if with_predictions else None
        ),
        updates=tuple(
            UpdateReport(
                update=report.update,
                steps=report.steps,
                streams=report.streams,
                loss=report.loss,
                gradient_norm=report.gradient_norm,
                clipped_gradient_norm=report.clipped_gradient_norm,
                clipped=report.clipped,
                skipped=report.skipped,
            )
            for report in message.updates
        ),
    )


def refused_from_proto(message: pb.ChunkRefused) -> Refused:
    """The answer to a chunk that was refused."""
    code = code_name(message.code)
    violations = [Violation(message.field, message.value, message.bound)] if message.field else []
    return Refused(
        chunk_index=message.chunk_index,
        stream_id=message.stream_id,
        first_step=message.first_step if message.HasField("first_step") else None,
        expected_step=message.expected_step,
        error=from_status(code, message.message, violations),
    )
