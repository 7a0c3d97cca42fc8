"""Anomaly scores that are probabilities: a rank, and beyond it a fitted tail; the reference.

The size of a step's error, in deviations of its stream's recent errors, is compared with those of
all streams of the model:

- Within the largest tenth of the last `RANKED` sizes, sizes beyond the threshold are taken for a
  generalised Pareto distribution (peaks over threshold). Its mean and second moment fade over
  `EXCESSES_MAX` excesses, and give shape and scale by the method of moments.
- Below the threshold, the score is the size's rank among the last `RANKED` sizes.
- Shares are held: two factors stretch the tail, one from the threshold on, one from the score
  NEAR_SCORE on. Each grows with every score below its own level, and shrinks with all others, so
  that in the long run as many scores lie below the level as its value says.

One event does not blind the scores. An excess enters at the size whose score is LEAST_ENTERED, one
whose score is below FORGOTTEN enters as an average excess, and the factors are bounded.

Sources: Pickands (1975), "Statistical inference using extreme order statistics"; Hosking and
Wallis (1987), "Parameter and quantile estimation for the generalized Pareto distribution", section
on moments; Gibbs and Candès (2021), "Adaptive conformal inference under distribution shift", for
the steps of the factors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core import robust

Array = NDArray[Any]

RANKED = 512  # sizes among which a new one is ranked
SCALE_MEMORY = 500.0  # errors over which a stream's scale fades
ENTERED_MIN = 8  # errors of a stream before its sizes are ranked: a scale of fewer is too uncertain
SCORED_MIN = 32  # errors of a stream before it has scores
RANKED_MIN = 24  # sizes before there are scores
TAIL_SHARE = 0.1  # sizes beyond the threshold
EXCESSES_MAX = 256.0  # excesses over which the tail's moments fade; 512 was no better
SHAPE_PRIOR = 50.0  # excesses that a first guess of an exponential tail counts for
SHAPE_MAX = 0.4  # of the tail; never negative, because such a tail would end somewhere
FIRST_EXCESS_MAX = 4.0  # medians at which an excess enters the first moments: 1 in 16 are larger
USUAL_EXCESS = 0.3  # thresholds: the mean excess of Gaussian errors is 0.26 of them
USUAL_COUNT = 4.0  # excesses of that size that the first moments begin with
FIRST_SIZE_MAX = 8.0  # deviations of a size that is ranked although its stream has no scores yet
NEAR_SCORE, FAR_SCORE = 0.01, 0.001  # levels whose shares are held
NEAR_STEP, FAR_STEP = 0.1, 0.25  # growth of a factor's logarithm at a score below its level
STRETCH_MAX = 0.7  # bound of these logarithms: a factor of 2, which a run of anomalies reaches
LEAST_ENTERED = 1e-4  # score at which a larger excess enters the moments
FORGOTTEN = 1e-5  # score of an error that is no part of the distribution
LEAST_SCORE = 1e-300

(SIZES, THRESHOLD, SHARE, EXCESSES, EXCESS_MEAN, EXCESS_SQUARE, NEAR, FAR, TAIL_FIELDS) = range(9)
"""Places in `Model.score_tail`, and their number: sizes ranked so far; the threshold; the share of
sizes beyond it; number, mean and mean square of excesses; logarithms of the two factors."""

SEEN = robust.SCALE_FIELDS
SURPRISE_FIELDS = SEEN + 1
"""Columns of a stream's `surprise`: those of a scale; the number of errors, up to SCORED_MIN."""


def anomaly_score(held: Array, ring: Array, tail: Array, size: float) -> float:
    """The probability of an error at least as large as this one; then learn from the error.

    Args:
        held: (SURPRISE_FIELDS,) of the stream; changed.
        ring: (RANKED,) the model's last sizes; changed.
        tail: (TAIL_FIELDS,) of the model; changed.
        size: of the error, at least 0; any unit that does not change.

    Returns:
        The probability; NaN with too few errors before this one.
    """
    if not math.isfinite(size):
        return math.nan
    seen, square = float(held[SEEN]), float(held[robust.SQUARE])
    relative = 0.0
    if size > 0:
        relative = size / math.sqrt(square) if square > 0 else 1.0
    score = math.nan
    if seen >= SCORED_MIN and tail[SIZES] >= RANKED_MIN:
        score = _probability(ring, tail, relative)
        _hold_shares(tail, score)
    held[SEEN] = min(seen + 1, SCORED_MIN)
    robust.follow_scale(held[:SEEN], np.array(size), SCALE_MEMORY)
    if seen >= ENTERED_MIN and (not math.isnan(score) or relative <= FIRST_SIZE_MAX):
        _enter(ring, tail, relative, score)
    return score


def _probability(ring: Array, tail: Array, size: float) -> float:
    excess = size - float(tail[THRESHOLD])
    if excess > 0 and tail[EXCESS_MEAN] > 0:
        shape, scale = tail_shape(tail)
        share = float(tail[SHARE])
        excess *= math.exp(-tail[NEAR])
        far = excess_at(NEAR_SCORE, share, shape, scale)
        if excess > far:
            excess = far + (excess - far) * math.exp(-tail[FAR])
        return max(tail_probability(excess, share, shape, scale), LEAST_SCORE)
    ranked = ring[: int(tail[SIZES])]
    return float((np.count_nonzero(ranked >= size) + 0.5) / (ranked.size + 1))


def tail_shape(tail: Array) -> tuple[float, float]:
    """Shape and scale of the generalised Pareto distribution of excesses.

    Few excesses tell little about the scale. The least shape, 1 / (n + 1), is the one with which n
    excesses of an exponential distribution predict the next, their scale being unknown.
    """
    mean, count = float(tail[EXCESS_MEAN]), float(tail[EXCESSES])
    variance = float(tail[EXCESS_SQUARE]) - mean * mean
    shape = 0.0
    if variance > 0:
        shape = 0.5 * (1 - mean * mean / variance) * count / (count + SHAPE_PRIOR)
    shape = max(min(shape, SHAPE_MAX), 1 / (count + 1))
    return shape, mean * (1 - shape)


def excess_at(score: float, share: float, shape: float, scale: float) -> float:
    """The excess that has this score; 0 where the threshold itself has a lower one."""
    ratio = score / share
    if ratio >= 1:
        return 0.0
    return float(scale / shape * (ratio**-shape - 1))


def tail_probability(excess: float, share: float, shape: float, scale: float) -> float:
    """The score of an excess."""
    return float(share * (1 + shape * excess / scale) ** (-1 / shape))


def _hold_shares(tail: Array, score: float) -> None:
    """Stretch the tail where too many scores are below a level; shrink it where too few are."""
    for field, level, step in ((NEAR, NEAR_SCORE, NEAR_STEP), (FAR, FAR_SCORE, FAR_STEP)):
        moved = float(tail[field]) + step * ((score < level) - level)
        tail[field] = min(max(moved, -STRETCH_MAX), STRETCH_MAX)


def _enter(ring: Array, tail: Array, size: float, score: float) -> None:
    """Add a size to the ring, and its excess to the tail's moments."""
    excess = size - float(tail[THRESHOLD])
    if excess > 0 and tail[EXCESS_MEAN] > 0:
        shape, scale = tail_shape(tail)
        if score < FORGOTTEN:
            excess = float(tail[EXCESS_MEAN])
        else:
            excess = min(excess, excess_at(LEAST_ENTERED, float(tail[SHARE]), shape, scale))
            count = min(float(tail[EXCESSES]) + 1, EXCESSES_MAX)
            tail[EXCESSES] = count
            tail[EXCESS_MEAN] += (excess - tail[EXCESS_MEAN]) / count
            tail[EXCESS_SQUARE] += (excess * excess - tail[EXCESS_SQUARE]) / count
        size = float(tail[THRESHOLD]) + excess
    ring[int(tail[SIZES]) % RANKED] = size
    tail[SIZES] += 1
    if tail[SIZES] % refit_every(float(tail[SIZES])) == 0 and tail[SIZES] >= RANKED_MIN:
        find_threshold(ring, tail)


def refit_every(count: float) -> float:
    """Sizes between two looks for the threshold: a look costs as much as many scores."""
    if count > RANKED:
        return RANKED / 4
    return 32.0 if count > 64 else 8.0


def find_threshold(ring: Array, tail: Array) -> None:
    """Find the threshold in the ring; until the ring is full, the tail's moments as well.

    A ring that a constant stretch has filled with zeros gives no moments: the next looks do.
    """
    ordered = np.sort(ring[: int(tail[SIZES])])
    threshold = float(ordered[int((1 - TAIL_SHARE) * ordered.size)])
    excesses = ordered[ordered > threshold] - threshold
    tail[THRESHOLD] = threshold
    tail[SHARE] = max(excesses.size, 0.5) / ordered.size  # none at all after a constant stretch
    if (tail[SIZES] > RANKED and tail[EXCESSES] > 0) or not excesses.size:
        return
    median = excesses[(excesses.size - 1) // 2]
    excesses = np.minimum(excesses, FIRST_EXCESS_MAX * median)
    usual, count = USUAL_EXCESS * threshold, excesses.size + USUAL_COUNT
    tail[EXCESSES] = excesses.size
    tail[EXCESS_MEAN] = (excesses.sum() + USUAL_COUNT * usual) / count
    tail[EXCESS_SQUARE] = (np.square(excesses).sum() + USUAL_COUNT * 2 * usual * usual) / count
