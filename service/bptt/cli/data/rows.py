"""Cells in, batches of numbers out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bptt.cli.data.columns import converters
from bptt.cli.data.numbers import FLOAT32_MAX, marks_of
from bptt.cli.data.problem import InputError, join_names, shown
from bptt.cli.data.source import Batch
from bptt.cli.data.understood import Choice, Understood


class RowReader:
    """Turns the chosen cells of a row into numbers."""

    def __init__(
        self,
        understood: Understood,
        choice: Choice,
        missing: Counter[tuple[str, str]],
        other_classes: Counter[str],
    ) -> None:
        """Read nothing yet.

        Args:
            understood: of the table.
            choice: what of each row is read.
            missing: counts the values that are missing, by column and what stands for them.
            other_classes: counts the classes that are read as `Choice.other_class`, by name.
        """
        self._missing = missing
        self._other_classes = other_classes
        self._choice = choice
        self._understood = understood
        self._markers = understood.markers
        makers = converters(understood.columns, understood.numbers)
        count = len(choice.columns)
        keep = choice.keep_missing or [False] * count
        self._plan = [
            (column, makers[column], keep[place], choice.classes is not None and place == count - 1)
            for place, column in enumerate(choice.columns)
        ]

    def row(self, line: int, cells: list[str]) -> list[float] | None:
        """The chosen values; None where one is missing that may not be."""
        row = []
        is_left_out = False
        markers = self._markers
        for column, make, may_miss, is_class in self._plan:
            text = cells[column]
            if is_class:
                value: float | None = self._class(line, column, text)
            elif text.lower() in markers.words:
                value = None
            else:
                value = make(text)
                if value is None:
                    raise InputError(self._problem(line, column, text))
                if value in markers.numbers:
                    value = None
            if value is None:
                name = self._understood.columns[column].name
                self._missing[name, text] += 1
                is_left_out = is_left_out or not may_miss
                value = -1.0 if is_class else math.nan
            row.append(value)
        return None if is_left_out else row

    def _class(self, line: int, column: int, text: str) -> float | None:
        if self._markers.is_missing_class(text):
            return None
        assert self._choice.classes is not None
        value = self._choice.classes.get(text)
        if value is None and self._choice.other_class is not None:
            self._other_classes[text] += 1
            value = self._choice.other_class
        if value is None:
            where = self._where(line, column)
            there = join_names(list(self._choice.classes))
            raise InputError(
                f"{where} is {text!r}, but the classes are {there}; --missing {shown(text)} takes "
                "it as a missing class, and --new-classes as the class 'other' of a model that has "
                "one"
            )
        return float(value)

    def _where(self, line: int, column: int) -> str:
        name = self._understood.columns[column].name
        return f"line {line}, column {name!r} of {self._understood.name}"

    def _problem(self, line: int, column: int, text: str) -> str:
        """What a cell that is no number should have been, and which option helps."""
        where = self._where(line, column)
        numbers = self._understood.numbers
        if numbers.is_too_large(text):
            return (
                f"{where} is {shown(text)}, which does not fit float32: at most {FLOAT32_MAX:.2g} "
                "in size"
            )
        if marks_of(text) is not None:
            between = f"{numbers.thousands!r} between thousands" if numbers.thousands else "no mark"
            return (
                f"{where} is {shown(text)}, but numbers have the decimal mark {numbers.decimal!r} "
                f"and {between if numbers.thousands else 'no mark between thousands'} here; "
                "--decimal and --thousands say otherwise"
            )
        return (
            f"{where} is {shown(text)}, but must be a finite number; --missing {shown(text)} takes "
            "it as a missing value, --columns leaves the column out"
        )


@dataclass(slots=True)
class BatchBuilder:
    """Collects rows until they are flushed as one batch."""

    emit: Callable[[Batch], None]
    position: Callable[[], int]
    rows: list[list[float]] = field(default_factory=list)
    first_line: int = 0
    last_line: int = 0
    missing: int = 0
    begins: bool = False
    has_times: bool = False
    """The rows have times."""
    seconds: list[float] = field(default_factory=list)
    times: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def begin(self) -> None:
        """The next row begins a new sequence."""
        self.flush()
        self.begins = True

    def add(
        self, line: int, row: list[float] | None, now: float | None = None, time: str = ""
    ) -> None:
        """Take a row.

        Args:
            line: on which it ends.
            row: the values; None: the row is left out.
            now: its time; None: it has none that can be read.
            time: the same as it is written.
        """
        if row is None:
            self.missing += 1
            return
        if not self.rows:
            self.first_line = line
        self.rows.append(row)
        self.last_line = line
        if self.has_times:
            self.seconds.append(math.nan if now is None else now)
            self.times.append(time)

    def flush(self) -> None:
        """Emit what there is. Rows left out at the very end come as a batch without rows."""
        if not self.rows and not self.missing:
            return
        values = np.asarray(self.rows, dtype=np.float64)
        batch = Batch(
            values,
            self.first_line,
            self.last_line,
            self.missing,
            self.position(),
            self.begins,
            np.asarray(self.seconds, dtype=np.float64) if self.has_times else None,
            self.times,
        )
        if self.rows:
            self.begins = False
        self.rows = []
        self.seconds = []
        self.times = []
        self.missing = 0
        self.emit(batch)
