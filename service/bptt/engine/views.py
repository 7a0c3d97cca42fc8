"""The live states of a model's streams, as of its snapshot, in arrays that all streams share.

One `StreamView` object for each stream took 1,010 bytes for 64 units and 8 inputs. A row of a
shared array takes 336 bytes and a dictionary entry; both without what the experts of a mixture
remember, 352 bytes more. The arrays are allocated in blocks, so that a new stream copies none of
them. A block is as large as all blocks before it, up to BLOCK_ROWS_MAX: the operating system gives
memory to the part that is in use.

A view is made when it is read. Publishing a thousand streams copies columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.engine.slots import StreamSlots
from bptt_core import Learner, memory_shape, ModelSpec, StreamColumns, StreamView

BLOCK_BYTES = 1 << 14  # the first block: 48 streams of the default size, or one very large stream
BLOCK_ROWS_MAX = 1 << 12

IntArray = NDArray[np.int64]


class StreamViews(Mapping[str, StreamView]):
    """Views of streams by name; each view is an immutable copy. Lives on the event loop.

    Attributes:
        slots: the streams' slots. A stream whose `incarnation` there is not 0 has a view.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.slots = StreamSlots()
        self._count = 0
        state = (spec.layers, spec.state_parts, spec.hidden_size)
        numbers = [("steps", np.int64, (2,)), ("state", np.dtype(spec.dtype), state)]
        last = ("last", np.float64, (spec.input_size,))
        self._row = np.dtype([*numbers, last, ("memory", np.dtype(spec.dtype), memory_shape(spec))])
        self._starts: list[int] = []  # the first slot of each block
        self._rows = 0  # of all blocks
        self._sources: dict[str, tuple[bytes, int]] = {}
        self._blocks: list[NDArray[Any]] = []

    @classmethod
    def of(cls, learner: Learner) -> StreamViews:
        """Create the views of all the learner's streams."""
        views = cls(learner.spec)
        views.put_all(learner.stream_ids(), learner.stream_columns(learner.stream_ids()))
        return views

    def next_step(self, stream_id: str) -> int:
        """The number of a stream's next step; 0 for an unknown stream."""
        slot = self.slots.numbers.get(stream_id)
        return 0 if slot is None else int(self.slots.next_step[slot])

    def incarnation(self, stream_id: str) -> int:
        """The stream's incarnation; 0 for an unknown stream."""
        slot = self.slots.numbers.get(stream_id)
        return 0 if slot is None else int(self.slots.incarnation[slot])

    def source(self, stream_id: str) -> tuple[bytes, int]:
        """The stream's source position, and its next step after the chunk that had it."""
        return self._sources.get(stream_id, (b"", 0))

    def __getitem__(self, stream_id: str) -> StreamView:
        slot = self.slots.numbers[stream_id]
        incarnation = int(self.slots.incarnation[slot])
        if not incarnation:
            raise KeyError(stream_id)
        block = int(np.searchsorted(self._starts, slot, "right")) - 1
        place = self._blocks[block][slot - self._starts[block]]
        next_step, sequence_step = place["steps"].tolist()
        state, last, memory = (place[name].copy() for name in ("state", "last", "memory"))
        for array in (state, last, memory):
            array.flags.writeable = False
        source = self.source(stream_id)
        return StreamView(next_step, sequence_step, state, last, incarnation, *source, memory)

    def put_all(self, stream_ids: Sequence[str], columns: StreamColumns) -> None:
        """Put the views of these streams."""
        self.put(self.slots.open_all(stream_ids), columns)
        if self._sources or columns.sources:
            for stream_id in stream_ids:
                self._sources.pop(stream_id, None)
            self._sources.update(columns.sources)

    def put(self, slots: IntArray, columns: StreamColumns) -> None:
        """Put the views of the streams in these slots, (K,) and none twice."""
        if not len(slots):
            return
        table = self.slots
        self._count += len(slots) - int(np.count_nonzero(table.incarnation[slots]))
        table.next_step[slots] = columns.next_steps
        table.incarnation[slots] = columns.incarnations
        while int(slots.max()) >= self._rows:
            self._add_block()
        blocks = np.searchsorted(self._starts, slots, "right") - 1
        first = int(blocks[0])
        if not np.count_nonzero(blocks != first):
            self._write(first, slots, columns)
            return
        for block in np.unique(blocks).tolist():
            mine = np.flatnonzero(blocks == block)
            self._write(block, slots[mine], _rows_of(columns, mine))

    def _write(self, block: int, slots: IntArray, columns: StreamColumns) -> None:
        rows, held = slots - self._starts[block], self._blocks[block]
        steps = held["steps"]
        steps[rows, 0], steps[rows, 1] = columns.next_steps, columns.sequence_steps
        held["state"][rows] = columns.states
        held["last"][rows] = columns.last_inputs
        held["memory"][rows] = columns.memories

    def discard(self, stream_id: str) -> None:
        """Remove a stream; an unknown one is ignored."""
        slot = self.slots.numbers.get(stream_id)
        if slot is None or not self.slots.incarnation[slot]:
            return
        self._count -= 1
        self.slots.next_step[slot] = self.slots.incarnation[slot] = self.slots.moved[slot] = 0
        self.slots.release(stream_id)
        self._sources.pop(stream_id, None)

    def begins_anew(self, stream_ids: Sequence[str], columns: StreamColumns) -> None:
        """Replace all views. Streams that stay keep their slots."""
        for stream_id in set(self) - set(stream_ids):
            self.discard(stream_id)
        self.put_all(stream_ids, columns)

    def __contains__(self, stream_id: object) -> bool:
        slot = self.slots.numbers.get(stream_id)  # type: ignore[call-overload]
        return slot is not None and bool(self.slots.incarnation[slot])

    def __iter__(self) -> Iterator[str]:
        incarnation = self.slots.incarnation
        return (name for name, slot in self.slots.numbers.items() if incarnation[slot])

    def __len__(self) -> int:
        return self._count

    def _add_block(self) -> None:
        least = max(1, BLOCK_BYTES // self._row.itemsize)
        rows = max(least, min(self._rows, BLOCK_ROWS_MAX))
        self._starts.append(self._rows)
        self._blocks.append(np.zeros(rows, self._row))
        self._rows += rows


def _rows_of(columns: StreamColumns, rows: IntArray) -> StreamColumns:
    """Some streams of the columns, without their source positions."""
    return StreamColumns(
        columns.next_steps[rows],
        columns.sequence_steps[rows],
        columns.incarnations[rows],
        columns.states[rows],
        columns.last_inputs[rows],
        columns.memories[rows],
        {},
    )
