"""The order in which queued chunks are learned. Pure: no clock, thread or event loop.

Rules:
- Within a stream, first come, first served.
- A batch has at most one entry of each stream; its chunks are one tick.
- Among streams, the one that waited longest comes first; a stream that was served moves to the
  back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from bptt.engine.messages import Entry, QueuedChunk, StreamCommand, TickBatch


class FairQueue:
    """The queue of one model.

    Attributes:
        chunks: number of queued chunks.
        weight: their weight, in bytes.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Entry]] = {}
        self.chunks = 0
        self.weight = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, entry: Entry) -> None:
        """Add an entry after all others of its stream."""
        self._waiting.setdefault(entry.stream_id, deque()).append(entry)
        self._count(entry, 1)

    def take(self, chunks_max: int, steps_max: int) -> list[TickBatch]:
        """Remove the next batches, up to these numbers of chunks and steps; at least one."""
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
        """Undo the `take` of batches that were not applied: they are next."""
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
