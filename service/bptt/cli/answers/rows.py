"""Rows of a stream's values and predictions.

A row is written when its value has come, so that it has both. Until then the prediction is kept:

| task | prediction made at step t | rows of a step |
|---|---|---|
| forecast | values of steps t + 1 to t + horizon | one for each target and steps ahead |
| regression | targets of step t | one for each target |
| classification | class of step t | one |
| next token | token of step t + 1 | one |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.cli.answers.files import Column, Row

FloatArray = NDArray[np.floating[Any]]
Float64Array = NDArray[np.float64]

_PLACE = (Column("stream", str), Column("step", int), Column("time", str))
_BAND = (Column("prediction", float), Column("low", float), Column("high", float))
FORECAST = (
    *_PLACE, Column("target", str), Column("ahead", int), Column("value", float), *_BAND,
    Column("score", float),
)  # fmt: skip
REGRESSION = (*_PLACE, Column("target", str), Column("value", float), *_BAND)
CLASSIFICATION = (
    *_PLACE, Column("value", str), Column("prediction", str), Column("probability", float),
)  # fmt: skip
TOKENS = (
    *_PLACE, Column("value", int), Column("prediction", int), Column("probability", float),
)  # fmt: skip

COLUMNS = {
    "forecast": FORECAST, "regression": REGRESSION, "classification": CLASSIFICATION,
    "next_token": TOKENS,
}  # fmt: skip
"""Of the table of each task."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What was predicted at T consecutive steps."""

    values: FloatArray
    """Forecast: (T, horizon, targets). Regression: (T, 1, targets). Classification: (T, 1,
    classes). Next token: (T, 2) the likeliest token and its probability."""
    low: FloatArray | None = None
    """Offsets to the ends of the bands, as `values`; NaN, or None: no band is known yet."""
    high: FloatArray | None = None


Made = list[Any]
"""What was predicted at one step, as cells: those of each step ahead and target, say."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A step that was learned."""

    step: int
    time: str
    inputs: FloatArray
    targets: FloatArray
    """With `label_delay`, those of an earlier step."""
    prediction: Made | None
    """None: it was lost."""
    score: float = math.nan


class PredictionRows(ABC):
    """Makes the rows of one stream, and keeps the predictions whose values have not come."""

    columns: tuple[Column, ...]
    rows_of_step: int
    """Rows of a step whose value has come."""
    kept_steps: int
    """Steps whose predictions are kept, at most."""
    late_steps: int
    """Steps after which a step's own value comes."""
    predicts_own_step: bool
    """True: a prediction is of the step at which it was made, not of later ones."""

    @abstractmethod
    def made(self, answers: Answers) -> list[Made]:
        """Return what was predicted at each step as cells."""

    @abstractmethod
    def add(self, arrived: Arrived) -> Iterator[Row]:
        """Yield the rows whose values came with a step."""

    @abstractmethod
    def predicted(self, step: int, made: Made) -> None:
        """Keep what the stream's state after a step predicts, where that is of later steps."""

    @abstractmethod
    def begin_sequence(self) -> Iterator[Row]:
        """The next step does not continue the earlier ones: yield rows that get no value."""

    @abstractmethod
    def rest(self, time_of: Callable[[int], str]) -> Iterator[Row]:
        """Yield rows of predictions whose values have not come, at the end of a run.

        Args:
            time_of: gives the time of a step that is yet to come.
        """

    @abstractmethod
    def knows(self, record: Mapping[str, Any]) -> bool:
        """Return whether a row of an earlier run has targets, classes and horizon of the model."""

    @abstractmethod
    def restore(self, record: Mapping[str, Any], next_step: int) -> None:
        """Keep the prediction of a row that `rest` yielded in an earlier run.

        Args:
            record: the row, by names of columns.
            next_step: the stream's next step; predictions from there on are made again.
        """


def known(value: float) -> float | None:
    """Return a value for a cell: None if it is NaN."""
    return None if math.isnan(value) else value


def number_of(cell: Any) -> float:
    """Return the number in a cell that was read back; NaN if it is empty."""
    return math.nan if cell is None or cell == "" else float(cell)


def short(values: FloatArray) -> Float64Array:
    """Return float64 values whose text is as short as that of the float32 values given."""
    texts = np.asarray(values).astype(np.str_)
    return texts.astype(np.float64)


def cells_of(answers: Answers) -> tuple[list[Any], list[Any], list[Any]]:
    """Return values and ends of bands as nested lists; None where a number is not known."""
    exact = np.asarray(answers.values, np.float64)
    none = np.full(exact.shape, np.nan)
    low = none if answers.low is None else ends(answers.values, exact + answers.low)
    high = none if answers.high is None else ends(answers.values, exact + answers.high)
    nothing = np.array(None, dtype=object)
    arrays = (short(answers.values), low, high)
    found = (np.where(np.isnan(each), nothing, each) for each in arrays)
    values, lows, highs = (each.tolist() for each in found)
    return values, lows, highs


def ends(values: FloatArray, exact: FloatArray) -> Float64Array:
    """Round ends of bands to the digits that the type of their predictions holds."""
    return short(exact.astype(values.dtype))
