"""Cheap forecasters beside the network, and the weights that mix them; the reference.

For each target column and each step ahead, a forecast is a weighted mean of what seven experts say:
the last value; the mean; two exponential averages; two least-squares fits, on the last changes and
on these with the level; and the network. All speak of moves: the change from the last value seen.
Moves, errors and regrets count in units of changes (`bptt_core.scaling`), limited to
`robust.LIMIT`, so that no single value ruins what follows.

- The weights are MLpol's, from linearised regrets of the absolute error that fade: an expert gains
  weight where it was on the right side of the mixture, and has none while its regret is negative.
  While no regret is positive, the last value is the forecast.
- Least squares are recursive, with one gain a step for all steps ahead: step m learns what was
  known at step m - h. A step with a large regressor weighs less.
- Weights and fits belong to the model. A stream has its last changes, its averages, and what the
  experts said at its last h steps.

Source: Gaillard, Stoltz and van Erven (2014), "A second-order bound with excess losses", for the
weights; Ljung (1999), "System identification", section 11.2, for recursive least squares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core import robust
from bptt_core.specs import ModelSpec
from bptt_core.state import EXPERTS, FIT_START, Model, ORDER, Streams

Array = NDArray[Any]

NETWORK = EXPERTS.index("network")
FADING = 0.999  # what a step leaves of earlier regrets
FAST_RATE, SLOW_RATE = 0.5, 0.05  # weights of a new value in the averages
LEVEL_MEMORY = 10_000.0  # steps over which the mean fades
FORGETTING = 0.9995  # what a step leaves of the steps before it in a fit
REGRESSOR_MAX = 3.0  # units; a step with a larger regressor is scaled down to it
MOVE_MAX = 3e38  # larger moves are kept as this, the largest number of float32


class Said(NamedTuple):
    """What the experts of one stream said at one step: a row of `Streams.moves`, in parts.

    Moves are in the user's units; NaN where there is no value to start from.
    """

    mean: Array
    """(n,) as the next two."""
    fast: Array
    slow: Array
    beyond: Array
    """(n,) values in a row that were far from the fast average."""
    level: Array
    """(n,) deviations of the last value from the mean: a regressor."""
    changes: Array
    """(O,) as the next two."""
    levels: Array
    network: Array


def parts(row: Array, n: int) -> Said:
    """The parts of a row of `Streams.moves`, as views; n target columns."""
    O = (len(row) - 5 * n) // 3
    short, long = row[: 5 * n].reshape(5, n), row[5 * n :].reshape(3, O)
    return Said(*short, *long)


def follow(
    spec: ModelSpec,
    model: Model,
    streams: Streams,
    row: int,
    m: int,
    truth: Array,
    seen: Array,
    unit: Array,
    made: Array,
) -> None:
    """Learn from a step of one stream, and mix its forecast.

    Args:
        spec: the model's.
        model: weights and fits; changed.
        streams: `changes` and `moves`; changed. `forecasts` still has those of the h steps before.
        row: the stream's row.
        m: number of the step in its sequence.
        truth: (n,) its values, NaN where one is missing.
        seen: (n,) the last values seen.
        unit: (O,) units of changes.
        made: (O,) the network's forecast in the user's units; becomes the mixture.
    """
    n, h, O = seen.size, spec.horizon, made.size
    held, ring, moves = streams.forecasts[row], streams.changes[row], streams.moves[row]
    before = held[(m - 1) % h, O:] if m else np.full(n, np.nan)
    change = truth - before
    ring[m % len(ring)] = np.clip(change, -MOVE_MAX, MOVE_MAX)
    for j in range(1, min(h, m) + 1):
        outputs, origin = slice((j - 1) * n, j * n), (m - j) % h
        earlier = held[origin]
        _take_regrets(
            model,
            outputs,
            truth - earlier[O:],
            earlier[:O][outputs] - earlier[O:],
            all_moves(moves[origin], n, h)[:, outputs],
            unit[outputs],
        )
    if m >= h:
        _fit_both(model, held, ring, parts(moves[m % h], n), m, seen, unit)
    robust.follow_level(model.expert_level, truth, LEVEL_MEMORY)
    last = parts(moves[(m - 1) % h], n) if m else parts(np.zeros(moves.shape[1]), n)
    averages = averages_after(last, change, unit[:n])
    moves[m % h] = said(model, averages, newest_changes(ring, m), seen, unit, made)
    made[:] = mixed(model, moves[m % h], seen, unit, made)


def newest_changes(ring: Array, m: int) -> Array:
    """(ORDER, n) the changes of step m and before, the newest first; 0 where there is none."""
    places = m - np.arange(ORDER)
    newest = ring[places % len(ring)].astype(np.float64)
    return np.where((places > 0)[:, np.newaxis] & np.isfinite(newest), newest, 0.0)


def averages_after(before: Said, change: Array, unit: Array) -> Array:
    """The averages after a change (n,), which is NaN where the value is missing.

    A value enters at LIMIT units at most. After `robust.SHIFTED` values in a row further away from
    the fast one, both begin anew at the newest value.

    Returns:
        (3, n) moves to the fast and to the slow average, and the number of values in a row.
    """
    known, bound = np.isfinite(change), robust.LIMIT * unit
    moved = np.where(known, change, 0.0)
    fast, slow = (np.nan_to_num(each.astype(np.float64)) - moved for each in before[1:3])
    far = known & (np.abs(fast) > bound) & (unit > 0)
    beyond = np.where(far, np.nan_to_num(before.beyond) + 1, 0.0)
    beyond = np.where(known, beyond, np.nan_to_num(before.beyond))
    anew = beyond >= robust.SHIFTED
    made = []
    for move, rate in ((fast, FAST_RATE), (slow, SLOW_RATE)):
        nearer = move - rate * np.clip(move, -bound, bound)
        made.append(np.where(anew, 0.0, np.where(known, nearer, move)))
    return np.stack([*made, np.where(anew, 0.0, beyond)])


def said(
    model: Model, averages: Array, changes: Array, seen: Array, unit: Array, made: Array
) -> Array:
    """What all experts say at a step.

    Args:
        model: weights and fits.
        averages: (3, n) as `averages_after` returns them.
        changes: (ORDER, n) the last changes, the newest first.
        seen: (n,) the last values seen.
        unit: (O,) units of changes.
        made: (O,) the network's forecast in the user's units.

    Returns:
        A row of `Streams.moves`, float64.
    """
    n, h = seen.size, made.size // seen.size
    level, start = model.expert_level, np.tile(seen, h)
    mean = level[:, robust.MEAN] - seen
    deviations = robust.scaled(-mean, np.sqrt(level[:, robust.VARIANCE]))
    q = _regressors(changes, unit[:n])
    both = np.concatenate([q, deviations[:, np.newaxis], np.ones((n, 1))], axis=1)
    units = unit.reshape(h, n)
    fitted = [
        robust.scaled(np.einsum("njk,nk->jn", coefficients, each), np.ones((h, n))) * units
        for coefficients, each in ((model.changes_fit, q), (model.levels_fit, both))
    ]
    network = made - start
    row = np.concatenate(
        [mean, *averages, deviations, *(each.reshape(-1) for each in fitted), network]
    )
    return np.where(np.isfinite(row), np.clip(row, -MOVE_MAX, MOVE_MAX), np.nan)


def all_moves(row: Array, n: int, h: int) -> Array:
    """(EXPERTS, O) the moves of a row of `Streams.moves`."""
    each = parts(row.astype(np.float64), n)
    short = np.stack([np.zeros(n), each.mean, each.fast, each.slow])
    return np.concatenate([np.tile(short, h), [each.changes, each.levels, each.network]])


def mixed(model: Model, row: Array, seen: Array, unit: Array, made: Array) -> Array:
    """The mixture (O,); the network's forecast `made` where no value was seen yet.

    An expert whose move is not finite, such as a network that has diverged, has no weight.
    """
    n, h = seen.size, made.size // seen.size
    moves = robust.scaled(all_moves(row, n, h), unit)
    weights = np.where(np.isfinite(moves), weights_of(model), 0.0)
    total = weights.sum(axis=0)
    move = (weights * np.where(np.isfinite(moves), moves, 0.0)).sum(axis=0)
    move = np.where(total > 0, move / np.where(total > 0, total, 1.0), 0.0)
    start = np.tile(seen, h)
    return np.where(np.isnan(start), made, start + unit * move)


def weights_of(model: Model) -> Array:
    """(EXPERTS, O) weights before they are divided by their sum; all 0 at first."""
    return np.asarray(np.maximum(model.regret, 0.0) / (1.0 + model.regret_square))


def shares(model: Model) -> Array:
    """(EXPERTS,) weights of the experts, the mean over outputs; they add up to 1."""
    weights = weights_of(model)
    total = weights.sum(axis=0)
    weights[0, total == 0] = total[total == 0] = 1.0
    return np.asarray((weights / total).mean(axis=1))


def _take_regrets(
    model: Model, outputs: slice, moved: Array, mixture: Array, moves: Array, unit: Array
) -> None:
    """Add to the regrets of these n outputs.

    Args:
        model: changed.
        outputs: of one step ahead.
        moved: (n,) what came.
        mixture: (n,) what the mixture said.
        moves: (EXPERTS, n) what each expert said.
        unit: (n,)
    """
    side = np.sign(mixture - moved)
    said = robust.scaled(mixture, unit) - robust.scaled(moves, unit)
    new = side * np.clip(said, -robust.LIMIT, robust.LIMIT)
    known = np.isfinite(new) & (unit > 0)
    regret, square = model.regret[:, outputs], model.regret_square[:, outputs]
    regret[known] = FADING * regret[known] + new[known]
    square[known] = FADING * square[known] + np.square(new[known])


def _regressors(changes: Array, unit: Array) -> Array:
    """(n, ORDER) changes (ORDER, n) in units."""
    return np.ascontiguousarray(robust.scaled(changes, unit).T)


def _fit_both(
    model: Model, held: Array, ring: Array, origin: Said, m: int, seen: Array, unit: Array
) -> None:
    """Learn the moves from step m - h to the h steps after it."""
    n, h = seen.size, len(held)
    O = n * h
    start, units = held[m % h, O:], unit.reshape(h, n)
    ahead = m - h + np.arange(1, h + 1)
    later = np.concatenate([held[ahead[:-1] % h, O:], seen[np.newaxis]])
    known = np.isfinite(ring[ahead % len(ring)]) & np.isfinite(later - start) & (units > 0)
    y = np.where(known, robust.scaled(later - start, units), 0.0)
    q = _regressors(newest_changes(ring, m - h), unit[:n])
    level = np.nan_to_num(origin.level.astype(np.float64))
    both = np.concatenate([q, level[:, np.newaxis], np.ones((n, 1))], axis=1)
    for k in range(n):
        fit(model.changes_inverse[k], model.changes_fit[k], q[k], y[:, k], known[:, k])
        fit(model.levels_inverse[k], model.levels_fit[k], both[k], y[:, k], known[:, k])


def fit(inverse: Array, coefficients: Array, q: Array, y: Array, known: Array) -> None:
    """One step of recursive least squares, for targets that share their regressors.

    Args:
        inverse: (K, K) inverse of the sum of q qᵀ; changed. It begins anew if rounding has ruined
            it. Earlier steps are forgotten only while it is no larger than at first, so that it
            stays bounded where nothing changes.
        coefficients: (h, K); changed.
        q: (K,) regressors in units.
        y: (h,) targets in units.
        known: (h,) False: a target is missing.
    """
    if not known.any():
        return
    size = float(np.abs(q).max())
    weight = REGRESSOR_MAX / size if size > REGRESSOR_MAX else 1.0
    q = weight * q
    gain = inverse @ q
    scale = FORGETTING + float(q @ gain)
    diagonal = np.arange(q.size)
    if not scale > 0 or not (inverse[diagonal, diagonal] > 0).all():
        inverse[:] = FIT_START * np.eye(q.size)
        return
    errors = weight * y - coefficients @ q
    errors = np.clip(errors, -robust.LIMIT, robust.LIMIT)
    coefficients[known] += np.outer(errors[known], gain / scale)
    root = gain / np.sqrt(scale)
    inverse -= np.outer(root, root)
    if (inverse[diagonal, diagonal] <= FIT_START).all():
        inverse /= FORGETTING
