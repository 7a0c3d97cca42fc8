"""Statistics by their definition: all values are kept, and gone through again each time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bptt_core import ModelSpec
from tests.core.naive.algebra import Matrix, Vector

FADING = 0.001


@dataclass
class Statistics:
    """Of one variable, over all its values so far."""

    values: Vector = field(default_factory=list)

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


class Scaler:
    """A model's statistics."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.columns = list(spec.target_columns or range(spec.input_size))
        self.inputs = [Statistics() for _ in range(spec.input_size)]
        self.changes = [[Statistics() for _ in range(spec.input_size)] for _ in range(spec.horizon)]
        self.targets = [Statistics() for _ in range(spec.target_width)]

    def forecast(self, earlier: Matrix, x: Vector) -> Step:
        """The next step of a sequence of which `earlier` is all before it."""
        D, h, m = self.spec.input_size, self.spec.horizon, len(earlier)
        sequence = [*earlier, x]
        if self.spec.scaling:
            for i in range(D):
                self.inputs[i].values.append(x[i])
                for j in range(1, min(h, m) + 1):
                    self.changes[j - 1][i].values.append(x[i] - sequence[m - j][i])
        unit = [self.unit(j, i) for j in range(1, h + 1) for i in self.columns]
        base = [x[i] for _ in range(h) for i in self.columns]
        levels = [self.level(i, x[i]) for i in range(D)]
        changes = [(x[i] - sequence[m - 1][i]) / self.unit(1, i) if m else 0.0 for i in range(D)]
        target = None
        if m >= h:
            origin = sequence[m - h]
            target = [
                (sequence[m - h + j][i] - origin[i]) / self.unit(j, i)
                for j in range(1, h + 1)
                for i in self.columns
            ]
        return Step(levels + changes, target, base, unit, base)

    def level(self, i: int, value: float) -> float:
        if not self.spec.scaling:
            return value
        return (value - self.inputs[i].mean()) / self.inputs[i].deviation()

    def unit(self, ahead: int, i: int) -> float:
        """Standard deviation of changes over `ahead` steps."""
        return self.changes[ahead - 1][i].deviation() if self.spec.scaling else 1.0

    def step(self, x: Vector, y: Vector) -> Step:
        """A step of a regression or classification."""
        spec = self.spec
        regression = spec.task == "regression"
        scaled = spec.scaling and regression and spec.loss != "bernoulli"
        if spec.scaling:
            for i in range(len(x)):
                self.inputs[i].values.append(x[i])
        features = [self.level(i, x[i]) for i in range(len(x))]
        if not regression:
            return Step(
                features, y, [0.0] * spec.outputs, [1.0] * spec.outputs, [0.0] * spec.outputs
            )
        naive = [each.mean() for each in self.targets]
        base = naive if scaled else [0.0 for _ in y]
        unit = [each.deviation() if scaled else 1.0 for each in self.targets]
        if not any(math.isnan(value) for value in y):
            for i in range(len(y)):
                self.targets[i].values.append(y[i])
        target = y
        if scaled:
            target = [
                (y[i] - self.targets[i].mean()) / self.targets[i].deviation() for i in range(len(y))
            ]
        return Step(features, target, base, unit, naive)
