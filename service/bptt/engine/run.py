"""Applies rounds to the learner in a trainer's thread, and copies the state to publish.

All functions here depend on the learner and the rounds only; the event loop publishes the outcome.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from bptt.domain import RunReport, TickReport
from bptt.durability import Command, Tick
from bptt.engine.joining import groups, join, split
from bptt.engine.messages import (
    Answered,
    IntArray,
    Moves,
    Outcome,
    QueuedBatch,
    Round,
    StreamCommand,
)
from bptt.engine.parts import nothing_new, parts_of
from bptt.engine.records import apply_body
from bptt.engine.sequences import without_old_labels
from bptt.errors import from_core, ServiceError
from bptt_core import Batch, Learner, TickResult
from bptt_core.errors import BpttError, UnknownStream


def run(learner: Learner, rounds: Sequence[Round], *, looks: bool = True) -> Outcome:
    """Apply the rounds in order. Never raises: a failure is part of the outcome.

    Args:
        learner: changed.
        rounds: what to do.
        looks: whether to copy the state to publish: views, figures and snapshot.
    """
    outcome = Outcome()
    start, own_start = time.perf_counter(), time.thread_time()
    try:
        place = 0
        for group in groups(learner.spec, rounds):
            last, place = group[-1], place + len(group)
            if len(group) > 1:
                _apply_joined(learner, [one.chunks[0] for one in group], outcome)
            elif last.chunks:
                _apply(learner, last.chunks, outcome)
            for duplicate in last.duplicates:
                part = nothing_new(learner, duplicate.batch.stream_ids, duplicate.lanes)
                outcome.answers.append(Answered(duplicate, (part,)))
            for command in last.commands:
                _execute(learner, command, outcome)
            if _must_roll_back(learner, outcome):
                outcome.diverged, outcome.rest = True, list(rounds[place:])
                break
        if looks or outcome.commands:  # `records` does not show how commands move streams
            _look(learner, outcome)
        outcome.seconds = time.perf_counter() - start
        outcome.own_seconds = time.thread_time() - own_start
    except Exception as error:  # noqa: BLE001 - the learner's state is then undefined
        outcome.failure = error
    return outcome


def _look(learner: Learner, outcome: Outcome) -> None:
    """Copy what readers see of the state."""
    names: Sequence[str] = list(outcome.touched)
    if outcome.commands:
        known = set(learner.stream_ids())
        outcome.gone = [name for name in names if name not in known]
        names = [name for name in names if name in known]
    outcome.views = names, learner.stream_columns(names)
    outcome.report = RunReport(outcome.ticks, learner.figures)
    outcome.snapshot = learner.snapshot()


def _must_roll_back(learner: Learner, outcome: Outcome) -> bool:
    """True if the last tick made the model diverge; a diverged model makes no update."""
    updates = outcome.ticks[-1].updates if outcome.ticks else ()
    if not updates or not updates[-1].skipped or learner.spec.on_divergence != "roll_back":
        return False
    return learner.figures.diverged


# ---------------------------------------------------------------------- a tick


def _apply(learner: Learner, chunks: list[QueuedBatch], outcome: Outcome) -> None:
    """Apply the lanes of a round as one tick; refuse those that the learner refuses."""
    batch = _packed(learner, chunks)
    if batch is None:  # the messages do not fit together, so one of them fits no tick
        for each in chunks:
            _apply(learner, [each], outcome)
        return
    batch, left, answered = without_old_labels(learner, batch)
    errors: dict[int, ServiceError] = {}
    done = None
    if left is None or len(left):
        start, opened = time.perf_counter(), learner.last_incarnation
        result: TickResult | None
        try:
            result = _learned(learner, batch)
        except BpttError as error:
            result, errors, batch, left = _the_good_ones(learner, batch, left, error)
        if result is not None:
            seconds = time.perf_counter() - start
            done = result, left
            _note(outcome, chunks, batch, result, left, opened, seconds)
    outcome.answers += parts_of(learner, chunks, done, errors, answered)


def _packed(learner: Learner, chunks: Sequence[QueuedBatch]) -> Batch | None:
    """The lanes of all batches in order; None if their values do not fit together."""
    if len(chunks) == 1:
        return chunks[0].batch
    try:
        return _joined([each.batch for each in chunks], learner.spec.label_delay > 0)
    except ValueError:
        return None


def _joined(batches: Sequence[Batch], late_labels: bool) -> Batch:
    ends = None
    if any(each.ends is not None for each in batches):
        none = [
            np.zeros(len(each), np.bool_) if each.ends is None else each.ends for each in batches
        ]
        ends = np.concatenate(none)
    targets = [each.targets for each in batches if each.targets is not None]
    lengths = np.concatenate([each.lengths for each in batches])
    target_lengths = first_targets = None
    if late_labels:
        target_lengths = np.concatenate([_target_lengths(each) for each in batches])
        first_targets = np.concatenate([_first_targets(each) for each in batches])
    return Batch(
        tuple(name for each in batches for name in each.stream_ids),
        np.concatenate([each.first_steps for each in batches]),
        lengths,
        np.concatenate([each.inputs for each in batches]),
        np.concatenate(targets) if targets else None,
        target_lengths if targets else None,
        first_targets,
        ends,
        _source_positions(batches),
    )


def _source_positions(batches: Sequence[Batch]) -> tuple[bytes, ...] | None:
    given = [each.source_positions for each in batches]
    if all(positions is None for positions in given):
        return None
    return tuple(
        position
        for batch, positions in zip(batches, given, strict=True)
        for position in ((b"",) * len(batch) if positions is None else positions)
    )


def _target_lengths(batch: Batch) -> IntArray:
    if batch.targets is None:
        return np.zeros(len(batch), np.int64)
    lengths: IntArray = batch.lengths if batch.target_lengths is None else batch.target_lengths
    return lengths


def _first_targets(batch: Batch) -> IntArray:
    places = batch.first_target_steps
    return np.full(len(batch), -1) if places is None else places


def _learned(learner: Learner, batch: Batch) -> TickResult:
    result = apply_body(learner, batch).result
    assert result is not None
    return result


def _the_good_ones(
    learner: Learner, batch: Batch, left: IntArray | None, error: BpttError
) -> tuple[TickResult | None, dict[int, ServiceError], Batch, IntArray | None]:
    """Apply the lanes that the learner does not refuse; nothing was changed yet.

    Returns:
        The result, the errors of the others by their place in the round, the applied batch, and
        the places of its lanes in the round.
    """
    places = np.arange(len(batch)) if left is None else left
    if len(batch) == 1:
        return None, {int(places[0]): from_core(error)}, batch, left
    try:
        found = learner.check(batch)
    except BpttError as whole:  # an array of the message does not fit the model
        found = dict.fromkeys(range(len(batch)), whole)
    if not found:
        raise error
    errors = {int(places[lane]): from_core(each) for lane, each in found.items()}
    good = np.array([lane for lane in range(len(batch)) if lane not in found], np.int64)
    if not len(good):
        return None, errors, batch, left
    batch = batch.select(good)
    return _learned(learner, batch), errors, batch, places[good]


def _note(
    outcome: Outcome,
    chunks: Sequence[QueuedBatch],
    batch: Batch,
    result: TickResult,
    left: IntArray | None,
    opened: int,
    seconds: float,
) -> None:
    """Note a tick that was applied: its record, its streams, its report."""
    slots = chunks[0].slots if len(chunks) == 1 else np.concatenate([e.slots for e in chunks])
    if left is not None:
        slots = slots[left]
    outcome.touched |= dict.fromkeys(batch.stream_ids)
    tick = Tick(batch, result.incarnations, np.flatnonzero(result.incarnations > opened))
    outcome.records.append((tick, Moves(slots, result.first_steps, result.next_steps)))
    outcome.ticks.append(
        TickReport(len(batch), len(batch.inputs), result.updates, seconds, batch, result)
    )


def _apply_joined(learner: Learner, chunks: list[QueuedBatch], outcome: Outcome) -> None:
    """Apply chunks of one stream as one chunk."""
    sequence_step = _sequence_step(learner, chunks[0].batch.stream_ids[0])
    batch, opened, start = join(chunks), learner.last_incarnation, time.perf_counter()
    try:
        result = _learned(learner, batch)
    except BpttError:  # nothing was changed: find the error of each chunk
        for each in chunks:
            _apply(learner, [each], outcome)
        return
    _note(outcome, chunks[:1], batch, result, None, opened, time.perf_counter() - start)
    parts = split(learner.spec, chunks, sequence_step, result)
    outcome.answers += [Answered(each, (part,)) for each, part in zip(chunks, parts, strict=True)]


def _sequence_step(learner: Learner, stream_id: str) -> int:
    try:
        return int(learner.stream_columns([stream_id]).sequence_steps[0])
    except UnknownStream:
        return 0


# ---------------------------------------------------------------------- commands


def _execute(learner: Learner, command: StreamCommand, outcome: Outcome) -> None:
    stream_id = command.stream_id
    body = Command(command.action, {"stream_id": stream_id})
    try:
        apply_body(learner, body)
    except BpttError as error:
        outcome.commands.append((command, from_core(error)))
        return
    outcome.touched[stream_id] = None
    outcome.records.append((body, None))
    outcome.commands.append((command, _next_step(learner, stream_id)))


def _next_step(learner: Learner, stream_id: str) -> int:
    try:
        return learner.next_step(stream_id)
    except UnknownStream:
        return 0
