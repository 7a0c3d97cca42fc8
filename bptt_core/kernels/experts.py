"""Experts beside the network and their mixture: the twins of `bptt_core.experts`."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from bptt_core.experts import (
    FADING,
    FAST_RATE,
    FORGETTING,
    LEVEL_MEMORY,
    MOVE_MAX,
    REGRESSOR_MAX,
    SLOW_RATE,
)
from bptt_core.kernels.jit import compiled, inlined
from bptt_core.kernels.linear import fill, is_finite
from bptt_core.kernels.robust import follow_level, scaled
from bptt_core.kernels.sizes import Sizes
from bptt_core.robust import LIMIT, MEAN, SHIFTED, VARIANCE
from bptt_core.state import EXPERTS, FIT_START, Model, ORDER

Array = NDArray[Any]

COUNT, LONG = len(EXPERTS), ORDER + 2


@inlined
def kept(move: float) -> float:
    """A move as `Streams.moves` and `Streams.changes` keep it."""
    return min(max(move, -MOVE_MAX), MOVE_MAX) if is_finite(move) else math.nan


@inlined
def move_of(said: Array, expert: int, n: int, O: int, at: int) -> float:
    """What an expert says of output `at`; as `experts.all_moves`."""
    if expert == 0:
        return 0.0
    if expert < 4:
        return float(said[(expert - 1) * n + at % n])
    return float(said[5 * n + (expert - 4) * O + at])


@compiled
def take_regrets(
    regret: Array, square: Array, at: int, moved: float, mixture: float, said: Array, n: int,
    unit: float,
) -> None:  # fmt: skip
    """Add to the regrets of output `at`; as `experts._take_regrets`."""
    if not unit > 0 or not is_finite(moved) or not is_finite(mixture):
        return
    side = 1.0 if mixture > moved else (-1.0 if mixture < moved else 0.0)
    middle, O = scaled(mixture, unit), regret.shape[1]
    for e in range(COUNT):
        move = move_of(said, e, n, O, at)
        if is_finite(move):
            new = side * min(max(middle - scaled(move, unit), -LIMIT), LIMIT)
            regret[e, at] = FADING * regret[e, at] + new
            square[e, at] = FADING * square[e, at] + new * new


@compiled
def read_changes(ring: Array, m: int, k: int, unit: float, q: Array) -> None:
    """Fill q with the changes of column k up to step m in units, the newest first."""
    for i in range(ORDER):
        change = float(ring[(m - i) % ring.shape[0], k]) if m - i > 0 else 0.0
        q[i] = scaled(change, unit) if is_finite(change) else 0.0


@compiled
def fit(inverse: Array, coefficients: Array, q: Array, y: Array, gain: Array) -> None:
    """One step of recursive least squares; as `experts.fit`.

    Args:
        inverse: (K, K); changed.
        coefficients: (h, K); changed.
        q: (K,) or longer.
        y: (h,) targets in units; NaN is missing.
        gain: (K,) or longer, scratch.
    """
    K, size, found = inverse.shape[0], 0.0, False
    for j in range(y.size):
        found = found or not math.isnan(y[j])
    if not found:
        return
    for i in range(K):
        size = max(size, abs(q[i]))
    weight = REGRESSOR_MAX / size if size > REGRESSOR_MAX else 1.0
    scale, sound = 0.0, True
    for i in range(K):
        total = 0.0
        for j in range(K):
            total += inverse[i, j] * q[j]
        gain[i] = weight * total
        scale += weight * q[i] * gain[i]
        sound = sound and inverse[i, i] > 0
    scale += FORGETTING
    if not scale > 0 or not sound:
        for i in range(K):
            fill(inverse[i], 0.0)
            inverse[i, i] = FIT_START
        return
    for j in range(y.size):
        if not math.isnan(y[j]):
            row, fitted = coefficients[j], 0.0
            for i in range(K):
                fitted += row[i] * q[i]
            error = weight * (y[j] - fitted)
            error = min(max(error, -LIMIT), LIMIT) / scale
            for i in range(K):
                row[i] += error * gain[i]
    root, forgets = 1 / math.sqrt(scale), True
    for i in range(K):
        gain[i] *= root
    for i in range(K):
        for j in range(K):
            inverse[i, j] -= gain[i] * gain[j]
        forgets = forgets and inverse[i, i] <= FIT_START
    if forgets:
        for i in range(K):
            for j in range(K):
                inverse[i, j] /= FORGETTING


@compiled
def fit_column(
    model: Model, held: Array, ring: Array, origin: Array, k: int, m: int, seen: float,
    unit: Array, scratch: Array,
) -> None:  # fmt: skip
    """Learn the moves of column k from step m - h on; as `experts._fit_both`.

    Args:
        model: fits; changed.
        held: (h, O + n) `Streams.forecasts` of the stream.
        ring: (ORDER + h, n) its changes.
        origin: what its experts said at step m - h.
        k: the column.
        m: number of the step.
        seen: the last value seen.
        unit: (O,)
        scratch: (2 LONG + h,) float64.
    """
    h, n = held.shape[0], ring.shape[1]
    O = h * n
    q, gain, y = scratch[:LONG], scratch[LONG : 2 * LONG], scratch[2 * LONG :]
    start = held[m % h, O + k]
    for j in range(1, h + 1):
        at, spread = m - h + j, unit[(j - 1) * n + k]
        later = seen if j == h else held[at % h, O + k]
        change = later - start
        known = is_finite(float(ring[at % ring.shape[0], k])) and is_finite(change) and spread > 0
        y[j - 1] = scaled(change, spread) if known else math.nan
    read_changes(ring, m - h, k, unit[k], q)
    level = float(origin[4 * n + k])
    q[ORDER], q[ORDER + 1] = level if is_finite(level) else 0.0, 1.0
    fit(model.changes_inverse[k], model.changes_fit[k], q, y, gain)
    fit(model.levels_inverse[k], model.levels_fit[k], q, y, gain)


@compiled
def take_averages(
    before: Array, first: bool, now: Array, n: int, k: int, change: float, unit: float
) -> None:
    """Move the averages of column k; as `experts.averages_after`.

    Args:
        before: what was said at the step before.
        first: there is no step before.
        now: what is said at this step; filled in part.
        n: columns.
        k: the column.
        change: NaN where the value is missing.
        unit: of changes.
    """
    known, bound = is_finite(change), LIMIT * unit
    fast, slow, beyond = float(before[n + k]), float(before[2 * n + k]), float(before[3 * n + k])
    fast = fast if is_finite(fast) and not first else 0.0
    slow = slow if is_finite(slow) and not first else 0.0
    beyond = beyond if is_finite(beyond) and not first else 0.0
    if known:
        fast, slow = fast - change, slow - change
        beyond = beyond + 1 if abs(fast) > bound and unit > 0 else 0.0
        fast -= FAST_RATE * min(max(fast, -bound), bound)
        slow -= SLOW_RATE * min(max(slow, -bound), bound)
        if beyond >= SHIFTED:
            fast = slow = beyond = 0.0
    now[n + k], now[2 * n + k], now[3 * n + k] = kept(fast), kept(slow), beyond


@compiled
def say(
    model: Model, ring: Array, k: int, m: int, seen: float, unit: Array, made: Array, now: Array,
    scratch: Array,
) -> None:  # fmt: skip
    """Fill in what the other experts say of column k; as `experts.said`."""
    n, O = ring.shape[1], made.size
    q, level = scratch[:LONG], model.expert_level[k]
    mean = level[MEAN] - seen
    deviations = scaled(-mean, math.sqrt(level[VARIANCE]))
    now[k], now[4 * n + k] = kept(mean), kept(deviations)
    read_changes(ring, m, k, unit[k], q)
    q[ORDER], q[ORDER + 1] = deviations, 1.0
    for j in range(O // n):
        at, short, long = j * n + k, 0.0, 0.0
        row, other = model.changes_fit[k, j], model.levels_fit[k, j]
        for i in range(ORDER):
            short += row[i] * q[i]
        for i in range(LONG):
            long += other[i] * q[i]
        now[5 * n + at] = kept(scaled(short, 1.0) * unit[at])
        now[5 * n + O + at] = kept(scaled(long, 1.0) * unit[at])
        now[5 * n + 2 * O + at] = kept(made[at] - seen)


@compiled
def mix(regret: Array, square: Array, said: Array, n: int, seen: Array, unit: Array, made: Array) -> None:  # fmt: skip  # noqa: E501
    """Replace the network's forecast (O,) by the mixture; as `experts.mixed`."""
    O = made.size
    for at in range(O):
        start, total, move = seen[at % n], 0.0, 0.0
        if math.isnan(start):
            continue
        for e in range(COUNT):
            each = scaled(move_of(said, e, n, O, at), unit[at])
            if is_finite(each) and regret[e, at] > 0:
                weight = regret[e, at] / (1.0 + square[e, at])
                total += weight
                move += weight * each
        made[at] = start + (unit[at] * (move / total) if total > 0 else 0.0)


@compiled
def follow(
    sizes: Sizes,
    model: Model,
    held: Array,
    ring: Array,
    moves: Array,
    m: int,
    truth: Array,
    seen: Array,
    unit: Array,
    made: Array,
    scratch: Array,
) -> None:
    """Learn from a step of one stream, and mix its forecast; as `experts.follow`.

    Args:
        sizes: the spec's.
        model: weights and fits; changed.
        held: (h, O + n) the stream's forecasts of the h steps before, and what they started from.
        ring: (ORDER + h, n) its changes; changed.
        moves: (h, 5 n + 3 O) what its experts said; changed.
        m: number of the step in its sequence.
        truth: (n,) values, NaN where one is missing.
        seen: (n,) the last values seen.
        unit: (O,) units of changes.
        made: (O,) the network's forecast; becomes the mixture.
        scratch: (2 LONG + h,) float64.
    """
    n, h, O = seen.size, sizes.horizon, made.size
    regret, square = model.regret, model.regret_square
    before, now = moves[(m - 1) % h], moves[m % h]
    for k in range(n):
        last = held[(m - 1) % h, O + k] if m > 0 else math.nan
        change = truth[k] - last
        ring[m % ring.shape[0], k] = kept(change)
        for j in range(1, min(h, m) + 1):
            at, earlier = (j - 1) * n + k, held[(m - j) % h]
            moved, mixture = truth[k] - earlier[O + k], earlier[at] - earlier[O + k]
            take_regrets(regret, square, at, moved, mixture, moves[(m - j) % h], n, unit[at])
        if m >= h:
            fit_column(model, held, ring, now, k, m, seen[k], unit, scratch)
    follow_level(model.expert_level, truth, LEVEL_MEMORY)
    for k in range(n):
        last = held[(m - 1) % h, O + k] if m > 0 else math.nan
        take_averages(before, m == 0, now, n, k, truth[k] - last, unit[k])
        say(model, ring, k, m, seen[k], unit, made, now, scratch)
    mix(regret, square, now, n, seen, unit, made)
