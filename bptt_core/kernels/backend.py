"""The compiled backend: owns the kernels' buffers and calls the kernels."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core import memory
from bptt_core.kernels import dispatch, transition, windows
from bptt_core.kernels import sizes as kernel_sizes
from bptt_core.kernels.addresses import table
from bptt_core.kernels.blas import one_thread
from bptt_core.kernels.table import work_table
from bptt_core.specs import ModelSpec
from bptt_core.state import Model, Streams
from bptt_core.transition import Steps
from bptt_core.windows import Advanced

Array = NDArray[Any]

ROOM_BYTES_KEPT = 1 << 25  # buffers of one call; larger ones are freed after the call
FORWARD_STEPS = 256  # steps that a prediction reads at once; each thread keeps their buffers


class Compiled:
    """As `Backend`, with Numba and without the GIL."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._tag = dispatch.tag(spec)
        self._numbers = np.array(kernel_sizes.sizes(spec), np.float64)
        self._columns = kernel_sizes.columns(spec)
        self._work = kernel_sizes.work(spec, 1, 1)
        self._room = kernel_sizes.room(spec, 1, 1, 1)
        self._room_bytes = 0
        self._streams = 0
        # The arrays that the table points to: kept alive, and compared to see if it is still valid.
        self._model: Model | None = None
        self._arrays: Streams | None = None
        self._table = np.empty(0, np.int64)
        self._no_targets = np.empty((0, spec.target_width))
        self._no_predictions = np.empty((0, spec.outputs))
        # Predictions may run during training and in several threads: each thread has its own
        # buffers.
        self._predicting = threading.local()

    def run(
        self, model: Model, streams: Streams, steps: Steps, predictions: Array | None
    ) -> Advanced:
        """As `Backend.run`."""
        lanes = steps.lanes
        moved = self._grow(len(lanes), len(steps.x))
        if moved or model is not self._model or streams is not self._arrays:
            kept = (*model, *streams, *self._work, *self._room, self._columns, self._numbers)
            self._table = table(kept)
            self._model, self._arrays = model, streams
        asked = predictions is not None
        made = self._no_predictions if predictions is None else predictions
        y = self._no_targets if steps.y is None else steps.y
        with one_thread:
            transition.run(
                self._tag, model.parameters, self._table, lanes, steps.x, y, made, asked,
                steps.paused,
            )  # fmt: skip
        reports, members = self._room.done.tolist()
        room = self._room
        advanced = Advanced(
            room.reports[:reports], room.members[:members], room.scores[: len(steps.x)]
        )
        if self._room_bytes > ROOM_BYTES_KEPT:
            self._room, self._room_bytes = kernel_sizes.room(self._spec, 1, 1, 1), 0
            self._model = None  # the table points to freed buffers
        return advanced

    def _grow(self, streams: int, steps: int) -> bool:
        """Make room for a call of these totals of streams and steps; True if a buffer moved."""
        spec, room, moved = self._spec, self._room, False
        # A lane takes part in at most one update every k1 steps, and in one more at its end.
        updates = (steps + streams * spec.label_delay) // spec.k1 + 2 * streams
        before = (len(room.scores), room.lists.shape[1], len(room.reports))
        needed = (steps, streams, updates)
        if any(a > b for a, b in zip(needed, before, strict=True)):
            self.forget()  # the table points to freed buffers, even if the next line fails
            self._room = kernel_sizes.room(spec, *map(max, needed, before))
            self._room_bytes = sum(array.nbytes for array in self._room)
            moved = True
        if streams > self._streams:
            self.forget()
            self._work = kernel_sizes.work_of(spec, memory.work_lengths(spec, streams))
            self._streams = streams
            moved = True
        return moved

    def forget(self) -> None:
        """As `Backend.forget`."""
        self._model = self._arrays = None

    def forward(self, parameters: Array, features: Array, state: Array) -> Array:
        """As `Backend.forward`."""
        mine = self._predicting
        T, state = len(features), state.copy()
        if not parameters.flags.writeable:  # a snapshot's: Numba would compile again for it
            assert parameters.base is not None
            parameters = parameters.base
        at_once = min(T, FORWARD_STEPS)
        if getattr(mine, "steps", 0) < at_once:
            mine.work = kernel_sizes.work(self._spec, at_once, 1, backward=False)
            mine.table = work_table(mine.work, self._numbers)
            mine.steps = at_once
        outputs = np.empty((T, self._spec.outputs), self._spec.dtype)
        with one_thread:
            for start in range(0, T, FORWARD_STEPS):
                part = slice(start, min(T, start + FORWARD_STEPS))
                windows.forward_stream(
                    self._tag, mine.table, parameters, features[part], state, outputs[part]
                )  # fmt: skip
        return outputs
