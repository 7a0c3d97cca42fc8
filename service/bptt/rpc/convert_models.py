"""Converts between protobuf messages and models, settings, checkpoints and pages."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, cast

from bptt import v1 as pb
from bptt.config import PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from bptt.domain import ModelDefinition, ModelState, ModelStatus, UnreadModel
from bptt.durability import CheckpointInfo
from bptt.errors import from_core, InvalidRequest
from bptt_core import ModelSpec
from bptt_core.errors import InvalidArgument
from bptt_core.specs import INPUT_SIZE_MAX

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
_FIELDS = [
    each.name
    for each in dataclasses.fields(ModelSpec)
    if each.name in pb.ModelSpec.DESCRIPTOR.fields_by_name
]
_REPEATED = ("target_columns",)
_SCALARS = [name for name in _FIELDS if name not in _ENUMS and name not in _REPEATED]


def definition_from_proto(model_id: str, message: pb.ModelSpec) -> ModelDefinition:
    """Convert and check a model's definition.

    Raises:
        InvalidRequest: a field is out of its bounds; the error names it as `spec.<field>`.
    """
    values = given_values(message)
    if "input_size" not in values and message.task != pb.TASK_NEXT_TOKEN:
        bound = f"a whole number from 1 to {INPUT_SIZE_MAX}"
        raise InvalidRequest.of("spec.input_size", "left out", bound)
    names = tuple(message.input_names), tuple(message.target_names)
    return definition_of(model_id, values, *names)


def given_values(message: pb.ModelSpec) -> dict[str, Any]:
    """Return the fields of a spec that a client gives, by name.

    Raises:
        InvalidRequest: an enum has no such number; the error names it as `spec.<field>`.
    """
    values: dict[str, Any] = {
        name: getattr(message, name) for name in _SCALARS if message.HasField(cast(Any, name))
    }
    for name in _ENUMS:
        number = getattr(message, name)
        if number:
            values[name] = choice("spec." + name, name, number)
    if message.target_columns:
        values["target_columns"] = tuple(message.target_columns)
    return values


def definition_of(
    model_id: str,
    values: Mapping[str, Any],
    input_names: tuple[str, ...],
    target_names: tuple[str, ...],
) -> ModelDefinition:
    """Check the fields of a spec and the names.

    Raises:
        InvalidRequest: a field is out of its bounds; the error names it as `spec.<field>`.
    """
    try:
        spec = ModelSpec.from_dict(dict(values))
    except (InvalidArgument, TypeError) as error:
        if isinstance(error, InvalidArgument):
            raise from_core(error, prefix="spec.") from error
        raise InvalidRequest.of("spec", str(error), "fields of their types") from error
    return ModelDefinition(model_id, spec, input_names, target_names)


def choice(field: str, name: str, number: int) -> str:
    """Return an enum value's name as it is used elsewhere: `CELL_RNN_TANH` as "rnn_tanh".

    Raises:
        InvalidRequest: the enum of `name` has no such number; the error names `field`.
    """
    enum, prefix = _ENUMS[name]
    if number not in enum.values():
        known = ", ".join(each.removeprefix(prefix).lower() for each in enum.keys()[1:])
        raise InvalidRequest.of(field, number, f"one of {known}")
    found: str = enum.Name(number)
    return found.removeprefix(prefix).lower()


def _number(name: str, value: str) -> Any:
    enum, prefix = _ENUMS[name]
    return enum.Value(prefix + value.upper())


def spec_to_proto(definition: ModelDefinition) -> pb.ModelSpec:
    """Return the spec with every field of its task filled in."""
    spec = definition.spec
    values = {name: getattr(spec, name) for name in _SCALARS}
    if not spec.vocabulary_size:
        del values["vocabulary_size"]
    message = pb.ModelSpec(
        target_columns=spec.target_columns,
        input_names=definition.input_names,
        target_names=definition.target_names,
        **values,
    )
    for name in _ENUMS:
        setattr(message, name, _number(name, getattr(spec, name)))
    return message


def model_to_proto(state: ModelStatus | UnreadModel) -> pb.Model:
    """Return the model as it is now."""
    if isinstance(state, UnreadModel):
        return _unread_to_proto(state)
    figures = state.figures
    return pb.Model(
        model_id=state.definition.model_id,
        spec=spec_to_proto(state.definition),
        parameters=state.parameters,
        steps=figures.steps,
        updates=figures.updates,
        clipped_updates=figures.clipped_updates,
        skipped_updates=figures.skipped_updates,
        limited_inputs=figures.limited_inputs,
        streams=state.streams,
        skill_ratio=figures.skill_ratio,
        loss=figures.loss,
        gradient_norm=figures.gradient_norm,
        state=state_to_proto(state.state),
        state_reason=state.state_reason,
        learning_rate=figures.learning_rate,
        clip=_number("clip", state.settings.clip),
        clip_threshold=state.settings.clip_threshold,
        accuracy=figures.accuracy,
        cross_entropy_bits=figures.cross_entropy_bits,
        network_skill_ratio=figures.network_skill_ratio,
        expert_weights=figures.expert_weights,
    )


def _unread_to_proto(model: UnreadModel) -> pb.Model:
    """Return the entry of a model that has not been read yet."""
    return pb.Model(
        model_id=model.model_id,
        state=state_to_proto(model.state),
        state_reason=model.state_reason,
        skill_ratio=math.nan,
        loss=math.nan,
        gradient_norm=math.nan,
        accuracy=math.nan,
        cross_entropy_bits=math.nan,
        network_skill_ratio=math.nan,
    )


_STATES = {state: pb.ModelState.Value(f"MODEL_STATE_{state.name}") for state in ModelState}


def state_to_proto(state: ModelState) -> Any:
    """Return the enum value of a model's state."""
    return _STATES[state]


def changes_from_proto(message: pb.UpdateModelRequest) -> dict[str, Any]:
    """Return the settings to change, by name.

    Raises:
        InvalidRequest: the clip is not a known one.
    """
    names = ("learning_rate", "clip_threshold", "paused")
    changes = {name: getattr(message, name) for name in names if message.HasField(cast(Any, name))}
    if message.clip:
        changes["clip"] = choice("clip", "clip", message.clip)
    return changes


def checkpoint_to_proto(info: CheckpointInfo) -> pb.Checkpoint:
    """Return a checkpoint's entry."""
    return pb.Checkpoint(
        lsn=info.lsn,
        steps=info.steps,
        updates=info.updates,
        skill_ratio=info.skill_ratio,
        loss=info.loss,
        size_bytes=info.size_bytes,
        best=info.best,
    )


def page_from_proto(page_size: int, page_token: str) -> tuple[str, int]:
    """Return the name after which a page begins, and the most entries it may have.

    A size above the maximum is cut to it.

    Raises:
        InvalidRequest: the size is negative.
    """
    if page_size < 0:
        raise InvalidRequest.of("page_size", page_size, f"a number from 0 to {PAGE_SIZE_MAX}")
    return page_token, min(page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
