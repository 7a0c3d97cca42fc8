"""The rows of each task: how long a prediction is kept, and what stands in its rows."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bptt.cli.answers.files import Column, Row
from bptt.cli.answers.rows import (
    Answers,
    Arrived,
    cells_of,
    CLASSIFICATION,
    FloatArray,
    FORECAST,
    known,
    Made,
    number_of,
    PredictionRows,
    REGRESSION,
    short,
    TOKENS,
)
from bptt.client import Model


def rows_of(model: Model, stream: str, targets: Sequence[str]) -> PredictionRows:
    """Return what makes the rows of a stream.

    Args:
        model: the model that learns it.
        stream: its name.
        targets: names of the targets or classes.
    """
    if model.task == "forecast":
        columns = list(model.spec["target_columns"]) or list(range(model.spec["input_size"]))
        return ForecastRows(stream, targets, columns, model.horizon)
    if model.task == "next_token":
        return TokenRows(stream)
    delay = model.spec.get("label_delay", 0)
    if model.task == "regression":
        return RegressionRows(stream, targets, delay)
    return ClassRows(stream, targets, delay)


@dataclass(slots=True)
class _Forecast:
    """Forecasts of one step, made at the steps before it."""

    cells: list[list[tuple[float | None, ...]]]
    """For each number of steps ahead and target; empty where no forecast was made."""
    time: str = ""
    """Of the step, as an earlier run told it."""


_NONE: tuple[float | None, ...] = (None, None, None)
"""The cells of a prediction that was not made, or lost."""


class ForecastRows(PredictionRows):
    """Rows of forecasts."""

    columns: tuple[Column, ...] = FORECAST
    late_steps = 0
    predicts_own_step = False

    def __init__(
        self, stream: str, targets: Sequence[str], columns: Sequence[int], horizon: int
    ) -> None:
        """Keep nothing yet.

        Args:
            stream: its name.
            targets: names of the values that are forecast.
            columns: their places among the inputs.
            horizon: number of steps ahead.
        """
        self._stream = stream
        self._targets = list(targets)
        self._columns = list(columns)
        self._horizon = horizon
        self._expected: dict[int, _Forecast] = {}
        self._nothing: list[list[tuple[float | None, ...]]] = [[] for _ in range(horizon)]
        self.rows_of_step = horizon * len(self._targets)
        self.kept_steps = horizon

    def made(self, answers: Answers) -> list[Made]:
        """As `PredictionRows`: of each number of steps ahead, the cells of each target."""
        steps = zip(*cells_of(answers), strict=True)
        return [
            [list(zip(*rows, strict=True)) for rows in zip(*step, strict=True)] for step in steps
        ]

    def add(self, arrived: Arrived) -> Iterator[Row]:
        """As `PredictionRows`."""
        found = self._expected.pop(arrived.step, None)
        cells = self._nothing if found is None else found.cells
        score = known(arrived.score)
        for place, target in enumerate(self._targets):
            value = known(float(arrived.inputs[self._columns[place]]))
            for ahead, row in enumerate(cells, start=1):
                yield (
                    self._stream, arrived.step, arrived.time, target, ahead, value,
                    *(row[place] if row else _NONE), score,
                )  # fmt: skip
        if arrived.prediction is not None:
            self.predicted(arrived.step, arrived.prediction)

    def predicted(self, step: int, made: Made) -> None:
        """As `PredictionRows`."""
        for ahead, row in enumerate(made):
            self._of(step + 1 + ahead).cells[ahead] = row

    def _of(self, step: int) -> _Forecast:
        if step not in self._expected:
            self._expected[step] = _Forecast(list(self._nothing))
        return self._expected[step]

    def begin_sequence(self) -> Iterator[Row]:
        """As `PredictionRows`; forecasts of steps that never come are let go of."""
        self._expected.clear()
        return iter(())

    def rest(self, time_of: Callable[[int], str]) -> Iterator[Row]:
        """As `PredictionRows`."""
        for step, found in sorted(self._expected.items()):
            time = time_of(step) or found.time
            for place, target in enumerate(self._targets):
                for ahead, row in enumerate(found.cells, start=1):
                    if row and row[place][0] is not None:
                        yield (self._stream, step, time, target, ahead, None, *row[place], None)

    def knows(self, record: Mapping[str, Any]) -> bool:
        """As `PredictionRows`."""
        return record["target"] in self._targets and int(record["ahead"]) <= self._horizon

    def restore(self, record: Mapping[str, Any], next_step: int) -> None:
        """As `PredictionRows`."""
        step, ahead = int(record["step"]), int(record["ahead"])
        if step - ahead >= next_step:
            return
        found = self._of(step)
        found.time = record["time"] or ""
        row = found.cells[ahead - 1] or [_NONE] * len(self._targets)
        row[self._targets.index(record["target"])] = _band_of(record)
        found.cells[ahead - 1] = row


def _band_of(record: Mapping[str, Any]) -> tuple[float | None, ...]:
    return tuple(known(number_of(record[name])) for name in ("prediction", "low", "high"))


@dataclass(slots=True)
class _Held:
    """A step whose target has not come."""

    time: str
    cells: list[tuple[Any, ...]]
    """For each row of the step, what follows its value."""


class _TargetRows(PredictionRows):
    """Rows of what is predicted at a step for the same step."""

    predicts_own_step = True

    def __init__(self, stream: str, targets: Sequence[str], delay: int) -> None:
        """Keep nothing yet.

        Args:
            stream: its name.
            targets: names of the targets or classes.
            delay: steps after which a step's target comes.
        """
        self.stream = stream
        self.targets = list(targets)
        self.kept_steps = self.late_steps = delay
        self._held: dict[int, _Held] = {}
        self._restored: dict[int, _Held] = {}

    def predicted(self, step: int, made: Made) -> None:
        """As `PredictionRows`: nothing is predicted of later steps."""

    def add(self, arrived: Arrived) -> Iterator[Row]:
        """As `PredictionRows`."""
        earlier = self._restored.pop(arrived.step, None)
        if arrived.prediction is not None:
            self._held[arrived.step] = _Held(arrived.time, arrived.prediction)
        else:
            self._held[arrived.step] = earlier or _Held(arrived.time, self._nothing())
        due = arrived.step - self.late_steps
        for held in (self._restored, self._held):
            if due in held:
                yield from self._rows(due, held.pop(due), arrived.targets)

    def begin_sequence(self) -> Iterator[Row]:
        """As `PredictionRows`; the labels of the last steps never come."""
        yield from self.rest(lambda step: "")
        self._held.clear()
        self._restored.clear()

    def rest(self, time_of: Callable[[int], str]) -> Iterator[Row]:
        """As `PredictionRows`."""
        for step, held in sorted((self._restored | self._held).items()):
            yield from self._rows(step, held, None)

    @abstractmethod
    def _rows(self, step: int, held: _Held, targets: FloatArray | None) -> Iterator[Row]:
        """Yield the rows of a step; `targets` is None if they never come."""

    @abstractmethod
    def _nothing(self) -> list[tuple[Any, ...]]:
        """Return the same where the prediction was lost."""


class RegressionRows(_TargetRows):
    """Rows of regressions."""

    columns: tuple[Column, ...] = REGRESSION

    def __init__(self, stream: str, targets: Sequence[str], delay: int) -> None:
        """As `_TargetRows`."""
        super().__init__(stream, targets, delay)
        self.rows_of_step = len(self.targets)

    def _rows(self, step: int, held: _Held, targets: FloatArray | None) -> Iterator[Row]:
        for place, name in enumerate(self.targets):
            value = None if targets is None else known(float(targets[place]))
            yield (self.stream, step, held.time, name, value, *held.cells[place])

    def made(self, answers: Answers) -> list[Made]:
        """As `PredictionRows`: the cells of each target."""
        steps = zip(*cells_of(answers), strict=True)
        return [list(zip(*(rows[0] for rows in step), strict=True)) for step in steps]

    def _nothing(self) -> list[tuple[Any, ...]]:
        return [_NONE] * len(self.targets)

    def knows(self, record: Mapping[str, Any]) -> bool:
        """As `PredictionRows`."""
        return record["target"] in self.targets

    def restore(self, record: Mapping[str, Any], next_step: int) -> None:
        """As `PredictionRows`."""
        step = int(record["step"])
        if step >= next_step:
            return
        held = self._restored.setdefault(step, _Held(record["time"] or "", self._nothing()))
        held.cells[self.targets.index(record["target"])] = _band_of(record)


class ClassRows(_TargetRows):
    """Rows of classifications, with classes by name."""

    columns: tuple[Column, ...] = CLASSIFICATION
    rows_of_step = 1

    def _rows(self, step: int, held: _Held, targets: FloatArray | None) -> Iterator[Row]:
        value = None
        if targets is not None and targets[0] >= 0:  # NaN and -1 are missing
            value = self.targets[int(targets[0])]
        yield (self.stream, step, held.time, value, *held.cells[0])

    def made(self, answers: Answers) -> list[Made]:
        """As `PredictionRows`: the likeliest class and its probability."""
        likeliest = answers.values[:, 0, :].argmax(axis=1)
        chances = short(answers.values[:, 0, :].max(axis=1))
        pairs = zip(likeliest.tolist(), chances.tolist(), strict=True)
        return [[(self.targets[place], chance)] for place, chance in pairs]

    def _nothing(self) -> list[tuple[Any, ...]]:
        return [(None, None)]

    def knows(self, record: Mapping[str, Any]) -> bool:
        """As `PredictionRows`."""
        return (record["prediction"] or self.targets[0]) in self.targets

    def restore(self, record: Mapping[str, Any], next_step: int) -> None:
        """As `PredictionRows`."""
        if int(record["step"]) < next_step:
            cells = (record["prediction"] or None, known(number_of(record["probability"])))
            self._restored[int(record["step"])] = _Held(record["time"] or "", [cells])


class TokenRows(PredictionRows):
    """Rows of next tokens."""

    columns: tuple[Column, ...] = TOKENS
    rows_of_step = 1
    kept_steps = 1
    late_steps = 0
    predicts_own_step = False

    def __init__(self, stream: str) -> None:
        """Keep nothing yet."""
        self._stream = stream
        self._expected: dict[int, tuple[int | None, float | None]] = {}

    def made(self, answers: Answers) -> list[Made]:
        """As `PredictionRows`: the likeliest token and its probability."""
        tokens, chances = answers.values[:, 0], answers.values[:, 1].astype(np.float32)
        return [[int(a), b] for a, b in zip(tokens, short(chances).tolist(), strict=True)]

    def add(self, arrived: Arrived) -> Iterator[Row]:
        """As `PredictionRows`."""
        expected = self._expected.pop(arrived.step, (None, None))
        yield (self._stream, arrived.step, arrived.time, int(arrived.inputs[0]), *expected)
        if arrived.prediction is not None:
            self.predicted(arrived.step, arrived.prediction)

    def predicted(self, step: int, made: Made) -> None:
        """As `PredictionRows`."""
        self._expected[step + 1] = made[0], made[1]

    def begin_sequence(self) -> Iterator[Row]:
        """As `PredictionRows`; the prediction of a token that never comes is let go of."""
        self._expected.clear()
        return iter(())

    def rest(self, time_of: Callable[[int], str]) -> Iterator[Row]:
        """As `PredictionRows`."""
        for step, expected in sorted(self._expected.items()):
            yield (self._stream, step, time_of(step), None, *expected)

    def knows(self, record: Mapping[str, Any]) -> bool:
        """As `PredictionRows`; any token will do."""
        return True

    def restore(self, record: Mapping[str, Any], next_step: int) -> None:
        """As `PredictionRows`."""
        step, token = int(record["step"]), number_of(record["prediction"])
        if step <= next_step and math.isfinite(token):
            self._expected[step] = int(token), known(number_of(record["probability"]))
