"""Applies batches to the learner in a trainer's thread, and copies the state to publish.

All functions here depend on the learner and the batches only; the event loop publishes the outcome.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from bptt.domain import RunReport, TickReport
from bptt.durability import Command, Tick
from bptt.engine.joining import groups, join, split
from bptt.engine.messages import Outcome, QueuedChunk, StreamCommand, TickBatch
from bptt.engine.records import apply_body
from bptt.errors import from_core
from bptt_core import Chunk, ChunkResult, Learner, StreamView
from bptt_core.errors import BpttError, UnknownStream


def run(learner: Learner, batches: Sequence[TickBatch], *, looks: bool = True) -> Outcome:
    """Apply the batches in order. Never raises: a failure is part of the outcome.

    Args:
        learner: changed.
        batches: what to do.
        looks: whether to copy the state to publish: views, figures and snapshot.
    """
    outcome = Outcome()
    start, own_start = time.perf_counter(), time.thread_time()
    try:
        place = 0
        for group in groups(learner.spec, batches):
            each, place = group[-1], place + len(group)
            if len(group) > 1:
                _apply_joined(learner, [one.chunks[0] for one in group], outcome)
            else:
                _apply(learner, each.chunks, outcome)
            for duplicate in each.duplicates:
                outcome.answers.append((duplicate, _nothing_new(learner, duplicate.stream_id)))
            for command in each.commands:
                _execute(learner, command, outcome)
            if _must_roll_back(learner, outcome):
                outcome.diverged, outcome.rest = True, list(batches[place:])
                break
        if looks or outcome.commands:  # `records` does not show how commands move streams
            outcome.views = {each: _view(learner, each) for each in outcome.touched}
            outcome.report = RunReport(outcome.ticks, learner.figures)
            outcome.snapshot = learner.snapshot()
        outcome.seconds = time.perf_counter() - start
        outcome.own_seconds = time.thread_time() - own_start
    except Exception as error:  # noqa: BLE001 - the learner's state is then undefined
        outcome.failure = error
    return outcome


def _must_roll_back(learner: Learner, outcome: Outcome) -> bool:
    """True if the last tick made the model diverge; a diverged model makes no update."""
    updates = outcome.ticks[-1].updates if outcome.ticks else ()
    if not updates or not updates[-1].skipped or learner.spec.on_divergence != "roll_back":
        return False
    return learner.figures.diverged


def _apply(learner: Learner, chunks: list[QueuedChunk], outcome: Outcome) -> None:
    body, chunks = _in_sequence(learner, chunks, outcome)
    if not chunks:
        return
    start = time.perf_counter()
    try:
        result = apply_body(learner, body).result
    except BpttError as error:
        if len(chunks) == 1:
            outcome.answers.append((chunks[0], from_core(error)))
            return
        for each in chunks:  # nothing was changed: apply the good chunks without the bad one
            _apply(learner, [each], outcome)
        return
    assert result is not None
    seconds = time.perf_counter() - start
    outcome.answers += zip(chunks, result.chunks, strict=True)
    outcome.touched.update(each.stream_id for each in chunks)
    moves = [(each.stream_id, each.first_step, each.next_step) for each in result.chunks]
    outcome.records.append((body, moves))
    steps = sum(each.steps for each in chunks)
    outcome.ticks.append(
        TickReport(len(chunks), steps, result.updates, seconds, body, result.chunks)
    )


def _in_sequence(
    learner: Learner, queued: list[QueuedChunk], outcome: Outcome
) -> tuple[Tick, list[QueuedChunk]]:
    """Make a tick of the chunks; drop late labels of steps before a roll-back.

    A roll-back ends the sequence of each stream. Clients go on sending late labels, and know
    nothing of it, so their labels are not refused. Chunks without new steps are answered.
    """
    spec = learner.spec
    if spec.on_divergence != "roll_back" or not spec.label_delay:
        return tuple(each.chunk for each in queued), queued
    body, left = [], []
    for each in queued:
        chunk = _less_labels(learner, each.chunk)
        if len(chunk.inputs) or chunk.targets is not None or chunk.end_of_sequence:
            body.append(chunk)
            left.append(each)
        else:
            outcome.answers.append((each, _nothing_new(learner, each.stream_id)))
    return tuple(body), left


def _less_labels(learner: Learner, chunk: Chunk) -> Chunk:
    """Drop labels of steps before the stream's sequence, but keep labels that are too late."""
    first, labels = chunk.first_target_step, chunk.targets
    if first is None or labels is None:
        return chunk
    delay, view = learner.spec.label_delay, _view(learner, chunk.stream_id)
    oldest = chunk.first_step - min(delay, 0 if view is None else view.sequence_step)
    if not chunk.first_step - delay <= first < oldest:
        return chunk
    labels = labels[oldest - first :]
    if not len(labels):
        return dataclasses.replace(chunk, targets=None, first_target_step=None)
    return dataclasses.replace(chunk, targets=labels, first_target_step=oldest)


def _apply_joined(learner: Learner, chunks: list[QueuedChunk], outcome: Outcome) -> None:
    """Apply chunks of one stream as one chunk."""
    view = _view(learner, chunks[0].stream_id)
    start = time.perf_counter()
    try:
        body = (join(chunks),)
        result = apply_body(learner, body).result
    except BpttError:  # nothing was changed: find the error of each chunk
        for each in chunks:
            _apply(learner, [each], outcome)
        return
    assert result is not None
    seconds = time.perf_counter() - start
    whole = result.chunks[0]
    sequence_step = 0 if view is None else view.sequence_step
    outcome.answers += zip(chunks, split(learner.spec, chunks, sequence_step, whole), strict=True)
    outcome.touched.add(whole.stream_id)
    outcome.records.append((body, [(whole.stream_id, whole.first_step, whole.next_step)]))
    steps = whole.next_step - whole.first_step
    outcome.ticks.append(TickReport(1, steps, result.updates, seconds, body, result.chunks))


def _execute(learner: Learner, command: StreamCommand, outcome: Outcome) -> None:
    stream_id = command.stream_id
    body = Command(command.action, {"stream_id": stream_id})
    try:
        apply_body(learner, body)
    except BpttError as error:
        outcome.commands.append((command, from_core(error)))
        return
    outcome.touched.add(stream_id)
    outcome.records.append((body, []))
    outcome.commands.append((command, _next_step(learner, stream_id)))


def _nothing_new(learner: Learner, stream_id: str) -> ChunkResult:
    """The answer to a chunk that has no new steps."""
    view = _view(learner, stream_id)
    if view is None:
        return ChunkResult(stream_id, 0, 0, None, ())
    step = view.next_step
    return ChunkResult(stream_id, step, step, None, (), incarnation=view.incarnation)


def _next_step(learner: Learner, stream_id: str) -> int:
    try:
        return learner.next_step(stream_id)
    except UnknownStream:
        return 0


def _view(learner: Learner, stream_id: str) -> StreamView | None:
    try:
        return learner.stream_view(stream_id)
    except UnknownStream:
        return None
