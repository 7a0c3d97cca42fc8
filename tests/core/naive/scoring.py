"""Figures of merit by their definition: every error is kept, and gone through again each time."""

from __future__ import annotations

import math
import statistics

from tests.core.naive.algebra import Matrix, Vector
from tests.core.naive.scaling import fade

EVERY = 32  # errors between two looks at their quantiles, until the ring is full


class Figures:
    """What a model's predictions were worth; `targets` outputs for each step ahead."""

    def __init__(
        self, outputs: int, ring: int, targets: int | None = None, robust: bool = True
    ) -> None:
        self.ring, self.targets, self.robust = ring, targets or outputs, robust
        self.error, self.naive_error = [0.0] * outputs, [0.0] * outputs
        self.hits, self.weight = 0.0, 0.0
        self.rows: Matrix = []
        self.quantiles = [[math.nan] * outputs, [math.nan] * outputs]
        self.width = [1.0] * outputs

    def numbers(
        self, first: int, errors: Vector, naive_errors: Vector, most: Vector | None = None
    ) -> None:
        """Errors of the outputs from `first` on, at most `most`; NaN where there is none."""
        for i, (error, rival) in enumerate(zip(errors, naive_errors, strict=True), start=first):
            if math.isfinite(error) and math.isfinite(rival):
                bound = most[i - first] if most else math.inf
                self.error[i] = fade(self.error[i], min(abs(error), bound))
                self.naive_error[i] = fade(self.naive_error[i], min(abs(rival), bound))

    def sums(self) -> Vector:
        """The most that an error of a regression may be: the sums of the naive ones."""
        return [1000 * each if each > 0 and self.robust else math.inf for each in self.naive_error]

    def keep(self, errors: Vector) -> None:
        if not any(math.isfinite(error) for error in errors):
            return
        self.rows.append(errors)
        if self.robust:
            self.adapt(errors)
        count = len(self.rows)
        every = EVERY if count <= self.ring else max(EVERY, self.ring // 4)
        if count % (4 if self.robust and count < 64 else every) == 0:
            for i in range(len(self.width)):
                column = [row[i] for row in self.rows[-self.ring :] if math.isfinite(row[i])]
                share = 0.05
                if self.robust:
                    ranks = 1 + 0.3 * (i // self.targets)
                    share = max(0.0, share - ranks / max(1, len(column)))
                self.quantiles[0][i] = quantile(column, share)
                self.quantiles[1][i] = quantile(column, 1 - share)

    def adapt(self, errors: Vector) -> None:
        """Widen or narrow each band by whether it holds its error."""
        for i, error in enumerate(errors):
            low, high = self.quantiles[0][i], self.quantiles[1][i]
            if math.isfinite(error) and math.isfinite(low):
                outside = abs(error - (low + high) / 2) > self.width[i] * (high - low) / 2
                step = (0.9 if outside else -0.1) * 0.05 / math.sqrt(1 + i // self.targets)
                factor = 1 + step + step**2 / 2
                self.width[i] = max(1 / 4.5, min(4.5, self.width[i] * factor))

    def band(self) -> Matrix:
        """Quantiles as they were at the last look."""
        return self.quantiles

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
