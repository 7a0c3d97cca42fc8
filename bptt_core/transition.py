"""One call of the learner: scale steps, run them, score what was said of them; the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core import scaling, windows
from bptt_core.specs import ModelSpec
from bptt_core.state import Model, SEQUENCE_STEP, Streams
from bptt_core.windows import Advanced, Lanes

Array = NDArray[Any]

ROW, OFFSET, LENGTH, ENDS = range(4)
"""Columns of `Steps.lanes`: the stream's row; its first row in `x` and `y`; its steps; 1 where its
sequence ends with them."""


class Steps(NamedTuple):
    """Steps of several streams in the user's units, stream after stream. N of them in all."""

    lanes: Array
    """(B, 4) int64: ROW, OFFSET, LENGTH, ENDS; no row twice."""
    x: Array
    """(N, D) float64."""
    y: Array | None
    """(N, target_width) float64; None for a forecast and for tokens."""
    paused: bool = False
    """No target is learned."""


def run(
    spec: ModelSpec, model: Model, streams: Streams, steps: Steps, predictions: Array | None
) -> Advanced:
    """Learn steps.

    Args:
        spec: the model's.
        model: changed.
        streams: changed.
        steps: what came.
        predictions: (N, O) float64, filled with every step's prediction in the user's units, made
            before the step was learned; None where nobody asks, and then nothing is scored.
    """
    lanes = [slice(start, start + n) for _, start, n, _ in steps.lanes.tolist()]
    rows = steps.lanes[:, ROW]
    xs = [steps.x[lane] for lane in lanes]
    ys = [None if steps.y is None else steps.y[lane] for lane in lanes]
    prepared = [
        scaling.prepare(spec, model, streams, int(row), x, y)
        for row, x, y in zip(rows, xs, ys, strict=True)
    ]
    side_by_side = _side_by_side(spec, steps, prepared)
    B, T = side_by_side.features.shape[:2]
    begins = streams.counters[rows, SEQUENCE_STEP].tolist()
    if predictions is None:
        advanced = windows.advance(spec, model, streams, side_by_side, None)
        streams.forecasts[rows] = np.nan  # what was not forecast is not scored
        return advanced
    outputs = np.zeros((B, T, spec.outputs), spec.dtype)
    advanced = windows.advance(spec, model, streams, side_by_side, outputs)
    for b, (x, y, mine) in enumerate(zip(xs, ys, prepared, strict=True)):
        made = predictions[lanes[b]]
        made[:] = finish(spec, outputs[b, : len(x)], mine.base, mine.unit)
        truth = x if y is None else y
        scaling.score(spec, model, streams, int(rows[b]), begins[b], made, mine.naive, truth)
    return advanced


def _side_by_side(spec: ModelSpec, steps: Steps, prepared: list[scaling.Prepared]) -> Lanes:
    """Lanes padded to the longest."""
    lanes = steps.lanes
    B, T = len(prepared), int(lanes[:, LENGTH].max())
    features = np.zeros((B, T, spec.features), spec.dtype)
    targets = np.zeros((B, T, spec.target_width), spec.dtype)
    for lane, each in enumerate(prepared):
        features[lane, : len(each.features)] = each.features
        targets[lane, : len(each.targets)] = np.nan if steps.paused else each.targets
    return Lanes(lanes[:, ROW], lanes[:, LENGTH], lanes[:, ENDS] != 0, features, targets)


def finish(spec: ModelSpec, outputs: Array, base: Array, unit: Array) -> Array:
    """Raw outputs (T, O) in the user's units; probabilities where targets are classes."""
    if spec.loss == "cross_entropy":
        shifted = np.exp(outputs - outputs.max(axis=-1, keepdims=True), dtype=np.float64)
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
    if spec.loss == "bernoulli":
        return np.asarray(0.5 * (np.tanh(0.5 * outputs.astype(np.float64)) + 1))
    made = outputs.astype(np.float64)  # and all else in place
    made *= unit
    made += base
    return made
