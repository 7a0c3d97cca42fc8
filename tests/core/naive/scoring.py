"""Figures of merit by their definition: every error is kept, and gone through again each time."""

from __future__ import annotations

import math
import statistics

from tests.core.naive.algebra import Matrix, Vector
from tests.core.naive.scaling import fade

EVERY = 32  # errors between two looks at their quantiles, until the ring is full


class Figures:
    """What a model's predictions were worth."""

    def __init__(self, outputs: int, ring: int) -> None:
        self.ring = ring
        self.error, self.naive_error = [0.0] * outputs, [0.0] * outputs
        self.hits, self.weight = 0.0, 0.0
        self.rows: Matrix = []

    def numbers(self, first: int, errors: Vector, naive_errors: Vector) -> None:
        """Errors of the outputs from `first` on; NaN where there is none."""
        for i, (error, rival) in enumerate(zip(errors, naive_errors, strict=True), start=first):
            if math.isfinite(error) and math.isfinite(rival):
                self.error[i] = fade(self.error[i], abs(error))
                self.naive_error[i] = fade(self.naive_error[i], abs(rival))

    def keep(self, errors: Vector) -> None:
        if any(math.isfinite(error) for error in errors):
            self.rows.append(errors)

    def band(self) -> Matrix:
        """Quantiles 0.05 and 0.95 as they were at the last look."""
        looked = 0
        for count in range(1, len(self.rows) + 1):
            if count % (EVERY if count <= self.ring else max(EVERY, self.ring // 4)) == 0:
                looked = count
        rows = self.rows[:looked][-self.ring :]
        columns = [[row[i] for row in rows] for i in range(len(self.error))]
        return [[quantile(column, share) for column in columns] for share in (0.05, 0.95)]

    def a_class(self, odds: Vector, wanted: float, naive: float) -> None:
        if math.isnan(wanted):
            return
        likeliest = max(range(len(odds)), key=lambda i: odds[i])
        self.error[0] = fade(self.error[0], -math.log(max(odds[int(wanted)], 1e-300)))
        self.naive_error[0] = fade(self.naive_error[0], naive)
        self.hits = fade(self.hits, 1.0 if likeliest == int(wanted) else 0.0)
        self.weight = fade(self.weight, 1.0)


def quantile(values: Vector, share: float) -> float:
    """Linear between two neighbours; NaN of fewer than 20."""
    ordered = sorted(value for value in values if math.isfinite(value))
    if len(ordered) < 20:
        return math.nan
    place = share * (len(ordered) - 1)
    below = min(math.floor(place), len(ordered) - 2)
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])


def sizes(errors: Matrix) -> Vector:
    """Cube roots of the mean squares of errors (T, n); those that are not there left out."""
    found = []
    for row in errors:
        known = [error for error in row if math.isfinite(error)]
        found.append(math.cbrt(math.fsum(e * e for e in known) / len(known)) if known else math.nan)
    return found


def anomaly_scores(errors: Matrix) -> Vector:
    """Of each step's errors (T, n), by those before it; fewer than 1,000 of them."""
    scores: Vector = []
    past: Vector = []
    for size in sizes(errors):
        if math.isnan(size):
            scores.append(math.nan)
            continue
        score = math.nan
        if len(past) >= 32:
            deviation = statistics.pstdev(past)
            score = 1 - statistics.NormalDist().cdf((size - statistics.fmean(past)) / deviation)
        scores.append(score)
        past.append(size)
    return scores
