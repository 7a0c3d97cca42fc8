"""Prequential errors of a stream's predictions, against a naive forecast, as answers come in.

| task | error | naive forecast |
|---|---|---|
| forecast | mean absolute error, in the user's units | the last value that was known |
| regression | the same | the mean of all targets before |
| classification | cross-entropy in bits | the frequencies of the classes before |
| next token | share of tokens that were not the likeliest | the most frequent token before |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BLOCKS_MAX = 4096  # then neighbours are merged: a half is found to 1 part in 2048

ANOMALY = 1e-6  # a score below it is shown: one step of a million, if the scores tell the truth
ANOMALIES_SHOWN = 3

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Predictions = NDArray[np.float32] | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Errors:
    """Mean errors over some steps; arrays have one value a target."""

    steps: int
    """With a known target; of several targets, the most."""
    error: Float64Array
    naive_error: Float64Array

    @property
    def ratio(self) -> float:
        """Error over that of the naive forecast, the mean over targets; NaN before the first."""
        known = self.naive_error > 0
        if not self.steps or not known.any():
            return float("nan")
        return float(np.mean(self.error[known] / self.naive_error[known]))


class Blocks:
    """Sums of errors, kept in blocks so that a half of the stream can be told apart."""

    def __init__(self, targets: int) -> None:
        """Nothing is scored yet.

        Args:
            targets: values a target.
        """
        self._targets = targets
        self._blocks: list[tuple[int, Float64Array, Float64Array, Float64Array]] = []

    def add(self, error: Float64Array, naive_error: Float64Array) -> None:
        """Count (T, targets) errors; where one is NaN, neither counts."""
        known = np.isfinite(error) & np.isfinite(naive_error)
        if known.any():
            sums = [np.where(known, each, 0).sum(axis=0) for each in (error, naive_error)]
            self._blocks.append((len(error), known.sum(axis=0).astype(np.float64), *sums))
        if len(self._blocks) > BLOCKS_MAX:
            pairs = zip(self._blocks[::2], self._blocks[1::2], strict=False)
            merged = [(a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]) for a, b in pairs]
            self._blocks = merged + self._blocks[2 * len(merged) :]

    def errors(self, *, second_half: bool = False) -> Errors:
        """Over all steps, or over the second half of them."""
        skip = sum(block[0] for block in self._blocks) // 2 if second_half else 0
        known, error, naive = (np.zeros(self._targets) for _ in range(3))
        passed = 0
        for steps, block_known, block_error, block_naive in self._blocks:
            if passed + steps / 2 >= skip:  # the block in the middle goes where most of it is
                known += block_known
                error += block_error
                naive += block_naive
            passed += steps
        count = np.maximum(known, 1)
        return Errors(int(known.max(initial=0)), error / count, naive / count)


class Score(Protocol):
    """Scores one stream."""

    blocks: Blocks
    naive: str
    """What the error is held against."""

    def learned(
        self, inputs: Float32Array, targets: Float32Array, predictions: Predictions
    ) -> None:
        """Count steps that were learned: their inputs, targets, and what was predicted of them."""

    def begin(self) -> None:
        """A new sequence begins with the next step."""


class ForecastScore:
    """Scores the forecast of step t + `ahead` made after step t."""

    naive = "repeating the last value"

    def __init__(self, columns: list[int], ahead: int = 1) -> None:
        """Nothing is scored yet.

        Args:
            columns: the inputs that are forecast.
            ahead: how many steps ahead, from 1.
        """
        self.blocks = Blocks(len(columns))
        self._columns = columns
        self._ahead = ahead
        self._forecasts = np.zeros((0, len(columns)))  # whose steps are still to come
        self._last = np.zeros((0, len(columns)))  # values known when they were made
        self._known = np.full(len(columns), np.nan)

    def learned(
        self, inputs: Float32Array, targets: Float32Array, predictions: Predictions
    ) -> None:
        """As `Score`: (T, D) inputs, (T, horizon, targets) predictions.

        `targets` are not looked at: a forecast's are later inputs.
        """
        actual = inputs[:, self._columns].astype(np.float64)
        last = _filled(actual, self._known)
        self._known = last[-1]
        self._last = np.concatenate([self._last, last])
        ahead = predictions[:, self._ahead - 1, :].astype(np.float64)
        self._forecasts = np.concatenate([self._forecasts, ahead])
        due = max(0, len(self._forecasts) - self._ahead)  # forecasts whose steps are here now
        truth = actual[len(actual) - due :]
        self.blocks.add(np.abs(truth - self._forecasts[:due]), np.abs(truth - self._last[:due]))
        self._forecasts, self._last = self._forecasts[due:], self._last[due:]

    def begin(self) -> None:
        """A new sequence begins: what was forecast for the old one never comes."""
        self._forecasts, self._last = self._forecasts[:0], self._last[:0]


def _filled(values: Float64Array, before: Float64Array) -> Float64Array:
    """The last known value of each column at each row; `before` is that before the first."""
    rows = np.concatenate([before[np.newaxis], values])
    place = np.where(np.isnan(rows), 0, np.arange(len(rows))[:, np.newaxis])
    last = np.maximum.accumulate(place, axis=0)
    return np.take_along_axis(rows, last, axis=0)[1:]


class RegressionScore:
    """Scores the prediction of target t made before it was learned."""

    naive = "the mean so far"

    def __init__(self, targets: int) -> None:
        """Nothing is scored yet.

        Args:
            targets: values a target.
        """
        self.blocks = Blocks(targets)
        self._sum = np.zeros(targets)
        self._count = np.zeros(targets)

    def learned(
        self, inputs: Float32Array, targets: Float32Array, predictions: Predictions
    ) -> None:
        """As `Score`: (T, targets) targets, (T, 1, targets) predictions."""
        actual = targets.astype(np.float64)
        known = np.isfinite(actual)
        value = np.where(known, actual, 0)
        counts = self._count + np.cumsum(known, axis=0) - known
        sums = self._sum + np.cumsum(value, axis=0) - value
        # The very first target has no mean before it.
        naive = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        self.blocks.add(np.abs(actual - predictions[:, 0, :]), np.abs(actual - naive))
        self._sum += value.sum(axis=0)
        self._count += known.sum(axis=0)

    def begin(self) -> None:
        """A new sequence begins, which changes nothing here."""


class ClassScore:
    """Scores probabilities of classes made before the class was learned."""

    naive = "class frequencies so far"

    def __init__(self, classes: int) -> None:
        """Nothing is scored yet; every class is taken to have been seen once."""
        self.blocks = Blocks(1)
        self._counts = np.ones(classes)
        self.right = self.known = 0

    def learned(
        self, inputs: Float32Array, targets: Float32Array, predictions: Predictions
    ) -> None:
        """As `Score`: (T, 1) class ids, (T, 1, classes) probabilities."""
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
        self.blocks.add(error[:, np.newaxis], naive[:, np.newaxis])
        self._counts += np.bincount(ids, minlength=len(self._counts))
        self.right += int((found.argmax(axis=1) == ids).sum()) if len(ids) else 0
        self.known += len(ids)

    def begin(self) -> None:
        """A new sequence begins, which changes nothing here."""

    @property
    def accuracy(self) -> float:
        """Share of known classes that were the likeliest; NaN before the first."""
        return self.right / self.known if self.known else float("nan")


class TokenScore:
    """Scores the likeliest next tokens, against the most frequent token so far."""

    naive = "naming the most frequent token so far"

    def __init__(self, vocabulary: int) -> None:
        """Nothing is scored yet."""
        self.blocks = Blocks(1)
        self._counts = np.zeros(vocabulary)
        self._named: int | None = None  # after the last token

    def learned(
        self, inputs: Float32Array, targets: Float32Array, predictions: Predictions
    ) -> None:
        """As `Score`: (T, 1) token ids, (T, K) likeliest next tokens."""
        ids = inputs[:, 0].astype(np.int64)
        likeliest = predictions[:, 0].astype(np.int64)
        frequent = int(self._counts.argmax())  # of the tokens before this chunk
        if self._named is not None:
            likeliest = np.concatenate([[self._named], likeliest])
        truth = ids[len(ids) - len(likeliest) + 1 :]
        error = (likeliest[:-1] != truth).astype(np.float64)
        naive = (truth != frequent).astype(np.float64)
        self.blocks.add(error[:, np.newaxis], naive[:, np.newaxis])
        self._named = int(likeliest[-1])
        self._counts += np.bincount(ids, minlength=len(self._counts))

    def begin(self) -> None:
        """A new sequence begins: what was named for the old one never comes."""
        self._named = None


class LateScore:
    """Scores predictions whose targets come `delay` steps later."""

    def __init__(self, score: RegressionScore | ClassScore, delay: int) -> None:
        """Nothing is scored yet."""
        self.score = score
        self.naive = score.naive
        self.blocks = score.blocks
        self._delay = delay
        self._held: Predictions | None = None

    def learned(
        self, inputs: Float32Array, targets: Float32Array, predictions: Predictions
    ) -> None:
        """As `Score`; the target of a row is that of the row `delay` rows before it."""
        held = predictions if self._held is None else np.concatenate([self._held, predictions])
        due = max(0, len(held) - self._delay)
        if due:
            self.score.learned(inputs[:due], targets[len(targets) - due :], held[:due])
        self._held = held[due:]

    def begin(self) -> None:
        """A new sequence begins: labels of the old one's last steps never come."""
        self._held = None


class Anomalies:
    """The steps that were least expected."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self.steps = 0
        """With a score below ANOMALY."""
        self.lowest: list[tuple[float, int]] = []
        """Scores and steps of the ANOMALIES_SHOWN lowest of them, lowest first."""

    def add(self, first_step: int, scores: Float32Array) -> None:
        """Look at the (T,) scores of consecutive steps."""
        found = np.flatnonzero(scores < ANOMALY)
        self.steps += len(found)
        if len(found):
            more = [(float(scores[place]), first_step + int(place)) for place in found]
            self.lowest = sorted(self.lowest + more)[:ANOMALIES_SHOWN]
