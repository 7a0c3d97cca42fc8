"""Figures of merit: the twin of `bptt_core.scoring`.

Kernels that run at every step take only the arrays they use: passing all arrays of the model would
cost more than the work itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.kernels.calibration import anomaly_score
from bptt_core.kernels.experts import follow
from bptt_core.kernels.jit import compiled, inlined, whole
from bptt_core.kernels.linear import copy, is_finite
from bptt_core.kernels.sizes import CLASSIFICATION, Sizes
from bptt_core.scoring import (
    BAND,
    BAND_ERRORS_MIN,
    BAND_EVERY,
    BAND_EVERY_FEW,
    BAND_FEW,
    BAND_RANKS,
    BAND_RANKS_AHEAD,
    BAND_RINGS,
    BAND_STEP,
    BAND_WIDTH_MAX,
    ERROR_MAX,
    FADING,
    FIGURE_LIMIT,
    LEAST_PROBABILITY,
    RATIO_MAX,
    SURPRISES_MAX,
    SURPRISES_MIN,
)
from bptt_core.state import ERRORS, Model

Array = NDArray[Any]

LOW = BAND[0]
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


@inlined
def fade_one(errors: Array, at: int, error: float, naive_error: float) -> None:
    """As `fade`, without the naive forecast's average."""
    share = FADING if is_finite(error) and is_finite(naive_error) else 0.0
    errors[at] += share * ((error if is_finite(error) else 0.0) - errors[at])


@inlined
def limited(error: float, most: float) -> float:
    """An absolute error, at most `most`; as it is where it is not finite."""
    return most if is_finite(error) and error > most else error


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


@compiled
def keep_errors(
    robust: bool,
    targets: int,
    kept: Array,
    counters: Array,
    band: Array,
    width: Array,
    errors: Array,
    column: Array,
    tail: Array,
) -> None:
    """Keep one error of every output (O,), NaN if it is missing; as `bptt_core.scoring._keep`.

    Args:
        robust: the band is adapted to its coverage.
        targets: outputs for each step ahead.
        kept: `Model.errors`; changed.
        counters: `Model.counters`; changed.
        band: `Model.error_band`; changed.
        width: `Model.band_width`; changed.
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
            error = min(max(errors[i], -ERROR_MAX), ERROR_MAX)
            kept[at, i] = error if is_finite(errors[i]) else np.nan
        counters[ERRORS] += 1
        if robust:
            hold_coverage(targets, band, width, errors)
        count, rows = counters[ERRORS], kept.shape[0]
        every = max(BAND_EVERY, rows // BAND_RINGS) if count > rows else BAND_EVERY
        if robust and count < BAND_FEW:
            every = BAND_EVERY_FEW
        if count % every == 0:
            find_band(robust, targets, kept, count, band, column, tail)


@inlined
def hold_coverage(targets: int, band: Array, width: Array, errors: Array) -> None:
    """Adapt the widths (O,) of bands to errors (O,); as `bptt_core.scoring._hold_coverage`."""
    for first in range(0, errors.size, targets):
        step = BAND_STEP / math.sqrt(1.0 + first // targets)
        wider, narrower = 0.9 * step, -0.1 * step
        grow, fall = 1 + wider + 0.5 * wider * wider, 1 + narrower + 0.5 * narrower * narrower
        for i in range(first, first + targets):
            half, middle = 0.5 * (band[1, i] - band[0, i]), 0.5 * (band[0, i] + band[1, i])
            if is_finite(errors[i]) and is_finite(half):
                factor = grow if abs(errors[i] - middle) > width[i] * half else fall
                width[i] = min(max(width[i] * factor, 1 / BAND_WIDTH_MAX), BAND_WIDTH_MAX)


@compiled
def find_band(
    robust: bool, targets: int, kept: Array, count: int, band: Array, column: Array, tail: Array
) -> None:
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
        low, high, share = band[0, i], band[1, i], LOW
        if robust:
            ranks = BAND_RANKS + BAND_RANKS_AHEAD * (i // targets)
            share = max(LOW - ranks / max(n, 1), 0.0)
        margin = BAND_MARGIN * (high - low)
        band[0, i] = quantile(column, n, share, low + margin, tail)
        band[1, i] = quantile(column, n, 1 - share, high - margin, tail)


@inlined
def error_size(errors: Array, unit: Array) -> float:
    """Root mean square of errors (n,) in units of changes; as `bptt_core.scoring.error_size`."""
    total, n = 0.0, 0
    for i in range(errors.size):
        if is_finite(errors[i]):
            ratio = min(abs(errors[i]) / unit[i], RATIO_MAX) if unit[i] > 0 else 0.0
            total += ratio * ratio
            n += 1
    return math.sqrt(total / n) if n > 0 else math.nan


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
                    most = math.inf
                    if sizes.robust and naive_total[i] > 0:
                        most = naive_total[i] / FADING
                    naive_error = abs(truth[t, i] - naive[t, i])
                    fade(total, naive_total, i, limited(abs(errors[i]), most),
                         limited(naive_error, most))  # fmt: skip
                keep_errors(sizes.robust, errors.size, model.errors, model.counters,
                            model.error_band, model.band_width, errors, column, tail)  # fmt: skip
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
    ordered: Array,
    scores: Array,
    ring: Array,
    moves: Array,
    fitted: Array,
) -> None:
    """Score earlier forecasts whose truth is now known; `held` (h, O + n) keeps the newest.

    Args:
        sizes: the spec's.
        model: figures; changed.
        held: changed.
        recent_surprise: `Streams.surprise` of the stream; changed.
        begin: steps in the stream's sequence before these.
        predictions: (T, O); those of a mixture's network, which become the mixture.
        unit: (T, O), as in `bptt_core.scaling.Prepared`.
        naive: (T, n) last values seen.
        truth: (T, n) values of the target columns.
        errors: (O,) scratch.
        column: scratch, as in `keep_errors`.
        tail: scratch, as in `keep_errors`.
        ordered: scratch, as in `calibration.anomaly_score`.
        scores: (T,) anomaly scores, filled.
        ring: `Streams.changes` of the stream; changed.
        moves: `Streams.moves` of the stream; changed.
        fitted: scratch, as in `experts.follow`.
    """
    h, n, O = sizes.horizon, truth.shape[1], predictions.shape[1]
    total, naive_total = model.error, model.naive_error
    limits = sizes.robust and sizes.scaled
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
                    most = FIGURE_LIMIT * unit[t, at] if limits else math.inf
                    fade(total, naive_total, at, limited(abs(errors[at]), most),
                         limited(abs(now - last), most))  # fmt: skip
                    if sizes.mixture:
                        alone = now - last - float(moves[(m - j) % h, 5 * n + 2 * O + at])
                        fade_one(model.network_error, at, limited(abs(alone), most), now - last)
        keep_errors(sizes.robust, n, model.errors, model.counters, model.error_band,
                    model.band_width, errors, column, tail)  # fmt: skip
        if sizes.robust:
            size = error_size(errors[:n], unit[t])
            scores[t] = anomaly_score(
                recent_surprise, model.score_ring, model.score_tail, size, ordered
            )
        else:
            scores[t] = surprise(recent_surprise, errors[:n], unit[t])
        if sizes.mixture:
            follow(sizes, model, held, ring, moves, m, truth[t], naive[t], unit[t], predictions[t],
                   fitted)  # fmt: skip
        copy(predictions[t], held[m % h, :O])
        copy(naive[t], held[m % h, O:])
