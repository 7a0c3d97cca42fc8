"""Puts the answer to one message together: its lanes may be learned in several rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.domain import BatchAnswer, IncomingBatch, LaneRefused
from bptt.engine.messages import Response
from bptt.errors import ServiceError

Array = NDArray[Any]

NO_LANES = np.empty(0, np.int64)
NO_MEMBERS = np.empty((0, 2), np.int64)


class MessageReplies:
    """The answers to the lanes of one message. Lives on the event loop.

    Args:
        incoming: the message.
        response: gets the answer once all lanes have theirs.
    """

    __slots__ = ("_incoming", "_left", "_lsn", "_parts", "_refused", "_response")

    def __init__(self, incoming: IncomingBatch, response: Response) -> None:
        self._incoming = incoming
        self._response = response
        self._left = len(incoming.stream_ids)
        self._parts: list[BatchAnswer] = []
        self._refused: list[LaneRefused] = []
        self._lsn = 0

    @property
    def alone(self) -> bool:
        """As `Response.alone`."""
        return self._response.alone

    @property
    def index(self) -> int:
        """As `Response.index`."""
        return self._response.index

    @property
    def answered(self) -> bool:
        """True once all lanes are answered."""
        return not self._left

    def learned(self, part: BatchAnswer, lsn: int) -> None:
        """Some lanes were learned; record `lsn` or an earlier one holds them."""
        self._parts.append(part)
        self._lsn = lsn
        self._done(len(part.lanes))

    def refused(self, lane: int, error: ServiceError, expected_step: int) -> None:
        """A lane was refused."""
        first = int(self._incoming.first_steps[lane])
        stream_id = self._incoming.stream_ids[lane]
        sent = None if first < 0 else first
        self._refused.append(LaneRefused(lane, stream_id, sent, expected_step, error))
        self._done(1)

    def _done(self, lanes: int) -> None:
        self._left -= lanes
        if self._left:
            return
        answer = self._parts[0] if len(self._parts) == 1 else merged(self._parts)
        answer.index, answer.lsn = self._response.index, self._lsn
        if self._refused:
            answer.refused = tuple(sorted(self._refused, key=lambda each: each.lane))
        self._response.fill(answer)


def merged(parts: Sequence[BatchAnswer]) -> BatchAnswer:
    """One answer of the parts of a message, in the order of its lanes."""
    if not parts:
        zero = np.zeros(1, np.int64)
        none = NO_LANES
        return BatchAnswer(0, none, (), none, none, none, zero, None, None, (), NO_MEMBERS)
    lanes = np.concatenate([part.lanes for part in parts])
    order = np.argsort(lanes)
    lengths = np.concatenate([part.next_steps - part.first_steps for part in parts])
    starts = np.cumsum(lengths) - lengths
    offsets = np.zeros(len(lanes) + 1, np.int64)
    np.cumsum(lengths[order], out=offsets[1:])
    rows = np.arange(offsets[-1]) + np.repeat(starts[order] - offsets[:-1], lengths[order])
    names = [name for part in parts for name in part.stream_ids]
    updates, members = _merged_updates(parts, np.argsort(order))
    return BatchAnswer(
        0,
        lanes[order],
        tuple(names[place] for place in order.tolist()),
        np.concatenate([part.first_steps for part in parts])[order],
        np.concatenate([part.next_steps for part in parts])[order],
        np.concatenate([part.incarnations for part in parts])[order],
        offsets,
        _rows([part.predictions for part in parts], rows),
        _rows([part.anomaly_scores for part in parts], rows),
        updates,
        members,
    )


def _merged_updates(parts: Sequence[BatchAnswer], places: Array) -> tuple[tuple[Any, ...], Array]:
    """All updates in order, each once, and their members; `places` has each lane's new place."""
    by_number = {each.update: each for part in parts for each in part.updates}
    updates = tuple(by_number[number] for number in sorted(by_number))
    position = {each.update: place for place, each in enumerate(updates)}
    found: list[Array] = [NO_MEMBERS]
    lane = 0
    for part in parts:
        members = part.members.copy()
        new = np.array([position[each.update] for each in part.updates], np.int64)
        if len(members):
            members[:, 0], members[:, 1] = new[members[:, 0]], places[members[:, 1] + lane]
        found.append(members)
        lane += len(part.lanes)
    members = np.concatenate(found)
    return updates, members[np.lexsort((members[:, 1], members[:, 0]))]


def _rows(arrays: Sequence[Array | None], rows: Array) -> Array | None:
    """Some rows of all arrays; parts without steps to learn have none."""
    given = [array for array in arrays if array is not None]
    return np.concatenate(given)[rows] if given else None
