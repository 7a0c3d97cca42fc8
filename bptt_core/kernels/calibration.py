"""Anomaly scores that are probabilities: the twin of `bptt_core.calibration`."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from bptt_core.calibration import (
    ENTERED_MIN,
    EXCESS_MEAN,
    EXCESS_SQUARE,
    EXCESSES,
    EXCESSES_MAX,
    FAR,
    FAR_SCORE,
    FAR_STEP,
    FIRST_EXCESS_MAX,
    FIRST_SIZE_MAX,
    FORGOTTEN,
    LEAST_ENTERED,
    LEAST_SCORE,
    NEAR,
    NEAR_SCORE,
    NEAR_STEP,
    RANKED,
    RANKED_MIN,
    SCALE_MEMORY,
    SCORED_MIN,
    SEEN,
    SHAPE_MAX,
    SHAPE_PRIOR,
    SHARE,
    SIZES,
    STRETCH_MAX,
    TAIL_SHARE,
    THRESHOLD,
    USUAL_COUNT,
    USUAL_EXCESS,
)
from bptt_core.kernels.jit import compiled, inlined, whole
from bptt_core.kernels.linear import is_finite
from bptt_core.kernels.robust import follow_scale
from bptt_core.robust import SQUARE

Array = NDArray[Any]


@compiled
def anomaly_score(held: Array, ring: Array, tail: Array, size: float, ordered: Array) -> float:
    """As `bptt_core.calibration.anomaly_score`; `ordered` (RANKED,) is scratch."""
    if not is_finite(size):
        return math.nan
    seen, square, score, relative = held[SEEN], held[SQUARE], math.nan, 0.0
    if size > 0:
        relative = size / math.sqrt(square) if square > 0 else 1.0
    if seen >= SCORED_MIN and tail[SIZES] >= RANKED_MIN:
        score = probability(ring, tail, relative)
        hold_share(tail, NEAR, score < NEAR_SCORE, NEAR_SCORE, NEAR_STEP)
        hold_share(tail, FAR, score < FAR_SCORE, FAR_SCORE, FAR_STEP)
    held[SEEN] = min(seen + 1, float(SCORED_MIN))
    follow_scale(held, size, SCALE_MEMORY)
    if seen >= ENTERED_MIN and (not math.isnan(score) or relative <= FIRST_SIZE_MAX):
        enter(ring, tail, relative, score, ordered)
    return score


@compiled
def probability(ring: Array, tail: Array, size: float) -> float:
    """The score of a relative size."""
    excess = size - tail[THRESHOLD]
    if excess > 0 and tail[EXCESS_MEAN] > 0:
        shape = tail_shape(tail)
        scale, share = tail[EXCESS_MEAN] * (1 - shape), tail[SHARE]
        excess *= math.exp(-tail[NEAR])
        far = excess_at(NEAR_SCORE, share, shape, scale)
        if excess > far:
            excess = far + (excess - far) * math.exp(-tail[FAR])
        return float(max(tail_probability(excess, share, shape, scale), LEAST_SCORE))
    n, above = min(int(tail[SIZES]), RANKED), whole(0)
    for i in range(n):
        if ring[i] >= size:
            above += 1
    return (above + 0.5) / (n + 1)


@compiled
def tail_shape(tail: Array) -> float:
    """Shape of the generalised Pareto distribution of excesses; its scale is mean (1 - shape)."""
    mean, count = tail[EXCESS_MEAN], tail[EXCESSES]
    variance = tail[EXCESS_SQUARE] - mean * mean
    shape = 0.0
    if variance > 0:
        shape = 0.5 * (1 - mean * mean / variance) * count / (count + SHAPE_PRIOR)
    return float(max(min(shape, SHAPE_MAX), 1 / (count + 1)))


@compiled
def excess_at(score: float, share: float, shape: float, scale: float) -> float:
    """The excess that has this score; 0 where the threshold itself has a lower one."""
    ratio = score / share
    if ratio >= 1:
        return 0.0
    return float(scale / shape * (ratio**-shape - 1))


@compiled
def tail_probability(excess: float, share: float, shape: float, scale: float) -> float:
    """The score of an excess."""
    return float(share * (1 + shape * excess / scale) ** (-1 / shape))


@inlined
def hold_share(tail: Array, field: int, below: bool, level: float, step: float) -> None:
    """Stretch the tail where too many scores are below a level; shrink it where too few are."""
    moved = tail[field] + step * ((1.0 if below else 0.0) - level)
    tail[field] = min(max(moved, -STRETCH_MAX), STRETCH_MAX)


@compiled
def enter(ring: Array, tail: Array, size: float, score: float, ordered: Array) -> None:
    """Add a size to the ring, and its excess to the tail's moments."""
    excess = size - tail[THRESHOLD]
    if excess > 0 and tail[EXCESS_MEAN] > 0:
        if score < FORGOTTEN:
            excess = tail[EXCESS_MEAN]
        else:
            shape = tail_shape(tail)
            scale = tail[EXCESS_MEAN] * (1 - shape)
            excess = min(excess, excess_at(LEAST_ENTERED, tail[SHARE], shape, scale))
            count = min(tail[EXCESSES] + 1, EXCESSES_MAX)
            tail[EXCESSES] = count
            tail[EXCESS_MEAN] += (excess - tail[EXCESS_MEAN]) / count
            tail[EXCESS_SQUARE] += (excess * excess - tail[EXCESS_SQUARE]) / count
        size = tail[THRESHOLD] + excess
    count = whole(tail[SIZES])
    ring[count % RANKED] = size
    count += 1
    tail[SIZES] = count
    every = 8 if count <= 64 else (32 if count <= RANKED else RANKED // 4)
    if count >= RANKED_MIN and count % every == 0:
        find_threshold(ring, tail, ordered)


@compiled
def find_threshold(ring: Array, tail: Array, ordered: Array) -> None:
    """Find the threshold in the ring; until the ring is full, the tail's moments as well.

    Sorts only the largest sizes, descending, down to the one that is the threshold.
    """
    n = min(whole(tail[SIZES]), RANKED)
    wanted = n - int((1 - TAIL_SHARE) * n)
    filled = whole(0)
    for i in range(n):
        value = ring[i]
        if filled == wanted and value <= ordered[filled - 1]:
            continue
        if filled < wanted:
            filled += 1
        at = filled - 1
        while at > 0 and ordered[at - 1] < value:
            ordered[at] = ordered[at - 1]
            at -= 1
        ordered[at] = value
    threshold, above = ordered[wanted - 1], whole(0)
    while above < wanted and ordered[above] > threshold:
        above += 1
    tail[THRESHOLD] = threshold
    tail[SHARE] = max(float(above), 0.5) / n
    if (tail[SIZES] > RANKED and tail[EXCESSES] > 0) or above == 0:
        return
    most = FIRST_EXCESS_MAX * (ordered[above - 1 - (above - 1) // 2] - threshold)
    total, squares = 0.0, 0.0
    for i in range(above):
        excess = min(ordered[i] - threshold, most)
        total += excess
        squares += excess * excess
    usual, count = USUAL_EXCESS * threshold, above + USUAL_COUNT
    tail[EXCESSES] = above
    tail[EXCESS_MEAN] = (total + USUAL_COUNT * usual) / count
    tail[EXCESS_SQUARE] = (squares + USUAL_COUNT * 2 * usual * usual) / count
