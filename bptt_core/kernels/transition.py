"""One call of the learner, from its first step to its last report: the twin of `transition`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.kernels.addresses import array_1d, cut
from bptt_core.kernels.dispatch import Tag
from bptt_core.kernels.jit import compiled, entry, truth, whole
from bptt_core.kernels.linear import fill
from bptt_core.kernels.network import project
from bptt_core.kernels.scaling import prepare_forecast, prepare_steps, prepare_tokens
from bptt_core.kernels.scoring import score_forecast, score_labels, score_tokens, take_class
from bptt_core.kernels.sizes import (
    BERNOULLI,
    CROSS_ENTROPY,
    FORECAST,
    LANE_BEGINS,
    LANE_ENDS,
    LANE_LENGTHS,
    LANE_ROWS,
    LANE_STARTS,
    NEXT_TOKEN,
    Room,
    Sizes,
    TARGET_STARTS,
    TARGET_STOPS,
)
from bptt_core.kernels.table import COLUMNS, model_at, room_at, sizes_at, streams_at, work_at
from bptt_core.kernels.windows import advance
from bptt_core.state import Model, SEQUENCE_STEP, Streams
from bptt_core.transition import ENDS, LENGTH, OFFSET, ROW
from bptt_core.windows import Lanes

Array = NDArray[Any]


@compiled
def finish(sizes: Sizes, outputs: Array, base: Array, unit: Array, out: Array) -> None:
    """Fill out (T, O) with raw outputs (T, O) in the user's units; as `scaling.finish`."""
    for t in range(out.shape[0]):
        row, made = outputs[t], out[t]
        if sizes.loss == CROSS_ENTROPY:
            highest = row[0]
            for i in range(row.size):
                highest = max(highest, row[i])
            total = 0.0
            for i in range(row.size):
                made[i] = math.exp(float(row[i] - highest))
                total += made[i]
            for i in range(row.size):
                made[i] /= total
        elif sizes.loss == BERNOULLI:
            for i in range(row.size):
                made[i] = 0.5 * (math.tanh(0.5 * float(row[i])) + 1)
        else:
            for i in range(row.size):
                made[i] = base[t, i] + unit[t, i] * row[i]


@compiled
def prepare(
    sizes: Sizes,
    columns: Array,
    model: Model,
    streams: Streams,
    lane: Array,
    x: Array,
    y: Array,
    units: Array,
    features: Array,
    targets: Array,
    base: Array,
    unit: Array,
    naive: Array,
    truth: Array,
) -> None:
    """Fill the arrays of `scaling.Prepared` for steps of one stream.

    Args:
        sizes: of the spec.
        columns: (targets,) inputs that are forecast.
        model: statistics; changed.
        streams: the last steps; changed.
        lane: (4,) as in `Steps.lanes`.
        x: (T, D) in the user's units.
        y: (T, width); (0, width) where the task has none.
        units: (h, D) float64, scratch.
        features: filled.
        targets: filled.
        base: filled, except for classes.
        unit: filled, except for classes.
        naive: filled.
        truth: filled.
    """
    row = lane[ROW]
    begin = streams.counters[row, SEQUENCE_STEP]
    if sizes.task == FORECAST:
        prepare_forecast(
            sizes, columns, model, streams.recent[row], begin, x, units, features, targets,
            base, unit, naive, truth,
        )  # fmt: skip
    elif sizes.task == NEXT_TOKEN:
        prepare_tokens(model, x, features, targets, naive, truth)
    else:
        prepare_steps(
            sizes, model, streams.labels[row], begin, x, y, lane[ENDS] != 0, features, targets,
            base, unit, naive, truth,
        )  # fmt: skip


@compiled
def score_live(
    sizes: Sizes,
    model: Model,
    live: Array,
    wanted: float,
    naive: float,
    raw: Array,
    odds: Array,
) -> None:
    """Score a token against the prediction of the live state; as `scoring.score_live`.

    Args:
        sizes: of the spec.
        model: figures; changed.
        live: (L, parts, H) state before the token.
        wanted: the token.
        naive: cross-entropy of the tokens' frequencies.
        raw: (O,) scratch of the spec's dtype.
        odds: (O,) scratch.
    """
    H, O = sizes.H, sizes.O
    V_at = sizes.P - O * (H + 1)
    V = cut(model.parameters, V_at, (O, H))
    outputs, made = cut(raw, 0, (1, O)), cut(odds, 0, (1, O))
    h = cut(live[sizes.L - 1, 0], 0, (1, H))
    project(h, V, model.parameters[sizes.P - O :], truth(1), outputs)
    finish(sizes, outputs, made, made, made)
    take_class(model.error, model.naive_error, model.hits, odds, wanted, naive)


@compiled
def score(
    sizes: Sizes,
    model: Model,
    streams: Streams,
    row: int,
    begin: int,
    made: Array,
    unit: Array,
    naive: Array,
    truth: Array,
    room: Room,
    scores: Array,
) -> None:
    """Score predictions (T, O) of one stream; as `scoring.score`, into scores (T,)."""
    held, column, tail = streams.forecasts[row], room.ring[0], room.ring[1]
    if sizes.task == FORECAST:
        score_forecast(
            sizes, model, held, streams.surprise[row], begin, made, unit, naive, truth,
            room.scored, column, tail, room.ordered, scores, streams.changes[row],
            streams.moves[row], room.fitted,
        )  # fmt: skip
    elif sizes.task == NEXT_TOKEN:
        score_tokens(model, made, naive, truth)
    else:
        score_labels(
            sizes, model, held, begin, made, naive, truth, room.scored, column, tail
        )  # fmt: skip


@entry(1)
def run(
    tag: Tag,
    like: Array,
    table: Array,
    lanes: Array,
    x: Array,
    y: Array,
    predictions: Array,
    asked: bool,
    paused: bool,
) -> None:
    """Learn steps; as `bptt_core.transition.run`.

    Args:
        tag: selects the kernels of the spec's cell and optimizer.
        like: any array of the spec's dtype.
        table: addresses of all other arrays.
        lanes: (B, 4) as in `Steps`.
        x: (N, D).
        y: (N, width); (0, width) where the task has none.
        predictions: (N, O), filled if `asked`.
        asked: predictions are wanted.
        paused: no target is learned.
    """
    sizes, model, streams = sizes_at(table), model_at(table, like), streams_at(table, like)
    work, room = work_at(table, like), room_at(table, like)
    columns = array_1d(table, COLUMNS, table)
    B, N, longest = lanes.shape[0], x.shape[0], whole(0)
    O, width, late = sizes.O, sizes.width, sizes.label_delay
    units = 0 if sizes.loss == CROSS_ENTROPY else O
    labels, asked_of = N + B * late, N if asked else 0
    features = cut(room.features, 0, (N, sizes.F))
    targets = cut(room.targets, 0, (labels, width))
    outputs = cut(room.outputs, 0, (asked_of, O))
    base, unit = cut(room.base, 0, (N, units)), cut(room.unit, 0, (N, units))
    naive = cut(room.naive, 0, (labels, sizes.truth_width))
    truth = cut(room.truth, 0, (labels, sizes.truth_width))
    lists = room.lists
    begins, rows, lengths = lists[LANE_BEGINS], lists[LANE_ROWS], lists[LANE_LENGTHS]
    ends, starts = lists[LANE_ENDS], lists[LANE_STARTS]
    target_starts, target_stops = lists[TARGET_STARTS], lists[TARGET_STOPS]
    for b in range(B):
        row, start, lengths[b] = lanes[b, ROW], lanes[b, OFFSET], lanes[b, LENGTH]
        rows[b], starts[b], ends[b] = row, start, lanes[b, ENDS]
        begins[b] = streams.counters[row, SEQUENCE_STEP]
        longest = max(longest, lengths[b])
        stop, first = start + lengths[b], start + b * late
        last = first + lengths[b] + (late if ends[b] != 0 else 0)
        target_starts[b], target_stops[b] = first, last
        prepare(
            sizes, columns, model, streams, lanes[b], x[start:stop], y[start:stop], room.units,
            features[start:stop], targets[first:last], base[start:stop], unit[start:stop],
            naive[first:last], truth[first:last],
        )  # fmt: skip
        if asked and sizes.task == NEXT_TOKEN and begins[b] > 0:
            score_live(sizes, model, streams.live_state[row], truth[first, 0], naive[first, 0],
                       work.output[:O], room.scored)  # fmt: skip
    if paused:
        fill(cut(targets, 0, (labels * width,)), np.nan)

    room.done[0] = room.done[1] = 0
    side_by_side = Lanes(
        rows[:B], lengths[:B], ends[:B], starts[:B], target_starts[:B], features, targets
    )
    advance(tag, sizes, model, streams, side_by_side, longest, outputs, work, room.lists,
            room.reports, room.members, room.done)  # fmt: skip
    for b in range(B):
        if not asked:  # without a forecast there is no score
            held, ring, moves = streams.forecasts, streams.changes, streams.moves
            fill(cut(held[rows[b]], 0, (held[rows[b]].size,)), np.nan)
            fill(cut(ring[rows[b]], 0, (ring[rows[b]].size,)), np.nan)
            fill(cut(moves[rows[b]], 0, (moves[rows[b]].size,)), np.nan)
            continue
        start, stop = starts[b], starts[b] + lengths[b]
        first, last = target_starts[b], target_stops[b]
        made = predictions[start:stop]
        finish(sizes, outputs[start:stop], base[start:stop], unit[start:stop], made)
        score(sizes, model, streams, rows[b], begins[b], made, unit[start:stop], naive[first:last],
              truth[first:last], room, room.scores[start:stop])  # fmt: skip
