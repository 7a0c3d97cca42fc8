"""Online scaling: the twin of `bptt_core.scaling`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.kernels.jit import compiled, inlined
from bptt_core.kernels.linear import copy, fill, is_finite
from bptt_core.kernels.robust import change_unit, follow_change, follow_level, scaled
from bptt_core.kernels.sizes import CLASSIFICATION, Sizes
from bptt_core.robust import LIMIT, MEAN, VARIANCE
from bptt_core.state import Model

Array = NDArray[Any]


@inlined
def welford(count: Array, mean: Array, m2: Array, x: Array) -> None:
    """Add x to counts, means and sums of squared deviations, in place; NaN is left out."""
    for i in range(x.size):
        if not math.isnan(x[i]):
            count[i] += 1
            delta = x[i] - mean[i]
            mean[i] += delta / count[i]
            m2[i] += delta * (x[i] - mean[i])


@compiled
def deviation(count: float, m2: float) -> float:
    """Standard deviation; 1 where all values so far are equal."""
    return math.sqrt(m2 / max(count, 1.0)) if m2 > 0 else 1.0


@compiled
def level_features(
    sizes: Sizes, count: Array, mean: Array, m2: Array, level: Array, x: Array, features: Array
) -> None:
    """Add inputs x (D,) to their statistics; write levels, then presence flags, to features."""
    D = x.size
    if sizes.scaled or sizes.missing_inputs:
        if sizes.robust:
            follow_level(level, x, sizes.memory)
        else:
            welford(count, mean, m2, x)
    for i in range(D):
        value, middle = x[i], level[i, MEAN] if sizes.robust else mean[i]
        missing = math.isnan(value)
        if missing:
            value = middle
        if sizes.scaled and sizes.robust:
            value = scaled(value - middle, math.sqrt(level[i, VARIANCE]))
        elif sizes.scaled:
            value = (value - middle) / deviation(count[i], m2[i])
        features[i] = value
        if sizes.missing_inputs:
            features[features.size - D + i] = 0.0 if missing else 1.0


@inlined
def count_limited(features: Array, D: int, changes: bool, limited: Array) -> None:
    """Count limited inputs of a step; as `bptt_core.scaling.count_limited`."""
    for i in range(D):
        if abs(features[i]) >= LIMIT or (changes and abs(features[D + i]) >= LIMIT):
            limited[0] += 1


@compiled
def find_units(sizes: Sizes, scale: Array, count: Array, m2: Array, units: Array) -> None:
    """Fill units (h, D), what a change of 1 is in the user's units; as `scaling.change_units`."""
    for j in range(units.shape[0]):
        for i in range(units.shape[1]):
            if not sizes.scaled:
                units[j, i] = 1.0
            elif sizes.robust:
                units[j, i] = change_unit(scale[j, i])
            else:
                units[j, i] = deviation(count[j, i], m2[j, i])


@inlined
def take_changes(count: Array, mean: Array, m2: Array, ahead: int, x: Array, before: Array) -> None:
    """Add the changes from `before` (D,) to x (D,) to row `ahead` of their statistics."""
    for i in range(x.size):
        change = x[i] - before[i]
        if not math.isnan(change):
            count[ahead, i] += 1
            delta = change - mean[ahead, i]
            mean[ahead, i] += delta / count[ahead, i]
            m2[ahead, i] += delta * (change - mean[ahead, i])


@compiled
def class_entropy(seen: Array, total: Array, wanted: float) -> float:
    """Cross-entropy of the class frequencies so far; then count this class. NaN if it is missing.

    One is added to the count of each class, so that the probability of a new one is not 0.

    Args:
        seen: (classes,) count of each class; changed.
        total: (1, 1) sum of the counts; changed.
        wanted: the class; NaN if it is missing.
    """
    if math.isnan(wanted):
        return wanted
    at = int(wanted)
    entropy = math.log((total[0, 0] + seen.size) / (seen[at] + 1))
    seen[at] += 1
    total[0, 0] += 1
    return entropy


@compiled
def prepare_tokens(
    model: Model, x: Array, features: Array, targets: Array, naive: Array, truth: Array
) -> None:
    """Prepare tokens: fill arrays as in `bptt_core.scaling.Prepared`."""
    for t in range(x.shape[0]):
        features[t, 0] = targets[t, 0] = truth[t, 0] = x[t, 0]
        naive[t, 0] = class_entropy(model.class_counts, model.target_count, x[t, 0])


@compiled
def prepare_steps(
    sizes: Sizes,
    model: Model,
    held: Array,
    begin: int,
    x: Array,
    y: Array,
    ends: bool,
    features: Array,
    targets: Array,
    base: Array,
    unit: Array,
    naive: Array,
    truth: Array,
) -> None:
    """Prepare regression or classification: fill arrays as in `bptt_core.scaling.Prepared`.

    Args:
        sizes: the spec's.
        model: statistics; changed.
        held: (label_delay, width) late labels of the stream; changed.
        begin: steps in the stream's sequence before these.
        x: (T, D) inputs in the user's units.
        y: (T, width) their own targets.
        ends: the sequence ends with them.
        features: filled.
        targets: filled.
        base: filled.
        unit: filled.
        naive: filled.
        truth: filled.
    """
    T, late = x.shape[0], sizes.label_delay
    input_count, input_mean, input_m2 = model.input_count, model.input_mean, model.input_m2
    count, mean, m2 = model.target_count[0], model.target_mean[0], model.target_m2[0]
    level = model.target_level
    for t in range(T + late if ends else T):
        m, label = begin + t, truth[t]
        fill(label, np.nan)
        if t < T:
            level_features(
                sizes, input_count, input_mean, input_m2, model.input_level, x[t], features[t]
            )
            if sizes.robust and sizes.scaled:
                count_limited(features[t], x.shape[1], False, model.limited)
            for i in range(base.shape[1]):
                base[t, i], unit[t, i] = 0.0, 1.0
                if sizes.scaled_targets and sizes.robust:
                    base[t, i], unit[t, i] = level[i, MEAN], math.sqrt(level[i, VARIANCE])
                elif sizes.scaled_targets:
                    base[t, i], unit[t, i] = mean[i], deviation(count[i], m2[i])
            if late == 0:
                copy(y[t], label)
        if late > 0 and m >= late:
            copy(held[m % late], label)  # of step m - late
        if late > 0 and t < T:
            copy(y[t], held[m % late])
        copy(label, targets[t])
        if sizes.task == CLASSIFICATION:
            naive[t, 0] = class_entropy(model.class_counts, model.target_count, label[0])
            continue
        copy(mean, naive[t])
        welford(count, mean, m2, label)
        if sizes.scaled_targets and sizes.robust:
            follow_level(level, label, sizes.memory)
            for i in range(label.size):
                spread = math.sqrt(level[i, VARIANCE])
                targets[t, i] = scaled(label[i] - level[i, MEAN], spread)
        elif sizes.scaled_targets:
            for i in range(label.size):
                targets[t, i] = (label[i] - mean[i]) / deviation(count[i], m2[i])


@compiled
def prepare_forecast(
    sizes: Sizes,
    columns: Array,
    model: Model,
    recent: Array,
    begin: int,
    x: Array,
    units: Array,
    features: Array,
    targets: Array,
    base: Array,
    unit: Array,
    naive: Array,
    truth: Array,
) -> None:
    """Prepare steps of a forecast: fill arrays as in `bptt_core.scaling.Prepared`.

    Args:
        sizes: the spec's.
        columns: (targets,) inputs that are forecast.
        model: statistics; changed.
        recent: (h, D) the stream's last inputs; (2h, D) if they may be missing; changed.
        begin: steps in the stream's sequence before these.
        x: (T, D) inputs in the user's units.
        units: (h, D) float64, scratch.
        features: filled.
        targets: filled.
        base: filled.
        unit: filled.
        naive: filled.
        truth: filled.
    """
    h, D, n = sizes.horizon, x.shape[1], columns.size
    came = recent[h:] if sizes.missing_inputs else recent
    input_count, input_mean, input_m2 = model.input_count, model.input_mean, model.input_m2
    counts, means, m2s = model.target_count, model.target_mean, model.target_m2
    limited = sizes.robust and sizes.scaled
    scales, level = model.change_scale, model.input_level
    for t in range(x.shape[0]):
        m = begin + t
        level_features(sizes, input_count, input_mean, input_m2, level, x[t], features[t])
        if sizes.scaled:
            for j in range(1, min(h, m) + 1):
                before = recent[(m - j) % h]
                if sizes.robust:
                    for i in range(D):
                        change = x[t, i] - before[i]
                        if is_finite(change):
                            follow_change(scales[j - 1, i], change, sizes.memory)
                else:
                    take_changes(counts, means, m2s, j - 1, x[t], before)
        find_units(sizes, scales, counts, m2s, units)
        last = recent[(m - 1) % h]
        for i in range(D):
            change = x[t, i] - last[i] if m > 0 else 0.0
            change = scaled(change, units[0, i]) if limited else change / units[0, i]
            features[t, D + i] = 0.0 if math.isnan(change) else change
        if limited:
            count_limited(features[t], D, True, model.limited)
        origin = recent[m % h]  # step m - h
        for k in range(n):
            i = columns[k]
            seen = x[t, i]
            if math.isnan(seen) and m > 0:
                seen = last[i]
            truth[t, k], naive[t, k] = x[t, i], seen
            middle = level[i, MEAN] if sizes.robust else input_mean[i]
            for j in range(1, h + 1):
                at, spread = (j - 1) * n + k, units[j - 1, i]
                base[t, at] = middle if math.isnan(seen) else seen
                unit[t, at] = spread
                if m >= h:
                    later = x[t, i] if j == h else came[(m + j) % h, i]
                    change = later - origin[i]
                    targets[t, at] = scaled(change, spread) if limited else change / spread
                else:
                    targets[t, at] = np.nan
        if sizes.missing_inputs:
            copy(x[t], came[m % h])
        for i in range(D):
            seen = x[t, i]
            if math.isnan(seen) and m > 0:
                seen = last[i]
            origin[i] = seen
