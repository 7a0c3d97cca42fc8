"""What may be changed about how a model learns, while it learns."""

from __future__ import annotations

from dataclasses import dataclass

from bptt_core.specs import Clip


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model learns now."""

    learning_rate: float | None
    """Of every update from now on; None: as the spec says, schedule and all."""
    clip: Clip
    clip_threshold: float
    paused: bool
    """Steps are read, predicted and scored, and the scalers follow them; no parameter changes."""
