"""The order in which queued chunks are learned. Pure: no clock, thread or event loop.

Rules:
- Entries wait in rounds. An entry goes into the first round that is not taken yet and comes after
  the round of its stream's entry before it. So a round has at most one entry of each stream.
- Within a stream, first come, first served; within a round, too. A stream waits for at most one
  entry of each other stream.
- A round is one tick, if the bounds of a tick allow; what is left of it is next.

A message of a thousand lanes usually falls into one round as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from bptt.engine.messages import QueuedBatch, Round, StreamCommand

Entry = QueuedBatch | StreamCommand


class FairQueue:
    """The queue of one model.

    Attributes:
        head: number of the first round that is not taken.
        chunks: number of queued lanes.
        weight: their weight, in bytes.
    """

    def __init__(self) -> None:
        self._rounds: deque[Round] = deque()
        self.head = 1
        self.chunks = 0
        self.weight = 0

    def __bool__(self) -> bool:
        return bool(self._rounds)

    def put(self, entry: Entry, number: int) -> None:
        """Add an entry to the round of this number: `head`, or a later one."""
        while self.head + len(self._rounds) <= number:
            self._rounds.append(Round(self.head + len(self._rounds)))
        mine = self._rounds[number - self.head]
        if isinstance(entry, StreamCommand):
            mine.commands.append(entry)
            return
        (mine.duplicates if entry.repeats else mine.chunks).append(entry)
        self._count(entry, 1)

    def take(
        self, chunks_max: int, steps_max: int, tick_chunks: int, tick_steps: int
    ) -> list[Round]:
        """Remove the next rounds; at least one.

        Args:
            chunks_max: no further round is taken once so many lanes are.
            steps_max: likewise, of steps.
            tick_chunks: lanes of a tick at most; a longer round is taken in several parts.
            tick_steps: no further lane is added to a tick once it has so many steps.
        """
        taken = []
        chunks = steps = 0
        while self._rounds and chunks < chunks_max and steps < steps_max:
            before = self.chunks
            mine, more = self._pop(tick_chunks, tick_steps)
            taken.append(mine)
            chunks += before - self.chunks
            steps += more
        return taken

    def put_back(self, rounds: Sequence[Round]) -> None:
        """Undo the `take` of rounds that were not applied: they are next."""
        for mine in reversed(rounds):
            for entry in (*mine.chunks, *mine.duplicates):
                self._count(entry, 1)
            if self._rounds and self._rounds[0].number == mine.number:
                rest = self._rounds.popleft()
                mine.chunks += rest.chunks
                mine.duplicates += rest.duplicates
                mine.commands += rest.commands
            self._rounds.appendleft(mine)
            self.head = mine.number

    def _pop(self, lanes: int, steps: int) -> tuple[Round, int]:
        """Take the first round, or as much of it as a tick may have; also its steps."""
        whole = self._rounds[0]
        taken = Round(whole.number)
        for source, target in ((whole.chunks, taken.chunks), (whole.duplicates, taken.duplicates)):
            more = self._move(source, target, lanes, steps)
            lanes, steps = lanes - more[0], steps - more[1]
        done = sum(queued.steps for queued in taken.chunks)
        if whole.chunks or whole.duplicates:
            return taken, done
        taken.commands = whole.commands
        self._rounds.popleft()
        self.head = whole.number + 1
        return taken, done

    def _move(
        self, source: list[QueuedBatch], target: list[QueuedBatch], lanes: int, steps: int
    ) -> tuple[int, int]:
        """Move entries within these bounds; return their lanes and steps."""
        count = done = moved = 0
        for queued in source:
            if count >= lanes or done >= steps:
                break
            fits = _lanes_within(queued, lanes - count, steps - done)
            self._count(queued, -1)
            if fits < len(queued.slots):
                rest = queued.select(np.arange(fits, len(queued.slots)))
                queued = queued.select(np.arange(fits))
                self._count(rest, 1)
                source[moved] = rest
                moved -= 1
            target.append(queued)
            count, done, moved = count + len(queued.slots), done + queued.steps, moved + 1
        del source[:moved]
        return count, done

    def _count(self, queued: QueuedBatch, sign: int) -> None:
        self.chunks += sign * len(queued.slots)
        self.weight += sign * queued.weight


def _lanes_within(queued: QueuedBatch, lanes: int, steps: int) -> int:
    """How many of the lanes a tick with so much room takes; at least one."""
    if len(queued.slots) <= lanes and queued.steps <= steps:
        return len(queued.slots)
    before = np.cumsum(queued.batch.lengths) - queued.batch.lengths
    return max(1, min(lanes, int(np.searchsorted(before, steps))))
