"""One update from the windows of a batch of streams: the twin of `bptt_core.windows.update`.

Numba compiles a function again for every literal argument, so counts that are passed on begin as
`whole(0)`, and truth values are `truth(0)` or `truth(1)`.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from bptt_core.kernels.dispatch import Tag
from bptt_core.kernels.jit import compiled, truth, whole
from bptt_core.kernels.learning import (
    clip,
    global_norm,
    learning_rate_at,
    losses_and_slopes,
    optimizer_step,
)
from bptt_core.kernels.linear import copy, fill, is_finite
from bptt_core.kernels.network import (
    head_forward,
    layer_states,
    network_backward,
    network_forward,
)
from bptt_core.kernels.sizes import Sizes, Work
from bptt_core.memory import TILE
from bptt_core.state import (
    APPLIED,
    CLIPPED,
    Model,
    READY,
    ROWS,
    SKIPPED,
    SKIPPED_IN_A_ROW,
    Streams,
    UPDATES,
)

Array = NDArray[Any]


@compiled
def forget(sizes: Sizes, state: Array) -> None:
    """A stream's state (L, parts, H) = 0."""
    fill(state.reshape(sizes.L * sizes.parts * sizes.H), 0.0)


@compiled
def load_states(sizes: Sizes, source: Array, rows: Array, T: int, B: int, work: Work) -> None:
    """Row 0 of all layers' states (for T steps) from streams' states (S, L, parts, H)."""
    for layer in range(sizes.L):
        states = layer_states(sizes, T, B, work, layer)
        for part in range(sizes.parts):
            for b in range(B):
                copy(source[rows[b], layer, part], states[part, 0, b])


@compiled
def store_states(
    sizes: Sizes, into: Array, rows: Array, T: int, B: int, step: int, work: Work
) -> None:
    """Store the states after `step` of T steps in the streams' rows, non-finite ones as zero."""
    for b in range(B):
        finite = True
        for layer in range(sizes.L):
            states = layer_states(sizes, T, B, work, layer)
            for part in range(sizes.parts):
                source = states[part, step, b]
                total = 0.0
                for i in range(sizes.H):
                    total += abs(float(source[i]))
                finite = finite and is_finite(total)
                copy(source, into[rows[b], layer, part])
        if not finite:
            forget(sizes, into[rows[b]])


@compiled
def count_targets(targets: Array, rows: Array, B: int, new: int) -> int:
    """Number of the `new` held steps of B streams that have a target, or a part of one."""
    count = whole(0)
    for b in range(B):
        for t in range(new):
            target, present = targets[rows[b], t], False
            for i in range(target.size):
                present = present or not math.isnan(target[i])
            count += present
    return count


@compiled
def load_inputs(
    sizes: Sizes, inputs: Array, rows: Array, first: int, T: int, B: int, work: Work
) -> None:
    """Fill `work.inputs` (T, B, F) with T held steps of B streams from step `first` on."""
    x = work.inputs[: T * B * sizes.F].reshape(T, B, sizes.F)
    for b in range(B):
        held = inputs[rows[b]]
        for t in range(T):
            copy(held[first + t], x[t, b])


@compiled
def learn_tile(
    tag: Tag,
    sizes: Sizes,
    model: Model,
    streams: Streams,
    rows: Array,
    B: int,
    T: int,
    new: int,
    count: int,
    work: Work,
    report: Array,
) -> None:
    """Unfold the windows of up to TILE streams, and store their states.

    With a count of targets above 0, adds their losses to the report and their gradient to
    `work.gradient`.
    """
    load_inputs(sizes, streams.inputs, rows, T - T, T, B, work)
    load_states(sizes, streams.start_state, rows, T, B, work)
    network_forward(tag, sizes, model.parameters, T, B, truth(0), work)
    next_start = max(0, T + sizes.k1 - sizes.k2)
    store_states(sizes, streams.start_state, rows, T, B, next_start, work)
    store_states(sizes, streams.live_state, rows, T, B, T, work)
    if count == 0:
        return
    y = work.target[: new * B * sizes.width].reshape(new, B, sizes.width)
    for b in range(B):
        for t in range(new):
            copy(streams.targets[rows[b], t], y[t, b])
    n = new * B
    output = head_forward(sizes, model.parameters, T, B, T - new, truth(0), work)
    loss, baseline = losses_and_slopes(
        sizes, output.reshape(n, sizes.O), y.reshape(n, sizes.width), count
    )
    report[3] += loss
    report[4] += baseline
    network_backward(tag, sizes, model.parameters, T, B, T - new, output, work)


@compiled
def take_step(
    tag: Tag, sizes: Sizes, model: Model, B: int, new: int, work: Work, report: Array
) -> None:
    """Clip the gradient of all tiles, make the optimizer step, and complete the report."""
    loss, baseline = report[3], report[4]
    model.counters[UPDATES] += 1
    norm = clipped_norm = global_norm(work.gradient)
    skipped = not (is_finite(loss) and is_finite(norm))
    if skipped:
        model.counters[SKIPPED] += 1
        model.counters[SKIPPED_IN_A_ROW] += 1
    else:
        model.counters[SKIPPED_IN_A_ROW] = 0
        model.counters[APPLIED] += 1
        clipped_norm, factor = clip(sizes, work.gradient, norm)
        if clipped_norm < norm:
            model.counters[CLIPPED] += 1
        update = model.counters[APPLIED]
        rate = learning_rate_at(
            update,
            model.rates[0],
            sizes.final_learning_rate,
            sizes.warmup_updates,
            sizes.decay_updates,
        )
        optimizer_step(
            tag, sizes, model.parameters, work.gradient, factor, model.moments, update, rate
        )
        model.last[0], model.last[1] = loss, baseline
        model.last[2], model.last[3] = norm, clipped_norm
    report[0], report[1], report[2] = model.counters[UPDATES], new, B
    report[5], report[6], report[7] = norm, clipped_norm, 1.0 if skipped else 0.0


@compiled
def read_pending(
    tag: Tag,
    sizes: Sizes,
    model: Model,
    streams: Streams,
    rows: Array,
    B: int,
    first: int,
    pending: int,
    work: Work,
) -> None:
    """Read the steps after the window again, with the new parameters, for the live states."""
    load_inputs(sizes, streams.inputs, rows, first, pending, B, work)
    load_states(sizes, streams.live_state, rows, pending, B, work)
    network_forward(tag, sizes, model.parameters, pending, B, truth(0), work)
    store_states(sizes, streams.live_state, rows, pending, B, pending, work)


@compiled
def update(
    tag: Tag,
    sizes: Sizes,
    model: Model,
    streams: Streams,
    rows: Array,
    B: int,
    pending: int,
    work: Work,
    report: Array,
) -> bool:
    """One update from windows of B streams, all of one length.

    Returns False, and learns nothing, without a target or after the model has diverged.
    """
    held, new = streams.counters[rows[0], ROWS], streams.counters[rows[0], READY]
    T = held - pending
    count = whole(0)
    if model.counters[SKIPPED_IN_A_ROW] < sizes.divergence_patience:
        count = count_targets(streams.targets, rows, B, new)
    report[3] = report[4] = 0.0
    fill(work.gradient, 0.0)
    for first in range(0, B, TILE):
        n = min(TILE, B - first)
        learn_tile(
            tag, sizes, model, streams, rows[first : first + n], n, T, new, count, work, report
        )
    if count > 0:
        take_step(tag, sizes, model, B, new, work, report)
    if pending > 0:
        for first in range(0, B, TILE):
            n = min(TILE, B - first)
            read_pending(tag, sizes, model, streams, rows[first : first + n], n, T, pending, work)
    next_start = max(0, T + sizes.k1 - sizes.k2)
    for b in range(B):
        row = streams.inputs[rows[b]]
        for t in range(next_start, held):
            copy(row[t], row[t - next_start])
        streams.counters[rows[b], ROWS] = held - next_start
        streams.counters[rows[b], READY] = 0
    return count > 0


@compiled
def update_groups(
    tag: Tag,
    sizes: Sizes,
    model: Model,
    streams: Streams,
    rows: Array,
    full: Array,
    n: int,
    pending: int,
    work: Work,
    group: Array,
    group_rows: Array,
    reports: Array,
    members: Array,
    done: Array,
) -> None:
    """One update for each group of alike windows among the first n lanes of `full`."""
    while n > 0:
        first = rows[full[0]]
        held, new = streams.counters[first, ROWS], streams.counters[first, READY]
        B = rest = whole(0)
        for k in range(n):
            lane = full[k]
            row = rows[lane]
            alike = streams.counters[row, ROWS] == held and streams.counters[row, READY] == new
            if alike and sizes.max_batch > B:
                group[B] = lane
                group_rows[B] = row
                B += 1
            else:
                full[rest] = lane
                rest += 1
        n = rest
        if update(tag, sizes, model, streams, group_rows, B, pending, work, reports[done[0]]):
            for b in range(B):
                members[done[1], 0] = done[0]
                members[done[1], 1] = group[b]
                done[1] += 1
            done[0] += 1
