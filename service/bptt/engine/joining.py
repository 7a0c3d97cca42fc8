"""Joins waiting chunks of one stream into one call of the core and one record.

A call has a fixed cost of about fifteen steps and waits for the GIL. Joining a stream's chunks does
not change a bit of what is learned, so consecutive chunks are applied together; each chunk still
gets its own answer.

Chunks are not joined if their updates cannot be assigned by counting steps, if they belong to
several streams (their windows would form other batches), or if the model may roll back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bptt.engine.messages import QueuedChunk, TickBatch
from bptt_core import Chunk, ChunkResult, ModelSpec


def groups(spec: ModelSpec, batches: Sequence[TickBatch]) -> Iterator[Sequence[TickBatch]]:
    """Group the batches in order; single-chunk batches that may be joined form one group."""
    joinable = _joinable(spec)
    start = 0
    for stop in range(1, len(batches) + 1):
        if joinable and stop < len(batches) and _follows(batches[stop - 1], batches[stop]):
            continue
        yield batches[start:stop]
        start = stop


def _joinable(spec: ModelSpec) -> bool:
    """True if every k1 steps give an update; a window without any target gives none."""
    missing = spec.missing_inputs or spec.missing_targets or spec.label_delay
    return not missing and spec.on_divergence != "roll_back"


def _follows(before: TickBatch, after: TickBatch) -> bool:
    """True if both batches hold only one chunk, and both chunks are of one stream and sequence.

    The second must have a source position if the first has: a joined chunk has that of its end.
    """
    if before.commands or before.duplicates or after.commands or after.duplicates:
        return False
    if len(before.chunks) != 1 or len(after.chunks) != 1:
        return False
    first, second = before.chunks[0].chunk, after.chunks[0].chunk
    return (
        first.stream_id == second.stream_id
        and not first.end_of_sequence
        and bool(second.source_position) >= bool(first.source_position)
        and first.inputs.dtype == second.inputs.dtype
        and second.first_step == first.first_step + len(first.inputs)
    )


def join(queued: Sequence[QueuedChunk]) -> Chunk:
    """Join the steps of all chunks into one chunk."""
    chunks = [each.chunk for each in queued]
    targets = [each.targets for each in chunks if each.targets is not None]
    return Chunk(
        chunks[0].stream_id,
        chunks[0].first_step,
        np.concatenate([each.inputs for each in chunks]),
        np.concatenate(targets) if targets else None,
        chunks[-1].end_of_sequence,
        source_position=chunks[-1].source_position,
    )


def split(
    spec: ModelSpec, queued: Sequence[QueuedChunk], sequence_step: int, result: ChunkResult
) -> list[ChunkResult]:
    """Split the result of joined chunks into one result for each chunk.

    Args:
        spec: the model's.
        queued: the chunks that were joined.
        sequence_step: steps of the stream's sequence before them.
        result: of the joined chunk.
    """
    results, updates = [], result.updates
    before = _windows(spec, sequence_step)
    start = told = 0
    for place, each in enumerate(queued, start=1):
        stop = start + each.steps
        done = _windows(spec, sequence_step + stop) - before
        if place == len(queued):  # the end of a sequence learns its last steps
            done = len(updates)
        predictions, scores = result.predictions, result.anomaly_scores
        results.append(
            ChunkResult(
                result.stream_id,
                result.first_step + start,
                result.first_step + stop,
                None if predictions is None else predictions[start:stop],
                updates[told:done],
                None if scores is None else scores[start:stop],
                result.incarnation,
            )
        )
        start, told = stop, done
    return results


def _windows(spec: ModelSpec, sequence_step: int) -> int:
    """Number of windows learned after this many steps of a sequence."""
    return max(0, sequence_step - spec.delay) // spec.k1
