"""What may be changed about how a model learns, while it learns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from bptt_core.specs import Clip, ModelSpec


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model learns now."""

    learning_rate: float | None
    """Of every update from now on; None: as the spec says, schedule and all."""
    clip: Clip
    clip_threshold: float
    paused: bool
    """Steps are read, predicted and scored, and the scalers follow them; no parameter changes."""


def steered(spec: ModelSpec, settings: Settings) -> ModelSpec:
    """A spec with the settings in place of its own.

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
