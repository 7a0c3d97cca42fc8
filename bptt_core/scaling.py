"""Online scaling and the figures of merit, step by step; the reference.

`prepare` turns steps in the user's units into features and targets of the network, `score` compares
earlier predictions with what came. Statistics at a step are those of this step and all before it
(Welford), never of a later one.

A forecast means change: the network is fed each variable's standardised level and standardised last
change, and predicts the change j steps ahead in units of the running standard deviation of such
changes. A prediction in the user's units is `base + unit * output`.

Source: Welford (1962), "Note on a method for calculating corrected sums of squares and products".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core.specs import ModelSpec
from bptt_core.state import Model, SEQUENCE_STEP, Streams

Array = NDArray[Any]

FADING = 1e-3  # share that one step has in the figures of merit: they speak of the last 1,000 or so


class Prepared(NamedTuple):
    """Steps as the network sees them."""

    features: Array
    """(T, F) of the spec's dtype."""
    targets: Array
    """(T, target_width): those that are complete with this step (for a forecast, of the step
    `horizon` before); NaN where none."""
    base: Array
    """(T, O) float64: what a prediction made at this step starts from."""
    unit: Array
    """(T, O) float64."""
    naive: Array
    """(T, O) float64: the naive forecast, the last value or the mean of the targets so far."""


def welford(count: float, mean: Array, m2: Array, x: Array) -> None:
    """Take x into a mean and a sum of squared deviations, in place; `count` includes it."""
    delta = x - mean
    mean += delta / count
    m2 += delta * (x - mean)


def deviation(count: float, m2: Array) -> Array:
    """Standard deviation, and 1 where there is none yet."""
    return np.where(m2 > 0, np.sqrt(m2 / max(count, 1.0)), 1.0)


def forecast_columns(spec: ModelSpec) -> Array:
    """(targets,) indices of the inputs that are forecast."""
    return np.array(spec.target_columns or range(spec.input_size), dtype=np.int64)


def prepare(
    spec: ModelSpec, model: Model, streams: Streams, row: int, x: Array, y: Array | None
) -> Prepared:
    """Scale steps of one stream and learn their statistics.

    Args:
        spec: the model's.
        model: statistics; changed.
        streams: `recent` inputs; changed. Counters are left to `windows.advance`.
        row: the stream's row.
        x: (T, D) inputs in the user's units.
        y: (T, target_width) targets, or None for a forecast.
    """
    if spec.task == "forecast":
        return _prepare_forecast(spec, model, streams, row, x)
    T, O = len(x), spec.outputs
    if spec.task == "next_token":  # each token is the target of the one before
        tokens = x.astype(spec.dtype)
        return Prepared(tokens, tokens, np.zeros((T, 0)), np.ones((T, 0)), np.zeros((T, 0)))
    assert y is not None
    features = np.empty((T, spec.features), spec.dtype)
    targets = np.empty((T, spec.target_width), spec.dtype)
    base, unit, naive = np.zeros((T, O)), np.ones((T, O)), np.zeros((T, O))
    scale_targets = spec.scaling and spec.task == "regression" and spec.loss != "bernoulli"
    for t in range(T):
        features[t] = x[t]
        targets[t] = y[t]
        if spec.scaling:
            model.input_count[0] += 1
            welford(model.input_count[0], model.input_mean, model.input_m2, x[t])
            spread = deviation(model.input_count[0], model.input_m2)
            features[t] = (x[t] - model.input_mean) / spread
        if spec.task != "regression":
            continue
        naive[t] = model.target_mean[0]
        if scale_targets:
            base[t] = model.target_mean[0]
            unit[t] = deviation(model.target_count[0], model.target_m2[0])
        if not np.isnan(y[t]).any():
            model.target_count[0] += 1
            welford(model.target_count[0], model.target_mean[0], model.target_m2[0], y[t])
        if scale_targets:
            spread = deviation(model.target_count[0], model.target_m2[0])
            targets[t] = (y[t] - model.target_mean[0]) / spread
    return Prepared(features, targets, base, unit, naive)


def _prepare_forecast(
    spec: ModelSpec, model: Model, streams: Streams, row: int, x: Array
) -> Prepared:
    T, D, h = len(x), spec.input_size, spec.horizon
    columns = forecast_columns(spec)
    features = np.empty((T, 2 * D), spec.dtype)
    targets = np.full((T, h, columns.size), np.nan, spec.dtype)
    base, unit = np.empty((T, h, columns.size)), np.ones((T, h, columns.size))
    recent = streams.recent[row]
    for t in range(T):
        m = int(streams.counters[row, SEQUENCE_STEP]) + t
        level, spread = np.zeros(D), np.ones((h, D))
        level_spread = np.ones(D)
        change = x[t] - recent[(m - 1) % h] if m else np.zeros(D)
        if spec.scaling:
            model.input_count[0] += 1
            welford(model.input_count[0], model.input_mean, model.input_m2, x[t])
            for j in range(1, min(h, m) + 1):
                model.target_count[j - 1] += 1
                welford(
                    model.target_count[j - 1],
                    model.target_mean[j - 1],
                    model.target_m2[j - 1],
                    x[t] - recent[(m - j) % h],
                )
            level = model.input_mean
            level_spread = deviation(model.input_count[0], model.input_m2)
            for j in range(h):
                spread[j] = deviation(model.target_count[j], model.target_m2[j])
        features[t, :D] = (x[t] - level) / level_spread
        features[t, D:] = change / spread[0]
        if m >= h:
            origin = recent[m % h].copy()  # step m - h
            for j in range(1, h + 1):
                later = x[t] if j == h else recent[(m + j) % h]
                targets[t, j - 1] = ((later - origin) / spread[j - 1])[columns]
        base[t], unit[t] = x[t, columns], spread[:, columns]
        recent[m % h] = x[t]
    O = spec.outputs
    last = base.reshape(T, O)
    return Prepared(features, targets.reshape(T, O), last, unit.reshape(T, O), last)


def score(
    spec: ModelSpec,
    model: Model,
    streams: Streams,
    row: int,
    first: int,
    predictions: Array,
    naive: Array,
    truth: Array,
) -> None:
    """Add the errors of predictions whose truth has come to the fading figures of merit.

    Args:
        spec: the model's.
        model: `error` and `naive_error`; changed.
        streams: `forecasts`; changed.
        row: the stream's row.
        first: steps in the stream's sequence before these.
        predictions: (T, O) in the user's units, made at these steps.
        naive: (T, O) the naive forecast at these steps.
        truth: (T, D) inputs for a forecast, (T, O) targets for regression.
    """
    if spec.loss == "cross_entropy":
        return
    if spec.task == "regression":
        for t in range(len(truth)):
            error = np.abs(truth[t] - predictions[t])
            _fade(model, slice(None), error, np.abs(truth[t] - naive[t]))
        return
    columns, h, O = forecast_columns(spec), spec.horizon, spec.outputs
    n = columns.size
    held = streams.forecasts[row]
    for t in range(len(truth)):
        m = first + t
        now = truth[t, columns]
        for j in range(1, min(h, m) + 1):
            earlier = held[(m - j) % h]
            outputs = slice((j - 1) * n, j * n)
            _fade(model, outputs, np.abs(now - earlier[outputs]), np.abs(now - earlier[O:]))
        held[m % h, :O] = predictions[t]
        held[m % h, O:] = naive[t, :n]


def _fade(model: Model, outputs: slice, error: Array, naive_error: Array) -> None:
    if np.isfinite(error).all() and np.isfinite(naive_error).all():
        model.error[outputs] += FADING * (error - model.error[outputs])
        model.naive_error[outputs] += FADING * (naive_error - model.naive_error[outputs])


def skill_ratio(model: Model) -> float:
    """Prequential absolute error over the naive forecast's, mean over outputs; NaN if none yet."""
    known = model.naive_error > 0
    return float(np.mean(model.error[known] / model.naive_error[known])) if known.any() else np.nan
