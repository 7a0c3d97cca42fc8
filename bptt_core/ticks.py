"""Inputs and results of a learner."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
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


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive steps of B streams as columns; a chunk is a batch of one.

    Each stream has one lane. The order of the lanes changes what is learned. The values of all
    lanes follow one another: N steps and M targets in all. Arrays must be laid out as a `Chunk`'s.
    """

    stream_ids: tuple[str, ...]
    """(B) one stream for each lane, none twice; an unknown stream is opened at step 0."""
    first_steps: Array
    """(B,) int64, the number of each lane's first step; must be its stream's next."""
    lengths: Array
    """(B,) int64, the steps in each lane; 0 only with `label_delay`."""
    inputs: Array
    """(N, D) float32 or float64; (N,) token ids."""
    targets: Array | None = None
    """Regression: (M, O) floats. Classification: (M,) class ids. Else None."""
    target_lengths: Array | None = None
    """(B,) int64, the targets in each lane, with `label_delay`. None: those of the same steps."""
    first_target_steps: Array | None = None
    """(B,) int64, the step of each lane's first target; -1 or None: the lane's first step."""
    ends: Array | None = None
    """(B,) bool, lanes whose sequence ends with these steps; None: no lane's."""
    source_positions: tuple[bytes, ...] | None = None
    """(B) as in `Chunk`; None: no lane has one."""

    def __len__(self) -> int:
        """B, the number of lanes."""
        return len(self.stream_ids)

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Self:
        """Pack chunks whose arrays have the same number of columns, one lane for each."""
        lengths = np.array([len(chunk.inputs) for chunk in chunks], np.int64)
        given = [chunk.targets for chunk in chunks if chunk.targets is not None]
        labels = [0 if chunk.targets is None else len(chunk.targets) for chunk in chunks]
        target_lengths = np.array(labels, np.int64)
        places = [chunk.first_target_step for chunk in chunks]
        return cls(
            tuple(chunk.stream_id for chunk in chunks),
            np.array([chunk.first_step for chunk in chunks], np.int64),
            lengths,
            joined([chunk.inputs for chunk in chunks]),
            joined(given) if given else None,
            None if np.array_equal(lengths, target_lengths) or not given else target_lengths,
            None
            if all(place is None for place in places)
            else np.array([-1 if place is None else place for place in places], np.int64),
            np.array([chunk.end_of_sequence for chunk in chunks], np.bool_),
            tuple(chunk.source_position for chunk in chunks)
            if any(chunk.source_position for chunk in chunks)
            else None,
        )

    def select(self, lanes: Array) -> Self:
        """The lanes of these indices (K,), in this order, as a batch of their own."""
        targets, target_lengths = self.targets, self.target_lengths
        if targets is not None:
            rows = _rows_of(self.lengths if target_lengths is None else target_lengths, lanes)
            targets = targets[rows]
        first_targets, ends = self.first_target_steps, self.ends
        sources = self.source_positions
        return type(self)(
            tuple(self.stream_ids[lane] for lane in lanes.tolist()),
            self.first_steps[lanes],
            self.lengths[lanes],
            self.inputs[_rows_of(self.lengths, lanes)],
            targets,
            None if target_lengths is None else target_lengths[lanes],
            None if first_targets is None else first_targets[lanes],
            None if ends is None else ends[lanes],
            None if sources is None else tuple(sources[lane] for lane in lanes.tolist()),
        )


def joined(arrays: Sequence[Array]) -> Array:
    """The rows of all arrays, in order; one array is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def offsets_of(lengths: Array) -> Array:
    """(B + 1,) int64: where each lane's rows begin, and the end of the last."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _rows_of(lengths: Array, lanes: Array) -> Array:
    """The rows of these lanes, lane after lane."""
    counts = lengths[lanes]
    starts = offsets_of(lengths)[:-1][lanes]
    before = offsets_of(counts)
    rows: Array = np.arange(before[-1]) + np.repeat(starts - before[:-1], counts)
    return rows


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


@dataclass(frozen=True, eq=False)
class TickResult:
    """Results of a tick, as columns in the order of its lanes."""

    stream_ids: tuple[str, ...]
    """(B)"""
    first_steps: Array
    """(B,) int64"""
    next_steps: Array
    """(B,) int64: each stream's next step after the tick."""
    incarnations: Array
    """(B,) int64; see `Learner.incarnation`."""
    offsets: Array
    """(B + 1,) int64: where each lane's rows begin, and the end of the last."""
    predictions: Array | None
    """(N, O) as in `ChunkResult`."""
    anomaly_scores: Array | None
    """(N,) as in `ChunkResult`."""
    updates: tuple[UpdateReport, ...]
    """All updates of the tick, in order."""
    members: Array
    """(m, 2) int64 pairs (update, lane): the lanes that took part in each of `updates`, in order of
    the updates."""

    @functools.cached_property
    def chunks(self) -> tuple[ChunkResult, ...]:
        """The results of each lane."""
        took_part: list[list[UpdateReport]] = [[] for _ in self.stream_ids]
        for update, lane in self.members.tolist():
            took_part[lane].append(self.updates[update])
        starts = self.offsets.tolist()
        found = []
        for lane, (first, after, incarnation) in enumerate(
            zip(
                self.first_steps.tolist(),
                self.next_steps.tolist(),
                self.incarnations.tolist(),
                strict=True,
            )
        ):
            mine = slice(starts[lane], starts[lane + 1])
            predictions, scores = self.predictions, self.anomaly_scores
            found.append(
                ChunkResult(
                    self.stream_ids[lane],
                    first,
                    after,
                    None if predictions is None else predictions[mine],
                    tuple(took_part[lane]),
                    None if scores is None else scores[mine],
                    incarnation,
                )
            )
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of a model. Floats are NaN before the first update."""

    steps: int
    updates: int
    clipped_updates: int
    skipped_updates: int
    limited_inputs: int
    """Inputs that were limited for the network; see `ModelSpec.scaling_memory`."""
    loss: float
    baseline_loss: float
    gradient_norm: float
    clipped_gradient_norm: float
    skill_ratio: float
    """Prequential error relative to the naive forecast, weighted towards the last 1,000 or so
    targets. Forecast: absolute error relative to the last-value forecast; regression: relative to
    the mean so far; classes: cross-entropy relative to the class frequencies so far."""
    network_skill_ratio: float
    """The same of the network alone, without the experts that a forecast is mixed from."""
    expert_weights: dict[str, float]
    """Weights in a forecast by expert (`bptt_core.experts`), the mean over outputs; they add up to
    1. Empty without a mixture."""
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
