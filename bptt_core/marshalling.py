"""Packs chunks into arrays for a backend; unpacks its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core.checks import Checked
from bptt_core.ticks import Chunk, ChunkResult, TickResult, UpdateReport
from bptt_core.transition import Steps

Array = NDArray[Any]


class Done(NamedTuple):
    """Results of a call with N steps."""

    predictions: Array | None
    """(N, O)"""
    updates: tuple[UpdateReport, ...]
    members: list[list[int]]
    """Pairs (update, lane): the lanes that took part in each update."""
    scores: Array | None
    """(N,) anomaly scores of a forecast."""


def steps_of_tick(rows: Sequence[int], tick: Sequence[Chunk], checked: Sequence[Checked]) -> Steps:
    """Pack a tick's chunks.

    Args:
        rows: the row of each chunk's stream.
        tick: the chunks.
        checked: their checked arrays.
    """
    lanes = np.empty((len(tick), 4), np.int64)
    start = 0
    for lane, (row, chunk, good) in enumerate(zip(rows, tick, checked, strict=True)):
        lanes[lane] = row, start, len(good.x), chunk.end_of_sequence
        start += len(good.x)
    ys = [good.y for good in checked if good.y is not None]
    return Steps(lanes, _joined([good.x for good in checked]), _joined(ys) if ys else None)


def steps_side_by_side(rows: Sequence[int], x: Array, target: Array | None, ends: bool) -> Steps:
    """Pack inputs (T, B, D), and targets (T, B, n) or None, of the streams in these rows."""
    T, B = x.shape[:2]
    lanes = np.empty((B, 4), np.int64)
    for lane, row in enumerate(rows):
        lanes[lane] = row, lane * T, T, ends
    return Steps(lanes, _by_stream(x), None if target is None else _by_stream(target))


def results(
    tick: Sequence[Chunk],
    steps: Steps,
    first_steps: Sequence[int],
    incarnations: Sequence[int],
    done: Done,
) -> TickResult:
    """Unpack the results of each chunk and of the whole tick.

    Args:
        tick: the chunks.
        steps: the packed chunks.
        first_steps: the next step of each chunk's stream before the call.
        incarnations: the incarnation of each chunk's stream.
        done: the backend's results.
    """
    took_part: list[list[UpdateReport]] = [[] for _ in tick]
    for update, lane in done.members:
        took_part[lane].append(done.updates[update])
    found = []
    places = zip(tick, first_steps, incarnations, strict=True)
    for lane, (chunk, first, incarnation) in enumerate(places):
        _, start, length, _ = steps.lanes[lane].tolist()
        mine = slice(start, start + length)
        made = None if done.predictions is None else done.predictions[mine]
        scores = None if done.scores is None else done.scores[mine]
        found.append(
            ChunkResult(
                chunk.stream_id,
                first,
                first + length,
                made,
                tuple(took_part[lane]),
                scores,
                incarnation,
            )
        )
    return TickResult(tuple(found), done.updates)


def report(row: list[float]) -> UpdateReport:
    """A row of `windows.Advanced.reports` as an `UpdateReport`."""
    update, steps, streams, loss, baseline, norm, clipped_norm, skipped = row
    return UpdateReport(
        int(update),
        int(steps) * int(streams),
        int(streams),
        loss,
        baseline,
        norm,
        clipped_norm,
        clipped_norm < norm,
        skipped != 0,
    )


def _joined(arrays: list[Array]) -> Array:
    """The rows of all arrays, in order."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _by_stream(steps: Array) -> Array:
    """Reshape (T, B, n) to (B T, n), stream after stream."""
    T, B, n = steps.shape
    return np.ascontiguousarray(steps.swapaxes(0, 1)).reshape(B * T, n)
