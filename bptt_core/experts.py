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
    """The parts of rows (…, W) of `Streams.moves`, as views; n target columns."""
    O = (row.shape[-1] - 5 * n) // 3
    ends = [*range(n, 5 * n + 1, n), 5 * n + O, 5 * n + 2 * O, 5 * n + 3 * O]
    return Said(*(row[..., a:b] for a, b in zip([0, *ends], ends, strict=False)))


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
    last = averages_of(moves[(m - 1) % h], n) if m else np.zeros((3, n))
    averages = averages_after(last, change, unit[:n])
    moves[m % h] = said(model, averages, newest_changes(ring, m), seen, unit, made)
    made[:] = mixed(model, moves[m % h], seen, unit, made)


def averages_of(row: Array, n: int) -> Array:
    """(3, n) of a row of `Streams.moves`: both averages, and values in a row far from the first."""
    return row[n : 4 * n].reshape(3, n).astype(np.float64)


def memories_of(streams: Streams, rows: Array, steps: Array) -> Array:
    """What predictions need of streams: their averages and their last changes.

    Args:
        streams: the model's.
        rows: (K,) of the streams.
        steps: (K,) steps since each one's sequence began.

    Returns:
        (K, 3 + ORDER, n); 0 where there is none.
    """
    (_, length, n), h = streams.changes.shape, streams.moves.shape[1]
    last = steps[:, np.newaxis] - 1
    averages = streams.moves[rows, (steps - 1) % h, n : 4 * n].reshape(len(rows), 3, n)
    places = last - np.arange(ORDER)
    changes = streams.changes[rows[:, np.newaxis], places % length]
    changes = np.where((places > 0)[..., np.newaxis], changes, 0.0)
    averages = np.where((last >= 0)[..., np.newaxis], averages, 0.0)
    memories = np.concatenate([averages, changes], axis=1)
    return np.where(np.isfinite(memories), memories, 0.0)


def newest_changes(ring: Array, m: int) -> Array:
    """(ORDER, n) the changes of step m and before, the newest first; 0 where there is none."""
    places = m - np.arange(ORDER)
    newest = ring[places % len(ring)].astype(np.float64)
    return np.where((places > 0)[:, np.newaxis] & np.isfinite(newest), newest, 0.0)


def averages_after(before: Array, change: Array, unit: Array) -> Array:
    """The averages after a change (…, n), which is NaN where the value is missing.

    A value enters at LIMIT units at most. After `robust.SHIFTED` values in a row further away from
    the fast one, both begin anew at the newest value.

    Args:
        before: (3, …, n) moves to the fast and to the slow average, and the number of values in a
            row.
        change: from the value before.
        unit: (n,) of changes.

    Returns:
        As `before`.
    """
    known, bound = np.isfinite(change), robust.LIMIT * unit
    moved = np.where(known, change, 0.0)
    fast, slow, count = np.where(np.isfinite(before), before, 0.0)
    fast, slow = fast - moved, slow - moved
    far = known & (np.abs(fast) > bound) & (unit > 0)
    beyond = np.where(known, np.where(far, count + 1, 0.0), count)
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
        averages: (3, …, n) as `averages_after` returns them.
        changes: (ORDER, …, n) the last changes, the newest first.
        seen: (…, n) the last values seen.
        unit: (O,) units of changes.
        made: (…, O) the network's forecast in the user's units.

    Returns:
        (…, W) rows of `Streams.moves`, float64.
    """
    n = seen.shape[-1]
    h, level = unit.size // n, model.expert_level
    mean = level[:, robust.MEAN] - seen
    deviations = robust.scaled(-mean, np.sqrt(level[:, robust.VARIANCE]))
    q = _regressors(changes, unit[:n])
    both = _with_level(q, deviations)
    fitted = []
    for coefficients, each in ((model.changes_fit, q), (model.levels_fit, both)):
        moves = np.einsum("njk,...nk->...jn", coefficients, each)
        moves = robust.scaled(moves, np.ones_like(moves)) * unit.reshape(h, n)
        fitted.append(moves.reshape(made.shape))
    network = made - _tiled(seen, h)
    row = np.concatenate([mean, *averages, deviations, *fitted, network], axis=-1)
    return np.where(np.isfinite(row), np.clip(row, -MOVE_MAX, MOVE_MAX), np.nan)


def _tiled(values: Array, h: int) -> Array:
    """(…, O) values (…, n) of each step ahead."""
    return np.concatenate([values] * h, axis=-1)


def all_moves(row: Array, n: int, h: int) -> Array:
    """(EXPERTS, …, O) the moves of rows (…, W) of `Streams.moves`."""
    each = parts(row.astype(np.float64), n)
    short = (np.zeros_like(each.mean), each.mean, each.fast, each.slow)
    long = (each.changes, each.levels, each.network)
    return np.stack([*(_tiled(move, h) for move in short), *long])


def mixed(model: Model, row: Array, seen: Array, unit: Array, made: Array) -> Array:
    """Mixtures (…, O) after rows (…, W); the network's forecast `made` where no value was seen yet.

    An expert whose move is not finite, such as a network that has diverged, has no weight.
    """
    n = seen.shape[-1]
    h, spread = unit.size // n, np.broadcast_to(unit, (len(EXPERTS), *made.shape))
    moves = robust.scaled(all_moves(row, n, h), spread)
    weights = np.moveaxis(np.broadcast_to(weights_of(model).T, (*made.shape, len(EXPERTS))), -1, 0)
    weights = np.where(np.isfinite(moves), weights, 0.0)
    total = weights.sum(axis=0)
    move = (weights * np.where(np.isfinite(moves), moves, 0.0)).sum(axis=0)
    move = np.where(total > 0, move / np.where(total > 0, total, 1.0), 0.0)
    start = _tiled(seen, h)
    return np.where(np.isnan(start), made, start + unit * move)


def predicted(model: Model, memory: Array, seen: Array, unit: Array, made: Array) -> Array:
    """Mixtures (…, O) of network forecasts `made`, after what streams remember.

    Args:
        model: weights and fits; not changed.
        memory: (3 + ORDER, …, n) as a row of `memories_of`.
        seen: (…, n) the last values seen.
        unit: (O,) units of changes.
        made: (…, O)
    """
    row = said(model, memory[:3], memory[3:], seen, unit, made).astype(memory.dtype)
    return mixed(model, row, seen, unit, made)


def predicted_steps(
    model: Model, memory: Array, x: Array, seen: Array, unit: Array, made: Array
) -> Array:
    """Mixtures (T, …, O) at further steps that are read and not learned.

    Args:
        model: weights and fits; not changed.
        memory: (3 + ORDER, …, n) as a row of `memories_of`, at the step before them.
        x: (T, …, n) the values, NaN where one is missing.
        seen: (T + 1, …, n) the last values seen, at the step before them and at each.
        unit: (O,) units of changes.
        made: (T, …, O) the network's forecasts.
    """
    mixtures, n = np.empty_like(made), x.shape[-1]
    for t in range(len(made)):
        change = x[t] - seen[t]
        averages = averages_after(memory[:3], change, unit[:n])
        newest = np.where(np.isfinite(change), change, 0.0)[np.newaxis]
        memory = np.concatenate([averages, newest, memory[3:-1]])
        mixtures[t] = predicted(model, memory, seen[t + 1], unit, made[t])
    return mixtures


def weights_of(model: Model) -> Array:
    """(EXPERTS, O) weights before they are divided by their sum; all 0 at first."""
    return np.asarray(np.maximum(model.regret, 0.0) / (1.0 + model.regret_square))


def shares(model: Model) -> Array:
    """(EXPERTS,) weights of the experts, the mean over outputs; they add up to 1."""
    weights = weights_of(model)
    total = weights.sum(axis=0)
    weights[0, total == 0] = total[total == 0] = 1.0
    return np.asarray((weights / total).mean(axis=1))


def weights_by_name(model: Model) -> dict[str, float]:
    """The same by the experts' names; empty without a mixture."""
    if not model.regret.size:
        return {}
    return dict(zip(EXPERTS, shares(model).tolist(), strict=True))


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
    """(…, n, ORDER) changes (ORDER, …, n) in units."""
    spread = np.broadcast_to(unit, changes.shape)
    return np.ascontiguousarray(np.moveaxis(robust.scaled(changes, spread), 0, -1))


def _with_level(q: Array, level: Array) -> Array:
    """(…, n, ORDER + 2) the regressors with a level (…, n), 0 where there is none, and a 1."""
    level = np.where(np.isfinite(level), level, 0.0)[..., np.newaxis]
    return np.concatenate([q, level, np.ones_like(level)], axis=-1)


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
    both = _with_level(q, origin.level.astype(np.float64))
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
