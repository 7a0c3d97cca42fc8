"""The numbers of a spec that kernels read, and the buffers that they work in."""

from __future__ import annotations

from typing import Any, get_args, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core import memory, params, scaling
from bptt_core.calibration import RANKED
from bptt_core.cells import CELLS
from bptt_core.optimizers import OPTIMIZERS
from bptt_core.specs import Clip, Loss, ModelSpec, Task
from bptt_core.state import error_rows, ORDER
from bptt_core.windows import REPORT_COLUMNS

Array = NDArray[Any]


def _numbered(choice: Any) -> dict[str, int]:
    """The names of a Literal, numbered in its order: kernels compare numbers."""
    return {name: number for number, name in enumerate(get_args(choice))}


TASKS, LOSSES, CLIPS = _numbered(Task), _numbered(Loss), _numbered(Clip)
FORECAST, CLASSIFICATION = TASKS["forecast"], TASKS["classification"]
NEXT_TOKEN = TASKS["next_token"]
SQUARED_ERROR, HUBER = LOSSES["squared_error"], LOSSES["huber"]
CROSS_ENTROPY, BERNOULLI = LOSSES["cross_entropy"], LOSSES["bernoulli"]
CLIP_NONE, CLIP_NORM, CLIP_LAYER_NORM = CLIPS["none"], CLIPS["norm"], CLIPS["layer_norm"]


(
    ACTIVE, ACTIVE_ROWS, ACTIVE_STARTS, FULL, GROUP, GROUP_ROWS,
    LANE_BEGINS, LANE_ROWS, LANE_LENGTHS, LANE_ENDS, LANE_STARTS, TARGET_STARTS, TARGET_STOPS,
    LISTS,
) = range(14)  # fmt: skip
"""Rows of `Room.lists`: first those of `windows.advance`, then those of `transition.run`; and the
number of rows."""


class Sizes(NamedTuple):
    """A spec in numbers."""

    L: int
    H: int
    G: int
    """Blocks of H rows in a layer's weights."""
    parts: int
    """Arrays in the carried state."""
    F: int
    """Columns of a step as it is held."""
    inputs: int
    """Columns of U: F, or the size of the vocabulary."""
    tokens: bool
    O: int
    """Outputs."""
    width: int
    """Columns of a target row."""
    truth_width: int
    """Columns of a target in the user's units, and of its naive forecast."""
    P: int
    """Parameters."""
    k1: int
    k2: int
    delay: int
    label_delay: int
    horizon: int
    divergence_patience: int
    max_batch: int
    loss: int
    clip: int
    sum_steps: bool
    """reduction="sum"."""
    scaled: bool
    scaled_targets: bool
    robust: bool
    missing_inputs: bool
    mixture: bool
    task: int
    bias_apart: bool
    """The cell keeps its hidden bias apart; a GRU's acts inside the reset gate."""
    clip_threshold: float
    weight_decay: float
    decoupled_weight_decay: bool
    final_learning_rate: float
    warmup_updates: int
    decay_updates: int
    memory: float
    """Steps over which statistics fade; 0: not robust."""


class Work(NamedTuple):
    """Flat buffers for T steps and B streams at most, cut to shape inside the kernels."""

    inputs: Array
    """(T, B, F)"""
    states: Array
    """(L, parts, T + 1, B, H)"""
    tape: Array
    """(L, T, B, G·H)"""
    extra: Array
    """(L, T + 3, B, H)"""
    output: Array
    """(T, B, O)"""
    target: Array
    """(T, B, width)"""
    dh: Array
    """(T, B, H)"""
    da: Array
    """(T, B, G·H)"""
    dw: Array
    """(T, B, G·H) where the cell keeps its hidden bias apart, else empty."""
    bias: Array
    """(G·H,) the sum of a layer's biases."""
    turned: Array
    """(H, G·H) a layer's W transposed; empty for a large one."""
    gradient: Array
    """(P,)"""


class Room(NamedTuple):
    """Flat buffers of one call: N steps of B streams, M = N + B label_delay targets."""

    features: Array
    """(N, F)"""
    targets: Array
    """(M, width)"""
    outputs: Array
    """(N, O)"""
    base: Array
    """(N, O) float64"""
    unit: Array
    """(N, O) float64"""
    naive: Array
    """(M, truth_width) float64"""
    truth: Array
    """(M, truth_width) float64"""
    scores: Array
    """(N,) float64: anomaly scores."""
    scored: Array
    """(O,) float64: one prediction, or its errors."""
    units: Array
    """(h, D) float64: units of changes."""
    ring: Array
    """(2, rows) float64: a column of the ring of errors, and a tail of it in order."""
    ordered: Array
    """(RANKED,) float64: the largest sizes of errors in order."""
    fitted: Array
    """(2 (ORDER + 2) + h,) float64: regressors, gain and targets of a fit."""
    lists: Array
    """(LISTS, B) int64: the scratch columns of `windows.advance` and `transition.run`."""
    reports: Array
    """(updates, REPORT_COLUMNS) float64"""
    members: Array
    """(updates, 2) int64"""
    done: Array
    """(2,) int64: rows of reports and of members that were filled."""


def sizes(spec: ModelSpec) -> Sizes:
    """A spec in numbers."""
    assert spec.loss is not None
    assert spec.weight_decay is not None
    assert spec.final_learning_rate is not None
    assert spec.decay_updates is not None
    return Sizes(
        L=spec.layers,
        H=spec.hidden_size,
        G=spec.gates,
        parts=spec.state_parts,
        F=spec.features,
        inputs=spec.network_inputs,
        tokens=spec.vocabulary_size > 0,
        O=spec.outputs,
        width=spec.target_width,
        truth_width=spec.truth_width,
        P=params.count(spec),
        k1=spec.k1,
        k2=spec.k2,
        delay=spec.delay,
        label_delay=spec.label_delay,
        horizon=spec.horizon,
        divergence_patience=spec.divergence_patience,
        max_batch=spec.max_batch_streams,
        loss=LOSSES[spec.loss],
        clip=CLIPS[spec.clip],
        sum_steps=spec.reduction == "sum",
        scaled=spec.scaling,
        scaled_targets=spec.scaling and spec.task == "regression" and spec.loss != "bernoulli",
        robust=spec.robust,
        missing_inputs=spec.missing_inputs,
        mixture=spec.mixture,
        task=TASKS[spec.task],
        bias_apart=CELLS[spec.cell].separate_hidden_bias,
        clip_threshold=float(spec.clip_threshold),
        weight_decay=float(spec.weight_decay),
        decoupled_weight_decay=OPTIMIZERS[spec.optimizer].decoupled_weight_decay,
        final_learning_rate=float(spec.final_learning_rate),
        warmup_updates=spec.warmup_updates,
        decay_updates=spec.decay_updates,
        memory=float(spec.scaling_memory),
    )


def work(spec: ModelSpec, steps: int, streams: int, *, backward: bool = True) -> Work:
    """Buffers for windows of so many steps and streams."""
    return work_of(spec, memory.window_lengths(spec, steps, streams, backward=backward))


def work_of(spec: ModelSpec, lengths: dict[str, int]) -> Work:
    """Buffers of these lengths."""
    return Work(**{name: np.zeros(length, spec.dtype) for name, length in lengths.items()})


def room(spec: ModelSpec, rows: int, streams: int, updates: int) -> Room:
    """Buffers for calls of so many steps, streams, and updates."""
    labelled = rows + streams * spec.label_delay
    units = 0 if spec.loss == "cross_entropy" else rows * spec.outputs
    return Room(
        features=np.zeros(rows * spec.features, spec.dtype),
        targets=np.zeros(labelled * spec.target_width, spec.dtype),
        outputs=np.zeros(rows * spec.outputs, spec.dtype),
        base=np.zeros(units),
        unit=np.zeros(units),
        naive=np.zeros(labelled * spec.truth_width),
        truth=np.zeros(labelled * spec.truth_width),
        scores=np.zeros(rows),
        scored=np.zeros(spec.outputs),
        units=np.zeros((spec.horizon, spec.input_size)),
        ring=np.zeros((2, error_rows(spec))),
        ordered=np.zeros(RANKED),
        fitted=np.zeros(2 * (ORDER + 2) + spec.horizon),
        lists=np.zeros((LISTS, streams), np.int64),
        reports=np.zeros((updates, REPORT_COLUMNS)),
        members=np.zeros((updates, 2), np.int64),
        done=np.zeros(2, np.int64),
    )


def columns(spec: ModelSpec) -> Array:
    """(targets,) int64 indices of the inputs that are forecast."""
    return scaling.forecast_columns(spec)
