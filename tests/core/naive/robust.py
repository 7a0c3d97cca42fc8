"""Statistics that fade and that one value cannot ruin, one variable at a time."""

from __future__ import annotations

import math

LIMIT, SHIFTED, BLOCK = 8.0, 3, 16


class Scale:
    """Root mean square of values around zero."""

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self.square = self.count = 0.0
        self.beyond = 0
        self.block: list[float] = []
        """Values other than 0 since the last look at a block."""

    def take(self, value: float) -> None:
        """Add a value, if there is one."""
        if not math.isfinite(value):
            return
        size = min(abs(value), 1e150)
        entered = size**2
        self.beyond = self.beyond + 1 if self.square > 0 and size > LIMIT * self.unit() else 0
        if self.beyond:
            entered = LIMIT**2 * self.square
            if self.beyond >= SHIFTED:
                self.count = max(self.count / 2, 1)
        if self.square == 0 and size > 0:
            self.count, self.square = 1, entered
        else:
            self.count = min(self.count + 1, self.memory)
            self.square += (entered - self.square) / self.count  # ties of sizes need the same bits
        if size > 0:
            self.block.append(size)
        if len(self.block) == BLOCK:
            if max(self.block) * (3 if self.count < 100 else 30) < self.unit():
                self.square = math.fsum(size**2 for size in self.block) / BLOCK
                self.count = BLOCK
            self.block = []

    def unit(self) -> float:
        """0 before a value other than 0."""
        return math.sqrt(self.square)


class Change(Scale):
    """Changes, around the drift that they have in common."""

    drift = 0.0

    def take(self, value: float) -> None:
        """Add a value, if there is one."""
        if not math.isfinite(value):
            return
        super().take(value)
        spread = math.sqrt(self.square)
        entered = max(-LIMIT * spread, min(LIMIT * spread, value))
        moved = self.drift + (entered - self.drift) / max(self.count, 1)
        self.drift = max(-spread, min(spread, moved))

    def deviation(self) -> float:
        """0 before a value other than 0."""
        around = self.square - self.drift**2 * self.count / (self.count + 16)
        return math.sqrt(max(around, self.square / 9))


class Level:
    """Mean and deviation."""

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self.average = self.variance = self.count = 0.0
        self.beyond = 0
        self.block: list[float] = []

    def take(self, value: float) -> None:
        """Add a value, if there is one."""
        if not math.isfinite(value):
            return
        value = max(-1e150, min(1e150, value))
        self.block.append(value)
        if self.count == 0:
            self.average = value
        delta = value - self.average
        out = self.variance > 0 and abs(delta) > LIMIT * self.deviation()
        self.beyond = self.beyond + 1 if out else 0
        if self.beyond == SHIFTED:
            self.average, self.count, self.beyond = value, min(self.count, 16), 0
        else:
            if out:
                delta = math.copysign(LIMIT * self.deviation(), delta)
            self.count = min(self.count + 1, self.memory)
            self.average += delta / self.count
            self.variance = (1 - 1 / self.count) * (self.variance + delta**2 / self.count)
        if len(self.block) == BLOCK:
            mean = math.fsum(self.block) / BLOCK
            spread = math.fsum((each - mean) ** 2 for each in self.block) / BLOCK
            if self.count <= 64 and 64 * spread < self.variance:
                self.average, self.variance, self.count = mean, spread, BLOCK
            self.block = []

    def mean(self) -> float:
        return self.average

    def deviation(self) -> float:
        """0 before two different values."""
        return math.sqrt(self.variance)


def scaled(value: float, unit: float) -> float:
    """In units, at most LIMIT of them; 0 where there is no unit yet."""
    if math.isnan(value):
        return value
    return max(-LIMIT, min(LIMIT, value / unit)) if unit > 0 else 0.0
