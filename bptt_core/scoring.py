"""Figures of merit, updated step by step when a prediction's truth is known; the reference.

All are prequential: they compare predictions that were made before their target was learned with
those of a naive forecast from the same data. They are weighted towards the last 1,000 or so
targets.

- Real targets: absolute error relative to the last-value forecast, or to the mean so far.
- Classes and tokens: cross-entropy relative to the class frequencies so far with add-one smoothing;
  and the share of targets that were the likeliest class.
- Error band: the 0.05 and 0.95 quantiles of the last errors of each output, with their sign;
  narrowed or widened so that it holds 90 % of the errors that follow, see `_hold_coverage`.
- Anomaly score of a forecast's step: see `bptt_core.calibration`.

With `scaling_memory` 0 the band is not adapted, and the score is that of `_surprise`.

Source: Gibbs and Candès (2021), "Adaptive conformal inference under distribution shift".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core import calibration, experts, params
from bptt_core.scaling import finish, forecast_columns, Prepared
from bptt_core.specs import ModelSpec
from bptt_core.state import ERRORS, Model, SEQUENCE_STEP, Streams

Array = NDArray[Any]

FADING = 1e-3  # weight of one target in the figures of merit
LEAST_PROBABILITY = 1e-300  # lower bound of a class's probability in the figures: 997 bits
BAND = (0.05, 0.95)  # quantiles of the error band, which holds 90 % of recent errors
# Errors between two computations of the quantiles: one for each error would cost more than the
# prediction.
BAND_EVERY = 32
# Bounds the computations for each turn of the ring: one every 32 errors in a ring of 512 took
# 1.3 of the 3.1 µs of a step with 8 outputs.
BAND_RINGS = 4
BAND_ERRORS_MIN = 20  # errors of an output before it has a band: one in each tail
BAND_FEW = 64  # errors up to which the quantiles are computed every BAND_EVERY_FEW errors
BAND_EVERY_FEW = 4
# Ranks that a quantile of few errors is moved outwards, one step ahead and for each further step:
# errors of overlapping forecasts are alike, so that few of them say less.
BAND_RANKS, BAND_RANKS_AHEAD = 1.0, 0.3
# Growth of the logarithm of the band's width for an error outside, nine times its fall for one
# inside. Divided by the root of the steps ahead: errors of overlapping forecasts come in groups.
BAND_STEP = 0.05
BAND_WIDTH_MAX = 4.5  # bound of the width's factor, and of its inverse
FIGURE_LIMIT = 16.0  # deviations of changes at which an error enters the figures of merit
ERROR_MAX = 3e38  # larger errors are kept as this, the largest number of float32
RATIO_MAX = 1e100  # deviations: larger errors are taken for it, because squares must be finite
SURPRISES_MIN = 32  # errors of a stream before their deviation is used
SURPRISES_MAX = 1000  # errors over which a stream's mean and deviation are averaged


def score_live(
    spec: ModelSpec, model: Model, streams: Streams, row: int, prepared: Prepared
) -> None:
    """Score the first new token against the prediction of the live state.

    The predictions of the chunk itself score the later tokens. Keeping the last distribution
    instead would cost each stream one number for each token of the vocabulary.
    """
    if spec.task != "next_token" or not streams.counters[row, SEQUENCE_STEP]:
        return
    named = params.views(spec, model.parameters)
    h = streams.live_state[row, -1, 0]
    output = h[np.newaxis, np.newaxis] @ named["head.weight"].T + named["head.bias"]
    nothing = np.zeros((1, 0))
    odds = finish(spec, output[0], nothing, nothing)[0]
    _take_class(model, odds, prepared.truth[0, 0], prepared.naive[0, 0])


def score(
    spec: ModelSpec,
    model: Model,
    streams: Streams,
    row: int,
    first: int,
    predictions: Array,
    prepared: Prepared,
) -> Array | None:
    """Add the errors of predictions whose truth is now known to the figures of merit.

    Args:
        spec: the model's.
        model: its figures; changed.
        streams: `forecasts`, `surprise`, and what experts need; changed.
        row: the stream's row.
        first: number of steps in the stream's sequence before these.
        predictions: (T, O) in the user's units, made at these steps; those of a mixture's network,
            which become the mixture.
        prepared: the steps.

    Returns:
        (T,) anomaly scores of a forecast's steps, else None.
    """
    truth, naive = prepared.truth, prepared.naive
    if spec.task == "forecast":
        return _score_forecast(spec, model, streams, row, first, predictions, prepared)
    if spec.task == "next_token":
        for t in range(1, len(truth)):
            _take_class(model, predictions[t - 1], truth[t, 0], naive[t, 0])
        return None
    late, held = spec.label_delay, streams.forecasts[row]
    for t in range(len(truth)):
        m = first + t
        if not late:
            made = predictions[t]
        elif m >= late:
            made = held[m % late]  # of step m - late, when it was read
        else:
            made = np.full(spec.outputs, np.nan)
        if spec.task == "classification":
            _take_class(model, made, truth[t, 0], naive[t, 0])
        else:
            error = truth[t] - made
            most = _largest_of_targets(spec, model)
            naive_error = np.abs(truth[t] - naive[t])
            _fade(model, slice(None), _limited(np.abs(error), most), _limited(naive_error, most))
            _keep(spec, model, error)
        if late and t < len(predictions):
            held[m % late] = predictions[t]
    return None


def _score_forecast(
    spec: ModelSpec,
    model: Model,
    streams: Streams,
    row: int,
    first: int,
    predictions: Array,
    prepared: Prepared,
) -> Array:
    n, h, O = forecast_columns(spec).size, spec.horizon, spec.outputs
    held, scores = streams.forecasts[row], np.full(len(predictions), np.nan)
    for t, now in enumerate(prepared.truth):
        m = first + t
        errors = np.full(O, np.nan)
        for j in range(1, min(h, m) + 1):
            earlier = held[(m - j) % h]
            outputs = slice((j - 1) * n, j * n)
            naive_error = np.abs(now - earlier[O:])
            errors[outputs] = np.where(np.isnan(naive_error), np.nan, now - earlier[outputs])
            most = np.full(n, np.inf)
            if spec.robust and spec.scaling:
                most = FIGURE_LIMIT * prepared.unit[t, outputs]
            error = np.abs(errors[outputs])
            _fade(model, outputs, _limited(error, most), _limited(naive_error, most))
            if spec.mixture:
                network = experts.parts(streams.moves[row, (m - j) % h], n).network[outputs]
                error = _limited(np.abs(now - earlier[O:] - network), most)
                known = np.isfinite(error) & np.isfinite(naive_error)
                figure = model.network_error[outputs]
                figure[known] += FADING * (error[known] - figure[known])
        _keep(spec, model, errors)
        unit, surprise = prepared.unit[t, :n], streams.surprise[row]
        if spec.robust:
            size = error_size(errors[:n], unit)
            scores[t] = calibration.anomaly_score(
                surprise, model.score_ring, model.score_tail, size
            )
        else:
            scores[t] = _surprise(surprise, errors[:n] / unit)
        if spec.mixture:
            seen = prepared.naive[t, :n]
            experts.follow(
                spec, model, streams, row, m, now, seen, prepared.unit[t], predictions[t]
            )
        held[m % h, :O] = predictions[t]
        held[m % h, O:] = prepared.naive[t, :n]
    return scores


def error_size(errors: Array, unit: Array) -> float:
    """Root mean square of errors (n,) in units (n,) of changes; NaN without an error."""
    known = np.isfinite(errors)
    if not known.any():
        return math.nan
    with np.errstate(over="ignore"):
        ratio = np.abs(errors[known]) / np.where(unit[known] > 0, unit[known], np.inf)
    return float(np.sqrt(np.square(np.minimum(ratio, RATIO_MAX)).sum() / ratio.size))


def _limited(errors: Array, most: Array) -> Array:
    return np.where(np.isfinite(errors), np.minimum(errors, most), errors)


def _largest_of_targets(spec: ModelSpec, model: Model) -> Array:
    """Largest errors (O,) of a regression that enter the figures: the sum of recent naive ones."""
    if not spec.robust:
        return np.full(spec.outputs, np.inf)
    return np.where(model.naive_error > 0, model.naive_error / FADING, np.inf)


def _fade(model: Model, outputs: slice, error: Array, naive_error: Array) -> None:
    known = np.isfinite(error) & np.isfinite(naive_error)
    for figure, new in ((model.error[outputs], error), (model.naive_error[outputs], naive_error)):
        figure[known] += FADING * (new[known] - figure[known])


def _take_class(model: Model, odds: Array, wanted: float, naive: float) -> None:
    """Add one target to the figures of classes.

    Args:
        model: changed.
        odds: (O,) predicted probabilities.
        wanted: the class; NaN if it is missing.
        naive: cross-entropy of the class frequencies.
    """
    if np.isnan(wanted) or not np.isfinite(odds[int(wanted)]):
        return
    entropy = -math.log(max(float(odds[int(wanted)]), LEAST_PROBABILITY))
    hit = float(odds.argmax() == int(wanted))
    model.error[0] += FADING * (entropy - model.error[0])
    model.naive_error[0] += FADING * (naive - model.naive_error[0])
    model.hits[0] += FADING * (hit - model.hits[0])
    model.hits[1] += FADING * (1 - model.hits[1])


def _keep(spec: ModelSpec, model: Model, error: Array) -> None:
    """Keep one error of every output (O,), NaN if it is missing, for the error band."""
    if not np.isfinite(error).any():
        return
    rows, n = len(model.errors), spec.target_count if spec.task == "forecast" else error.size
    kept = np.where(np.isfinite(error), np.clip(error, -ERROR_MAX, ERROR_MAX), np.nan)
    model.errors[model.counters[ERRORS] % rows] = kept
    model.counters[ERRORS] += 1
    if spec.robust:
        _hold_coverage(model, error, n)
    count = int(model.counters[ERRORS])
    if count % band_every(count, rows, spec.robust) == 0:
        seen = model.errors[:count]
        for output in range(error.size):
            known = np.sort(seen[~np.isnan(seen[:, output]), output].astype(np.float64))
            tail = tail_share(known.size, output // n, spec.robust)
            model.error_band[:, output] = [_quantile(known, share) for share in (tail, 1 - tail)]


def band_every(count: int, rows: int, robust: bool) -> int:
    """Errors between two computations of the quantiles, after `count` errors in a ring of rows."""
    if robust and count < BAND_FEW:
        return BAND_EVERY_FEW
    return max(BAND_EVERY, rows // BAND_RINGS) if count > rows else BAND_EVERY


def tail_share(count: int, ahead: int, robust: bool) -> float:
    """The lower quantile of `count` errors of forecasts 1 + ahead steps ahead."""
    if not robust:
        return BAND[0]
    return max(BAND[0] - (BAND_RANKS + BAND_RANKS_AHEAD * ahead) / max(count, 1), 0.0)


def _hold_coverage(model: Model, error: Array, targets: int) -> None:
    """Widen the bands of outputs whose error is outside, and narrow all others a little.

    The logarithm of a band's width grows by 0.9 BAND_STEP for an error outside, and falls by 0.1
    BAND_STEP for one inside (to the second order). Within its bounds, the share of errors inside
    therefore tends to 0.9 whatever the errors are.

    Args:
        model: `band_width`; changed.
        error: (O,), NaN if it is missing.
        targets: outputs for each step ahead.
    """
    low, high = model.error_band
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    known = np.isfinite(error) & np.isfinite(half)
    outside = np.abs(error - middle) > model.band_width * half
    step = BAND_STEP / np.sqrt(1 + np.arange(error.size) // targets)
    wider, narrower = 0.9 * step, -0.1 * step
    step = np.where(outside, wider, narrower)
    width = np.clip(
        model.band_width * (1 + step + 0.5 * step * step), 1 / BAND_WIDTH_MAX, BAND_WIDTH_MAX
    )
    model.band_width[known] = width[known]


def _quantile(ordered: Array, share: float) -> float:
    """Interpolate at position share (n - 1); NaN for fewer than BAND_ERRORS_MIN numbers."""
    if ordered.size < BAND_ERRORS_MIN:
        return math.nan
    place = share * (ordered.size - 1)
    below = min(int(place), ordered.size - 2)
    return float(ordered[below] + (place - below) * (ordered[below + 1] - ordered[below]))


def _surprise(held: Array, errors: Array) -> float:
    """Probability of an error at least as large as this one, from the stream's recent errors.

    The cube root of a mean of squares is nearly Gaussian for any number of squares, also for
    correlated ones (Wilson and Hilferty 1931); the errors themselves are not. Its mean and
    deviation in the stream's past therefore give the probability as a Gaussian tail. Ahmad et al.
    (2017) use the same tail for a mean over the last few steps, which finds slow changes but does
    not locate the step.

    Args:
        held: (3,) number of errors, at most SURPRISES_MAX, their mean and variance; changed.
        errors: (targets,) errors of the forecast one step ahead, in deviations of changes.

    Returns:
        The probability; NaN without an error, or with too few before it.

    Source:
        Wilson and Hilferty (1931), "The distribution of chi-square"; Ahmad, Lavin, Purdy and Agha
        (2017), "Unsupervised real-time anomaly detection for streaming data".
    """
    known = errors[np.isfinite(errors)]
    if not known.size:
        return math.nan
    size = float(np.square(known).sum() / known.size) ** (1 / 3)
    if not math.isfinite(size):
        return math.nan
    count, mean, variance = held.tolist()
    score = math.nan
    if count >= SURPRISES_MIN:
        if variance > 0:
            score = 0.5 * math.erfc((size - mean) / math.sqrt(2 * variance))
        else:
            score = 1.0 if size <= mean else 0.0
    count = min(count + 1, SURPRISES_MAX)
    delta = size - mean
    mean += delta / count
    held[:] = count, mean, variance + (delta * (size - mean) - variance) / count
    return score


def skill_ratio(model: Model) -> float:
    """Prequential error relative to the naive forecast, mean over outputs; NaN before the first."""
    known = model.naive_error > 0
    return float(np.mean(model.error[known] / model.naive_error[known])) if known.any() else np.nan


def network_skill_ratio(model: Model) -> float:
    """As `skill_ratio`, of the network without the experts beside it."""
    if not model.network_error.size:
        return skill_ratio(model)
    return skill_ratio(model._replace(error=model.network_error))


def of_classes(model: Model) -> tuple[float, float]:
    """Accuracy, and cross-entropy in bits; NaN for other tasks, and before the first target."""
    hits, targets = model.hits.tolist()
    if not targets:
        return math.nan, math.nan
    return hits / targets, float(model.error[0]) / targets / math.log(2)


def error_band(model: Model) -> tuple[Array, Array]:
    """See `Learner.error_band`."""
    if np.isnan(model.error_band).all():
        return np.empty(0), np.empty(0)
    low, high = model.error_band
    if model.band_width.size:
        middle, half = 0.5 * (low + high), 0.5 * model.band_width * (high - low)
        return middle - half, middle + half
    return low.copy(), high.copy()
