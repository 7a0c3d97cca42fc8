"""Cuts the result of a tick into the answers to its messages. Runs in a trainer's thread."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.domain import BatchAnswer
from bptt.engine.messages import Answered, IntArray, QueuedBatch
from bptt.errors import ServiceError
from bptt_core import Learner, TickResult
from bptt_core.errors import UnknownStream

Array = NDArray[Any]


def parts_of(
    learner: Learner,
    chunks: Sequence[QueuedBatch],
    done: tuple[TickResult, IntArray | None] | None,
    errors: Mapping[int, ServiceError],
    answered: Sequence[int] = (),
) -> list[Answered]:
    """The answers to the lanes of a round, one for each message in it.

    Args:
        learner: after the tick.
        chunks: the batches of the round, in order.
        done: the tick's result, and the places in the round of its lanes; None: all of them.
            None: no lane was learned.
        errors: of refused lanes, by their place in the round.
        answered: places of lanes that were left without anything to learn.
    """
    if done is not None and done[1] is None and not errors:
        result = done[0]
        if len(chunks) == 1:
            return [Answered(chunks[0], (whole(result, chunks[0].lanes),))]
        members, bounds = _by_lane(result, chunks)
        found, first = [], 0
        for each, (begin, end) in zip(chunks, bounds, strict=True):
            last = first + len(each.slots)
            part = _part(result, first, last, members[begin:end], each.lanes)
            found.append(Answered(each, (part,)))
            first = last
        return found
    return _some_of_each(learner, chunks, done, errors, answered)


def whole(result: TickResult, lanes: IntArray) -> BatchAnswer:
    """The result of a tick as the answer to one message, or a part of it."""
    return BatchAnswer(
        0,
        lanes,
        result.stream_ids,
        result.first_steps,
        result.next_steps,
        result.incarnations,
        result.offsets,
        result.predictions,
        result.anomaly_scores,
        result.updates,
        result.members,
    )


def nothing_new(learner: Learner, stream_ids: Sequence[str], lanes: IntArray) -> BatchAnswer:
    """The answer to lanes that have no new steps."""
    steps, incarnations = np.zeros((2, len(stream_ids)), np.int64)
    for lane, stream_id in enumerate(stream_ids):
        with contextlib.suppress(UnknownStream):
            steps[lane] = learner.next_step(stream_id)
            incarnations[lane] = learner.incarnation(stream_id)
    offsets = np.zeros(len(lanes) + 1, np.int64)
    names, members = tuple(stream_ids), np.empty((0, 2), np.int64)
    return BatchAnswer(
        0, lanes, names, steps, steps, incarnations, offsets, None, None, (), members
    )


def _by_lane(
    result: TickResult, chunks: Sequence[QueuedBatch]
) -> tuple[Array, list[tuple[int, int]]]:
    """The members in the order of lanes, and where those of each batch begin and end."""
    members = result.members[np.argsort(result.members[:, 1], kind="stable")]
    ends = np.cumsum([len(each.slots) for each in chunks])
    places = np.searchsorted(members[:, 1], ends).tolist()
    return members, list(zip([0, *places[:-1]], places, strict=True))


def _part(
    result: TickResult, first: int, last: int, members: Array, lanes: IntArray
) -> BatchAnswer:
    """The answer to lanes `first` to `last` of a tick; `members` are theirs, in their order."""
    offsets = result.offsets[first : last + 1]
    start, stop = int(offsets[0]), int(offsets[-1])
    updates: Sequence[Any] = ()
    if len(members):
        numbers = np.unique(members[:, 0])
        updates = [result.updates[number] for number in numbers.tolist()]
        own = np.empty_like(members)
        own[:, 0], own[:, 1] = np.searchsorted(numbers, members[:, 0]), members[:, 1] - first
        members = own if last - first == 1 else own[np.argsort(own[:, 0], kind="stable")]
    predictions, scores = result.predictions, result.anomaly_scores
    return BatchAnswer(
        0,
        lanes,
        result.stream_ids[first:last],
        result.first_steps[first:last],
        result.next_steps[first:last],
        result.incarnations[first:last],
        offsets - start,
        None if predictions is None else predictions[start:stop],
        None if scores is None else scores[start:stop],
        tuple(updates),
        members,
    )


def _some_of_each(
    learner: Learner,
    chunks: Sequence[QueuedBatch],
    done: tuple[TickResult, IntArray | None] | None,
    errors: Mapping[int, ServiceError],
    answered: Sequence[int],
) -> list[Answered]:
    """As `parts_of`, where lanes were refused, or had nothing left to learn."""
    found, first, at = [], 0, 0
    count = sum(len(each.slots) for each in chunks)
    empty = np.zeros(count, np.bool_)
    empty[list(answered)] = True
    left = np.empty(0, np.int64)
    if done is not None:
        left = np.arange(count) if done[1] is None else done[1]
    for each in chunks:
        last = first + len(each.slots)
        mine = left[(left >= first) & (left < last)]
        refused = [(lane - first, error) for lane, error in errors.items() if first <= lane < last]
        parts = []
        if len(mine):
            assert done is not None
            members = done[0].members
            inside = (members[:, 1] >= at) & (members[:, 1] < at + len(mine))
            lanes = each.lanes[mine - first]
            parts.append(_part(done[0], at, at + len(mine), members[inside], lanes))
            at += len(mine)
        old = np.flatnonzero(empty[first:last])
        if len(old):
            names = [each.batch.stream_ids[lane] for lane in old.tolist()]
            parts.append(nothing_new(learner, names, each.lanes[old]))
        found.append(Answered(each, parts, refused))
        first = last
    return found
