"""Prequential evaluation of one stream's predictions, relative to a naive forecast.

Every prediction was made before its step was learned. The naive forecast of each task:

| task | error | naive forecast |
|---|---|---|
| forecast | mean absolute error, in the user's units | the last known value |
| regression | the same | the mean of all earlier targets |
| classification | cross-entropy in bits | the frequencies of the earlier classes |
| next token | share of tokens that were not the likeliest | the most frequent earlier token |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BLOCKS_MAX = 4096  # beyond it neighbours are merged; a half is located to 1 part in 2048

ANOMALY_SCORE = 1e-6  # steps below it are reported: one in a million if scores are calibrated
ANOMALIES_SHOWN = 3

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Predictions = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean errors over a range of steps."""

    steps: int
    """Steps with a known target; with several targets, those of the best-known one."""
    error: Float64Array
    """(targets,)"""
    naive_error: Float64Array
    """(targets,)"""

    @property
    def ratio(self) -> float:
        """Error relative to the naive forecast, averaged over targets; NaN before the first."""
        known = self.naive_error > 0
        if not self.steps or not known.any():
            return float("nan")
        return float(np.mean(self.error[known] / self.naive_error[known]))


class ErrorSums:
    """Sums of errors in blocks of steps, so that the second half can be summed separately."""

    def __init__(self, targets: int) -> None:
        """Start without errors.

        Args:
            targets: number of target values in a step.
        """
        self._targets = targets
        self._blocks: list[tuple[int, Float64Array, Float64Array, Float64Array]] = []

    def add(self, error: Float64Array, naive_error: Float64Array) -> None:
        """Add (T, targets) errors; an entry counts only if both errors are finite."""
        known = np.isfinite(error) & np.isfinite(naive_error)
        if known.any():
            sums = [np.where(known, each, 0).sum(axis=0) for each in (error, naive_error)]
            self._blocks.append((len(error), known.sum(axis=0).astype(np.float64), *sums))
        if len(self._blocks) > BLOCKS_MAX:
            pairs = zip(self._blocks[::2], self._blocks[1::2], strict=False)
            merged = [(a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]) for a, b in pairs]
            self._blocks = merged + self._blocks[2 * len(merged) :]

    def errors(self, *, second_half: bool = False) -> Errors:
        """Return the mean errors of all steps, or of the second half."""
        skip = sum(block[0] for block in self._blocks) // 2 if second_half else 0
        known, error, naive = (np.zeros(self._targets) for _ in range(3))
        passed = 0
        for steps, block_known, block_error, block_naive in self._blocks:
            if passed + steps / 2 >= skip:  # the middle block counts where most of it lies
                known += block_known
                error += block_error
                naive += block_naive
            passed += steps
        count = np.maximum(known, 1)
        return Errors(int(known.max(initial=0)), error / count, naive / count)


class Evaluator(Protocol):
    """Evaluates the predictions of one stream."""

    sums: ErrorSums
    naive: str
    """Name of the naive forecast, for people."""

    def update(self, inputs: Float32Array, targets: Float32Array, predictions: Predictions) -> None:
        """Add learned steps: inputs, targets, and the predictions made before learning them."""

    def begin_sequence(self) -> None:
        """Discard pending predictions: the next step begins a new sequence."""


class ForecastEvaluator:
    """Evaluates the forecast of step t + `ahead` that was made after step t."""

    naive = "the last-value forecast"

    def __init__(self, columns: list[int], ahead: int = 1) -> None:
        """Start without errors.

        Args:
            columns: indices of the inputs that are forecast.
            ahead: steps ahead, at least 1.
        """
        self.sums = ErrorSums(len(columns))
        self._columns = columns
        self._ahead = ahead
        self._forecasts = np.zeros((0, len(columns)))  # forecasts of steps that have not come yet
        self._last = np.zeros((0, len(columns)))  # last known values when those were made
        self._known = np.full(len(columns), np.nan)

    def update(self, inputs: Float32Array, targets: Float32Array, predictions: Predictions) -> None:
        """Add learned steps.

        Args:
            inputs: (T, D).
            targets: unused, since later inputs are a forecast's targets.
            predictions: (T, horizon, targets).
        """
        actual = inputs[:, self._columns].astype(np.float64)
        last = _forward_filled(actual, self._known)
        self._known = last[-1]
        self._last = np.concatenate([self._last, last])
        ahead = predictions[:, self._ahead - 1, :].astype(np.float64)
        self._forecasts = np.concatenate([self._forecasts, ahead])
        due = max(0, len(self._forecasts) - self._ahead)  # forecasts of steps that have come
        truth = actual[len(actual) - due :]
        self.sums.add(np.abs(truth - self._forecasts[:due]), np.abs(truth - self._last[:due]))
        self._forecasts, self._last = self._forecasts[due:], self._last[due:]

    def begin_sequence(self) -> None:
        """Discard the forecasts of steps that never come."""
        self._forecasts, self._last = self._forecasts[:0], self._last[:0]


def _forward_filled(values: Float64Array, before: Float64Array) -> Float64Array:
    """Return the last known value of each column at each row.

    Args:
        values: (T, columns); NaN where missing.
        before: (columns,) last known values before the first row.
    """
    rows = np.concatenate([before[np.newaxis], values])
    place = np.where(np.isnan(rows), 0, np.arange(len(rows))[:, np.newaxis])
    last = np.maximum.accumulate(place, axis=0)
    return np.take_along_axis(rows, last, axis=0)[1:]


class RegressionEvaluator:
    """Evaluates the prediction of target t that was made before learning it."""

    naive = "the running mean"

    def __init__(self, targets: int) -> None:
        """Start without errors.

        Args:
            targets: number of target values in a step.
        """
        self.sums = ErrorSums(targets)
        self._sum = np.zeros(targets)
        self._count = np.zeros(targets)

    def update(self, inputs: Float32Array, targets: Float32Array, predictions: Predictions) -> None:
        """Add learned steps: (T, targets) targets, (T, 1, targets) predictions."""
        actual = targets.astype(np.float64)
        known = np.isfinite(actual)
        value = np.where(known, actual, 0)
        counts = self._count + np.cumsum(known, axis=0) - known
        sums = self._sum + np.cumsum(value, axis=0) - value
        # No mean exists before the first target.
        naive = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        self.sums.add(np.abs(actual - predictions[:, 0, :]), np.abs(actual - naive))
        self._sum += value.sum(axis=0)
        self._count += known.sum(axis=0)

    def begin_sequence(self) -> None:
        """Do nothing: no prediction is pending."""


class ClassificationEvaluator:
    """Evaluates class probabilities that were predicted before learning the class."""

    naive = "the running class frequencies"

    def __init__(self, classes: int) -> None:
        """Start without errors; the class counts start at one each (Laplace smoothing)."""
        self.sums = ErrorSums(1)
        self._counts = np.ones(classes)
        self.right = self.known = 0

    def update(self, inputs: Float32Array, targets: Float32Array, predictions: Predictions) -> None:
        """Add learned steps: (T, 1) class ids, (T, 1, classes) probabilities."""
        ids = targets[:, 0].astype(np.int64)
        rows = np.flatnonzero(ids >= 0)
        found = predictions[rows, 0, :].astype(np.float64)
        ids = ids[rows]
        before = self._counts + np.cumsum(np.eye(len(self._counts))[ids], axis=0)
        before[np.arange(len(ids)), ids] -= 1
        picked = np.arange(len(ids)), ids
        tiny = np.finfo(np.float32).tiny
        error = -np.log2(np.maximum(found[picked], tiny))
        naive = -np.log2(before[picked] / before.sum(axis=1))
        self.sums.add(error[:, np.newaxis], naive[:, np.newaxis])
        self._counts += np.bincount(ids, minlength=len(self._counts))
        self.right += int((found.argmax(axis=1) == ids).sum()) if len(ids) else 0
        self.known += len(ids)

    def begin_sequence(self) -> None:
        """Do nothing: no prediction is pending."""

    @property
    def accuracy(self) -> float:
        """Share of known classes that were predicted as the likeliest; NaN before the first."""
        return self.right / self.known if self.known else float("nan")


class TokenEvaluator:
    """Evaluates the likeliest next tokens."""

    naive = "the most frequent token so far"

    def __init__(self, vocabulary: int) -> None:
        """Start without errors.

        Args:
            vocabulary: number of token ids.
        """
        self.sums = ErrorSums(1)
        self._counts = np.zeros(vocabulary)
        self._pending: int | None = None  # the token predicted after the last one seen

    def update(self, inputs: Float32Array, targets: Float32Array, predictions: Predictions) -> None:
        """Add learned steps: (T, 1) token ids, (T, K) likeliest next tokens."""
        ids = inputs[:, 0].astype(np.int64)
        likeliest = predictions[:, 0].astype(np.int64)
        frequent = int(self._counts.argmax())  # among the tokens before this chunk
        if self._pending is not None:
            likeliest = np.concatenate([[self._pending], likeliest])
        truth = ids[len(ids) - len(likeliest) + 1 :]
        error = (likeliest[:-1] != truth).astype(np.float64)
        naive = (truth != frequent).astype(np.float64)
        self.sums.add(error[:, np.newaxis], naive[:, np.newaxis])
        self._pending = int(likeliest[-1])
        self._counts += np.bincount(ids, minlength=len(self._counts))

    def begin_sequence(self) -> None:
        """Discard the prediction of a token that never comes."""
        self._pending = None


class DelayedLabelEvaluator:
    """Evaluates predictions whose targets arrive `delay` steps later."""

    def __init__(
        self, evaluator: RegressionEvaluator | ClassificationEvaluator, delay: int
    ) -> None:
        """Start without errors.

        Args:
            evaluator: receives each prediction together with its own target.
            delay: steps between a step and the arrival of its target.
        """
        self.evaluator = evaluator
        self.naive = evaluator.naive
        self.sums = evaluator.sums
        self._delay = delay
        self._held: Predictions | None = None

    def update(self, inputs: Float32Array, targets: Float32Array, predictions: Predictions) -> None:
        """Add learned steps; a row's target belongs to the row `delay` rows earlier."""
        held = predictions if self._held is None else np.concatenate([self._held, predictions])
        due = max(0, len(held) - self._delay)
        if due:
            self.evaluator.update(inputs[:due], targets[len(targets) - due :], held[:due])
        self._held = held[due:]

    def begin_sequence(self) -> None:
        """Discard predictions whose labels never come."""
        self._held = None


class Anomalies:
    """Counts the steps with very low anomaly scores and keeps the lowest ones."""

    def __init__(self) -> None:
        """Start without steps."""
        self.steps = 0
        """Steps with a score below ANOMALY_SCORE."""
        self.lowest: list[tuple[float, int]] = []
        """(score, step) of the ANOMALIES_SHOWN lowest, in ascending order."""

    def add(self, first_step: int, scores: Float32Array) -> None:
        """Add the (T,) scores of consecutive steps from `first_step`."""
        found = np.flatnonzero(scores < ANOMALY_SCORE)
        self.steps += len(found)
        if len(found):
            more = [(float(scores[place]), first_step + int(place)) for place in found]
            self.lowest = sorted(self.lowest + more)[:ANOMALIES_SHOWN]
