"""All that a learner remembers, in arrays: parameters, optimizer, scaler, counters, streams.

A stream's buffers are rows of shared arrays, not objects of their own: an idle stream costs a few
kilobytes, and saving a model is saving its arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core import optimizers, params
from bptt_core.specs import ModelSpec

Array = NDArray[Any]

FIRST_CAPACITY = 1  # streams; doubled whenever it is full

NEXT_STEP, SEQUENCE_STEP, ROWS, READY = range(4)
"""Columns of `Streams.counters`.

The next step's number; steps since the sequence began; steps held since the window's start; steps
whose targets are complete but not learned yet.
"""

UPDATES, STEPS, CLIPPED, SKIPPED = range(4)
"""Columns of `Model.counters`."""

LOSS, BASELINE_LOSS, GRADIENT_NORM, CLIPPED_GRADIENT_NORM = range(4)
"""Columns of `Model.last`: figures of the last update."""


class Streams(NamedTuple):
    """Struct of arrays, a row a stream. S capacity, R = k2 + delay rows, h horizon."""

    counters: Array
    """(S, 4) int64: NEXT_STEP, SEQUENCE_STEP, ROWS, READY."""
    inputs: Array
    """(S, R, F) features since the window's start."""
    targets: Array
    """(S, k1, O) scaled targets of the READY last steps; one column for class ids; NaN is
    missing."""
    start_state: Array
    """(S, L, parts, H) the carried state before the window's first step."""
    live_state: Array
    """(S, L, parts, H) the carried state after the last step."""
    recent: Array
    """(S, h, D) float64: the last h inputs in the user's units; step m stands in row m mod h."""
    forecasts: Array
    """(S, h, O + targets) float64: the last h forecasts in the user's units, and the values they
    started from."""


class Model(NamedTuple):
    """What all streams share. W: D for forecasts, else the width of a target."""

    parameters: Array
    """(P,)"""
    moments: Array
    """(moments of the optimizer, P)"""
    counters: Array
    """(4,) int64: UPDATES, STEPS, CLIPPED, SKIPPED."""
    last: Array
    """(4,) float64: figures of the last update; NaN before the first."""
    rates: Array
    """(1,) float64: the learning rate."""
    input_count: Array
    """(1,) float64: steps in the inputs' statistics."""
    input_mean: Array
    """(D,) float64"""
    input_m2: Array
    """(D,) float64: sum of squared deviations from the mean."""
    target_count: Array
    """(h,) float64: changes (or targets) in their statistics, for each step ahead."""
    target_mean: Array
    """(h, W) float64"""
    target_m2: Array
    """(h, W) float64"""
    error: Array
    """(O,) float64: fading sum of absolute prequential errors."""
    naive_error: Array
    """(O,) float64: the same of the naive forecast."""


def new_model(spec: ModelSpec) -> Model:
    """A model that has learned nothing yet."""
    parameters = params.initialise(spec)
    moments = np.zeros((optimizers.MOMENTS[spec.optimizer], parameters.size), spec.dtype)
    scored = spec.outputs if spec.task in ("forecast", "regression") else 0
    width = spec.input_size if spec.task == "forecast" else spec.target_width
    return Model(
        parameters=parameters,
        moments=moments,
        counters=np.zeros(4, np.int64),
        last=np.full(4, np.nan),
        rates=np.array([spec.learning_rate]),
        input_count=np.zeros(1),
        input_mean=np.zeros(spec.input_size),
        input_m2=np.zeros(spec.input_size),
        target_count=np.zeros(spec.horizon),
        target_mean=np.zeros((spec.horizon, width)),
        target_m2=np.zeros((spec.horizon, width)),
        error=np.zeros(scored),
        naive_error=np.zeros(scored),
    )


def new_streams(spec: ModelSpec, capacity: int) -> Streams:
    """Room for `capacity` streams, all at their beginning."""
    h, targets = spec.horizon, spec.target_count
    state = (capacity, spec.layers, spec.state_parts, spec.hidden_size)
    forecast = spec.task == "forecast"
    return Streams(
        counters=np.zeros((capacity, 4), np.int64),
        inputs=np.zeros((capacity, spec.k2 + spec.delay, spec.features), spec.dtype),
        targets=np.zeros((capacity, spec.k1, spec.target_width), spec.dtype),
        start_state=np.zeros(state, spec.dtype),
        live_state=np.zeros(state, spec.dtype),
        recent=np.zeros((capacity, h if forecast else 0, spec.input_size)),
        forecasts=np.zeros((capacity, h if forecast else 0, spec.outputs + targets)),
    )


class StreamTable:
    """The streams of a model: names and rows."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.arrays = new_streams(spec, FIRST_CAPACITY)
        self.rows: dict[str, int] = {}
        self._free: list[int] = [0]

    def open(self, stream_id: str) -> int:
        """The row of a stream, a new one at step 0 if there is none."""
        row = self.rows.get(stream_id)
        if row is None:
            if not self._free:
                self._grow(2 * len(self.arrays.counters))
            row = self.rows[stream_id] = self._free.pop()
        return row

    def delete(self, stream_id: str) -> None:
        """Forget a stream; its row is cleared and free."""
        row = self.rows.pop(stream_id)
        for array in self.arrays:
            array[row] = 0
        self._free.append(row)

    def reset(self, row: int) -> None:
        """Begin a new sequence: zero state, empty window, no last value. Steps go on counting."""
        self.arrays.counters[row, SEQUENCE_STEP:] = 0
        self.arrays.start_state[row] = 0
        self.arrays.live_state[row] = 0

    def compact(self) -> tuple[list[str], dict[str, Array]]:
        """Names in the order of their rows, and the rows in use: what a checkpoint holds."""
        names = sorted(self.rows, key=self.rows.__getitem__)
        rows = [self.rows[name] for name in names]
        arrays = self.arrays._asdict()
        return names, {name: array[rows] for name, array in arrays.items()}

    def restore(self, names: list[str], arrays: dict[str, Array]) -> None:
        """Take over what `compact` gave."""
        self._grow(max(FIRST_CAPACITY, len(names)))
        for name, array in self.arrays._asdict().items():
            array[: len(names)] = arrays[name]
        self.rows = {name: row for row, name in enumerate(names)}
        self._free = list(range(len(self.arrays.counters) - 1, len(names) - 1, -1))

    def _grow(self, capacity: int) -> None:
        used = len(self.arrays.counters)
        if capacity <= used:
            return
        larger = new_streams(self.spec, capacity)
        for old, new in zip(self.arrays, larger, strict=True):
            new[:used] = old
        self.arrays = larger
        self._free.extend(range(capacity - 1, used - 1, -1))
