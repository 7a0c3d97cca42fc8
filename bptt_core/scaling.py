"""Online scaling, step by step; the reference.

`prepare` converts steps in the user's units to features and targets of the network; `finish`
converts the network's outputs to predictions. Statistics at a step cover this step and all earlier
ones (Welford), and no later one.

A forecast predicts changes: the network reads each variable's standardised level and standardised
last change, and predicts the change j steps ahead in units of the running standard deviation of
such changes. A prediction in the user's units is `base + unit * output`.

A missing value, NaN, is fed as the variable's mean with a flag, and in a forecast as no change; the
next change is measured from the last value seen. A missing value is left out of the statistics, and
a missing target has no loss.

With `scaling_memory` all statistics are those of `bptt_core.robust`: they fade, and features and
targets are limited to a few deviations. Steps with a limited input are counted.

Late labels are held until their step is `label_delay` steps old; the label held then is the target.

Source: Welford (1962), "Note on a method for calculating corrected sums of squares and products".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core import robust
from bptt_core.specs import ModelSpec
from bptt_core.state import Model, SEQUENCE_STEP, Streams

Array = NDArray[Any]


class Prepared(NamedTuple):
    """T steps as the network reads them.

    Targets, their truth and their naive forecasts belong to the step `label_delay` earlier. If the
    sequence ends, those of its last `label_delay` steps follow: N = T + label_delay rows, else T.
    """

    features: Array
    """(T, F) of the spec's dtype."""
    targets: Array
    """(N, target_width): the targets that this step completes (for a forecast, those of the step
    `horizon` earlier); NaN if it is missing."""
    base: Array
    """(T, O) float64: the value that a prediction made at this step is added to."""
    unit: Array
    """(T, O) float64: the factor that the output of this step is multiplied by."""
    naive: Array
    """The naive forecast, float64. Regression: (N, O) the mean of the targets so far. Classes: (N,
    1) the cross-entropy of their frequencies so far. Forecast: (T, targets) the last values seen at
    this step, NaN before there is one."""
    truth: Array
    """(N, target_width) float64: targets in the user's units. Forecast: (T, targets), the step's
    own values."""


def welford(count: Array, mean: Array, m2: Array, x: Array) -> None:
    """Add x to counts, means and sums of squared deviations, in place; NaN is left out."""
    known = ~np.isnan(x)
    count[known] += 1
    delta = x[known] - mean[known]
    mean[known] += delta / count[known]
    m2[known] += delta * (x[known] - mean[known])


def deviation(count: Array, m2: Array) -> Array:
    """Standard deviations; 1 where all values so far are equal."""
    return np.where(m2 > 0, np.sqrt(m2 / np.maximum(count, 1.0)), 1.0)


def take_inputs(spec: ModelSpec, model: Model, x: Array) -> None:
    """Add a step's inputs (D,) to their statistics."""
    if spec.robust:
        robust.follow_level(model.input_level, x, spec.scaling_memory)
    else:
        welford(model.input_count, model.input_mean, model.input_m2, x)


def take_change(spec: ModelSpec, model: Model, ahead: int, change: Array) -> None:
    """Add changes (D,) over `ahead` steps to their statistics."""
    if spec.robust:
        robust.follow_change(model.change_scale[ahead - 1], change, spec.scaling_memory)
        return
    row = ahead - 1
    welford(model.target_count[row], model.target_mean[row], model.target_m2[row], change)


def input_mean(spec: ModelSpec, model: Model) -> Array:
    """(D,) means of the inputs so far."""
    return model.input_level[:, robust.MEAN] if spec.robust else model.input_mean


def change_units(spec: ModelSpec, model: Model) -> Array:
    """(h, D) what a change of 1 is in the user's units."""
    if not spec.scaling:
        return np.ones((spec.horizon, spec.input_size))
    if spec.robust:
        return robust.change_unit(model.change_scale)
    return deviation(model.target_count, model.target_m2)


def target_units(spec: ModelSpec, model: Model) -> tuple[Array, Array]:
    """(W,) mean and deviation of the targets of a regression that is scaled."""
    if spec.robust:
        level = model.target_level
        return level[:, robust.MEAN], np.sqrt(level[:, robust.VARIANCE])
    return model.target_mean[0], deviation(model.target_count[0], model.target_m2[0])


def in_units(spec: ModelSpec, values: Array, unit: Array) -> Array:
    """Values in these units; limited where statistics are robust."""
    if spec.robust and spec.scaling:
        return robust.scaled(values, unit)
    return np.asarray(values / unit)


def count_limited(spec: ModelSpec, model: Model, features: Array) -> None:
    """Count inputs of a step that are limited, in level or in change; features (F,)."""
    if not spec.robust or not spec.scaling:
        return
    D = spec.input_size
    beyond = np.abs(features[:D]) >= robust.LIMIT
    if spec.task == "forecast":
        beyond |= np.abs(features[D : 2 * D]) >= robust.LIMIT
    model.limited[0] += beyond.sum()


def forecast_columns(spec: ModelSpec) -> Array:
    """(targets,) indices of the inputs that are forecast."""
    return np.array(spec.target_columns or range(spec.input_size), dtype=np.int64)


def levels(spec: ModelSpec, model: Model, x: Array) -> Array:
    """Standardised inputs (…, D); a missing one is the mean."""
    mean = input_mean(spec, model)
    if not spec.scaling:
        return np.where(np.isnan(x), mean, x)
    if spec.robust:
        spread = np.sqrt(model.input_level[:, robust.VARIANCE])
        return np.where(np.isnan(x), 0.0, robust.scaled(x - mean, spread))
    standard = (x - model.input_mean) / deviation(model.input_count, model.input_m2)
    return np.where(np.isnan(x), 0.0, standard)


def prepare(
    spec: ModelSpec,
    model: Model,
    streams: Streams,
    row: int,
    x: Array,
    y: Array | None,
    ends: bool,
) -> Prepared:
    """Scale steps of one stream and add them to the statistics.

    Args:
        spec: the model's.
        model: statistics; changed.
        streams: `recent` inputs and `labels`; changed. `windows.advance` changes the counters.
        row: the stream's row.
        x: (T, D) inputs in the user's units.
        y: (T, target_width) their own targets, or None for a forecast and for tokens.
        ends: the sequence ends with them.
    """
    if spec.task == "forecast":
        return _prepare_forecast(spec, model, streams, row, x)
    if spec.task == "next_token":  # each token is the target of the one before
        tokens = x.astype(spec.dtype)
        naive = np.array([[_frequency(model, token)] for token in x[:, 0]]).reshape(-1, 1)
        return Prepared(tokens, tokens, np.zeros((len(x), 0)), np.ones((len(x), 0)), naive, x)
    assert y is not None
    return _prepare_steps(spec, model, streams, row, x, y, ends)


def _prepare_steps(
    spec: ModelSpec, model: Model, streams: Streams, row: int, x: Array, y: Array, ends: bool
) -> Prepared:
    T, O, late = len(x), spec.outputs, spec.label_delay
    N = T + late if ends else T
    features = np.empty((T, spec.features), spec.dtype)
    targets = np.empty((N, spec.target_width), spec.dtype)
    base, unit, truth = np.zeros((T, O)), np.ones((T, O)), np.empty((N, spec.target_width))
    naive = np.empty((N, 1 if spec.task == "classification" else O))
    scaled = spec.scaling and spec.task == "regression" and spec.loss != "bernoulli"
    begin, held = int(streams.counters[row, SEQUENCE_STEP]), streams.labels[row]
    for t in range(N):
        m = begin + t
        label = truth[t]
        label[:] = np.nan
        if t < T:
            if spec.scaling or spec.missing_inputs:
                take_inputs(spec, model, x[t])
            features[t, : spec.input_size] = levels(spec, model, x[t])
            count_limited(spec, model, features[t])
            if spec.missing_inputs:
                features[t, spec.input_size :] = ~np.isnan(x[t])
            if scaled:
                base[t], unit[t] = target_units(spec, model)
            if not late:
                label[:] = y[t]
        if late and m >= late:
            label[:] = held[m % late]  # of step m - late
        if late and t < T:
            held[m % late] = y[t]
        targets[t] = label
        if spec.task == "classification":
            naive[t] = _frequency(model, label[0])
            continue
        naive[t] = model.target_mean[0]
        welford(model.target_count[0], model.target_mean[0], model.target_m2[0], label)
        if scaled:
            if spec.robust:
                robust.follow_level(model.target_level, label, spec.scaling_memory)
            mean, spread = target_units(spec, model)
            targets[t] = in_units(spec, label - mean, spread)
    return Prepared(features, targets, base, unit, naive, truth)


def _frequency(model: Model, wanted: float) -> float:
    """Cross-entropy of the class frequencies so far; then count this class. NaN if it is missing.

    One is added to the count of each class, so that the probability of a new one is not 0.
    """
    if np.isnan(wanted):
        return np.nan
    seen, total = model.class_counts, model.target_count[0]
    entropy = np.log((total[0] + seen.size) / (seen[int(wanted)] + 1))
    seen[int(wanted)] += 1
    total[0] += 1
    return float(entropy)


def _prepare_forecast(
    spec: ModelSpec, model: Model, streams: Streams, row: int, x: Array
) -> Prepared:
    T, D, h = len(x), spec.input_size, spec.horizon
    columns = forecast_columns(spec)
    n = columns.size
    features = np.empty((T, spec.features), spec.dtype)
    targets = np.full((T, h, n), np.nan, spec.dtype)
    base, unit, naive = np.empty((T, h, n)), np.ones((T, h, n)), np.empty((T, n))
    recent = streams.recent[row]  # the last values seen, and from row h on the values as received
    came = recent[h:] if spec.missing_inputs else recent
    for t in range(T):
        m = int(streams.counters[row, SEQUENCE_STEP]) + t
        last = recent[(m - 1) % h] if m else np.full(D, np.nan)
        seen = np.where(np.isnan(x[t]), last, x[t])
        if spec.scaling or spec.missing_inputs:
            take_inputs(spec, model, x[t])
        if spec.scaling:
            for j in range(1, min(h, m) + 1):
                take_change(spec, model, j, x[t] - recent[(m - j) % h])
        spread = change_units(spec, model)
        features[t, :D] = levels(spec, model, x[t])
        features[t, D : 2 * D] = np.nan_to_num(in_units(spec, x[t] - last, spread[0]), nan=0.0)
        count_limited(spec, model, features[t])
        if spec.missing_inputs:
            features[t, 2 * D :] = ~np.isnan(x[t])
        if m >= h:
            origin = recent[m % h].copy()  # step m - h
            for j in range(1, h + 1):
                later = x[t] if j == h else came[(m + j) % h]
                targets[t, j - 1] = in_units(spec, later - origin, spread[j - 1])[columns]
        base[t] = np.where(np.isnan(seen), input_mean(spec, model), seen)[columns]
        unit[t], naive[t] = spread[:, columns], seen[columns]
        if spec.missing_inputs:
            came[m % h] = x[t]
        recent[m % h] = seen
    O = spec.outputs
    truth = x[:, columns]
    return Prepared(
        features, targets.reshape(T, O), base.reshape(T, O), unit.reshape(T, O), naive, truth
    )


def finish(spec: ModelSpec, outputs: Array, base: Array, unit: Array) -> Array:
    """Convert raw outputs (T, O) to the user's units; to probabilities for classes."""
    if spec.loss == "cross_entropy":
        shifted = np.exp(outputs - outputs.max(axis=-1, keepdims=True), dtype=np.float64)
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
    if spec.loss == "bernoulli":
        return np.asarray(0.5 * (np.tanh(0.5 * outputs.astype(np.float64)) + 1))
    made = outputs.astype(np.float64)  # a copy; the rest is in place
    made *= unit
    made += base
    return made
