"""The live states of a model's streams, as of its snapshot, in arrays that all streams share.

One `StreamView` object for each stream took 1,010 bytes for 64 units and 8 inputs. A row of a
shared array takes 336 bytes and a dictionary entry. The arrays are allocated in blocks, so that a
new stream neither copies all of them nor doubles their memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core import Learner, ModelSpec, StreamView

BLOCK_BYTES = 1 << 14  # a block of 48 streams of the default size, or of one very large stream


class StreamViews(Mapping[str, StreamView]):
    """Views of streams by name; each view is an immutable copy. Lives on the event loop."""

    def __init__(self, spec: ModelSpec) -> None:
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        state = (spec.layers, spec.state_parts, spec.hidden_size)
        numbers = [("steps", np.int64, (3,)), ("state", np.dtype(spec.dtype), state)]
        row = np.dtype([*numbers, ("last", np.float64, (spec.input_size,))])
        self._row = row
        self._sources: dict[str, tuple[bytes, int]] = {}
        self._block_rows = max(1, BLOCK_BYTES // row.itemsize)
        self._blocks: list[NDArray[Any]] = []

    @classmethod
    def of(cls, learner: Learner) -> StreamViews:
        """Create the views of all the learner's streams."""
        views = cls(learner.spec)
        for stream_id in learner.stream_ids():
            views[stream_id] = learner.stream_view(stream_id)
        return views

    def next_step(self, stream_id: str) -> int:
        """The number of a stream's next step; 0 for an unknown stream."""
        row = self._rows.get(stream_id)
        return 0 if row is None else int(self._place(row)["steps"][0])

    def incarnation(self, stream_id: str) -> int:
        """The stream's incarnation; 0 for an unknown stream."""
        row = self._rows.get(stream_id)
        return 0 if row is None else int(self._place(row)["steps"][2])

    def source(self, stream_id: str) -> tuple[bytes, int]:
        """The stream's source position, and its next step after the chunk that had it."""
        return self._sources.get(stream_id, (b"", 0))

    def __getitem__(self, stream_id: str) -> StreamView:
        place = self._place(self._rows[stream_id])
        next_step, sequence_step, incarnation = place["steps"].tolist()
        state, last = place["state"].copy(), place["last"].copy()
        state.flags.writeable = last.flags.writeable = False
        source = self.source(stream_id)
        return StreamView(next_step, sequence_step, state, last, incarnation, *source)

    def __setitem__(self, stream_id: str, view: StreamView) -> None:
        row = self._rows.get(stream_id)
        if row is None:
            row = self._rows[stream_id] = self._new_row()
        place = self._place(row)
        place["steps"] = view.next_step, view.sequence_step, view.incarnation
        place["state"] = view.state
        place["last"] = view.last_input
        if view.source_position:
            self._sources[stream_id] = view.source_position, view.source_step
        else:  # another incarnation, which has none
            self._sources.pop(stream_id, None)

    def discard(self, stream_id: str) -> None:
        """Remove a stream; an unknown one is ignored."""
        self._sources.pop(stream_id, None)
        row = self._rows.pop(stream_id, None)
        if row is not None:
            self._free.append(row)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _place(self, row: int) -> Any:
        return self._blocks[row // self._block_rows][row % self._block_rows]

    def _new_row(self) -> int:
        if not self._free:
            first = len(self._blocks) * self._block_rows
            self._blocks.append(np.zeros(self._block_rows, self._row))
            self._free = list(range(first + self._block_rows - 1, first - 1, -1))
        return self._free.pop()
