"""One call of the learner: scale steps, run them, score their predictions; the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core import scaling, scoring, windows
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
    """(N, target_width) float64, of the same steps; None for a forecast and for tokens."""
    paused: bool = False
    """True: no target is learned."""


def run(
    spec: ModelSpec, model: Model, streams: Streams, steps: Steps, predictions: Array | None
) -> Advanced:
    """Learn steps.

    Args:
        spec: the model's.
        model: changed.
        streams: changed.
        steps: the new steps.
        predictions: (N, O) float64, filled with every step's prediction in the user's units, made
            before the step was learned; None: no predictions, and nothing is scored.
    """
    lanes = [slice(start, start + n) for _, start, n, _ in steps.lanes.tolist()]
    rows = steps.lanes[:, ROW]
    prepared = []
    for row, lane, ends in zip(rows, lanes, steps.lanes[:, ENDS], strict=True):
        y = None if steps.y is None else steps.y[lane]
        mine = scaling.prepare(spec, model, streams, int(row), steps.x[lane], y, bool(ends))
        if predictions is not None:
            scoring.score_live(spec, model, streams, int(row), mine)
        prepared.append(mine)
    side_by_side = _side_by_side(spec, steps, prepared)
    begins = streams.counters[rows, SEQUENCE_STEP].tolist()
    if predictions is None:
        advanced = windows.advance(spec, model, streams, side_by_side, None)
        for array in (streams.forecasts, streams.changes, streams.moves):
            array[rows] = np.nan  # without a forecast there is no score
        return advanced
    outputs = np.zeros((len(steps.x), spec.outputs), spec.dtype)
    advanced = windows.advance(spec, model, streams, side_by_side, outputs)
    scores = np.empty(len(steps.x) if spec.task == "forecast" else 0)
    for b, mine in enumerate(prepared):
        made = predictions[lanes[b]]
        made[:] = scaling.finish(spec, outputs[lanes[b]], mine.base, mine.unit)
        found = scoring.score(spec, model, streams, int(rows[b]), begins[b], made, mine)
        if found is not None:
            scores[lanes[b]] = found
    return advanced._replace(scores=scores)


def _side_by_side(spec: ModelSpec, steps: Steps, prepared: list[scaling.Prepared]) -> Lanes:
    """The prepared steps, stream after stream."""
    lanes = steps.lanes
    starts, lengths = lanes[:, OFFSET], lanes[:, LENGTH]
    target_starts = starts + spec.label_delay * np.arange(len(lanes))
    features = np.zeros((len(steps.x), spec.features), spec.dtype)
    n = len(steps.x) + len(lanes) * spec.label_delay
    targets = np.full((n, spec.target_width), np.nan, spec.dtype)
    for start, first, each in zip(starts, target_starts, prepared, strict=True):
        features[start : start + len(each.features)] = each.features
        if not steps.paused:
            targets[first : first + len(each.targets)] = each.targets
    return Lanes(lanes[:, ROW], lengths, lanes[:, ENDS], starts, target_starts, features, targets)
