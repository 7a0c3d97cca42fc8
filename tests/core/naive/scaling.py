"""Statistics by their definition: all values are kept, and gone through again each time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bptt_core import ModelSpec
from tests.core.naive.algebra import Matrix, Vector
from tests.core.naive.robust import Change, Level, scaled

FADING = 0.001


@dataclass
class Statistics:
    """Of one variable, over all its values so far."""

    values: Vector = field(default_factory=list)

    def take(self, value: float) -> None:
        """One more, if it is there."""
        if not math.isnan(value):
            self.values.append(value)

    def mean(self) -> float:
        """0 where there is none yet."""
        return math.fsum(self.values) / len(self.values) if self.values else 0.0

    def m2(self) -> float:
        """Sum of squared deviations from the mean."""
        mean = self.mean()
        return math.fsum((value - mean) ** 2 for value in self.values)

    def deviation(self) -> float:
        return deviation(len(self.values), self.m2())


def deviation(count: float, m2: float) -> float:
    """Standard deviation, and 1 where there is none yet."""
    return math.sqrt(m2 / count) if m2 > 0 else 1.0


def fade(figure: float, error: float) -> float:
    """A figure of merit, faded by a thousandth towards a new error."""
    return (1 - FADING) * figure + FADING * error


@dataclass
class Step:
    """A step as the network sees it, and how its answer is read."""

    features: Vector
    target: Vector | None
    """The target that is complete with this step; None where there is none."""
    base: Vector
    unit: Vector
    naive: Vector
    """The rival's forecast; of classes, the cross-entropy of their frequencies."""
    truth: Vector
    """The target in the user's units; of a forecast, the step's own values."""


class Scaler:
    """A model's statistics."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.columns = list(spec.target_columns or range(spec.input_size))
        self.inputs = [self._level() for _ in range(spec.input_size)]
        self.changes = [
            [
                Change(spec.scaling_memory) if spec.robust else Statistics()
                for _ in range(spec.input_size)
            ]
            for _ in range(spec.horizon)
        ]
        self.means = [Statistics() for _ in range(spec.target_width)]
        """Of all targets: the naive forecast."""
        self.targets = [self._level() for _ in range(spec.target_width)]
        self.classes: list[int] = []
        """All that ever came."""

    def _level(self) -> Statistics | Level:
        return Level(self.spec.scaling_memory) if self.spec.robust else Statistics()

    def in_units(self, value: float, unit: float) -> float:
        if self.spec.robust and self.spec.scaling:
            return scaled(value, unit)
        return value / unit

    def forecast(self, earlier: Matrix, x: Vector) -> Step:
        """The next step of a sequence of which `earlier` is all before it."""
        D, h, m = self.spec.input_size, self.spec.horizon, len(earlier)
        sequence = [*earlier, x]
        seen = [last_seen(sequence[: s + 1]) for s in range(m + 1)]
        for i in range(D):
            self.inputs[i].take(x[i])
            for j in range(1, min(h, m) + 1):
                self.changes[j - 1][i].take(x[i] - seen[m - j][i])
        unit = [self.unit(j, i) for j in range(1, h + 1) for i in self.columns]
        naive = [seen[m][i] for i in self.columns]
        base = [
            self.inputs[i].mean() if math.isnan(seen[m][i]) else seen[m][i] for i in self.columns
        ]
        changes = [0.0] * D
        for i in range(D):
            change = x[i] - seen[m - 1][i] if m else math.nan
            changes[i] = 0.0 if math.isnan(change) else self.in_units(change, self.unit(1, i))
        target = None
        if m >= h:
            origin = seen[m - h]
            target = [
                self.in_units(sequence[m - h + j][i] - origin[i], self.unit(j, i))
                for j in range(1, h + 1)
                for i in self.columns
            ]
        truth = [x[i] for i in self.columns]
        return Step(self.features(x, changes), target, base * h, unit, naive, truth)

    def features(self, x: Vector, changes: Vector) -> Vector:
        flags = [0.0 if math.isnan(value) else 1.0 for value in x]
        levels = [self.level(i, x[i]) for i in range(len(x))]
        return levels + changes + (flags if self.spec.missing_inputs else [])

    def level(self, i: int, value: float) -> float:
        if math.isnan(value):
            value = self.inputs[i].mean()
        if not self.spec.scaling:
            return value
        return self.in_units(value - self.inputs[i].mean(), self.inputs[i].deviation())

    def unit(self, ahead: int, i: int) -> float:
        """What a change of 1 over `ahead` steps is in the user's units."""
        if not self.spec.scaling:
            return 1.0
        return self.changes[ahead - 1][i].deviation()

    def step(self, x: Vector, y: Vector | None) -> Step:
        """A step of a regression or classification, and the target that is complete with it."""
        spec = self.spec
        for i in range(len(x)):
            self.inputs[i].take(x[i])
        features = self.features(x, [])
        base, unit = [0.0] * spec.outputs, [1.0] * spec.outputs
        if self.scales_targets():
            base = [each.mean() for each in self.targets]
            unit = [each.deviation() for each in self.targets]
        target, naive = self.label(y)
        return Step(features, target, base, unit, naive, y or [])

    def scales_targets(self) -> bool:
        return (
            self.spec.scaling and self.spec.task == "regression" and self.spec.loss != "bernoulli"
        )

    def label(self, y: Vector | None) -> tuple[Vector | None, Vector]:
        """A complete target as the network sees it, and its naive forecast."""
        if y is None:
            return None, []
        if self.spec.loss == "cross_entropy":
            return y, [self.entropy(y[0])]
        naive = [each.mean() for each in self.means]
        for i in range(len(y)):
            self.means[i].take(y[i])
            self.targets[i].take(y[i])
        if not self.scales_targets():
            return y, naive
        target = [
            self.in_units(y[i] - self.targets[i].mean(), self.targets[i].deviation())
            for i in range(len(y))
        ]
        return target, naive

    def entropy(self, wanted: float) -> float:
        """Of the frequencies of all classes before, each counted once more than it came."""
        if math.isnan(wanted):
            return math.nan
        share = (self.classes.count(int(wanted)) + 1) / (len(self.classes) + self.spec.outputs)
        self.classes.append(int(wanted))
        return -math.log(share)


def last_seen(sequence: Matrix) -> Vector:
    """Of each variable, the newest value that is there; NaN if none is."""
    seen = [math.nan] * len(sequence[0])
    for x in sequence:
        seen = [old if math.isnan(new) else new for old, new in zip(seen, x, strict=True)]
    return seen
