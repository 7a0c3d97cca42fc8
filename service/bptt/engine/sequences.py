"""Drops late labels of steps before a roll-back.

A roll-back ends the sequence of each stream. Clients go on sending late labels, and know nothing of
it, so their labels are not refused.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bptt.engine.messages import IntArray
from bptt.engine.trimming import rows_from
from bptt_core import Batch, Learner
from bptt_core.errors import UnknownStream


def without_old_labels(learner: Learner, batch: Batch) -> tuple[Batch, IntArray | None, list[int]]:
    """Drop labels of steps before their streams' sequences, but keep labels that are too late.

    Returns:
        The lanes that have something to learn; their places in `batch`, None: all of them; and the
        places of the other lanes, which are answered without being learned.
    """
    spec = learner.spec
    places, targets = batch.first_target_steps, batch.targets
    if spec.on_divergence != "roll_back" or not spec.label_delay or targets is None:
        return batch, None, []
    lengths = batch.lengths if batch.target_lengths is None else batch.target_lengths
    if places is None:
        return batch, None, []
    sequence = np.array([_sequence_step(learner, name) for name in batch.stream_ids])
    oldest = batch.first_steps - np.minimum(spec.label_delay, sequence)
    old = (places >= batch.first_steps - spec.label_delay) & (places < oldest)
    old &= (places >= 0) & (lengths > 0)
    if not np.count_nonzero(old):
        return batch, None, []
    cut = np.where(old, np.minimum(oldest - places, lengths), 0)
    left = lengths - cut
    batch = dataclasses.replace(
        batch,
        targets=targets[rows_from(cut, lengths)],
        target_lengths=left,
        first_target_steps=np.where(left > 0, places + cut, -1),
    )
    something = (batch.lengths > 0) | (left > 0)
    if batch.ends is not None:
        something |= batch.ends
    if np.count_nonzero(something) == len(batch):
        return batch, None, []
    kept = np.flatnonzero(something)
    return batch.select(kept), kept, np.flatnonzero(~something).tolist()


def _sequence_step(learner: Learner, stream_id: str) -> int:
    try:
        return int(learner.stream_view(stream_id).sequence_step)
    except UnknownStream:
        return 0
