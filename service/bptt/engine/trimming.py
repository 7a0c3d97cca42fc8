"""Cuts from a message what was accepted before: repeated steps and their targets."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.domain import IncomingBatch

Array = NDArray[Any]


def lanes_of(incoming: IncomingBatch, lanes: Array) -> IncomingBatch:
    """Some lanes of a message."""
    lengths, labels = incoming.lengths, _target_lengths(incoming)
    keep = np.zeros(len(lengths), np.bool_)
    keep[lanes] = True
    targets = incoming.targets
    return IncomingBatch(
        tuple(incoming.stream_ids[lane] for lane in lanes.tolist()),
        incoming.first_steps[lanes],
        lengths[lanes],
        incoming.inputs[np.repeat(keep, lengths)],
        None if targets is None else targets[np.repeat(keep, labels)],
        incoming.ends[lanes],
        _some(incoming.target_lengths, lanes),
        _some(incoming.first_target_steps, lanes),
        _some(incoming.incarnations, lanes),
    )


def trimmed(
    incoming: IncomingBatch, first: Array, expected: Array, label_delay: int
) -> tuple[IncomingBatch, int]:
    """Cut the steps that were accepted before.

    A sequence that has ended does not end again. With a label delay, a lane that repeats known
    steps only keeps no targets: they were accepted with it before. A lane with some new steps
    keeps the targets within the delay; the older ones may have been accepted before. Whether a lane
    without steps is a repetition is unknown, so all its targets are kept.

    Args:
        incoming: the message.
        first: (B,) the first step of each lane.
        expected: (B,) the step after all accepted steps of each lane's stream.
        label_delay: of the model.

    Returns:
        The message, and the number of repeated steps.
    """
    lengths = incoming.lengths
    cut = np.minimum(expected - first, lengths)
    inputs = incoming.inputs[rows_from(cut, lengths)]
    ends = incoming.ends & ((cut < lengths) | (first == expected))
    changes: dict[str, Any] = {"inputs": inputs, "lengths": lengths - cut, "ends": ends}
    if incoming.targets is not None and label_delay:
        changes |= _still_in_time(incoming, first, expected, label_delay)
    elif incoming.targets is not None:
        changes["targets"] = incoming.targets[rows_from(cut, lengths)]
    if incoming.source_positions is not None:
        # A lane that repeats known steps only does not move the source back.
        moves = ((cut < lengths) | (lengths == 0)).tolist()
        changes["source_positions"] = tuple(
            position if moved else b""
            for position, moved in zip(incoming.source_positions, moves, strict=True)
        )
    return dataclasses.replace(incoming, **changes), int(cut.sum())


def _still_in_time(
    incoming: IncomingBatch, first: Array, expected: Array, label_delay: int
) -> dict[str, Any]:
    assert incoming.targets is not None
    steps, labels, places = incoming.lengths, _target_lengths(incoming), incoming.first_target_steps
    labelled = first if places is None else np.where(places < 0, first, places)
    behind = first < expected
    past = np.where(behind & (steps > 0), np.maximum(0, expected - label_delay - labelled), 0)
    past = np.minimum(past, labels)
    past = np.where(behind & (steps > 0) & (steps <= expected - first), labels, past)
    left = labels - past
    return {
        "targets": incoming.targets[rows_from(past, labels)],
        "target_lengths": left,
        "first_target_steps": np.where(left > 0, labelled + past, -1),
    }


def rows_from(cut: Array, lengths: Array) -> Array:
    """Which rows are left once each lane has lost its first `cut` rows."""
    starts = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    kept: Array = within >= np.repeat(cut, lengths)
    return kept


def _target_lengths(incoming: IncomingBatch) -> Array:
    """The targets of each lane, if the message has targets."""
    lengths = incoming.target_lengths
    return incoming.lengths if lengths is None else lengths


def _some(column: Array | None, lanes: Array) -> Array | None:
    return None if column is None else column[lanes]
