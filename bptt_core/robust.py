"""Statistics that fade, and that no single value can ruin; the reference.

Trackers are rows of six or seven numbers for each variable. `follow_scale` tracks the root mean
square of values around zero, such as errors; `follow_change` their mean as well, so that the unit
of a counter's changes is not the drift that they have in common. `follow_level` tracks mean and
variance of values around any level. All fade over `memory` values, and follow four rules:

- A value enters at `LIMIT` deviations at most.
- `SHIFTED` values in a row beyond that bound are no outliers: the data changed. A level begins anew
  at the newest value; a scale forgets half of its past for each further one.
- Outliers that came first are found by blocks of `BLOCK` values: if a whole block lies far below
  the scale, the scale begins anew from the block. A level does so among its first values only,
  because the level of a slow series changes little within a block.
- There is no scale before two different values. `scaled` is then 0, so nothing depends on the unit
  in which values are given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LIMIT = 8.0  # deviations: 1 in 1e15 of Gaussian values, 1 in 500 of a Student's t of 3
SHIFTED = 3  # values in a row beyond the limit after which the data has changed
LEVEL_COUNT = 16.0  # weight that a level's past keeps after a shift
BLOCK = 16  # values: none of 16 Gaussian ones is beyond a thirtieth deviation once in 1e25 blocks
EARLY = 100.0  # values after which a scale was seen long enough to believe it
EARLY_RATIO = 3.0  # a block's peak below a third of an early scale: Gaussian once in 6,000 blocks
LATE_RATIO = 30.0  # the same of a scale that was seen long enough
EARLY_LEVEL = 64.0  # the same as EARLY, for a level
LEVEL_RATIO = 8.0  # deviations over those of a block; a straight line of 64 values gives 4
DRIFT_UNITS_MAX = 3.0  # units that a drift may be: a network's bias must learn it
DRIFT_PRIOR = 16.0  # changes of no drift that a first guess counts for
LARGEST = 1e150  # larger values are taken for it: their squares are not finite

SCALE_FIELDS = 6
SQUARE, COUNT, BEYOND, IN_BLOCK, PEAK, BLOCK_SQUARES = range(SCALE_FIELDS)
"""Columns of a scale: mean square, values in it, values beyond the limit in a row; in the block:
values that are not 0, the largest, the sum of squares."""

CHANGE_FIELDS = SCALE_FIELDS + 1
DRIFT = SCALE_FIELDS
"""Column of a change: the mean; the others are those of a scale."""

LEVEL_FIELDS = 7
VARIANCE, MEAN, BLOCK_MEAN, BLOCK_M2 = SQUARE, 4, 5, 6
"""Columns of a level: variance, COUNT, BEYOND, IN_BLOCK, mean; the block's mean, and its sum of
squared deviations."""


def follow_scale(scale: Array, values: Array, memory: float) -> None:
    """Add values around zero to their scales, in place; NaN is left out.

    Args:
        scale: (…, SCALE_FIELDS) float64; changed.
        values: (…) of the same leading shape.
        memory: the largest COUNT, > 0.
    """
    known = np.isfinite(values)
    size = np.minimum(np.abs(np.where(known, values, 0.0)), LARGEST)
    square, count, beyond, n, peak, squares = np.moveaxis(scale.copy(), -1, 0)
    entered, bound = size * size, LIMIT * LIMIT * square
    out = (square > 0) & (entered > bound)
    beyond = np.where(out, beyond + 1, 0.0)
    count = np.where(out & (beyond >= SHIFTED), np.maximum(0.5 * count, 1.0), count)
    entered = np.where(out, bound, entered)
    first = (square == 0) & (entered > 0)  # values of 0 before it say nothing about the scale
    count = np.where(first, 1.0, np.minimum(count + 1, memory))
    square = np.where(first, entered, square + (entered - square) / count)
    n = n + (size > 0)
    peak, squares = np.maximum(peak, size), squares + size * size
    full = n >= BLOCK
    ratio = np.where(count < EARLY, EARLY_RATIO, LATE_RATIO)
    anew = full & (peak * ratio < np.sqrt(square))
    square, count = np.where(anew, squares / np.maximum(n, 1), square), np.where(anew, n, count)
    n, peak, squares = (np.where(full, 0.0, each) for each in (n, peak, squares))
    made = np.stack([square, count, beyond, n, peak, squares], axis=-1)
    scale[known] = made[known]


def follow_change(changes: Array, values: Array, memory: float) -> None:
    """Add values to their scales and means, in place; NaN is left out.

    Args:
        changes: (…, CHANGE_FIELDS) float64; changed.
        values: (…) of the same leading shape.
        memory: the largest COUNT, > 0.
    """
    follow_scale(changes[..., :SCALE_FIELDS], values, memory)
    known = np.isfinite(values)
    spread = np.sqrt(changes[..., SQUARE])
    entered = np.clip(np.where(known, values, 0.0), -LIMIT * spread, LIMIT * spread)
    mean = changes[..., DRIFT]
    moved = mean + (entered - mean) / np.maximum(changes[..., COUNT], 1.0)
    mean[known] = np.clip(moved, -spread, spread)[known]


def change_unit(changes: Array) -> Array:
    """Units (…) of changes (…, CHANGE_FIELDS): their deviation from the drift.

    At least a DRIFT_UNITS_MAX-th of their root mean square; 0 before a change other than 0.
    """
    square, count, drift = changes[..., SQUARE], changes[..., COUNT], changes[..., DRIFT]
    around = square - drift * drift * (count / (count + DRIFT_PRIOR))
    return np.sqrt(np.maximum(around, square / DRIFT_UNITS_MAX**2))


def follow_level(level: Array, values: Array, memory: float) -> None:
    """Add values to their mean and variance, in place; NaN is left out.

    Args:
        level: (D, LEVEL_FIELDS) float64; changed.
        values: (D,).
        memory: the largest COUNT, > 0.
    """
    for state, value in zip(level, values, strict=True):
        if not np.isfinite(value):
            continue
        variance, count, beyond, n, mean, block_mean, block_m2 = state.tolist()
        value = float(np.clip(value, -LARGEST, LARGEST))
        if count == 0:
            mean = value
        delta = value - mean
        out = variance > 0 and delta * delta > LIMIT * LIMIT * variance
        beyond = beyond + 1 if out else 0.0
        if beyond >= SHIFTED:
            mean, count, beyond = value, min(count, LEVEL_COUNT), 0.0
        else:
            if out:
                delta = float(np.copysign(LIMIT * np.sqrt(variance), delta))
            count = min(count + 1, memory)
            mean += delta / count
            variance = (1 - 1 / count) * (variance + delta * delta / count)
        n += 1
        delta = value - block_mean
        block_mean += delta / n
        block_m2 += delta * (value - block_mean)
        if n >= BLOCK:
            spread = block_m2 / n
            if count <= EARLY_LEVEL and spread * LEVEL_RATIO * LEVEL_RATIO < variance:
                variance, count, mean = spread, n, block_mean
            n = block_mean = block_m2 = 0.0
        state[:] = variance, count, beyond, n, mean, block_mean, block_m2


def scaled(values: Array, spread: Array) -> Array:
    """Values in deviations, at most LIMIT of them; 0 where there is no deviation yet."""
    known = spread > 0
    with np.errstate(over="ignore"):
        ratio = values / np.where(known, spread, 1.0)
    return np.where(known, np.clip(ratio, -LIMIT, LIMIT), np.where(np.isnan(ratio), ratio, 0.0))
