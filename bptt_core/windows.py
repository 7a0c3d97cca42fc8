"""Truncated BPTT(k1, k2) over streams: fills windows and applies updates; the reference.

Every k1 new steps with complete targets, a window of the last k2 steps (fewer at the start of a
sequence) is recomputed with today's parameters from the state stored before its first step. The
loss counts its new steps only; the gradient reaches back through all. The states inside the window
are stored anew, and the state after its last step is carried on across the update.

A forecast's targets are complete `delay` steps late, so its windows end before the newest step; the
steps after the window are then run again from the window's last state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core import clipping, losses, network, optimizers, params
from bptt_core.specs import ModelSpec
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

Array = NDArray[Any]

REPORT_COLUMNS = 8
"""Of a report row: update, steps, streams, loss, baseline loss, norm, clipped norm, skipped."""


class Advanced(NamedTuple):
    """Results of `advance`."""

    reports: Array
    """(updates, REPORT_COLUMNS) float64."""
    members: Array
    """(n, 2) int64: pairs (report, lane), in order: the lanes that took part in each update."""
    scores: Array = np.empty(0)
    """(N,) float64: anomaly scores of all steps of a forecast with predictions, else empty."""


class Lanes(NamedTuple):
    """Chunks of B streams, run side by side. N steps in total, stream after stream."""

    rows: Array
    """(B,) int64 rows of the streams, all different."""
    lengths: Array
    """(B,) int64 steps of each lane."""
    ends: Array
    """(B,) not 0 where the sequence ends with this chunk."""
    starts: Array
    """(B,) int64: first row of each lane in `features`."""
    target_starts: Array
    """(B,) int64: first row of each lane in `targets`."""
    features: Array
    """(N, F) features of the steps."""
    targets: Array
    """(N + B label_delay, target_width): the targets of a lane's steps, then those of its last
    label_delay steps if its sequence ends."""


class Log:
    """Collects reports, and the lanes that took part in each."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, ...]] = []
        self.members: list[tuple[int, int]] = []

    def result(self) -> Advanced:
        """The log as arrays."""
        reports = np.array(self.reports, np.float64).reshape(-1, REPORT_COLUMNS)
        return Advanced(reports, np.array(self.members, np.int64).reshape(-1, 2))


def advance(
    spec: ModelSpec, model: Model, streams: Streams, lanes: Lanes, outputs: Array | None
) -> Advanced:
    """Run lanes of prepared steps through the model, updating it whenever windows are full.

    Args:
        spec: the model's.
        model: changed.
        streams: changed.
        lanes: the steps.
        outputs: (N, O), filled with the raw output of every step before it is learned. None:
            outputs are not computed.
    """
    log = Log()
    late = spec.delay > 0
    _finish(spec, model, streams, lanes, np.flatnonzero(lanes.lengths == 0), log)
    for t in range(int(lanes.lengths.max())):
        active = np.flatnonzero(lanes.lengths > t)
        rows, steps = lanes.rows[active], lanes.starts[active] + t
        features, targets = lanes.features[steps], lanes.targets[lanes.target_starts[active] + t]
        if late:
            complete = streams.counters[rows, SEQUENCE_STEP] >= spec.delay
            _push_targets(streams, rows[complete], targets[complete])
            _update_full(spec, model, streams, lanes.rows, active, log)
        _push_inputs(streams, rows, features)
        if outputs is not None:
            outputs[steps] = _live_step(spec, model, streams, rows, features)
        streams.counters[rows, NEXT_STEP] += 1
        streams.counters[rows, SEQUENCE_STEP] += 1
        model.counters[STEPS] += active.size
        if not late:
            _push_targets(streams, rows, targets)
            _update_full(spec, model, streams, lanes.rows, active, log)
        _finish(spec, model, streams, lanes, active[lanes.lengths[active] == t + 1], log)
    return log.result()


def _push_targets(streams: Streams, rows: Array, targets: Array) -> None:
    streams.targets[rows, streams.counters[rows, READY]] = targets
    streams.counters[rows, READY] += 1


def _push_inputs(streams: Streams, rows: Array, features: Array) -> None:
    streams.inputs[rows, streams.counters[rows, ROWS]] = features
    streams.counters[rows, ROWS] += 1


def _live_step(
    spec: ModelSpec, model: Model, streams: Streams, rows: Array, features: Array
) -> Array:
    """Read one step on every stream's live state, without learning; raw outputs (B, O)."""
    named = params.views(spec, model.parameters)
    state = np.moveaxis(streams.live_state[rows], 0, 2)
    tape = network.forward(spec, named, features[np.newaxis], state)
    streams.live_state[rows] = np.moveaxis(tape.state_after(1), 2, 0)
    return np.asarray(tape.output[0])


def _update_full(
    spec: ModelSpec, model: Model, streams: Streams, rows: Array, active: Array, log: Log
) -> None:
    full = active[streams.counters[rows[active], READY] == spec.k1]
    _update_groups(spec, model, streams, rows, full, max(0, spec.delay - 1), log)


def _update_groups(
    spec: ModelSpec,
    model: Model,
    streams: Streams,
    rows: Array,
    full: Array,
    pending: int,
    log: Log,
) -> None:
    """One update for each group of windows of one length, at most max_batch_streams at once."""
    while full.size:
        counters = streams.counters[rows[full]]
        alike = (counters[:, (ROWS, READY)] == counters[0, (ROWS, READY)]).all(axis=1)
        group = full[alike][: spec.max_batch_streams]
        update(spec, model, streams, rows[group], group, pending, log)
        full = full[~np.isin(full, group)]


def _finish(
    spec: ModelSpec, model: Model, streams: Streams, lanes: Lanes, done: Array, log: Log
) -> None:
    """Learn the unfinished windows of sequences that end, and reset their streams."""
    ending = done[lanes.ends[done] != 0]
    rows = lanes.rows[ending]
    for i in range(spec.label_delay):  # the known labels of the last steps
        complete = streams.counters[rows, SEQUENCE_STEP] + i >= spec.label_delay
        mine = ending[complete]
        labels = lanes.targets[lanes.target_starts[mine] + lanes.lengths[mine] + i]
        _push_targets(streams, rows[complete], labels)
        full = mine[streams.counters[rows[complete], READY] == spec.k1]
        _update_groups(spec, model, streams, lanes.rows, full, spec.label_delay - 1 - i, log)
    rest = ending[streams.counters[rows, READY] > 0]
    pending = spec.delay - spec.label_delay
    _update_groups(spec, model, streams, lanes.rows, rest, pending, log)
    streams.counters[rows, SEQUENCE_STEP:] = 0
    streams.start_state[rows] = 0
    streams.live_state[rows] = 0


def update(
    spec: ModelSpec,
    model: Model,
    streams: Streams,
    rows: Array,
    members: Array,
    pending: int,
    log: Log,
) -> None:
    """One update from the windows of one or more streams, all of one length.

    Args:
        spec: the model's.
        model: changed, unless the loss or the gradient is not finite.
        streams: changed.
        rows: (B,) the streams.
        members: (B,) their lanes, for the log.
        pending: number of newest steps whose targets are not known yet; the windows end before
            them.
        log: takes the report.
    """
    held, new = (int(n) for n in streams.counters[rows[0], (ROWS, READY)])
    length = held - pending
    named = params.views(spec, model.parameters)
    x = np.moveaxis(streams.inputs[rows, :held], 0, 1)
    target = np.moveaxis(streams.targets[rows, :new], 0, 1)
    start = np.moveaxis(streams.start_state[rows], 0, 2)
    tape = network.forward(spec, named, x[:length], start)

    next_start = max(0, length + spec.k1 - spec.k2)
    streams.start_state[rows] = _finite(tape.state_after(next_start))
    streams.inputs[rows, : held - next_start] = np.moveaxis(x[next_start:], 0, 1)
    streams.counters[rows, ROWS] = held - next_start
    streams.counters[rows, READY] = 0

    if losses.target_count(target) and not diverged(spec, model):
        log.members.extend((len(log.reports), int(lane)) for lane in members)
        log.reports.append(_learn(spec, model, named, tape, target))
    live = tape.state_after(length)
    if pending:
        live = network.forward(spec, named, x[length:], live).state_after(pending)
    streams.live_state[rows] = _finite(live)


def _finite(state: Array) -> Array:
    """A carried state (L, parts, B, H) as (B, L, parts, H); non-finite ones become zero."""
    broken = ~np.isfinite(state).all(axis=(0, 1, 3))
    state[:, :, broken] = 0
    return np.moveaxis(state, 2, 0)


def _learn(
    spec: ModelSpec, model: Model, named: params.Views, tape: network.NetworkTape, target: Array
) -> tuple[float, ...]:
    """Loss, gradient, clip and optimizer step; the report's row."""
    assert spec.loss is not None
    assert spec.weight_decay is not None
    new, streams = target.shape[:2]
    output = tape.output[len(tape.output) - new :]
    factor = 1.0 if spec.reduction == "sum" else 1.0 / losses.target_count(target)
    loss = factor * float(losses.value(spec.loss, output, target).sum(dtype=np.float64))
    baseline = factor * float(
        losses.value(spec.loss, np.zeros_like(output), target).sum(dtype=np.float64)
    )
    d_output = np.zeros_like(tape.output)
    d_output[len(d_output) - new :] = factor * losses.gradient(spec.loss, output, target)
    gradient = network.backward(spec, named, tape, d_output)
    model.counters[UPDATES] += 1
    norm = clipped_norm = clipping.global_norm(gradient)
    skipped = not (np.isfinite(loss) and np.isfinite(norm))
    if skipped:
        model.counters[SKIPPED] += 1
        model.counters[SKIPPED_IN_A_ROW] += 1
    else:
        model.counters[SKIPPED_IN_A_ROW] = 0
        model.counters[APPLIED] += 1
        clipped_norm = _clip(spec, gradient, norm)
        model.counters[CLIPPED] += clipped_norm < norm
        applied = int(model.counters[APPLIED])
        optimizers.step(
            spec.optimizer,
            model.parameters,
            gradient,
            model.moments,
            update=applied,
            learning_rate=learning_rate(spec, model, applied),
            weight_decay=spec.weight_decay,
        )
        model.last[:] = loss, baseline, norm, clipped_norm
    update_number = float(model.counters[UPDATES])
    return (update_number, new, streams, loss, baseline, norm, clipped_norm, float(skipped))


def diverged(spec: ModelSpec, model: Model) -> bool:
    """True once `divergence_patience` updates in a row were skipped: the model stops learning."""
    return bool(model.counters[SKIPPED_IN_A_ROW] >= spec.divergence_patience)


def learning_rate(spec: ModelSpec, model: Model, update: int) -> float:
    """The learning rate of an update, counted from 1 and without skipped ones."""
    assert spec.final_learning_rate is not None
    assert spec.decay_updates is not None
    return optimizers.learning_rate_at(
        update,
        float(model.rates[0]),
        spec.final_learning_rate,
        spec.warmup_updates,
        spec.decay_updates,
    )


def _clip(spec: ModelSpec, gradient: Array, norm: float) -> float:
    """Clip in place as the spec says; return the norm after clipping."""
    if spec.clip == "none":
        return norm
    if spec.clip == "layer_norm":
        clipping.clip_by_layer_norm(gradient, params.layer_ends(spec), spec.clip_threshold)
        return min(norm, clipping.global_norm(gradient))
    if spec.clip == "norm":
        clipping.clip_by_global_norm(gradient, spec.clip_threshold)
        # PyTorch's epsilon makes the scale slightly smaller than 1 near the bound: a norm within
        # the bound does not count as clipped.
        return clipping.global_norm(gradient) if norm > spec.clip_threshold else norm
    clipping.clip_by_value(gradient, spec.clip_threshold)
    return clipping.global_norm(gradient)
