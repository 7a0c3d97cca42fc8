"""Statistics that fade and are not ruined: the twins of `bptt_core.robust`."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from bptt_core.kernels.jit import compiled, inlined
from bptt_core.kernels.linear import is_finite
from bptt_core.robust import (
    BEYOND,
    BLOCK,
    BLOCK_M2,
    BLOCK_MEAN,
    BLOCK_SQUARES,
    COUNT,
    DRIFT,
    DRIFT_PRIOR,
    DRIFT_UNITS_MAX,
    EARLY,
    EARLY_LEVEL,
    EARLY_RATIO,
    IN_BLOCK,
    LARGEST,
    LATE_RATIO,
    LEVEL_COUNT,
    LEVEL_RATIO,
    LIMIT,
    MEAN,
    PEAK,
    SHIFTED,
    SQUARE,
    VARIANCE,
)

Array = NDArray[Any]


@compiled
def follow_scale(state: Array, value: float, memory: float) -> None:
    """Add one finite value to its scale (SCALE_FIELDS,); as `robust.follow_scale`."""
    size, square, count = min(abs(value), LARGEST), state[SQUARE], state[COUNT]
    entered, bound = size * size, LIMIT * LIMIT * square
    if square > 0 and entered > bound:
        state[BEYOND] += 1
        entered = bound
        if state[BEYOND] >= SHIFTED:
            count = max(0.5 * count, 1.0)
    else:
        state[BEYOND] = 0.0
    if square == 0 and entered > 0:
        count, square = 1.0, entered
    else:
        count = min(count + 1, memory)
        square += (entered - square) / count
    if size > 0:
        state[IN_BLOCK] += 1
        state[PEAK] = max(state[PEAK], size)
        state[BLOCK_SQUARES] += size * size
    if state[IN_BLOCK] >= BLOCK:
        ratio = EARLY_RATIO if count < EARLY else LATE_RATIO
        if state[PEAK] * ratio < math.sqrt(square):
            square, count = state[BLOCK_SQUARES] / state[IN_BLOCK], state[IN_BLOCK]
        state[IN_BLOCK] = state[PEAK] = state[BLOCK_SQUARES] = 0.0
    state[SQUARE], state[COUNT] = square, count


@compiled
def follow_change(state: Array, value: float, memory: float) -> None:
    """Add one finite value to its scale and mean (CHANGE_FIELDS,); as `robust.follow_change`."""
    follow_scale(state, value, memory)
    spread = math.sqrt(state[SQUARE])
    entered = min(max(value, -LIMIT * spread), LIMIT * spread)
    moved = state[DRIFT] + (entered - state[DRIFT]) / max(state[COUNT], 1.0)
    state[DRIFT] = min(max(moved, -spread), spread)


@inlined
def change_unit(state: Array) -> float:
    """The unit of changes; as `robust.change_unit`."""
    square, count, drift = state[SQUARE], state[COUNT], state[DRIFT]
    around = square - drift * drift * (count / (count + DRIFT_PRIOR))
    return math.sqrt(max(around, square / (DRIFT_UNITS_MAX * DRIFT_UNITS_MAX)))


@compiled
def follow_level(level: Array, values: Array, memory: float) -> None:
    """Add values (D,) to levels (D, LEVEL_FIELDS); as `robust.follow_level`."""
    for i in range(values.size):
        if not is_finite(values[i]):
            continue
        state, value = level[i], min(max(values[i], -LARGEST), LARGEST)
        variance, count = state[VARIANCE], state[COUNT]
        mean = value if count == 0 else state[MEAN]
        delta = value - mean
        out = variance > 0 and delta * delta > LIMIT * LIMIT * variance
        state[BEYOND] = state[BEYOND] + 1 if out else 0.0
        if state[BEYOND] >= SHIFTED:
            mean, count, state[BEYOND] = value, min(count, LEVEL_COUNT), 0.0
        else:
            if out:
                delta = math.copysign(LIMIT * math.sqrt(variance), delta)
            count = min(count + 1, memory)
            mean += delta / count
            variance = (1 - 1 / count) * (variance + delta * delta / count)
        state[IN_BLOCK] += 1
        delta = value - state[BLOCK_MEAN]
        state[BLOCK_MEAN] += delta / state[IN_BLOCK]
        state[BLOCK_M2] += delta * (value - state[BLOCK_MEAN])
        if state[IN_BLOCK] >= BLOCK:
            spread = state[BLOCK_M2] / state[IN_BLOCK]
            if count <= EARLY_LEVEL and spread * LEVEL_RATIO * LEVEL_RATIO < variance:
                variance, count, mean = spread, state[IN_BLOCK], state[BLOCK_MEAN]
            state[IN_BLOCK] = state[BLOCK_MEAN] = state[BLOCK_M2] = 0.0
        state[VARIANCE], state[COUNT], state[MEAN] = variance, count, mean


@inlined
def scaled(value: float, spread: float) -> float:
    """A value in deviations, limited; as `robust.scaled`."""
    if spread > 0:
        ratio = value / spread
        return LIMIT if ratio > LIMIT else (-LIMIT if ratio < -LIMIT else ratio)
    return value if math.isnan(value) else 0.0
