"""The one table of methods: the role that each needs, and the model that a request names.

A method that is not in the table is refused to every caller of a server that asks who calls; a test
fails when a method of any service is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bptt.security.roles import Role

MODEL_HEALTH = "bptt.v1.models/"
"""Prefix of a model's name as a service of grpc.health.v1."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call a method."""

    role: Role
    """The lowest role."""
    model: Callable[[Any], str | None] | None = None
    """The model that the first message of a call names; None from it: the message names none.
    None here: the method answers about what the caller may see."""
    open: bool = False
    """True: everybody may call it, unless the message names a model."""


def _named(request: Any) -> str | None:
    return str(request.model_id)


def _opened(request: Any) -> str | None:
    return str(request.open.model_id) if request.WhichOneof("message") == "open" else None


def _imported(request: Any) -> str | None:
    return str(request.model.model_id) if request.WhichOneof("message") == "model" else None


def _health(request: Any) -> str | None:
    is_model = request.service.startswith(MODEL_HEALTH)
    return request.service.removeprefix(MODEL_HEALTH) if is_model else None


_LEARNER = "/bptt.v1.LearnerService/"
_MODELS = "/bptt.v1.ModelService/"
_HEALTH = "/grpc.health.v1.Health/"
REFLECTION = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for version in ("v1", "v1alpha")
)

METHODS: dict[str, Rule] = {
    _LEARNER + "Learn": Rule(Role.WRITER, _opened),
    _LEARNER + "Predict": Rule(Role.READER, _named),
    _LEARNER + "PredictBatch": Rule(Role.READER, _named),
    _LEARNER + "GetStream": Rule(Role.READER, _named),
    _LEARNER + "ListStreams": Rule(Role.READER, _named),
    _LEARNER + "ResetStream": Rule(Role.WRITER, _named),
    _LEARNER + "DeleteStream": Rule(Role.ADMIN, _named),
    _MODELS + "CreateModel": Rule(Role.ADMIN, _named),
    _MODELS + "GetModel": Rule(Role.READER, _named),
    _MODELS + "ListModels": Rule(Role.READER),
    _MODELS + "UpdateModel": Rule(Role.ADMIN, _named),
    _MODELS + "DeleteModel": Rule(Role.ADMIN, _named),
    _MODELS + "SaveCheckpoint": Rule(Role.WRITER, _named),
    _MODELS + "ListCheckpoints": Rule(Role.READER, _named),
    _MODELS + "RestoreCheckpoint": Rule(Role.ADMIN, _named),
    _MODELS + "ExportModel": Rule(Role.READER, _named),
    _MODELS + "ImportModel": Rule(Role.ADMIN, _imported),
    _HEALTH + "Check": Rule(Role.READER, _health, open=True),
    _HEALTH + "List": Rule(Role.ADMIN),  # not implemented by the server, and it names all models
    _HEALTH + "Watch": Rule(Role.READER, _health, open=True),
    REFLECTION[0]: Rule(Role.READER),
    REFLECTION[1]: Rule(Role.READER),
}
