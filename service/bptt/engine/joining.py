"""Joins waiting chunks of one stream into one call of the core and one record.

A call has a fixed cost of about fifteen steps and waits for the GIL. Joining a stream's chunks does
not change a bit of what is learned, so consecutive chunks are applied together; each chunk still
gets its own answer.

Chunks are not joined if their updates cannot be assigned by counting steps, if they belong to
several streams (their windows would form other batches), or if the model may roll back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.domain import BatchAnswer
from bptt.engine.messages import QueuedBatch, Round
from bptt_core import Batch, ModelSpec, TickResult

Array = NDArray[Any]


def groups(spec: ModelSpec, rounds: Sequence[Round]) -> Iterator[Sequence[Round]]:
    """Group the rounds in order; single-chunk rounds that may be joined form one group."""
    joinable = _joinable(spec)
    start = 0
    for stop in range(1, len(rounds) + 1):
        if joinable and stop < len(rounds) and _follows(rounds[stop - 1], rounds[stop]):
            continue
        yield rounds[start:stop]
        start = stop


def _joinable(spec: ModelSpec) -> bool:
    """True if every k1 steps give an update; a window without any target gives none."""
    missing = spec.missing_inputs or spec.missing_targets or spec.label_delay
    return not missing and spec.on_divergence != "roll_back"


def _follows(before: Round, after: Round) -> bool:
    """True if both rounds hold only one chunk, and both chunks are of one stream and sequence.

    The second must have a source position if the first has: a joined chunk has that of its end.
    """
    if before.commands or before.duplicates or after.commands or after.duplicates:
        return False
    if len(before.chunks) != 1 or len(after.chunks) != 1:
        return False
    first, second = before.chunks[0].batch, after.chunks[0].batch
    return (
        len(first) == len(second) == 1
        and first.stream_ids == second.stream_ids
        and (first.ends is None or not first.ends[0])
        and (first.source_positions is None or second.source_positions is not None)
        and first.inputs.dtype == second.inputs.dtype
        and int(second.first_steps[0]) == int(first.first_steps[0]) + len(first.inputs)
    )


def join(queued: Sequence[QueuedBatch]) -> Batch:
    """Join the steps of all chunks into one chunk."""
    batches = [each.batch for each in queued]
    first = batches[0]
    targets = [each.targets for each in batches if each.targets is not None]
    inputs = np.concatenate([each.inputs for each in batches])
    return Batch(
        first.stream_ids,
        first.first_steps,
        np.array([len(inputs)]),
        inputs,
        np.concatenate(targets) if targets else None,
        ends=batches[-1].ends,
        source_positions=batches[-1].source_positions,
    )


def split(
    spec: ModelSpec, queued: Sequence[QueuedBatch], sequence_step: int, result: TickResult
) -> list[BatchAnswer]:
    """Split the result of joined chunks into one for each chunk.

    Args:
        spec: the model's.
        queued: the chunks that were joined.
        sequence_step: steps of the stream's sequence before them.
        result: of the joined chunk.
    """
    parts, updates = [], result.updates
    predictions, scores = result.predictions, result.anomaly_scores
    stops = np.cumsum([each.steps for each in queued])
    after = result.first_steps[0] + stops
    before = np.concatenate([result.first_steps, after[:-1]])
    windows = _windows(spec, sequence_step)
    start = told = 0
    for place, (each, stop) in enumerate(zip(queued, stops.tolist(), strict=True)):
        # A model that stops learning on the way makes fewer updates.
        done = min(_windows(spec, sequence_step + stop) - windows, len(updates))
        if place == len(queued) - 1:  # the end of a sequence learns its last steps
            done = len(updates)
        parts.append(
            BatchAnswer(
                0,
                each.lanes,
                result.stream_ids,
                before[place : place + 1],
                after[place : place + 1],
                result.incarnations,
                _offsets(stop - start),
                None if predictions is None else predictions[start:stop],
                None if scores is None else scores[start:stop],
                updates[told:done],
                _members(done - told),
            )
        )
        start, told = stop, done
    return parts


@lru_cache(maxsize=256)
def _offsets(steps: int) -> Array:
    return _frozen(np.array([0, steps]))


@lru_cache(maxsize=256)
def _members(updates: int) -> Array:
    """One lane that took part in each of these updates."""
    members = np.zeros((updates, 2), np.int64)
    members[:, 0] = np.arange(updates)
    return _frozen(members)


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array


def _windows(spec: ModelSpec, sequence_step: int) -> int:
    """Number of windows learned after this many steps of a sequence."""
    return max(0, sequence_step - spec.delay) // spec.k1
