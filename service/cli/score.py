"""Prequential error of a stream's predictions, against the naive forecast, as answers come in.

A forecast is held against repeating the last value, one step ahead; a regression against the mean
of all targets before. Error is mean absolute error in the user's units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCKS_MAX = 4096  # then neighbours are merged: a half is found to 1 part in 2048

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean absolute errors over some steps; arrays have one value a target."""

    steps: int
    error: Float64Array
    naive_error: Float64Array

    @property
    def ratio(self) -> float:
        """Error over that of the naive forecast, the mean over targets; NaN before the first."""
        known = self.naive_error > 0
        if not self.steps or not known.any():
            return float("nan")
        return float(np.mean(self.error[known] / self.naive_error[known]))


class Score:
    """Sums of errors, kept in blocks so that a half of the stream can be told apart."""

    def __init__(self, targets: int) -> None:
        """Nothing is scored yet.

        Args:
            targets: values a target.
        """
        self._targets = targets
        self._blocks: list[tuple[int, Float64Array, Float64Array]] = []

    def add(self, error: Float64Array, naive_error: Float64Array) -> None:
        """Count (T, targets) absolute errors."""
        if len(error):
            self._blocks.append((len(error), error.sum(axis=0), naive_error.sum(axis=0)))
        if len(self._blocks) > BLOCKS_MAX:
            pairs = zip(self._blocks[::2], self._blocks[1::2], strict=False)
            merged = [(a[0] + b[0], a[1] + b[1], a[2] + b[2]) for a, b in pairs]
            self._blocks = merged + self._blocks[2 * len(merged) :]

    def errors(self, *, second_half: bool = False) -> Errors:
        """Over all steps, or over the second half of them."""
        total = sum(block[0] for block in self._blocks)
        skip = total // 2 if second_half else 0
        steps, error, naive = 0, np.zeros(self._targets), np.zeros(self._targets)
        passed = 0
        for count, block_error, block_naive in self._blocks:
            if passed + count / 2 >= skip:  # the block in the middle goes where most of it is
                steps += count
                error += block_error
                naive += block_naive
            passed += count
        return Errors(steps, error / max(steps, 1), naive / max(steps, 1))


class ForecastScore(Score):
    """Scores the forecast of step t + 1 made after step t."""

    def __init__(self, columns: list[int]) -> None:
        """Nothing is scored yet.

        Args:
            columns: the inputs that are forecast.
        """
        super().__init__(len(columns))
        self._columns = columns
        self._last: tuple[Float64Array, Float64Array] | None = None

    def learned(
        self, inputs: Float32Array, targets: Float32Array, predictions: Float32Array
    ) -> None:
        """Count steps that were learned: (T, D) inputs, (T, horizon, targets) predictions.

        `targets` are not looked at: a forecast's are later inputs.
        """
        actual = inputs[:, self._columns].astype(np.float64)
        ahead = predictions[:, 0, :].astype(np.float64)
        if self._last is not None:
            naive = np.concatenate([self._last[0], actual[:-1]])
            forecast = np.concatenate([self._last[1], ahead[:-1]])
            self.add(np.abs(actual - forecast), np.abs(actual - naive))
        else:
            self.add(np.abs(actual[1:] - ahead[:-1]), np.abs(actual[1:] - actual[:-1]))
        self._last = actual[-1:], ahead[-1:]


class RegressionScore(Score):
    """Scores the prediction of target t made before it was learned."""

    def __init__(self, targets: int) -> None:
        """Nothing is scored yet.

        Args:
            targets: values a target.
        """
        super().__init__(targets)
        self._sum = np.zeros(targets)
        self._count = 0

    def learned(
        self, inputs: Float32Array, targets: Float32Array, predictions: Float32Array
    ) -> None:
        """Count steps that were learned: (T, targets) targets, (T, 1, targets) predictions."""
        actual = targets.astype(np.float64)
        before = self._sum + np.cumsum(actual, axis=0) - actual
        counts = self._count + np.arange(len(actual))[:, None]
        naive = before / np.maximum(counts, 1)
        first = 0 if self._count else 1  # the very first target has no mean before it
        error = np.abs(actual - predictions[:, 0, :])
        self.add(error[first:], np.abs(actual - naive)[first:])
        self._sum += actual.sum(axis=0)
        self._count += len(actual)
