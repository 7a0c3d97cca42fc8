"""What goes into a learner and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Consecutive steps of one stream.

    Arrays are C-contiguous, in the machine's byte order and writeable (`bptt_core.layout` says
    why); any others are refused when the chunk is applied.
    """

    stream_id: str
    """The stream; opened at step 0 if it is not known."""
    first_step: int
    """Number of the first step; must be the stream's next."""
    inputs: Array
    """(T, D) float32 or float64, NaN where the spec allows `missing_inputs`; (T,) token ids. With
    `label_delay` there may be none, T = 0."""
    targets: Array | None = None
    """Regression: (T, O) floats. Classification: (T,) class ids. Else None. NaN or -1: missing.

    With `label_delay`: of any S >= 1 consecutive steps, or None; NaN or -1 where there is none yet.
    Of two labels of a step, the one that comes last holds.
    """
    end_of_sequence: bool = False
    """Learn the unfinished window after these steps, then reset the state."""
    first_target_step: int | None = None
    """Step of the first target; None: the first step. With `label_delay` at most so many before the
    stream's next one."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """One update: one optimizer step from a window, or from a batch of windows."""

    update: int
    """Counts from 1 in the life of the model."""
    steps: int
    """New steps over all its streams."""
    streams: int
    """Windows in the update."""
    loss: float
    """Of the new steps, before the update."""
    baseline_loss: float
    """The same loss of an output of 0: for a forecast, and wherever targets are scaled, that is the
    naive forecast."""
    gradient_norm: float
    """L2 norm before clipping."""
    clipped_gradient_norm: float
    """L2 norm after clipping."""
    clipped: bool
    """The clip changed the gradient."""
    skipped: bool
    """Loss or gradient was not finite: no parameter was changed."""


@dataclass(frozen=True, slots=True, eq=False)
class ChunkResult:
    """What became of one chunk."""

    stream_id: str
    first_step: int
    next_step: int
    """The stream's next step after the chunk."""
    predictions: Array | None
    """(T, O) in the user's units (class probabilities for classification), each made before its
    target was learned."""
    updates: tuple[UpdateReport, ...]
    """Those the chunk's stream took part in."""
    anomaly_scores: Array | None = None
    """Forecast, where predictions were made: (T,) float64, the probability of an error as large as
    that of the forecast for this step or larger, by the stream's recent errors; near 0 is an
    anomaly. NaN where there was no forecast, or too few before it to tell."""
    incarnation: int = 0
    """Number of the stream's opening that the chunk belongs to; see `Learner.incarnation`."""


@dataclass(frozen=True, slots=True, eq=False)
class TickResult:
    """What became of a tick."""

    chunks: tuple[ChunkResult, ...]
    """In the order of the tick."""
    updates: tuple[UpdateReport, ...]
    """All of them, in order."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How a model is doing. Floats are NaN before the first update."""

    steps: int
    updates: int
    clipped_updates: int
    skipped_updates: int
    loss: float
    baseline_loss: float
    gradient_norm: float
    clipped_gradient_norm: float
    skill_ratio: float
    """Prequential error over that of the naive forecast, fading over the last 1,000 or so targets:
    absolute error over that of the last value (forecast) or the mean (regression), cross-entropy
    over that of the class frequencies so far."""
    accuracy: float
    """Prequential, of classes and tokens: share of targets that were the likeliest, fading over the
    last 1,000 or so. NaN for other tasks, and before the first target."""
    cross_entropy_bits: float
    """Of the same targets: mean of -log2 of the probability that they were given."""
    consecutive_skipped: int
    """Skipped updates in a row, up to the last."""
    diverged: bool
    """They are `divergence_patience`: nothing is learned until `configure(paused=False)`."""
    parameter_norm: float
    learning_rate: float
