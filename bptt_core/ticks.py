"""Inputs and results of a learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Consecutive steps of one stream.

    Arrays must be C-contiguous, in the machine's byte order and writeable (`bptt_core.layout`
    explains why); others are refused when the chunk is applied.
    """

    stream_id: str
    """The stream; an unknown stream is opened at step 0."""
    first_step: int
    """Number of the first step; must be the stream's next."""
    inputs: Array
    """(T, D) float32 or float64, NaN where the spec allows `missing_inputs`; (T,) token ids. With
    `label_delay` there may be none, T = 0."""
    targets: Array | None = None
    """Regression: (T, O) floats. Classification: (T,) class ids. Else None. NaN or -1: missing.

    With `label_delay`: targets of any S >= 1 consecutive steps, or None; NaN or -1 for a step whose
    target is not known yet. A later label of a step replaces an earlier one.
    """
    end_of_sequence: bool = False
    """Learn the unfinished window after these steps, then reset the state."""
    first_target_step: int | None = None
    """Step of the first target; None: `first_step`. With `label_delay`, at most that many steps
    before the stream's next step."""
    source_position: bytes = b""
    """Where the sender's source stands after the last step, in the sender's own form. It is kept
    with the stream and changes nothing that is learned. Empty: the kept one stays."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """One update: one optimizer step from a window, or from a batch of windows."""

    update: int
    """Number of the update, from 1, over the life of the model."""
    steps: int
    """New steps, summed over its streams."""
    streams: int
    """Windows in the update."""
    loss: float
    """Loss of the new steps, before the update."""
    baseline_loss: float
    """The same loss for an output of 0, which is the naive forecast for forecasts and for scaled
    targets."""
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
    """Results of one chunk."""

    stream_id: str
    first_step: int
    next_step: int
    """The stream's next step after the chunk."""
    predictions: Array | None
    """(T, O) in the user's units (class probabilities for classification), each made before its
    target was learned."""
    updates: tuple[UpdateReport, ...]
    """The updates in which the chunk's stream took part."""
    anomaly_scores: Array | None = None
    """Forecasts with predictions: (T,) float64, the probability of a forecast error at least as
    large as this step's, estimated from the stream's recent errors; near 0 is an anomaly. NaN where
    there was no forecast, or too few before it."""
    incarnation: int = 0
    """Number of the stream's opening that the chunk belongs to; see `Learner.incarnation`."""


@dataclass(frozen=True, slots=True, eq=False)
class TickResult:
    """Results of a tick."""

    chunks: tuple[ChunkResult, ...]
    """In the order of the tick."""
    updates: tuple[UpdateReport, ...]
    """All updates of the tick, in order."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of a model. Floats are NaN before the first update."""

    steps: int
    updates: int
    clipped_updates: int
    skipped_updates: int
    loss: float
    baseline_loss: float
    gradient_norm: float
    clipped_gradient_norm: float
    skill_ratio: float
    """Prequential error relative to the naive forecast, weighted towards the last 1,000 or so
    targets. Forecast: absolute error relative to the last-value forecast; regression: relative to
    the mean so far; classes: cross-entropy relative to the class frequencies so far."""
    accuracy: float
    """Prequential, for classes and tokens: share of targets that were the likeliest class, weighted
    towards the last 1,000 or so. NaN for other tasks, and before the first target."""
    cross_entropy_bits: float
    """For the same targets: mean of -log2 of the probability that was predicted for each."""
    consecutive_skipped: int
    """Number of skipped updates since the last one that was applied."""
    diverged: bool
    """`consecutive_skipped` has reached `divergence_patience`: nothing is learned until
    `configure(paused=False)`."""
    parameter_norm: float
    learning_rate: float
