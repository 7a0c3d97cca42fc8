"""Anomaly scores by rank and fitted tail; all sizes are kept."""

from __future__ import annotations

import math

from tests.core.naive.algebra import Matrix, Vector
from tests.core.naive.robust import Scale

RANKED = 512


class Calibration:
    """What all streams of a model share."""

    def __init__(self) -> None:
        self.sizes: Vector = []
        self.threshold = self.share = 0.0
        self.count = self.mean = self.square = 0.0
        self.near = self.far = 0.0

    def shape_and_scale(self) -> tuple[float, float]:
        variance = self.square - self.mean**2
        shape = 0.0
        if variance > 0:
            shape = (1 - self.mean**2 / variance) / 2 * self.count / (self.count + 50)
        shape = max(1 / (self.count + 1), min(0.4, shape))
        return shape, self.mean * (1 - shape)

    def excess_at(self, score: float) -> float:
        shape, scale = self.shape_and_scale()
        if score >= self.share:
            return 0.0
        return float(scale / shape * ((score / self.share) ** -shape - 1))

    def probability(self, size: float) -> float:
        excess = size - self.threshold
        if excess <= 0 or self.mean == 0:
            kept = self.sizes[-RANKED:]
            return (sum(each >= size for each in kept) + 0.5) / (len(kept) + 1)
        shape, scale = self.shape_and_scale()
        excess /= math.exp(self.near)
        beyond = max(0.0, excess - self.excess_at(0.01))
        excess += beyond / math.exp(self.far) - beyond
        return max(float(self.share * (1 + shape * excess / scale) ** (-1 / shape)), 1e-300)

    def hold_shares(self, score: float) -> None:
        self.near = max(-0.7, min(0.7, self.near + 0.1 * ((score < 0.01) - 0.01)))
        self.far = max(-0.7, min(0.7, self.far + 0.25 * ((score < 0.001) - 0.001)))

    def enter(self, size: float, score: float) -> None:
        excess = size - self.threshold
        if excess > 0 and self.mean > 0:
            if score < 1e-5:
                excess = self.mean
            else:
                excess = min(excess, self.excess_at(1e-4))
                self.count = min(self.count + 1, 256)
                self.mean += (excess - self.mean) / self.count
                self.square += (excess**2 - self.square) / self.count
            size = self.threshold + excess
        self.sizes.append(size)
        n = len(self.sizes)
        if n >= 24 and n % (8 if n <= 64 else 32 if n <= RANKED else 128) == 0:
            self.look()

    def look(self) -> None:
        kept = sorted(self.sizes[-RANKED:])
        self.threshold = kept[int(0.9 * len(kept))]
        excesses = [each - self.threshold for each in kept if each > self.threshold]
        self.share = max(len(excesses), 0.5) / len(kept)
        if excesses and (len(self.sizes) <= RANKED or not self.count):
            most = 4 * excesses[(len(excesses) - 1) // 2]
            excesses = [min(each, most) for each in excesses]
            self.count = len(excesses)
            usual = 0.3 * self.threshold
            self.mean = (math.fsum(excesses) + 4 * usual) / (self.count + 4)
            squares = math.fsum(each**2 for each in excesses)
            self.square = (squares + 4 * 2 * usual**2) / (self.count + 4)


class Surprise:
    """Scores of one stream."""

    def __init__(self, model: Calibration) -> None:
        self.model, self.scale, self.seen = model, Scale(500), 0

    def score(self, size: float) -> float:
        """NaN before there are 32 errors; `size` is NaN where there is no error."""
        if math.isnan(size):
            return math.nan
        unit = self.scale.unit()
        relative = 0.0 if size == 0 else size / unit if unit > 0 else 1.0
        found = math.nan
        if self.seen >= 32 and len(self.model.sizes) >= 24:
            found = self.model.probability(relative)
            self.model.hold_shares(found)
        self.scale.take(size)
        if self.seen >= 8 and (not math.isnan(found) or relative <= 8):
            self.model.enter(relative, found)
        self.seen += 1
        return found


def sizes_of(errors: Matrix, units: Matrix) -> Vector:
    """Root mean squares of errors (T, n) in units (T, n); those that are not there left out."""
    found = []
    for row, unit in zip(errors, units, strict=True):
        known = [
            min(abs(e) / u, 1e100) if u > 0 else 0.0
            for e, u in zip(row, unit, strict=True)
            if math.isfinite(e)
        ]
        found.append(math.sqrt(math.fsum(e * e for e in known) / len(known)) if known else math.nan)
    return found
