"""Fills windows of streams and updates when they are full: the twin of `bptt_core.windows`."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from bptt_core.kernels.dispatch import Tag
from bptt_core.kernels.jit import compiled, entry, inlined, truth, whole
from bptt_core.kernels.linear import BLAS_ROWS, copy
from bptt_core.kernels.network import head_forward, layer_states, network_forward
from bptt_core.kernels.sizes import (
    ACTIVE,
    ACTIVE_ROWS,
    ACTIVE_STARTS,
    FULL,
    GROUP,
    GROUP_ROWS,
    Sizes,
    Work,
)
from bptt_core.kernels.updates import forget, load_states, update_groups
from bptt_core.memory import TILE
from bptt_core.state import Model, NEXT_STEP, READY, ROWS, SEQUENCE_STEP, STEPS, Streams
from bptt_core.windows import Lanes

Array = NDArray[Any]


@compiled
def read_steps(
    tag: Tag,
    sizes: Sizes,
    parameters: Array,
    live_state: Array,
    rows: Array,
    starts: Array,
    B: int,
    t: int,
    steps: int,
    features: Array,
    outputs: Array,
    work: Work,
) -> None:
    """Read `steps` steps from t on with the live states of B streams, without learning.

    Features (N, F) and outputs (N, O) of a stream begin at its row of `starts` (B,).
    """
    x = work.inputs[: steps * B * sizes.F].reshape(steps, B, sizes.F)
    for i in range(steps):
        for b in range(B):
            copy(features[starts[b] + t + i], x[i, b])
    load_states(sizes, live_state, rows, steps, B, work)
    by_row = B < BLAS_ROWS
    network_forward(tag, sizes, parameters, steps, B, by_row, work)
    output = head_forward(sizes, parameters, steps, B, steps - steps, by_row, work)
    for i in range(steps):
        for b in range(B):
            copy(output[i, b], outputs[starts[b] + t + i])
    for layer in range(sizes.L):
        states = layer_states(sizes, steps, B, work, layer)
        for part in range(sizes.parts):
            for b in range(B):
                copy(states[part, steps, b], live_state[rows[b], layer, part])


@compiled
def push_targets(
    sizes: Sizes,
    counters: Array,
    held: Array,
    lanes: Lanes,
    active: Array,
    rows: Array,
    n: int,
    t: int,
    full: Array,
) -> int:
    """Store the late targets that step t completes; return how many lanes `full` lists."""
    ready = whole(0)
    for k in range(n):
        row = rows[k]
        if counters[row, SEQUENCE_STEP] >= sizes.delay:
            at = counters[row, READY]
            copy(lanes.targets[lanes.target_starts[active[k]] + t], held[row, at])
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
        if sizes.delay > 0:  # this step's own late target is stored already
            until += max(1, sizes.delay - counters[row, SEQUENCE_STEP]) - 1
        steps = min(steps, until)
    return steps


@compiled
def push_steps(
    sizes: Sizes,
    counters: Array,
    held_inputs: Array,
    held_targets: Array,
    lanes: Lanes,
    active: Array,
    rows: Array,
    n: int,
    t: int,
    steps: int,
    full: Array,
) -> int:
    """Store steps from t on and their targets, except a late target of step t itself."""
    ready = whole(0)
    late = sizes.delay > 0
    for k in range(n):
        row, lane = rows[k], active[k]
        start, target_start = lanes.starts[lane] + t, lanes.target_starts[lane] + t
        at, held = counters[row, READY], counters[row, ROWS]
        sequence = counters[row, SEQUENCE_STEP]
        for i in range(steps):
            if not late or (i > 0 and sequence + i >= sizes.delay):
                copy(lanes.targets[target_start + i], held_targets[row, at])
                at += 1
            copy(lanes.features[start + i], held_inputs[row, held + i])
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
    tag: Tag,
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
    """Learn the unfinished windows of the first n lanes of `ending`, and reset their streams."""
    late, counters = sizes.label_delay, streams.counters
    for i in range(late):  # labels of the last steps, as far as they are known
        ready = whole(0)
        for k in range(n):
            lane = ending[k]
            row = lanes.rows[lane]
            if counters[row, SEQUENCE_STEP] + i >= late:
                at = counters[row, READY]
                label = lanes.target_starts[lane] + lanes.lengths[lane] + i
                copy(lanes.targets[label], streams.targets[row, at])
                counters[row, READY] = at + 1
                if at + 1 == sizes.k1:
                    full[ready] = lane
                    ready += 1
        if ready > 0:
            update_groups(
                tag, sizes, model, streams, lanes.rows, full, ready, late - 1 - i, work,
                group, group_rows, reports, members, done,
            )  # fmt: skip
    rest = whole(0)
    for k in range(n):
        if counters[lanes.rows[ending[k]], READY] > 0:
            full[rest] = ending[k]
            rest += 1
    if rest > 0:
        update_groups(
            tag, sizes, model, streams, lanes.rows, full, rest, sizes.delay - late, work,
            group, group_rows, reports, members, done,
        )  # fmt: skip
    for k in range(n):
        row = lanes.rows[ending[k]]
        counters[row, SEQUENCE_STEP] = 0
        counters[row, ROWS] = 0
        counters[row, READY] = 0
        forget(sizes, streams.start_state[row])
        forget(sizes, streams.live_state[row])


@inlined
def list_active(
    all_rows: Array, all_starts: Array, lengths: Array, t: int, active: Array, rows: Array,
    starts: Array,
) -> int:  # fmt: skip
    """List the lanes that have a step t, with their rows and starts; return their number."""
    n = whole(0)
    for b in range(lengths.size):
        if lengths[b] > t:
            active[n], rows[n], starts[n] = b, all_rows[b], all_starts[b]
            n += 1
    return n


@inlined
def list_ending(lengths: Array, ends: Array, t: int, active: Array, n: int) -> int:
    """Keep those of the first n lanes of `active` whose sequence ends after t steps."""
    ending = whole(0)
    for k in range(n):
        lane = active[k]
        if ends[lane] != 0 and lengths[lane] == t:
            active[ending] = lane
            ending += 1
    return ending


@compiled
def advance(
    tag: Tag,
    sizes: Sizes,
    model: Model,
    streams: Streams,
    lanes: Lanes,
    longest: int,
    outputs: Array,
    work: Work,
    lists: Array,
    reports: Array,
    members: Array,
    done: Array,
) -> None:
    """Run lanes of prepared steps through the model; as `bptt_core.windows.advance`.

    Args:
        tag: selects the kernels of the spec's cell and optimizer.
        sizes: of the spec.
        model: changed.
        streams: changed.
        lanes: the steps.
        longest: steps of the longest lane.
        outputs: (N, O), filled; (0, O): not wanted.
        work: of the spec.
        lists: (LISTS, B) int64; the first rows are scratch.
        reports: (n, REPORT_COLUMNS), filled from the first row on.
        members: (m, 2), filled from the first row on.
        done: (2,) int64 zeros; becomes the number of rows filled in both.
    """
    active, rows, starts = lists[ACTIVE], lists[ACTIVE_ROWS], lists[ACTIVE_STARTS]
    full, group, group_rows = lists[FULL], lists[GROUP], lists[GROUP_ROWS]
    late, pending = sizes.delay > 0, max(0, sizes.delay - 1)
    t = n = whole(0)
    for b in range(lanes.lengths.size):
        active[b] = b
        n += 1
    n = list_ending(lanes.lengths, lanes.ends, t, active, n)  # with late labels and no step more
    if n > 0:
        end_sequences(
            tag, sizes, model, streams, lanes, work, active, n, full,
            group, group_rows, reports, members, done,
        )  # fmt: skip
    while t < longest:
        n = list_active(lanes.rows, lanes.starts, lanes.lengths, t, active, rows, starts)
        if late:  # a late target is known before the next step is read
            ready = push_targets(
                sizes, streams.counters, streams.targets, lanes, active, rows, n, t, full
            )
            if ready > 0:
                update_groups(
                    tag, sizes, model, streams, lanes.rows, full, ready, pending, work,
                    group, group_rows, reports, members, done,
                )  # fmt: skip
        steps = steps_until_full(sizes, streams.counters, rows, n)
        for k in range(n):
            steps = min(steps, lanes.lengths[active[k]] - t)
        ready = push_steps(sizes, streams.counters, streams.inputs, streams.targets, lanes, active,
                           rows, n, t, steps, full)  # fmt: skip
        if outputs.shape[0] > 0:
            for first in range(0, n, TILE):
                stop = min(n, first + TILE)
                read_steps(
                    tag, sizes, model.parameters, streams.live_state, rows[first:stop],
                    starts[first:stop], stop - first, t, steps, lanes.features, outputs, work,
                )  # fmt: skip
        model.counters[STEPS] += n * steps
        t += steps
        if ready > 0:
            update_groups(
                tag, sizes, model, streams, lanes.rows, full, ready, pending, work,
                group, group_rows, reports, members, done,
            )  # fmt: skip
        n = list_ending(lanes.lengths, lanes.ends, t, active, n)
        if n > 0:
            end_sequences(
                tag, sizes, model, streams, lanes, work, active, n, full,
                group, group_rows, reports, members, done,
            )  # fmt: skip


@entry
def forward_stream(
    tag: Tag,
    sizes: Sizes,
    parameters: Array,
    features: Array,
    state: Array,
    work: Work,
    outputs: Array,
) -> None:
    """Fill outputs (T, O) of one stream's features (T, F) from a state (L, parts, H).

    Replaces the state by the one after the last step. How the steps are divided among calls changes
    no bit.
    """
    T = features.shape[0]
    B = whole(1)
    copy(features.reshape(features.size), work.inputs[: features.size])
    for layer in range(sizes.L):
        states = layer_states(sizes, T, B, work, layer)
        for part in range(sizes.parts):
            copy(state[layer, part], states[part, 0, 0])
    network_forward(tag, sizes, parameters, T, B, truth(1), work)
    made = head_forward(sizes, parameters, T, B, T - T, truth(1), work)
    copy(made.reshape(outputs.size), outputs.reshape(outputs.size))
    for layer in range(sizes.L):
        states = layer_states(sizes, T, B, work, layer)
        for part in range(sizes.parts):
            copy(states[part, T, 0], state[layer, part])
