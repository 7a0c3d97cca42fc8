"""Figures of merit: the twin of `bptt_core.scoring`.

Kernels that run at every step take only the arrays they use: passing all arrays of the model would
cost more than the work itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.kernels.jit import compiled, inlined, whole
from bptt_core.kernels.linear import copy, is_finite
from bptt_core.kernels.sizes import CLASSIFICATION, Sizes
from bptt_core.scoring import (
    BAND,
    BAND_ERRORS_MIN,
    BAND_EVERY,
    BAND_RINGS,
    FADING,
    LEAST_PROBABILITY,
    SURPRISES_MAX,
    SURPRISES_MIN,
)
from bptt_core.state import ERRORS, Model

Array = NDArray[Any]

LOW, HIGH = BAND
BAND_MARGIN = 0.1  # share of the band's width in which its new edge is searched first


@inlined
def fade(errors: Array, naive_errors: Array, at: int, error: float, naive_error: float) -> None:
    """Add one absolute error and the naive forecast's to the fading averages, if both are finite.

    There is no branch, so that a loop over outputs is vectorised.
    """
    there = is_finite(error) and is_finite(naive_error)
    share = FADING if there else 0.0
    errors[at] += share * ((error if there else 0.0) - errors[at])
    naive_errors[at] += share * ((naive_error if there else 0.0) - naive_errors[at])


@compiled
def take_class(
    errors: Array, naive_errors: Array, hits: Array, odds: Array, wanted: float, naive: float
) -> None:
    """Add one target to the figures of classes; as `bptt_core.scoring._take_class`.

    Args:
        errors: `Model.error`; changed.
        naive_errors: `Model.naive_error`; changed.
        hits: `Model.hits`; changed.
        odds: (O,) predicted probabilities.
        wanted: the class; NaN if it is missing.
        naive: cross-entropy of the class frequencies.
    """
    if math.isnan(wanted) or not is_finite(odds[int(wanted)]):
        return
    likeliest = 0
    for i in range(1, odds.size):
        if odds[i] > odds[likeliest]:
            likeliest = i
    hit = 1.0 if likeliest == int(wanted) else 0.0
    fade(errors, naive_errors, 0, -math.log(max(odds[int(wanted)], LEAST_PROBABILITY)), naive)
    hits[0] += FADING * (hit - hits[0])
    hits[1] += FADING * (1 - hits[1])


@compiled
def quantile(values: Array, n: int, share: float, bound: float, tail: Array) -> float:
    """Quantile of the first n values; as `bptt_core.scoring._quantile`, but of unsorted values.

    Sorts only the tail that contains the quantile, into `tail` (n,) or longer. Values beyond
    `bound`, an estimate, are left out; if too few remain, all values are searched. A `bound` of
    NaN leaves out none.
    """
    if n < BAND_ERRORS_MIN:
        return math.nan
    place = share * (n - 1)
    below = min(int(place), n - 2)
    sign, size = 1.0, below + 2
    if 2 * below > n:
        sign, size = -1.0, n - below
    filled, bound = 0, sign * bound
    while filled < size:
        filled = 0
        for i in range(n):
            value = sign * values[i]
            if value > bound or (filled == size and value >= tail[filled - 1]):
                continue
            if size > filled:
                filled += 1
            at = filled - 1
            while at > 0 and tail[at - 1] > value:
                tail[at] = tail[at - 1]
                at -= 1
            tail[at] = value
        bound = math.nan
    one, other = tail[size - 2], tail[size - 1]
    low, high = (one, other) if sign > 0 else (-other, -one)
    return float(low + (place - below) * (high - low))


@inlined
def keep_errors(
    kept: Array, counters: Array, band: Array, errors: Array, column: Array, tail: Array
) -> None:
    """Keep one error of every output (O,), NaN if it is missing; as `bptt_core.scoring._keep`.

    Args:
        kept: `Model.errors`; changed.
        counters: `Model.counters`; changed.
        band: `Model.error_band`; changed.
        errors: (O,) in the user's units.
        column: (rows,) scratch; `rows` is the length of the ring `kept`.
        tail: (rows,) scratch.
    """
    found = False
    for i in range(errors.size):
        found = found or is_finite(errors[i])
    if found:
        at = counters[ERRORS] % kept.shape[0]
        for i in range(errors.size):
            kept[at, i] = errors[i] if is_finite(errors[i]) else np.nan
        counters[ERRORS] += 1
        count, rows = counters[ERRORS], kept.shape[0]
        every = max(BAND_EVERY, rows // BAND_RINGS) if count > rows else BAND_EVERY
        if count % every == 0:
            find_band(kept, count, band, column, tail)


@compiled
def find_band(kept: Array, count: int, band: Array, column: Array, tail: Array) -> None:
    """Fill band (2, O) with the quantiles of the kept errors.

    The new quantiles are usually close to the previous ones, so errors further inside the band are
    skipped in the first search.
    """
    rows = min(count, kept.shape[0])
    for i in range(kept.shape[1]):
        n = whole(0)
        for r in range(rows):
            if not math.isnan(kept[r, i]):
                column[n] = kept[r, i]
                n += 1
        low, high = band[0, i], band[1, i]
        margin = BAND_MARGIN * (high - low)
        band[0, i] = quantile(column, n, LOW, low + margin, tail)
        band[1, i] = quantile(column, n, HIGH, high - margin, tail)


@compiled
def surprise(held: Array, errors: Array, unit: Array) -> float:
    """Anomaly score of errors (targets,) in the user's units; as `bptt_core.scoring._surprise`."""
    total, n = 0.0, 0
    for i in range(errors.size):
        error = errors[i] / unit[i]
        if is_finite(error):
            total += error * error
            n += 1
    if n == 0 or not is_finite(total):
        return math.nan
    size = (total / n) ** (1 / 3)
    count, mean, variance = held[0], held[1], held[2]
    score = math.nan
    if count >= SURPRISES_MIN:
        if variance > 0:
            score = 0.5 * math.erfc((size - mean) / math.sqrt(2 * variance))
        else:
            score = 1.0 if size <= mean else 0.0
    count = min(count + 1, float(SURPRISES_MAX))
    delta = size - mean
    mean += delta / count
    held[0], held[1] = count, mean
    held[2] = variance + (delta * (size - mean) - variance) / count
    return score


@compiled
def score_labels(
    sizes: Sizes,
    model: Model,
    held: Array,
    begin: int,
    predictions: Array,
    naive: Array,
    truth: Array,
    errors: Array,
    column: Array,
    tail: Array,
) -> None:
    """Score regression or classification; `held` (label_delay, O) keeps the newest predictions.

    Args:
        sizes: the spec's.
        model: figures; changed.
        held: changed.
        begin: steps in the stream's sequence before these.
        predictions: (T, O).
        naive: (N, O) or (N, 1) of classes, as in `bptt_core.scaling.Prepared`.
        truth: (N, width), as in `bptt_core.scaling.Prepared`.
        errors: (O,) scratch.
        column: scratch, as in `keep_errors`.
        tail: scratch, as in `keep_errors`.
    """
    late, total, naive_total = sizes.label_delay, model.error, model.naive_error
    for t in range(truth.shape[0]):
        m = begin + t
        if late == 0 or m >= late:
            made = predictions[t] if late == 0 else held[m % late]  # of step m - late
            if sizes.task == CLASSIFICATION:
                take_class(total, naive_total, model.hits, made, truth[t, 0], naive[t, 0])
            else:
                for i in range(errors.size):
                    errors[i] = truth[t, i] - made[i]
                    fade(total, naive_total, i, abs(errors[i]), abs(truth[t, i] - naive[t, i]))
                keep_errors(model.errors, model.counters, model.error_band, errors, column, tail)
        if late > 0 and t < predictions.shape[0]:
            copy(predictions[t], held[m % late])


@compiled
def score_tokens(model: Model, predictions: Array, naive: Array, truth: Array) -> None:
    """Score all tokens but the first against the prediction (T, O) made at the token before."""
    for t in range(1, truth.shape[0]):
        take_class(
            model.error, model.naive_error, model.hits, predictions[t - 1], truth[t, 0], naive[t, 0]
        )


@compiled
def score_forecast(
    sizes: Sizes,
    model: Model,
    held: Array,
    recent_surprise: Array,
    begin: int,
    predictions: Array,
    unit: Array,
    naive: Array,
    truth: Array,
    errors: Array,
    column: Array,
    tail: Array,
    scores: Array,
) -> None:
    """Score earlier forecasts whose truth is now known; `held` (h, O + n) keeps the newest.

    Args:
        sizes: the spec's.
        model: figures; changed.
        held: changed.
        recent_surprise: (3,) of the stream; changed.
        begin: steps in the stream's sequence before these.
        predictions: (T, O).
        unit: (T, O), as in `bptt_core.scaling.Prepared`.
        naive: (T, n) last values seen.
        truth: (T, n) values of the target columns.
        errors: (O,) scratch.
        column: scratch, as in `keep_errors`.
        tail: scratch, as in `keep_errors`.
        scores: (T,) anomaly scores, filled.
    """
    h, n, O = sizes.horizon, truth.shape[1], predictions.shape[1]
    total, naive_total = model.error, model.naive_error
    for t in range(truth.shape[0]):
        m = begin + t
        for i in range(O):
            errors[i] = np.nan
        for j in range(1, min(h, m) + 1):
            earlier = held[(m - j) % h]
            for k in range(n):
                at, now, last = (j - 1) * n + k, truth[t, k], earlier[O + k]
                if not math.isnan(last):
                    errors[at] = now - earlier[at]
                    fade(total, naive_total, at, abs(errors[at]), abs(now - last))
        keep_errors(model.errors, model.counters, model.error_band, errors, column, tail)
        scores[t] = surprise(recent_surprise, errors[:n], unit[t])
        copy(predictions[t], held[m % h, :O])
        copy(naive[t], held[m % h, O:])
