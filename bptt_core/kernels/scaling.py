"""Online scaling and figures of merit: the twin of `bptt_core.scaling`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.kernels.jit import compiled
from bptt_core.kernels.linear import copy, is_finite
from bptt_core.kernels.sizes import Sizes
from bptt_core.scaling import FADING
from bptt_core.state import Model

Array = NDArray[Any]


@compiled
def welford(count: float, mean: Array, m2: Array, x: Array) -> None:
    """Take x into a mean and a sum of squared deviations, in place; `count` includes it."""
    for i in range(x.size):
        delta = x[i] - mean[i]
        mean[i] += delta / count
        m2[i] += delta * (x[i] - mean[i])


@compiled
def deviation(count: float, m2: float) -> float:
    """Standard deviation, and 1 where there is none yet."""
    return math.sqrt(m2 / max(count, 1.0)) if m2 > 0 else 1.0


@compiled
def prepare_steps(
    scaled: bool,
    scale_targets: bool,
    average_targets: bool,
    model: Model,
    x: Array,
    y: Array,
    features: Array,
    targets: Array,
    base: Array,
    unit: Array,
    naive: Array,
) -> None:
    """Regression and classification; arrays as in `bptt_core.scaling.Prepared`, filled."""
    D, width = x.shape[1], y.shape[1]
    for t in range(x.shape[0]):
        for i in range(D):
            features[t, i] = x[t, i]
        for i in range(width):
            targets[t, i] = y[t, i]
        for i in range(base.shape[1]):
            base[t, i], unit[t, i] = 0.0, 1.0
        if scaled:
            model.input_count[0] += 1
            count = model.input_count[0]
            welford(count, model.input_mean, model.input_m2, x[t])
            for i in range(D):
                spread = deviation(count, model.input_m2[i])
                features[t, i] = (x[t, i] - model.input_mean[i]) / spread
        if not average_targets:
            continue
        mean, m2 = model.target_mean[0], model.target_m2[0]
        missing = False
        for i in range(width):
            naive[t, i] = mean[i]
            if scale_targets:
                base[t, i] = mean[i]
                unit[t, i] = deviation(model.target_count[0], m2[i])
            missing = missing or math.isnan(y[t, i])
        if not missing:
            model.target_count[0] += 1
            welford(model.target_count[0], mean, m2, y[t])
        if scale_targets:
            for i in range(width):
                spread = deviation(model.target_count[0], m2[i])
                targets[t, i] = (y[t, i] - mean[i]) / spread


@compiled
def prepare_forecast(
    sizes: Sizes,
    columns: Array,
    model: Model,
    recent: Array,
    begin: int,
    x: Array,
    features: Array,
    targets: Array,
    base: Array,
    unit: Array,
) -> None:
    """Forecast; arrays as in `bptt_core.scaling.Prepared`, filled.

    Args:
        sizes: the spec's.
        columns: (targets,) inputs that are forecast.
        model: statistics; changed.
        recent: (h, D) the stream's last inputs; changed.
        begin: steps in the stream's sequence before these.
        x: (T, D) inputs in the user's units.
        features: filled.
        targets: filled.
        base: filled.
        unit: filled.
    """
    h, D, n = sizes.horizon, x.shape[1], columns.size
    for t in range(x.shape[0]):
        m = begin + t
        if sizes.scaled:
            model.input_count[0] += 1
            welford(model.input_count[0], model.input_mean, model.input_m2, x[t])
            for j in range(1, min(h, m) + 1):
                model.target_count[j - 1] += 1
                count, before = model.target_count[j - 1], recent[(m - j) % h]
                mean, m2 = model.target_mean[j - 1], model.target_m2[j - 1]
                for i in range(D):
                    change = x[t, i] - before[i]
                    delta = change - mean[i]
                    mean[i] += delta / count
                    m2[i] += delta * (change - mean[i])
        last = recent[(m - 1) % h]
        for i in range(D):
            level, spread, change_spread = 0.0, 1.0, 1.0
            if sizes.scaled:
                level = model.input_mean[i]
                spread = deviation(model.input_count[0], model.input_m2[i])
                change_spread = deviation(model.target_count[0], model.target_m2[0, i])
            features[t, i] = (x[t, i] - level) / spread
            features[t, D + i] = (x[t, i] - last[i]) / change_spread if m > 0 else 0.0
        origin = recent[m % h]  # step m - h
        for j in range(1, h + 1):
            for k in range(n):
                i, at = columns[k], (j - 1) * n + k
                spread = 1.0
                if sizes.scaled:
                    spread = deviation(model.target_count[j - 1], model.target_m2[j - 1, i])
                base[t, at] = x[t, i]
                unit[t, at] = spread
                if m >= h:
                    later = x[t, i] if j == h else recent[(m + j) % h, i]
                    targets[t, at] = (later - origin[i]) / spread
                else:
                    targets[t, at] = np.nan
        copy(x[t], recent[m % h])


@compiled
def fade(model: Model, at: int, error: float, naive_error: float) -> None:
    """Take one absolute error and the naive forecast's into the fading sums."""
    model.error[at] += FADING * (error - model.error[at])
    model.naive_error[at] += FADING * (naive_error - model.naive_error[at])


@compiled
def score_regression(model: Model, predictions: Array, naive: Array, truth: Array) -> None:
    """Errors of predictions (T, O) against targets (T, O) and the naive forecast (T, O)."""
    T, O = predictions.shape
    for t in range(T):
        finite = True
        for i in range(O):
            finite = finite and is_finite(truth[t, i] - predictions[t, i])
        if finite:
            for i in range(O):
                fade(model, i, abs(truth[t, i] - predictions[t, i]), abs(truth[t, i] - naive[t, i]))


@compiled
def score_forecast(
    columns: Array,
    model: Model,
    held: Array,
    begin: int,
    predictions: Array,
    naive: Array,
    x: Array,
) -> None:
    """Errors of earlier forecasts whose truth has come; `held` (h, O + n) keeps the newest."""
    h, n, O = held.shape[0], columns.size, predictions.shape[1]
    for t in range(x.shape[0]):
        m = begin + t
        for j in range(1, min(h, m) + 1):
            earlier = held[(m - j) % h]
            finite = True
            for k in range(n):
                finite = finite and is_finite(x[t, columns[k]] - earlier[(j - 1) * n + k])
            if finite:
                for k in range(n):
                    at, now = (j - 1) * n + k, x[t, columns[k]]
                    fade(model, at, abs(now - earlier[at]), abs(now - earlier[O + k]))
        for i in range(O):
            held[m % h, i] = predictions[t, i]
        for k in range(n):
            held[m % h, O + k] = naive[t, k]
