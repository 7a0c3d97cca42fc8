"""The compiled backend: keeps the kernels' buffers, and calls them."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core import scaling as reference
from bptt_core.kernels import cells, scaling, windows
from bptt_core.kernels import sizes as kernel_sizes
from bptt_core.kernels.blas import one_thread
from bptt_core.scaling import Prepared
from bptt_core.specs import ModelSpec
from bptt_core.state import Model, SEQUENCE_STEP, Streams
from bptt_core.windows import Advanced, Lanes, REPORT_COLUMNS

Array = NDArray[Any]


class Compiled:
    """What runs: Numba, without the GIL. As `Backend`."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._cell = cells.tag(spec)
        self._sizes = kernel_sizes.sizes(spec)
        self._columns = kernel_sizes.columns(spec)
        self._work: kernel_sizes.Work | None = None
        self._streams = 0
        self._reports = np.empty((0, REPORT_COLUMNS))
        self._members = np.empty((0, 2), np.int64)
        self._lists = np.empty((5, 0), np.int64)
        self._done = np.zeros(2, np.int64)
        self._room_of: dict[str, Array] = {}
        self._rows = slice(0, 0)
        self._nobody_asks = np.empty((0, 0, spec.outputs), spec.dtype)
        # A prediction may run while the trainer does, and in several threads at once: each has
        # buffers of its own.
        self._predicting = threading.local()
        self._features = self._targets = np.empty((0, 0), spec.dtype)
        self._base = self._unit = self._naive = np.empty((0, 0))

    def begin(self, steps: int) -> None:
        """As `Backend.begin`. Room grows to the largest call there has been, and stays."""
        self._rows = slice(0, 0)
        if steps <= len(self._features):
            return
        spec = self._spec
        self._features = np.empty((steps, spec.features), spec.dtype)
        self._targets = np.empty((steps, spec.target_width), spec.dtype)
        self._base, self._unit, self._naive = np.empty((3, steps, spec.outputs))

    def empty(self, name: str, shape: tuple[int, ...]) -> Array:
        """As `Backend.empty`."""
        size = math.prod(shape)
        room = self._room_of.get(name)
        if room is None or room.size < size:
            room = self._room_of[name] = np.empty(size, self._spec.dtype)
        return room[:size].reshape(shape)

    def prepare(
        self, model: Model, streams: Streams, row: int, x: Array, y: Array | None
    ) -> Prepared:
        """As `scaling.prepare`."""
        spec, T = self._spec, len(x)
        x = np.ascontiguousarray(x)
        if spec.task == "next_token":
            return reference.prepare(spec, model, streams, row, x, y)
        self._rows = rows = slice(self._rows.stop, self._rows.stop + T)
        features, targets = self._features[rows], self._targets[rows]
        base, unit, naive = self._base[rows], self._unit[rows], self._base[rows]
        if spec.task == "forecast":
            begin = int(streams.counters[row, SEQUENCE_STEP])
            scaling.prepare_forecast(
                self._sizes, self._columns, model, streams.recent[row], begin, x,
                features, targets, base, unit,
            )  # fmt: skip
        else:
            assert y is not None
            y = np.ascontiguousarray(y)
            scale_targets = spec.scaling and spec.task == "regression" and spec.loss != "bernoulli"
            naive = self._naive[rows]
            naive[:] = 0
            scaling.prepare_steps(
                spec.scaling, scale_targets, spec.task == "regression", model, x, y,
                features, targets, base, unit, naive,
            )  # fmt: skip
        return Prepared(features, targets, base, unit, naive)

    def score(
        self,
        model: Model,
        streams: Streams,
        row: int,
        first: int,
        predictions: Array,
        naive: Array,
        truth: Array,
    ) -> None:
        """As `scaling.score`."""
        truth = np.ascontiguousarray(truth)
        if self._spec.task == "forecast":
            held = streams.forecasts[row]
            scaling.score_forecast(self._columns, model, held, first, predictions, naive, truth)
        elif self._spec.task == "regression":
            scaling.score_regression(model, predictions, naive, truth)

    def advance(
        self, model: Model, streams: Streams, lanes: Lanes, outputs: Array | None
    ) -> Advanced:
        """As `windows.advance`."""
        B = len(lanes.rows)
        # Each lane takes part in at most one update every k1 steps, and one more at its end.
        most = B * (len(lanes.features) // self._spec.k1 + 2)
        if most > len(self._reports):
            self._reports = np.empty((2 * most, REPORT_COLUMNS))
            self._members = np.empty((2 * most, 2), np.int64)
        if self._lists.shape[1] < B:
            self._lists = np.empty((5, 2 * B), np.int64)
        reports, members, lists = self._reports, self._members, self._lists
        done = self._done
        done[:] = 0
        asked = self._nobody_asks if outputs is None else outputs
        with one_thread:
            windows.advance(
                self._cell, self._sizes, model, streams, lanes, asked, self._room(B), lists,
                reports, members, done,
            )  # fmt: skip
        return Advanced(reports[: done[0]], members[: done[1]])  # good until the next call

    def forward(self, parameters: Array, features: Array, state: Array) -> Array:
        """As `Backend.forward`."""
        mine = self._predicting
        T = len(features)
        if getattr(mine, "steps", 0) < T:
            mine.work, mine.steps = kernel_sizes.work(self._spec, T, 1), T
        with one_thread:
            outputs: Array = windows.forward_stream(
                self._cell, self._sizes, _owner(parameters), features, _owner(state), mine.work
            )
        return outputs.copy()

    def _room(self, streams: int) -> kernel_sizes.Work:
        """Buffers for so many streams side by side; an update takes max_batch_streams at most."""
        if self._work is None or streams > self._streams:
            spec = self._spec
            batch = min(streams, spec.max_batch_streams)
            work = kernel_sizes.work(spec, max(spec.k2, spec.delay), batch)
            # All lanes are read together, up to the next update of any.
            wide = kernel_sizes.work(spec, spec.k1 + spec.delay, streams)
            pairs = zip(work, wide, strict=True)
            self._work = type(work)(*(a if a.size >= b.size else b for a, b in pairs))
            self._streams = streams
        return self._work


def _owner(array: Array) -> Array:
    """The array behind a read-only view: Numba would compile all again for read-only ones."""
    if array.flags.writeable or not isinstance(array.base, np.ndarray):
        return array
    return array.base
