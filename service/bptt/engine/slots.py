"""Numbers of a model's streams within the engine, and columns of what the engine knows of each.

A stream has a slot while it is published, has entries in the queue, or is sent by a call. Columns
over slots make the work for a message of many lanes a few operations on arrays. Each column is
written by one part of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

GROWTH = 0.25  # of the columns when they are full
FIRST_SLOTS = 8  # a model often has one stream


class StreamSlots:
    """The slots of one model. Lives on the event loop.

    Attributes:
        numbers: the slot of each stream.
        next_step: by the published state: the stream's next step; 0 if it is not published.
        incarnation: by the published state: the stream's incarnation; 0 if it is not published.
        accepted: by admission: the step after all accepted steps of the stream. Without entries in
            the queue, that is `next_step`.
        entries: by admission: chunks and commands of the stream that are not answered yet.
        sender: by admission: the number of the call that sends the stream; 0: none.
        round: by admission: the round of the stream's newest entry in the queue.
        moved: by `DurableSteps`: the last record that moved the stream; 0: none.
        since: by `DurableSteps`: the first record that the column `durable` goes back to.
        durable: by `DurableSteps`: the durable step, while the record `moved` is not durable.
    """

    _COLUMNS = (
        *("next_step", "incarnation", "accepted", "entries", "sender"),
        *("round", "moved", "since", "durable"),
    )
    __slots__ = ("_free", "_used", "numbers", *_COLUMNS)
    next_step: IntArray
    incarnation: IntArray
    accepted: IntArray
    entries: IntArray
    sender: IntArray
    round: IntArray
    moved: IntArray
    since: IntArray
    durable: IntArray

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._free: list[int] = []
        self._used = 0  # slots from this one on have never been given
        for name in self._COLUMNS:
            setattr(self, name, np.zeros(FIRST_SLOTS, np.int64))

    def find(self, stream_ids: Sequence[str]) -> IntArray:
        """The slots of these streams, (B,) int64; -1 for an unknown stream."""
        get = self.numbers.get
        return np.array([get(stream_id, -1) for stream_id in stream_ids], np.int64)

    def open(self, stream_id: str) -> int:
        """The slot of a stream; a stream without one gets a slot of zeros."""
        slot = self.numbers.get(stream_id)
        if slot is None:
            if self._free:
                slot = self._free.pop()
            else:
                slot, self._used = self._used, self._used + 1
                if slot == len(self.entries):
                    self._grow(slot + 1 + int(slot * GROWTH))
            self.numbers[stream_id] = slot
        return slot

    def open_all(self, stream_ids: Sequence[str]) -> IntArray:
        """As `open`, for many streams."""
        slots = self.find(stream_ids)
        for place in np.flatnonzero(slots < 0).tolist():
            slots[place] = self.open(stream_ids[place])
        return slots

    def release(self, stream_id: str) -> None:
        """Free the slot of a stream that nothing knows any more; otherwise do nothing."""
        slot = self.numbers.get(stream_id)
        if slot is None or self.incarnation[slot] or self.entries[slot] or self.sender[slot]:
            return
        del self.numbers[stream_id]
        for name in self._COLUMNS:
            getattr(self, name)[slot] = 0
        self._free.append(slot)

    def _grow(self, capacity: int) -> None:
        for name in self._COLUMNS:
            old: NDArray[Any] = getattr(self, name)
            new = np.zeros(capacity, np.int64)
            new[: len(old)] = old
            setattr(self, name, new)
