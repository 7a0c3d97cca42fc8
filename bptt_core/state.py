"""The state of a learner, in arrays: parameters, optimizer, scaler, counters, streams.

Each stream has one row in shared arrays, not objects of its own: an idle stream costs a few
kilobytes, and saving a model means saving its arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core import calibration, params
from bptt_core.optimizers import OPTIMIZERS
from bptt_core.robust import CHANGE_FIELDS, LEVEL_FIELDS
from bptt_core.specs import ModelSpec
from bptt_core.ticks import Batch

Array = NDArray[Any]

ERRORS_MOST = 512  # rows in the ring of errors: its 0.05 quantile then rests on 25 of them
ERRORS_LEAST = 64  # rows where there are many outputs: 1 MB at 4,096 of them in float32
ERRORS_SIZE = 65_536  # numbers in the ring, between the two
FIRST_CAPACITY = 1  # streams; doubled whenever it is full
INCARNATION = "incarnation"  # name of the streams' incarnations in a saved state

NEXT_STEP, SEQUENCE_STEP, ROWS, READY = range(4)
"""Columns of `Streams.counters`.

The next step's number; steps since the sequence began; steps held since the window's start; steps
whose targets are complete but not learned yet.
"""

EXPERTS = ("last_value", "mean", "fast_average", "slow_average", "changes", "levels", "network")
"""Names of the forecasters of `bptt_core.experts`, in the order of their weights."""
ORDER = 8  # changes that least squares read
FIT_START = 1.0  # diagonal of a fit's inverse before its first step: a ridge of 1

UPDATES, STEPS, CLIPPED, SKIPPED, SKIPPED_IN_A_ROW, APPLIED, ERRORS = range(7)
"""Columns of `Model.counters`.

UPDATES, STEPS, CLIPPED and SKIPPED count over the whole life of the model. APPLIED counts the
updates that the current parameters and moments include; a roll-back reduces it. ERRORS counts the
errors that were written to `Model.errors`.
"""

LOSS, BASELINE_LOSS, GRADIENT_NORM, CLIPPED_GRADIENT_NORM = range(4)
"""Columns of `Model.last`: figures of the last update."""


class Streams(NamedTuple):
    """Struct of arrays; row s belongs to one stream. S capacity, R = k2 + delay, h horizon."""

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
    """(S, h, D) float64: the last h inputs in the user's units; step m is in row m mod h. With
    `missing_inputs` (S, 2h, D): first with the last value seen in place of each missing value (NaN
    before there is one), then as received."""
    forecasts: Array
    """(S, h, O + targets) float64: the last h forecasts in the user's units, and the values that
    they started from. With late labels: (S, label_delay, O), the last predictions."""
    labels: Array
    """(S, label_delay, target_width) float64: labels of the last steps in the user's units; NaN
    where there is none yet."""
    surprise: Array
    """(S, SURPRISE_FIELDS) float64, of forecasts: the scale of recent errors' sizes, and their
    number (`bptt_core.calibration`). With `scaling_memory` 0 (S, 3): number, mean and variance of
    these sizes."""
    changes: Array
    """(S, ORDER + h, targets), of mixtures: the last changes in the user's units, that of
    step m in row m mod (ORDER + h); NaN where a value is missing."""
    moves: Array
    """(S, h, 5 targets + 3 O), of mixtures: what the experts said at the last h steps
    (`bptt_core.experts.Said`)."""


class Model(NamedTuple):
    """The state that all streams share. W: D for forecasts, else the width of a target."""

    parameters: Array
    """(P,)"""
    moments: Array
    """(moments of the optimizer, P)"""
    counters: Array
    """(7,) int64: UPDATES, STEPS, CLIPPED, SKIPPED, SKIPPED_IN_A_ROW, APPLIED, ERRORS."""
    last: Array
    """(4,) float64: figures of the last update; NaN before the first."""
    rates: Array
    """(1,) float64: the learning rate."""
    input_count: Array
    """(D,) float64: values in the inputs' statistics."""
    input_mean: Array
    """(D,) float64"""
    input_m2: Array
    """(D,) float64: sum of squared deviations from the mean."""
    target_count: Array
    """(h, W) float64: changes (or targets) in their statistics, for each step ahead."""
    target_mean: Array
    """(h, W) float64"""
    target_m2: Array
    """(h, W) float64"""
    class_counts: Array
    """(classes,) float64: number of times that each class or token was a target."""
    error: Array
    """(O,) float64: fading sum of absolute prequential errors; (1,) of cross-entropies."""
    naive_error: Array
    """The same for the naive forecast."""
    hits: Array
    """(2,) float64, for classes: fading sums of the targets that were the likeliest class, and of
    all targets."""
    errors: Array
    """(N, O) ring of the last prequential errors with their sign, truth - prediction in the user's
    units; NaN where there is none. Empty for classes."""
    error_band: Array
    """(2, O) float64: their quantiles; NaN where there are too few."""
    input_level: Array
    """(D, LEVEL_FIELDS) float64: mean and variance of the inputs. As all that follow, empty with
    `scaling_memory` 0."""
    target_level: Array
    """(W, LEVEL_FIELDS) float64: the same of the targets of a regression."""
    change_scale: Array
    """(h, D, CHANGE_FIELDS) float64: scales and means of a forecast's changes."""
    limited: Array
    """(1,) float64: inputs that were limited for the network."""
    band_width: Array
    """(O,) float64: factor of the error band's width, which holds its coverage."""
    score_ring: Array
    """(RANKED,) float64, of forecasts: ring of the last sizes of errors."""
    score_tail: Array
    """(TAIL_FIELDS,) float64: the distribution of the largest (`bptt_core.calibration`)."""
    expert_level: Array
    """(targets, LEVEL_FIELDS) float64: the experts' mean and variance of the target columns. As all
    that follow, empty without a mixture (`bptt_core.experts`)."""
    regret: Array
    """(EXPERTS, O) float64: fading sums of the experts' regrets."""
    regret_square: Array
    """(EXPERTS, O) float64: the same of their squares."""
    changes_inverse: Array
    """(targets, ORDER, ORDER) float64: the inverse of least squares on changes."""
    changes_fit: Array
    """(targets, h, ORDER) float64: its coefficients, those of the newest change first."""
    levels_inverse: Array
    """(targets, ORDER + 2, ORDER + 2) float64: the same for changes, level and a constant."""
    levels_fit: Array
    """(targets, h, ORDER + 2) float64"""
    network_error: Array
    """(O,) float64: as `error`, of the network alone."""


STATISTICS = (
    *("input_count", "input_mean", "input_m2"),
    *("target_count", "target_mean", "target_m2"),
    *("input_level", "target_level", "change_scale"),
    *("expert_level", "regret", "regret_square"),
    *("changes_inverse", "changes_fit", "levels_inverse", "levels_fit"),
)
"""Arrays of a `Model` that scale values and mix forecasts. With the parameters they are what
predictions need."""


def error_rows(spec: ModelSpec) -> int:
    """Rows in the ring of errors."""
    return max(ERRORS_LEAST, min(ERRORS_MOST, ERRORS_SIZE // spec.outputs))


def model_shapes(spec: ModelSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each array of a `Model`."""
    P = params.count(spec)
    classes = spec.loss == "cross_entropy"
    scored = 1 if classes else spec.outputs
    kept = 0 if classes else spec.outputs
    width = spec.input_size if spec.task == "forecast" else spec.target_width
    robust = (_robust_shapes(spec, kept) | _expert_shapes(spec)).items()
    return {
        "parameters": ((P,), spec.dtype),
        "moments": ((OPTIMIZERS[spec.optimizer].moments, P), spec.dtype),
        "counters": ((7,), "int64"),
        "last": ((4,), "float64"),
        "rates": ((1,), "float64"),
        "input_count": ((spec.input_size,), "float64"),
        "input_mean": ((spec.input_size,), "float64"),
        "input_m2": ((spec.input_size,), "float64"),
        "target_count": ((spec.horizon, width), "float64"),
        "target_mean": ((spec.horizon, width), "float64"),
        "target_m2": ((spec.horizon, width), "float64"),
        "class_counts": ((spec.outputs if classes else 0,), "float64"),
        "error": ((scored,), "float64"),
        "naive_error": ((scored,), "float64"),
        "hits": ((2,), "float64"),
        "errors": ((error_rows(spec), kept), spec.dtype),
        "error_band": ((2, kept), "float64"),
        **{name: (shape, "float64") for name, shape in robust},
    }


def _robust_shapes(spec: ModelSpec, kept: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's arrays that are empty with `scaling_memory` 0."""
    dense = spec.robust and spec.task != "next_token"
    forecast = spec.robust and spec.task == "forecast"
    return {
        "input_level": (spec.input_size if dense else 0, LEVEL_FIELDS),
        "target_level": (spec.target_width if dense and not forecast else 0, LEVEL_FIELDS),
        "change_scale": (spec.horizon, spec.input_size if forecast else 0, CHANGE_FIELDS),
        "limited": (1 if dense else 0,),
        "band_width": (kept if spec.robust else 0,),
        "score_ring": (calibration.RANKED if forecast else 0,),
        "score_tail": (calibration.TAIL_FIELDS if forecast else 0,),
    }


def _expert_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's arrays that are empty without a mixture."""
    n, O = (spec.target_count, spec.outputs) if spec.mixture else (0, 0)
    long = ORDER + 2
    return {
        "expert_level": (n, LEVEL_FIELDS),
        "regret": (len(EXPERTS), O),
        "regret_square": (len(EXPERTS), O),
        "changes_inverse": (n, ORDER, ORDER),
        "changes_fit": (n, spec.horizon, ORDER),
        "levels_inverse": (n, long, long),
        "levels_fit": (n, spec.horizon, long),
        "network_error": (O,),
    }


def new_model(spec: ModelSpec) -> Model:
    """A model that has learned nothing yet."""
    shapes = model_shapes(spec).items()
    arrays = {name: np.zeros(*shape) for name, shape in shapes if name != "parameters"}
    model = Model(parameters=params.initialise(spec), **arrays)
    model.last[:] = model.error_band[:] = np.nan
    model.band_width[:] = 1.0
    for inverse in (model.changes_inverse, model.levels_inverse):
        inverse[:] = FIT_START * np.eye(inverse.shape[1])
    model.rates[0] = spec.learning_rate
    return model


def stream_shapes(spec: ModelSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of one stream's row in each array of `Streams`."""
    forecast, late = spec.task == "forecast", spec.label_delay
    recent = spec.horizon * (1 + spec.missing_inputs) if forecast else 0
    held, width = (
        (spec.horizon, spec.outputs + spec.target_count) if forecast else (late, spec.outputs)
    )
    state = (spec.layers, spec.state_parts, spec.hidden_size)
    surprise = calibration.SURPRISE_FIELDS if spec.robust else 3
    n = spec.target_count if spec.mixture else 0
    return {
        "counters": ((4,), "int64"),
        "inputs": ((spec.k2 + spec.delay, spec.features), spec.dtype),
        "targets": ((spec.k1, spec.target_width), spec.dtype),
        "start_state": (state, spec.dtype),
        "live_state": (state, spec.dtype),
        "recent": ((recent, spec.input_size), "float64"),
        "forecasts": ((held, width), "float64"),
        "labels": ((late, spec.target_width), "float64"),
        "surprise": ((surprise if forecast else 0,), "float64"),
        "changes": ((ORDER + spec.horizon, n), spec.dtype),
        "moves": ((spec.horizon, (5 + 3 * spec.horizon) * n), spec.dtype),
    }


def memory_shape(spec: ModelSpec) -> tuple[int, int]:
    """Shape of `StreamView.memory`: averages and changes of the target columns of a mixture."""
    return 3 + ORDER, spec.target_count if spec.mixture else 0


def new_streams(spec: ModelSpec, capacity: int) -> Streams:
    """Zeroed rows for `capacity` streams."""
    shapes = stream_shapes(spec).items()
    return Streams(**{name: np.zeros((capacity, *row), dtype) for name, (row, dtype) in shapes})


class StreamTable:
    """The streams of a model: names, rows and incarnations.

    Attributes:
        incarnations: (S,) int64: the number of the opening that a row's stream comes from; 0 for a
            free row. Not part of `arrays`, because no kernel reads it.
        opened: the last number that was assigned. It never goes down in the life of a model.
        sources: by stream, the last source position that its chunks had, and the stream's next step
            after that chunk.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.arrays = new_streams(spec, FIRST_CAPACITY)
        self.rows: dict[str, int] = {}
        self.incarnations: Array = np.zeros(FIRST_CAPACITY, np.int64)
        self.opened = 0
        self.sources: dict[str, tuple[bytes, int]] = {}
        self._free: list[int] = [0]

    def find(self, stream_ids: Sequence[str]) -> Array:
        """(B,) int64: the row of each stream, -1 for an unknown one."""
        get = self.rows.get
        return np.array([get(each, -1) for each in stream_ids], np.int64)

    def open(self, stream_id: str) -> int:
        """The row of a stream; an unknown stream is opened at step 0."""
        row = self.rows.get(stream_id)
        if row is None:
            if not self._free:
                self._grow(2 * len(self.arrays.counters))
            row = self.rows[stream_id] = self._free.pop()
            self.opened += 1
            self.incarnations[row] = self.opened
        return row

    def delete(self, stream_id: str) -> None:
        """Delete a stream; clear and free its row."""
        row = self.rows.pop(stream_id)
        self.sources.pop(stream_id, None)
        for array in self.arrays:
            array[row] = 0
        self.incarnations[row] = 0
        self._free.append(row)

    def reset(self, row: int) -> None:
        """Begin a new sequence: zero state, empty window, no last value. Step numbers continue."""
        self.arrays.counters[row, SEQUENCE_STEP:] = 0
        self.arrays.start_state[row] = 0
        self.arrays.live_state[row] = 0

    def hold_labels(self, rows: Array, steps: Array, labels: Array) -> None:
        """Store late labels (n, target_width) of steps that were read; a NaN changes nothing.

        Args:
            rows: (n,) int64, the row of each label's stream.
            steps: (n,) int64, the step of each label.
            labels: the labels.
        """
        counters, held = self.arrays.counters, self.arrays.labels
        places = counters[rows, SEQUENCE_STEP] - (counters[rows, NEXT_STEP] - steps)
        places %= held.shape[1]
        known = held[rows, places]
        held[rows, places] = np.where(np.isnan(labels), known, labels)

    def keep_sources(self, batch: Batch, next_steps: Array) -> None:
        """Keep the source positions of a batch's lanes, with the step after each."""
        if batch.source_positions is None:
            return
        lanes = zip(batch.stream_ids, batch.source_positions, next_steps.tolist(), strict=True)
        self.sources |= {name: (position, step) for name, position, step in lanes if position}

    def compact(self) -> tuple[list[str], dict[str, Array]]:
        """Names in the order of their rows, and the rows in use, as a checkpoint stores them."""
        names = sorted(self.rows, key=self.rows.__getitem__)
        rows = [self.rows[name] for name in names]
        arrays = self.arrays._asdict() | {INCARNATION: self.incarnations}
        return names, {name: array[rows] for name, array in arrays.items()}

    def restore(self, names: list[str], arrays: dict[str, Array], opened: int) -> None:
        """Restore the streams that `compact` returned, and the last incarnation assigned."""
        self._grow(max(FIRST_CAPACITY, len(names)))
        for name, array in self.arrays._asdict().items():
            array[: len(names)] = arrays[name]
        self.incarnations[: len(names)] = arrays[INCARNATION]
        self.opened = opened
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
        self.incarnations = np.concatenate([self.incarnations, np.zeros(capacity - used, np.int64)])
        self._free.extend(range(capacity - 1, used - 1, -1))
