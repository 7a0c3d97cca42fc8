"""Figures of merit, updated step by step when a prediction's truth is known; the reference.

All are prequential: they compare predictions that were made before their target was learned with
those of a naive forecast from the same data. They are weighted towards the last 1,000 or so
targets.

- Real targets: absolute error relative to the last-value forecast, or to the mean so far.
- Classes and tokens: cross-entropy relative to the class frequencies so far with add-one smoothing;
  and the share of targets that were the likeliest class.
- Error band: the 0.05 and 0.95 quantiles of the last errors of each output, with their sign.
- Anomaly score of a forecast's step: see `_surprise`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core import params
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
        streams: `forecasts`, `surprise`; changed.
        row: the stream's row.
        first: number of steps in the stream's sequence before these.
        predictions: (T, O) in the user's units, made at these steps.
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
            _fade(model, slice(None), np.abs(error), np.abs(truth[t] - naive[t]))
            _keep(model, error)
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
            _fade(model, outputs, np.abs(errors[outputs]), naive_error)
        _keep(model, errors)
        scores[t] = _surprise(streams.surprise[row], errors[:n] / prepared.unit[t, :n])
        held[m % h, :O] = predictions[t]
        held[m % h, O:] = prepared.naive[t, :n]
    return scores


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


def _keep(model: Model, error: Array) -> None:
    """Keep one error of every output (O,), NaN if it is missing, for the error band."""
    if not np.isfinite(error).any():
        return
    rows = len(model.errors)
    model.errors[model.counters[ERRORS] % rows] = np.where(np.isfinite(error), error, np.nan)
    model.counters[ERRORS] += 1
    count = int(model.counters[ERRORS])
    if count % (max(BAND_EVERY, rows // BAND_RINGS) if count > rows else BAND_EVERY) == 0:
        kept = model.errors[: model.counters[ERRORS]]
        for output in range(error.size):
            known = np.sort(kept[~np.isnan(kept[:, output]), output].astype(np.float64))
            model.error_band[:, output] = [_quantile(known, share) for share in BAND]


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
    return low.copy(), high.copy()
