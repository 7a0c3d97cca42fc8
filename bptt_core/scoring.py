"""Figures of merit, step by step: how good predictions were once their truth has come; reference.

All are prequential: of predictions made before their target was learned, against those of a naive
rival that saw as much. They fade, so that they speak of the last 1,000 targets or so.

- Real targets: absolute error, over that of the last value (forecast) or of the mean so far.
- Classes and tokens: cross-entropy, over that of the class frequencies so far with add-one
  smoothing; and the share of targets that were the likeliest class.
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

FADING = 1e-3  # share that one target has in the figures of merit
LEAST_PROBABILITY = 1e-300  # what a class that was held impossible counts as: 997 bits
BAND = (0.05, 0.95)  # quantiles of the error band: nine of ten errors lie between
# Errors between two looks at the quantiles: sorting at each would cost more than the prediction.
BAND_EVERY = 32
# Looks each time the ring goes round, if they are fewer: every 32 of 512 errors, they took 1.3 of
# the 3.1 µs of a step of 8 outputs.
BAND_RINGS = 4
BAND_ERRORS_MIN = 20  # of an output, before it has a band: one in each tail
SURPRISES_MIN = 32  # of a stream, before their deviation says anything
SURPRISES_MAX = 1000  # that a stream's mean and deviation speak of


def score_live(
    spec: ModelSpec, model: Model, streams: Streams, row: int, prepared: Prepared
) -> None:
    """Score the first of new tokens: what the live state says comes next, before it is read.

    The later ones are scored by their chunk's own predictions. Keeping the last distribution
    instead would cost every stream as many numbers as there are tokens.
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
    """Add the errors of predictions whose truth has come to the figures of merit.

    Args:
        spec: the model's.
        model: its figures; changed.
        streams: `forecasts`, `surprise`; changed.
        row: the stream's row.
        first: steps in the stream's sequence before these.
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
    """Take one target into the figures of classes.

    Args:
        model: changed.
        odds: (O,) probabilities that were given.
        wanted: the class; NaN where there is none.
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
    """Keep one error of every output (O,), NaN where there is none, for the error band."""
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
    """Between the two neighbours of the place share (n - 1); NaN of fewer than BAND_ERRORS_MIN."""
    if ordered.size < BAND_ERRORS_MIN:
        return math.nan
    place = share * (ordered.size - 1)
    below = min(int(place), ordered.size - 2)
    return float(ordered[below] + (place - below) * (ordered[below + 1] - ordered[below]))


def _surprise(held: Array, errors: Array) -> float:
    """Probability of an error as large as this one or larger, by the stream's recent ones.

    The cube root of a mean of squares is nearly Gaussian, however many squares it has and however
    they hang together (Wilson and Hilferty 1931), where the errors themselves are anything but. So
    its mean and deviation in the stream's past give the probability, as Gaussian tail. This is the
    likelihood of Ahmad et al. (2017) of the step by itself: their mean over the last few steps
    finds slow changes, and blurs which step it was.

    Args:
        held: (3,) how many there were, at most SURPRISES_MAX, their mean and variance; changed.
        errors: (targets,) of the forecast one step ahead, in units of the deviation of changes.

    Returns:
        NaN where there is no error, or too few before it.

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
    """Prequential error over the naive forecast's, mean over outputs; NaN if none yet."""
    known = model.naive_error > 0
    return float(np.mean(model.error[known] / model.naive_error[known])) if known.any() else np.nan


def of_classes(model: Model) -> tuple[float, float]:
    """Accuracy, and cross-entropy in bits; NaN of other tasks, and before the first target."""
    hits, targets = model.hits.tolist()
    if not targets:
        return math.nan, math.nan
    return hits / targets, float(model.error[0]) / targets / math.log(2)


def error_band(model: Model) -> tuple[Array, Array]:
    """As `Learner.error_band`."""
    if np.isnan(model.error_band).all():
        return np.empty(0), np.empty(0)
    low, high = model.error_band
    return low.copy(), high.copy()
