"""Which chunks are learned next. Pure: no clock, thread or event loop.

Rules:
- Within a stream, first come, first served.
- A round has at most one entry a stream; a round's chunks are one tick.
- Among streams, who waited longest goes first: a stream that was served goes to the back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bptt.engine.responses import PendingResponse
from bptt_core import Chunk

ENTRY_BYTES = 64  # what a chunk weighs beside its values, so that even empty ones are bounded


@dataclass(slots=True, eq=False)
class QueuedChunk:
    """A chunk that has its place in its stream.

    With nothing left, because all had been accepted before, it only waits for its turn to be
    answered: by then the steps it repeats are learned.
    """

    chunk: Chunk
    pending: PendingResponse

    @property
    def stream_id(self) -> str:
        """The stream it belongs to."""
        return self.chunk.stream_id

    @property
    def steps(self) -> int:
        """Steps to learn."""
        return len(self.chunk.inputs)

    @property
    def repeats(self) -> bool:
        """There is nothing in it to learn."""
        targets, ends = self.chunk.targets, self.chunk.end_of_sequence
        return not self.steps and (targets is None or not len(targets)) and not ends

    @property
    def weight(self) -> int:
        """Bytes it holds."""
        targets = self.chunk.targets
        held = self.chunk.inputs.nbytes + (0 if targets is None else targets.nbytes)
        return held + ENTRY_BYTES


@dataclass(slots=True, eq=False)
class StreamCommand:
    """Something else to be done to a stream, after the chunks before it and before those after."""

    stream_id: str
    action: Literal["reset", "delete"]
    done: asyncio.Future[int]
    """The stream's next step, once it is done."""


Entry = QueuedChunk | StreamCommand


@dataclass(slots=True, eq=False)
class TickBatch:
    """At most one entry of each stream."""

    chunks: list[QueuedChunk] = field(default_factory=list)
    """The tick."""
    duplicates: list[QueuedChunk] = field(default_factory=list)
    commands: list[StreamCommand] = field(default_factory=list)


class FairQueue:
    """The queue of one model.

    Attributes:
        chunks: how many wait.
        weight: their bytes.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Entry]] = {}
        self.chunks = 0
        self.weight = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, entry: Entry) -> None:
        """Behind all others of its stream."""
        self._waiting.setdefault(entry.stream_id, deque()).append(entry)
        self._count(entry, 1)

    def take(self, chunks_max: int, steps_max: int) -> list[TickBatch]:
        """The next rounds, until they hold so many chunks or steps; at least one chunk."""
        batches = []
        chunks = steps = 0
        while self._waiting and chunks < chunks_max and steps < steps_max:
            current = TickBatch()
            for stream_id in list(self._waiting):
                if chunks >= chunks_max or steps >= steps_max:
                    break
                entry = self._pop(stream_id)
                if isinstance(entry, StreamCommand):
                    current.commands.append(entry)
                    continue
                (current.duplicates if entry.repeats else current.chunks).append(entry)
                chunks += 1
                steps += entry.steps
            batches.append(current)
        return batches

    def put_back(self, batches: Sequence[TickBatch]) -> None:
        """Undo the `take` of rounds that were not applied: they are next."""
        waiting: dict[str, deque[Entry]] = {}
        for each in batches:
            entries: list[Entry] = [*each.chunks, *each.duplicates, *each.commands]
            for entry in entries:
                waiting.setdefault(entry.stream_id, deque()).append(entry)
                self._count(entry, 1)
        for stream_id, queue in self._waiting.items():
            waiting.setdefault(stream_id, deque()).extend(queue)
        self._waiting = waiting

    def _count(self, entry: Entry, sign: int) -> None:
        if isinstance(entry, QueuedChunk):
            self.chunks += sign
            self.weight += sign * entry.weight

    def _pop(self, stream_id: str) -> Entry:
        queue = self._waiting.pop(stream_id)
        entry = queue.popleft()
        if queue:
            self._waiting[stream_id] = queue  # at the back
        self._count(entry, -1)
        return entry
