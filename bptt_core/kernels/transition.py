"""One call of the learner, from its first step to its last report: the twin of `transition`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.kernels.addresses import array_1d, array_2d, array_3d, array_4d
from bptt_core.kernels.cells import CellTag
from bptt_core.kernels.jit import compiled, entry
from bptt_core.kernels.linear import fill
from bptt_core.kernels.network import project
from bptt_core.kernels.scaling import prepare_forecast, prepare_steps, prepare_tokens
from bptt_core.kernels.scoring import score_forecast, score_labels, score_tokens, take_class
from bptt_core.kernels.sizes import (
    BERNOULLI,
    CROSS_ENTROPY,
    FORECAST,
    NEXT_TOKEN,
    Room,
    Sizes,
    Work,
)
from bptt_core.kernels.windows import advance
from bptt_core.state import Model, SEQUENCE_STEP, Streams
from bptt_core.transition import ENDS, LENGTH, OFFSET, ROW
from bptt_core.windows import Lanes

Array = NDArray[Any]

# Where each begins in the table that `backend.Compiled` keeps, in fields: they are in their order.
MODEL = 0
STREAMS = MODEL + len(Model._fields)
WORK = STREAMS + len(Streams._fields)
ROOM = WORK + len(Work._fields)
COLUMNS = ROOM + len(Room._fields)
SIZES = COLUMNS + 1


@compiled
def sizes_at(table: Array) -> Sizes:
    """The sizes, which the table leads to as float64 numbers."""
    n = array_1d(table, SIZES, table.view(np.float64))
    return Sizes(
        int(n[0]), int(n[1]), int(n[2]), int(n[3]), int(n[4]), int(n[5]), n[6] != 0, int(n[7]),
        int(n[8]), int(n[9]), int(n[10]), int(n[11]), int(n[12]), int(n[13]), int(n[14]),
        int(n[15]), int(n[16]), int(n[17]), int(n[18]), int(n[19]), int(n[20]), n[21] != 0,
        n[22] != 0, n[23] != 0, n[24] != 0, int(n[25]), n[26] != 0, n[27], n[28], n[29],
        int(n[30]), int(n[31]),
    )  # fmt: skip


@compiled
def model_at(table: Array, like: Array) -> Model:
    """The model's arrays; `like` is any of the spec's dtype."""
    real = table.view(np.float64)
    return Model(
        array_1d(table, MODEL, like),
        array_2d(table, MODEL + 1, like),
        array_1d(table, MODEL + 2, table),
        array_1d(table, MODEL + 3, real),
        array_1d(table, MODEL + 4, real),
        array_1d(table, MODEL + 5, real),
        array_1d(table, MODEL + 6, real),
        array_1d(table, MODEL + 7, real),
        array_2d(table, MODEL + 8, real),
        array_2d(table, MODEL + 9, real),
        array_2d(table, MODEL + 10, real),
        array_1d(table, MODEL + 11, real),
        array_1d(table, MODEL + 12, real),
        array_1d(table, MODEL + 13, real),
        array_1d(table, MODEL + 14, real),
        array_2d(table, MODEL + 15, like),
        array_2d(table, MODEL + 16, real),
    )


@compiled
def streams_at(table: Array, like: Array) -> Streams:
    """The streams' arrays."""
    real = table.view(np.float64)
    return Streams(
        array_2d(table, STREAMS, table),
        array_3d(table, STREAMS + 1, like),
        array_3d(table, STREAMS + 2, like),
        array_4d(table, STREAMS + 3, like),
        array_4d(table, STREAMS + 4, like),
        array_3d(table, STREAMS + 5, real),
        array_3d(table, STREAMS + 6, real),
        array_3d(table, STREAMS + 7, real),
        array_2d(table, STREAMS + 8, real),
    )


@compiled
def work_at(table: Array, like: Array) -> Work:
    """The buffers of a window."""
    return Work(
        array_1d(table, WORK, like),
        array_1d(table, WORK + 1, like),
        array_1d(table, WORK + 2, like),
        array_1d(table, WORK + 3, like),
        array_1d(table, WORK + 4, like),
        array_1d(table, WORK + 5, like),
        array_1d(table, WORK + 6, like),
        array_1d(table, WORK + 7, like),
        array_1d(table, WORK + 8, like),
        array_1d(table, WORK + 9, like),
        array_1d(table, WORK + 10, like),
    )


@compiled
def room_at(table: Array, like: Array) -> Room:
    """The buffers of a call."""
    real = table.view(np.float64)
    return Room(
        array_1d(table, ROOM, like),
        array_1d(table, ROOM + 1, like),
        array_1d(table, ROOM + 2, like),
        array_1d(table, ROOM + 3, real),
        array_1d(table, ROOM + 4, real),
        array_1d(table, ROOM + 5, real),
        array_1d(table, ROOM + 6, real),
        array_1d(table, ROOM + 7, real),
        array_1d(table, ROOM + 8, real),
        array_2d(table, ROOM + 9, real),
        array_2d(table, ROOM + 10, table),
        array_2d(table, ROOM + 11, real),
        array_2d(table, ROOM + 12, table),
        array_1d(table, ROOM + 13, table),
    )


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
    features: Array,
    targets: Array,
    base: Array,
    unit: Array,
    naive: Array,
    truth: Array,
) -> None:
    """Steps of one stream as the network sees them; arrays as in `scaling.Prepared`, filled.

    Args:
        sizes: of the spec.
        columns: (targets,) inputs that are forecast.
        model: statistics; changed.
        streams: what is held of the last steps; changed.
        lane: (4,) as in `Steps.lanes`.
        x: (T, D) in the user's units.
        y: (T, width); (0, width) where the task has none.
        features: filled.
        targets: filled.
        base: filled, but for classes.
        unit: filled, but for classes.
        naive: filled.
        truth: filled.
    """
    row = lane[ROW]
    begin = streams.counters[row, SEQUENCE_STEP]
    if sizes.task == FORECAST:
        prepare_forecast(
            sizes, columns, model, streams.recent[row], begin, x, features, targets, base, unit,
            naive, truth,
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
    """Score a token by what the live state says, before it is read; as `scoring.score_live`.

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
    V = model.parameters[V_at : V_at + O * H].reshape(O, H)
    outputs, made = raw.reshape(1, O), odds.reshape(1, O)
    h = live[sizes.L - 1, 0].reshape(1, H)
    project(h, V, model.parameters[sizes.P - O :], True, outputs)
    finish(sizes, outputs, made, made, made)
    take_class(model, odds, wanted, naive)


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
    """What predictions (T, O) of one stream were worth; as `scoring.score`, into scores (T,)."""
    held, column, tail = streams.forecasts[row], room.ring[0], room.ring[1]
    if sizes.task == FORECAST:
        score_forecast(
            sizes, model, held, streams.surprise[row], begin, made, unit, naive, truth,
            room.scored, column, tail, scores,
        )  # fmt: skip
    elif sizes.task == NEXT_TOKEN:
        score_tokens(model, made, naive, truth)
    else:
        score_labels(
            sizes, model, held, begin, made, naive, truth, room.scored, column, tail
        )  # fmt: skip


@entry
def run(
    cell: CellTag,
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
        cell: of the spec.
        like: any array of the spec's dtype.
        table: where all else stands.
        lanes: (B, 4) as in `Steps`.
        x: (N, D).
        y: (N, width); (0, width) where the task has none.
        predictions: (N, O) filled, if it is asked for.
        asked: predictions are.
        paused: no target is learned.
    """
    sizes, model, streams = sizes_at(table), model_at(table, like), streams_at(table, like)
    work, room = work_at(table, like), room_at(table, like)
    columns = array_1d(table, COLUMNS, table)
    B, T = lanes.shape[0], 0
    for b in range(B):
        T = max(T, lanes[b, LENGTH])
    O, width, late = sizes.O, sizes.width, T + sizes.label_delay
    features = room.features[: B * T * sizes.F].reshape(B, T, sizes.F)
    targets = room.targets[: B * late * width].reshape(B, late, width)
    n = B * T if asked else 0
    outputs = room.outputs[: n * O].reshape(B if asked else 0, T, O)
    N, units = x.shape[0], 0 if sizes.loss == CROSS_ENTROPY else O
    base, unit = room.base[: N * units].reshape(N, units), room.unit[: N * units].reshape(N, units)
    n = B * late * sizes.truth_width
    naive = room.naive[:n].reshape(B, late, sizes.truth_width)
    truth = room.truth[:n].reshape(B, late, sizes.truth_width)
    rows, lengths, begins = room.lists[5], room.lists[6], room.lists[7]
    ends = room.lists[8]
    for b in range(B):
        row, start = lanes[b, ROW], lanes[b, OFFSET]
        rows[b], lengths[b], ends[b] = row, lanes[b, LENGTH], lanes[b, ENDS]
        begins[b] = streams.counters[row, SEQUENCE_STEP]
        stop = start + lengths[b]
        labelled = lengths[b] + (sizes.label_delay if ends[b] != 0 else 0)
        prepare(
            sizes, columns, model, streams, lanes[b], x[start:stop], y[start:stop],
            features[b, : lengths[b]], targets[b, :labelled], base[start:stop],
            unit[start:stop], naive[b, :labelled], truth[b, :labelled],
        )  # fmt: skip
        if asked and sizes.task == NEXT_TOKEN and begins[b] > 0:
            score_live(sizes, model, streams.live_state[row], truth[b, 0, 0], naive[b, 0, 0],
                       work.output[:O], room.scored)  # fmt: skip
        if paused:
            fill(targets[b].reshape(late * width), np.nan)

    room.done[0] = room.done[1] = 0
    side_by_side = Lanes(rows[:B], lengths[:B], ends[:B], features, targets)
    advance(cell, sizes, model, streams, side_by_side, outputs, work, room.lists, room.reports,
            room.members, room.done)  # fmt: skip
    for b in range(B):
        if not asked:  # what was not forecast is not scored
            held = streams.forecasts[rows[b]]
            fill(held.reshape(held.size), np.nan)
            continue
        start = lanes[b, OFFSET]
        stop = start + lengths[b]
        labelled = lengths[b] + (sizes.label_delay if ends[b] != 0 else 0)
        made = predictions[start:stop]
        finish(sizes, outputs[b, : lengths[b]], base[start:stop], unit[start:stop], made)
        score(sizes, model, streams, rows[b], begins[b], made, unit[start:stop],
              naive[b, :labelled], truth[b, :labelled], room, room.scores[start:stop])  # fmt: skip
