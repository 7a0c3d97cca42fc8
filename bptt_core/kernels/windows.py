"""Windows and updates over streams: the twin of `bptt_core.windows`, one call a tick.

Numba compiles a function once more for every literal number it is called with, so counts that are
handed on begin as `whole(0)`.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from bptt_core.kernels.cells import CellTag
from bptt_core.kernels.jit import compiled, entry, whole
from bptt_core.kernels.learning import (
    clip,
    global_norm,
    learning_rate_at,
    losses_and_slopes,
    optimizer_step,
)
from bptt_core.kernels.linear import BLAS_ROWS, copy, fill, is_finite
from bptt_core.kernels.network import (
    head_forward,
    layer_states,
    network_backward,
    network_forward,
)
from bptt_core.kernels.sizes import Sizes, Work
from bptt_core.state import (
    APPLIED,
    CLIPPED,
    Model,
    NEXT_STEP,
    READY,
    ROWS,
    SEQUENCE_STEP,
    SKIPPED,
    SKIPPED_IN_A_ROW,
    STEPS,
    Streams,
    UPDATES,
)
from bptt_core.windows import Lanes

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
    """States after `step` of T steps, into streams' states; what is not finite becomes zero."""
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
def read_steps(
    cell: CellTag,
    sizes: Sizes,
    parameters: Array,
    live_state: Array,
    rows: Array,
    lanes: Array,
    B: int,
    t: int,
    steps: int,
    features: Array,
    outputs: Array,
    work: Work,
) -> None:
    """Read `steps` steps from t on with every stream's live state, without learning."""
    x = work.inputs[: steps * B * sizes.F].reshape(steps, B, sizes.F)
    for i in range(steps):
        for b in range(B):
            copy(features[lanes[b], t + i], x[i, b])
    load_states(sizes, live_state, rows, steps, B, work)
    by_row = B < BLAS_ROWS
    network_forward(cell, sizes, parameters, steps, B, by_row, work)
    output = head_forward(sizes, parameters, steps, B, steps - steps, by_row, work)
    for i in range(steps):
        for b in range(B):
            copy(output[i, b], outputs[lanes[b], t + i])
    for layer in range(sizes.L):
        states = layer_states(sizes, steps, B, work, layer)
        for part in range(sizes.parts):
            for b in range(B):
                copy(states[part, steps, b], live_state[rows[b], layer, part])


@compiled
def learn(
    cell: CellTag,
    sizes: Sizes,
    model: Model,
    T: int,
    B: int,
    new: int,
    work: Work,
    report: Array,
) -> bool:
    """Loss, gradient, clip and optimizer step of an unfolded window.

    False without a target, and of a model that has diverged: nothing is learned then.
    """
    if model.counters[SKIPPED_IN_A_ROW] >= sizes.divergence_patience:
        return False
    rows = new * B
    output = head_forward(sizes, model.parameters, T, B, T - new, False, work)
    target = work.target[: rows * sizes.width].reshape(rows, sizes.width)
    loss, baseline, count = losses_and_slopes(sizes, output.reshape(rows, sizes.O), target)
    if count == 0:
        return False
    network_backward(cell, sizes, model.parameters, T, B, T - new, output, work)
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
        optimizer_step(sizes, model.parameters, work.gradient, factor, model.moments, update, rate)
        model.last[0], model.last[1] = loss, baseline
        model.last[2], model.last[3] = norm, clipped_norm
    report[0], report[1], report[2] = model.counters[UPDATES], new, B
    report[3], report[4], report[5] = loss, baseline, norm
    report[6], report[7] = clipped_norm, 1.0 if skipped else 0.0
    return True


@compiled
def update(
    cell: CellTag,
    sizes: Sizes,
    model: Model,
    streams: Streams,
    rows: Array,
    B: int,
    pending: int,
    work: Work,
    report: Array,
) -> bool:
    """One update from windows of B streams, all of one length; False where there is no target."""
    held, new = streams.counters[rows[0], ROWS], streams.counters[rows[0], READY]
    T = held - pending
    x = work.inputs[: T * B * sizes.F].reshape(T, B, sizes.F)
    y = work.target[: new * B * sizes.width].reshape(new, B, sizes.width)
    for b in range(B):
        for t in range(T):
            copy(streams.inputs[rows[b], t], x[t, b])
        for t in range(new):
            copy(streams.targets[rows[b], t], y[t, b])
    load_states(sizes, streams.start_state, rows, T, B, work)
    network_forward(cell, sizes, model.parameters, T, B, False, work)

    next_start = max(0, T + sizes.k1 - sizes.k2)
    store_states(sizes, streams.start_state, rows, T, B, next_start, work)
    store_states(sizes, streams.live_state, rows, T, B, T, work)
    learned = learn(cell, sizes, model, T, B, new, work, report)
    if pending > 0:
        late = work.inputs[: pending * B * sizes.F].reshape(pending, B, sizes.F)
        for b in range(B):
            for t in range(pending):
                copy(streams.inputs[rows[b], T + t], late[t, b])
        load_states(sizes, streams.live_state, rows, pending, B, work)
        network_forward(cell, sizes, model.parameters, pending, B, False, work)
        store_states(sizes, streams.live_state, rows, pending, B, pending, work)
    for b in range(B):
        row = streams.inputs[rows[b]]
        for t in range(next_start, held):
            copy(row[t], row[t - next_start])
        streams.counters[rows[b], ROWS] = held - next_start
        streams.counters[rows[b], READY] = 0
    return learned


@compiled
def update_groups(
    cell: CellTag,
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
        if update(cell, sizes, model, streams, group_rows, B, pending, work, reports[done[0]]):
            for b in range(B):
                members[done[1], 0] = done[0]
                members[done[1], 1] = group[b]
                done[1] += 1
            done[0] += 1


@compiled
def push_targets(
    sizes: Sizes,
    counters: Array,
    held: Array,
    targets: Array,
    active: Array,
    rows: Array,
    n: int,
    t: int,
    full: Array,
) -> int:
    """Hold the late targets that are complete at t; how many lanes are full, listed in `full`."""
    ready = whole(0)
    for k in range(n):
        row = rows[k]
        if counters[row, SEQUENCE_STEP] >= sizes.delay:
            at = counters[row, READY]
            copy(targets[active[k], t], held[row, at])
            counters[row, READY] = at + 1
            if at + 1 == sizes.k1:
                full[ready] = active[k]
                ready += 1
    return ready


@compiled
def steps_until_full(sizes: Sizes, counters: Array, rows: Array, n: int) -> int:
    """Steps that can be read before the next update of any lane, at least 1."""
    steps = sizes.k1 + sizes.delay
    for k in range(n):
        row = rows[k]
        until = sizes.k1 - counters[row, READY]
        if sizes.delay > 0:  # this step's own late target is held already
            until += max(1, sizes.delay - counters[row, SEQUENCE_STEP]) - 1
        steps = min(steps, until)
    return steps


@compiled
def push_steps(
    sizes: Sizes,
    counters: Array,
    held_inputs: Array,
    held_targets: Array,
    features: Array,
    targets: Array,
    active: Array,
    rows: Array,
    n: int,
    t: int,
    steps: int,
    full: Array,
) -> int:
    """Hold steps from t on, and the targets they bring, but for a late one of step t itself."""
    ready = whole(0)
    late = sizes.delay > 0
    for k in range(n):
        row, lane = rows[k], active[k]
        at, held = counters[row, READY], counters[row, ROWS]
        sequence = counters[row, SEQUENCE_STEP]
        for i in range(steps):
            if not late or (i > 0 and sequence + i >= sizes.delay):
                copy(targets[lane, t + i], held_targets[row, at])
                at += 1
            copy(features[lane, t + i], held_inputs[row, held + i])
        counters[row, READY] = at
        counters[row, ROWS] = held + steps
        counters[row, NEXT_STEP] += steps
        counters[row, SEQUENCE_STEP] = sequence + steps
        if not late and at == sizes.k1:
            full[ready] = lane
            ready += 1
    return ready


@compiled
def end_sequences(
    cell: CellTag,
    sizes: Sizes,
    model: Model,
    streams: Streams,
    lanes: Lanes,
    work: Work,
    ending: Array,
    n: int,
    full: Array,
    group: Array,
    group_rows: Array,
    reports: Array,
    members: Array,
    done: Array,
) -> None:
    """Learn what is left of the first n lanes of `ending`, and reset their streams."""
    late, counters = sizes.label_delay, streams.counters
    for i in range(late):  # labels of the last steps, as far as they came
        ready = whole(0)
        for k in range(n):
            lane = ending[k]
            row = lanes.rows[lane]
            if counters[row, SEQUENCE_STEP] + i >= late:
                at = counters[row, READY]
                copy(lanes.targets[lane, lanes.lengths[lane] + i], streams.targets[row, at])
                counters[row, READY] = at + 1
                if at + 1 == sizes.k1:
                    full[ready] = lane
                    ready += 1
        if ready > 0:
            update_groups(
                cell, sizes, model, streams, lanes.rows, full, ready, late - 1 - i, work,
                group, group_rows, reports, members, done,
            )  # fmt: skip
    rest = whole(0)
    for k in range(n):
        if counters[lanes.rows[ending[k]], READY] > 0:
            full[rest] = ending[k]
            rest += 1
    if rest > 0:
        update_groups(
            cell, sizes, model, streams, lanes.rows, full, rest, sizes.delay - late, work,
            group, group_rows, reports, members, done,
        )  # fmt: skip
    for k in range(n):
        row = lanes.rows[ending[k]]
        counters[row, SEQUENCE_STEP] = 0
        counters[row, ROWS] = 0
        counters[row, READY] = 0
        forget(sizes, streams.start_state[row])
        forget(sizes, streams.live_state[row])


@compiled
def advance(
    cell: CellTag,
    sizes: Sizes,
    model: Model,
    streams: Streams,
    lanes: Lanes,
    outputs: Array,
    work: Work,
    lists: Array,
    reports: Array,
    members: Array,
    done: Array,
) -> None:
    """Run lanes of prepared steps through the model; as `bptt_core.windows.advance`.

    Args:
        cell: of the spec.
        sizes: of the spec.
        model: changed.
        streams: changed.
        lanes: the steps.
        outputs: (B, T, O), filled; (0, 0, O) where nobody asks.
        work: of the spec.
        lists: (5, B) int64 scratch, or wider.
        reports: (n, REPORT_COLUMNS), filled from the first row on.
        members: (m, 2), filled from the first row on.
        done: (2,) int64 zeros: how many rows of both were filled.
    """
    B, T = lanes.features.shape[:2]
    active, active_rows, full = lists[0], lists[1], lists[2]
    group, group_rows = lists[3], lists[4]
    late = sizes.delay > 0
    pending = max(0, sizes.delay - 1)
    t = n = whole(0)
    for b in range(B):  # a sequence may end with late labels and no step more
        if lanes.ends[b] != 0 and lanes.lengths[b] == 0:
            active[n] = b
            n += 1
    if n > 0:
        end_sequences(
            cell, sizes, model, streams, lanes, work, active, n, full,
            group, group_rows, reports, members, done,
        )  # fmt: skip
    while t < T:
        n = whole(0)
        for b in range(B):
            if lanes.lengths[b] > t:
                active[n] = b
                active_rows[n] = lanes.rows[b]
                n += 1
        if late:  # a late target is there before its step's successor is read
            ready = push_targets(sizes, streams.counters, streams.targets, lanes.targets, active,
                                 active_rows, n, t, full)  # fmt: skip
            if ready > 0:
                update_groups(
                    cell, sizes, model, streams, lanes.rows, full, ready, pending, work,
                    group, group_rows, reports, members, done,
                )  # fmt: skip
        steps = steps_until_full(sizes, streams.counters, active_rows, n)
        for k in range(n):
            steps = min(steps, lanes.lengths[active[k]] - t)
        ready = push_steps(sizes, streams.counters, streams.inputs, streams.targets, lanes.features,
                           lanes.targets, active, active_rows, n, t, steps, full)  # fmt: skip
        if outputs.shape[0] > 0:
            read_steps(
                cell, sizes, model.parameters, streams.live_state, active_rows, active, n, t,
                steps, lanes.features, outputs, work,
            )  # fmt: skip
        model.counters[STEPS] += n * steps
        t += steps
        if ready > 0:
            update_groups(
                cell, sizes, model, streams, lanes.rows, full, ready, pending, work,
                group, group_rows, reports, members, done,
            )  # fmt: skip
        ending = whole(0)
        for k in range(n):
            lane = active[k]
            if lanes.ends[lane] != 0 and lanes.lengths[lane] == t:
                active[ending] = lane
                ending += 1
        if ending > 0:
            end_sequences(
                cell, sizes, model, streams, lanes, work, active, ending, full,
                group, group_rows, reports, members, done,
            )  # fmt: skip


@entry
def forward_stream(
    cell: CellTag,
    sizes: Sizes,
    parameters: Array,
    features: Array,
    state: Array,
    work: Work,
) -> Array:
    """Outputs (T, O) of one stream's features (T, F) from a state (L, parts, H)."""
    T = features.shape[0]
    B = whole(1)
    copy(features.reshape(features.size), work.inputs)
    for layer in range(sizes.L):
        states = layer_states(sizes, T, B, work, layer)
        for part in range(sizes.parts):
            copy(state[layer, part], states[part, 0, 0])
    network_forward(cell, sizes, parameters, T, B, True, work)
    return head_forward(sizes, parameters, T, B, T - T, True, work).reshape(T, sizes.O)
