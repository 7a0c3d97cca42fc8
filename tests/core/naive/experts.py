"""Experts of a forecast by their definitions, one target column at a time; all history is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.core.naive.algebra import Matrix, Vector
from tests.core.naive.robust import Level, scaled

LIMIT, READ = 8.0, 8
NAMES = ("last_value", "mean", "fast_average", "slow_average", "changes", "levels", "network")


class Fit:
    """Least squares of all steps so far, each forgotten by 0.9995 while the sum is large enough.

    The equations are solved anew at each step.
    """

    def __init__(self, regressors: int, horizon: int) -> None:
        self.sum = np.eye(regressors)
        self.coefficients = [[0.0] * regressors for _ in range(horizon)]

    def say(self, q: Vector) -> Vector:
        """Moves in units, for each step ahead."""
        return [
            max(-LIMIT, min(LIMIT, math.fsum(c * v for c, v in zip(row, q, strict=True))))
            for row in self.coefficients
        ]

    def learn(self, q: Vector, targets: Sequence[float | None]) -> None:
        """One step; a target may be missing."""
        if all(target is None for target in targets):
            return
        weight = min(1.0, 3 / max(max(abs(v) for v in q), 1e-300))
        q = [weight * v for v in q]
        gain = np.linalg.solve(self.sum, q)
        scale = 0.9995 + float(np.dot(q, gain))
        for row, target in zip(self.coefficients, targets, strict=True):
            if target is None:
                continue
            error = weight * target - math.fsum(c * v for c, v in zip(row, q, strict=True))
            error = max(-LIMIT, min(LIMIT, error))
            for i in range(len(q)):
                row[i] += error * gain[i] / scale
        self.sum = self.sum + np.outer(q, q) / 0.9995
        if (np.linalg.inv(self.sum).diagonal() <= 1).all():
            self.sum = 0.9995 * self.sum


@dataclass
class Remembered:
    """One column of one stream."""

    values: Vector = field(default_factory=list)
    """As they came."""
    seen: Vector = field(default_factory=list)
    said: list[Matrix] = field(default_factory=list)
    """For each step: by expert, moves for each step ahead."""
    made: Matrix = field(default_factory=list)
    """For each step: the mixture for each step ahead."""
    levels: Vector = field(default_factory=list)
    """For each step: deviations from the mean."""
    fast: float = 0.0
    slow: float = 0.0
    beyond: int = 0

    def change(self, at: int) -> float:
        """NaN where there is none."""
        return self.values[at] - self.seen[at - 1] if at > 0 else math.nan

    def regressors(self, at: int, unit: float) -> Vector:
        """The last changes in units."""
        changes = [self.change(at - i) if at >= i else math.nan for i in range(READ)]
        return [0.0 if math.isnan(each) else scaled(each, unit) for each in changes]


class Column:
    """What a model knows of one target column."""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self.level = Level(10_000)
        self.changes, self.levels = Fit(READ, horizon), Fit(READ + 2, horizon)
        self.regret = [[0.0] * horizon for _ in NAMES]
        self.square = [[0.0] * horizon for _ in NAMES]
        self.network_error = [0.0] * horizon

    def follow(
        self, stream: Remembered, value: float, seen: float, units: Vector, network: Vector
    ) -> Vector:
        """Learn one step; the mixture for each step ahead."""
        t, h = len(stream.values), self.horizon
        stream.values.append(value)
        stream.seen.append(seen)
        for j in range(1, min(h, t) + 1):
            self._judge(stream, t, j, units[j - 1])
        if t >= h:
            self._learn(stream, t - h, units)
        self.level.take(value)
        self._average(stream, units[0])
        mean = self.level.mean()
        level = scaled(seen - mean, self.level.deviation())
        stream.levels.append(level)
        q = stream.regressors(t, units[0])
        both = [*q, 0.0 if math.isnan(level) else level, 1.0]
        stream.said.append(
            [
                [0.0] * h,
                [mean - seen] * h,
                [stream.fast] * h,
                [stream.slow] * h,
                [move * unit for move, unit in zip(self.changes.say(q), units, strict=True)],
                [move * unit for move, unit in zip(self.levels.say(both), units, strict=True)],
                [each - seen for each in network],
            ]
        )
        stream.made.append([self._mix(stream, seen, units, network, j) for j in range(h)])
        return stream.made[-1]

    def _judge(self, stream: Remembered, t: int, j: int, unit: float) -> None:
        moved = stream.values[t] - stream.seen[t - j]
        if math.isnan(moved):
            return
        alone = abs(moved - stream.said[t - j][6][j - 1])
        if math.isfinite(alone):
            before = self.network_error[j - 1]
            self.network_error[j - 1] = before + 0.001 * (min(alone, 16 * unit) - before)
        mixture = stream.made[t - j][j - 1] - stream.seen[t - j]
        if not unit > 0 or math.isnan(mixture):
            return
        side = float(np.sign(mixture - moved))
        for e in range(len(NAMES)):
            move = stream.said[t - j][e][j - 1]
            if math.isfinite(move):
                better = scaled(mixture, unit) - scaled(move, unit)
                better = side * max(-LIMIT, min(LIMIT, better))
                self.regret[e][j - 1] = 0.999 * self.regret[e][j - 1] + better
                self.square[e][j - 1] = 0.999 * self.square[e][j - 1] + better**2

    def _learn(self, stream: Remembered, origin: int, units: Vector) -> None:
        targets: list[float | None] = []
        for j in range(1, self.horizon + 1):
            move = stream.seen[origin + j] - stream.seen[origin]
            missing = math.isnan(stream.change(origin + j)) or math.isnan(move)
            targets.append(None if missing or not units[j - 1] > 0 else scaled(move, units[j - 1]))
        q, level = stream.regressors(origin, units[0]), stream.levels[origin]
        self.changes.learn(q, targets)
        self.levels.learn([*q, 0.0 if math.isnan(level) else level, 1.0], targets)

    def _average(self, stream: Remembered, unit: float) -> None:
        change = stream.change(len(stream.values) - 1)
        if math.isnan(change):
            return
        stream.fast -= change
        stream.slow -= change
        far = unit > 0 and abs(stream.fast) > LIMIT * unit
        stream.beyond = stream.beyond + 1 if far else 0
        bound = LIMIT * unit
        stream.fast -= 0.5 * max(-bound, min(bound, stream.fast))
        stream.slow -= 0.05 * max(-bound, min(bound, stream.slow))
        if stream.beyond == 3:
            stream.fast = stream.slow = stream.beyond = 0

    def _mix(
        self, stream: Remembered, seen: float, units: Vector, network: Vector, j: int
    ) -> float:
        if math.isnan(seen):
            return network[j]
        weights, moves = [], []
        for e in range(len(NAMES)):
            move = stream.said[-1][e][j]
            if math.isfinite(move):
                weights.append(max(0.0, self.regret[e][j]) / (1 + self.square[e][j]))
                moves.append(scaled(move, units[j]))
        if not sum(weights):
            return seen
        mean = math.fsum(w * m for w, m in zip(weights, moves, strict=True)) / math.fsum(weights)
        return seen + units[j] * mean


class Experts:
    """All target columns of a model."""

    def __init__(self, columns: int, horizon: int) -> None:
        self.columns = [Column(horizon) for _ in range(columns)]
        self.horizon = horizon

    def follow(
        self,
        streams: list[Remembered],
        truth: Vector,
        seen: Vector,
        unit: Vector,
        network: Vector,
    ) -> Vector:
        """Learn one step of a stream; its mixture, for each step ahead and then column."""
        n, made = len(self.columns), [0.0] * len(unit)
        for k, column in enumerate(self.columns):
            mine = column.follow(streams[k], truth[k], seen[k], unit[k::n], network[k::n])
            made[k::n] = mine
        return made
