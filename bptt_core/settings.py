"""The settings of a model that can change while it learns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bptt_core.specs import Clip, ModelSpec


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings in force."""

    learning_rate: float | None
    """Learning rate of all further updates; None: the spec's learning rate and schedule."""
    clip: Clip
    clip_threshold: float
    paused: bool
    """The model reads, predicts and scores steps and updates its scalers, but no parameter."""


def steered(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """The spec with the settings applied.

    Raises:
        InvalidArgument: a value is out of its bounds.
    """
    values: dict[str, Any] = {"clip": settings.clip, "clip_threshold": settings.clip_threshold}
    if settings.learning_rate is not None:
        values |= {
            "learning_rate": settings.learning_rate,
            "warmup_updates": 0,
            "decay_updates": 0,
            "final_learning_rate": 0.0,
        }
    return replace(spec, **values)
