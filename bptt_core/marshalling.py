"""Packs checked steps into arrays for a backend; unpacks its results."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core.batches import Checked
from bptt_core.ticks import Batch, offsets_of, UpdateReport
from bptt_core.transition import Steps

Array = NDArray[Any]


class Done(NamedTuple):
    """Results of a call with N steps."""

    predictions: Array | None
    """(N, O)"""
    updates: tuple[UpdateReport, ...]
    members: Array
    """(m, 2) int64 pairs (update, lane): the lanes that took part in each update."""
    scores: Array | None
    """(N,) anomaly scores of a forecast."""


def steps_of_batch(rows: Array, batch: Batch, checked: Checked) -> Steps:
    """Pack a batch.

    Args:
        rows: (B,) int64, the row of each lane's stream.
        batch: the batch.
        checked: its checked arrays.
    """
    lanes = np.empty((len(batch), 4), np.int64)
    lanes[:, 0] = rows
    lanes[:, 1] = offsets_of(batch.lengths)[:-1]
    lanes[:, 2] = batch.lengths
    lanes[:, 3] = 0 if batch.ends is None else batch.ends
    return Steps(lanes, checked.x, checked.y)


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
