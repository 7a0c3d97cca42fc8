"""What each column holds, which are learned, and which names the options mean."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bptt.cli.data.cells import FLAGS, is_time, MISSING
from bptt.cli.data.numbers import Cell, marks_of, NumberFormat
from bptt.cli.data.problem import InputError, join_names

Kind = Literal["number", "flag", "time", "text", "id", "counter", "empty", "untitled"]
OTHER_CLASS = "other"  # as which `--new-classes` learns classes that a model does not have
COUNTED_ROWS_MIN = 10  # rows of steps of one, before a column is taken to number the rows
NUMBER_SHARE = 0.5  # of a column's cells: then it is one of numbers, and other cells are errors
TIME_SHARE = 0.9
_INDEX_TITLE = re.compile(
    r"(?i)(index|idx|id|row|rows|row[ _]?(id|no|nr|num|number)|record|rec|recno|"
    r"record[ _]?(no|nr|num|number|id)|rn|no|nr|num|number|seq|sequence|lfd\.? ?nr\.?|#|n°|nº|"
    r"line|obs|unnamed: \d+)\.?"
)
REASONS: dict[Kind, str] = {
    "time": "a time",
    "text": "text",
    "id": "an id with leading zeros",
    "counter": "it numbers the rows",
    "empty": "without values",
    "untitled": "without a title",
}
SENTINELS = (
    *(-9999.0, -999.0, -99.0, -99.9, -999.9, -9999.9, -99999.0, -8888.0, -7777.0, -6999.0),
    *(-7999.0, -200.0, 999.0, 9999.0, 99999.0, 999999.0, 999.9, 9999.9, 1e20, -1e20),
    *(-32768.0, 32767.0, 65535.0, -2147483648.0, 2147483647.0, 9.969209968386869e36),
)
"""Numbers that programs write where a value is missing."""
CERTAIN_SENTINELS = frozenset(
    (
        *(-9999.0, -999.0, -999.9, -9999.9, -99999.0, -8888.0, -7777.0, -6999.0, -7999.0),
        *(1e20, -1e20, -2147483648.0, 9.969209968386869e36),
    )
)
"""Those that no sensor reads: even one of them is no reading. The others are also limits of sensors
and converters, such as 65535."""
_SENTINEL_COUNT_MIN = 3  # fewer may be readings, unless they are very far from all others
_FAR_RANGES, _VERY_FAR_RANGES = 0.5, 5.0
"""Distances from the other values, in ranges of nine tenths of them."""
_KEPT_VALUES = 20_000  # of a column, from which its usual range is taken


@dataclass(frozen=True, slots=True)
class Markers:
    """What stands for a missing value."""

    words: frozenset[str] = MISSING
    """In lower case."""
    numbers: frozenset[float] = frozenset()
    asked: frozenset[str] = frozenset()
    """Those that `--missing` names, as they are written: also in columns of classes."""
    values: frozenset[float] = frozenset()
    """Numbers that `--not-missing` names: readings, whatever they look like."""

    def is_missing(self, text: str) -> bool:
        """A cell of a column of numbers."""
        return text.lower() in self.words

    def is_missing_class(self, text: str) -> bool:
        """A cell of a column of classes, where a word such as `none` is a class."""
        return not text or text in self.asked


def markers_of(missing: Sequence[str], not_missing: Sequence[str]) -> Markers:
    """The markers that the options give, beside the usual words."""
    words, numbers, values = set(MISSING), set(), set()
    for text in missing:
        number = NumberFormat().value(text)
        if number is None:
            words.add(text.lower())
        else:
            numbers.add(number)
    for text in not_missing:
        number = NumberFormat().value(text)
        if number is None:
            words.discard(text.lower())
        else:
            values.add(number)
    return Markers(frozenset(words), frozenset(numbers), frozenset(missing), frozenset(values))


@dataclass(frozen=True, slots=True)
class Column:
    """One column and what it holds."""

    name: str
    kind: Kind
    reason: str = ""
    """Why it is not learned unless it is asked for."""

    @property
    def is_learned(self) -> bool:
        """Unless the options say otherwise."""
        return not self.reason


Rows = Sequence[tuple[int, list[str]]]
"""Line numbers and cells."""


def number_cells(names: Sequence[str], rows: Rows, skip: Sequence[int]) -> list[list[Cell]]:
    """Cells of the columns that hold numbers in some country's form."""
    found = []
    for column, name in enumerate(names):
        if column in skip:
            continue
        cells = [Cell(line, name, row[column]) for line, row in rows if row[column]]
        cells = [cell for cell in cells if cell.text.lower() not in MISSING]
        numbers = [cell for cell in cells if marks_of(cell.text) is not None]
        if cells and len(numbers) >= NUMBER_SHARE * len(cells):
            found.append(numbers)
    return found


def columns_of(
    names: Sequence[str],
    titles: Sequence[str],
    rows: Rows,
    times: Sequence[int],
    numbers: NumberFormat,
    markers: Markers,
    *,
    has_header: bool,
) -> list[Column]:
    """What the columns hold, told from many rows.

    Args:
        names: unique names.
        titles: as in the file; empty where there is none.
        rows: the first rows.
        times: columns of the rows' times, by index.
        numbers: the form of numbers.
        markers: of missing values.
        has_header: columns without a title are exceptions.
    """
    found = []
    for place, name in enumerate(names):
        cells = [row[place] for _, row in rows if not markers.is_missing(row[place])]
        kind: Kind = "time" if place in times else _kind(name, cells, numbers)
        if has_header and not titles[place] and kind != "time":
            kind = "empty" if kind == "empty" else "untitled"
        found.append(Column(name, kind, REASONS.get(kind, "")))
    if not any(column.is_learned for column in found):
        # A counter is worth learning where there is nothing else.
        found = [Column(each.name, "number") if each.kind == "counter" else each for each in found]
    return found


def _kind(name: str, cells: Sequence[str], numbers: NumberFormat) -> Kind:
    if not cells:
        return "empty"
    if all(cell.lower() in FLAGS for cell in cells):
        return "flag"
    values = [numbers.value(cell) for cell in cells]
    known = [value for value in values if value is not None]
    if len(known) < NUMBER_SHARE * len(cells):
        times = sum(map(is_time, cells))
        return "time" if times >= TIME_SHARE * len(cells) else "text"
    if all(cell.isdigit() for cell in cells):
        if any(len(cell) > 1 and cell[0] == "0" for cell in cells):
            return "id"
        if _numbers_rows(name, np.array(known)):
            return "counter"
    return "number"


def _numbers_rows(name: str, values: NDArray[np.float64]) -> bool:
    """Whether values merely number the rows."""
    steps = np.diff(values)
    if not len(steps):
        return False
    if len(values) >= COUNTED_ROWS_MIN and (np.abs(steps) == 1).all() and len(set(steps)) == 1:
        return True
    grows = bool((steps > 0).all() or (steps < 0).all())
    return grows and _INDEX_TITLE.fullmatch(name.strip()) is not None


def converters(
    columns: Sequence[Column], numbers: NumberFormat
) -> list[Callable[[str], float | None]]:
    """For each column, what turns a cell into a number; None: it is none."""

    def flag(text: str) -> float | None:
        return FLAGS.get(text.lower())

    return [flag if column.kind == "flag" else numbers.value for column in columns]


# ---------------------------------------------------------------------- names in options


def split_names(text: str) -> list[str]:
    """Parts of `a,b`; quotes hold a name with a comma together: `"Temp, °C",b`."""
    if not text.strip():
        return []
    return [part.strip() for part in next(csv.reader([text], skipinitialspace=True))]


def match_names(option: str, parts: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns that an option means; parts that are no names are joined with commas again.

    Raises:
        InputError: a column is not there or named twice; lists those that are there.
    """
    found: list[str] = []
    place = 0
    while place < len(parts):
        for end in range(len(parts), place, -1):
            name = _matched(parts[place:end], names)
            if name is not None:
                break
        else:
            near = difflib.get_close_matches(parts[place], names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"{option}: no column {parts[place]!r}; the columns are: {join_names(names)}{hint}"
            )
        if name in found:
            raise InputError(f"{option}: {name!r} appears twice")
        found.append(name)
        place = end
    return found


def _matched(parts: Sequence[str], names: Sequence[str]) -> str | None:
    wanted = re.sub(r"\s", "", ",".join(parts))
    exact = ",".join(parts)
    if exact in names:
        return exact
    if len(parts) == 1:
        return None
    return next((name for name in names if re.sub(r"\s", "", name) == wanted), None)


# ---------------------------------------------------------------------- numbers that mean nothing


@dataclass(slots=True)
class Sentinels:
    """Looks for numbers that stand for missing values, such as -9999."""

    names: Sequence[str]
    counts: dict[tuple[int, float], int] = field(default_factory=dict)
    lines: dict[tuple[int, float], int] = field(default_factory=dict)
    _kept: list[NDArray[np.float64]] = field(default_factory=list)
    rows: int = 0

    def add(self, values: NDArray[np.float64], lines: Sequence[int]) -> None:
        """Look at (T, columns) values and the lines they are in."""
        if self.rows < _KEPT_VALUES:
            self._kept.append(values)
        self.rows += len(values)
        for row, column in np.argwhere(np.isin(values, SENTINELS)):
            key = int(column), float(values[row, column])
            self.counts[key] = self.counts.get(key, 0) + 1
            self.lines.setdefault(key, lines[row])

    def found(self, known: Markers) -> Iterator[Sentinel]:
        """Those that lie far from all other values of their column."""
        for (column, number), count in self.counts.items():
            if number in known.values:
                continue
            values = np.concatenate(self._kept)[:, column]
            others = values[np.isfinite(values) & ~np.isin(values, SENTINELS)]
            if len(others) < 2:
                continue
            low, high = np.quantile(others, [0.05, 0.95])
            away = low - number if number < low else number - high
            middle = (number + (low if number < low else high)) / 2
            beyond = (others < middle) if number < low else (others > middle)
            is_rare = count < _SENTINEL_COUNT_MIN
            ranges = _VERY_FAR_RANGES if is_rare else _FAR_RANGES
            if away > ranges * (high - low) and high > low and not beyond.any():
                line = self.lines[column, number]
                is_certain = not is_rare or number in CERTAIN_SENTINELS
                name = self.names[column]
                yield Sentinel(name, number, count, line, float(low), float(high), is_certain)


@dataclass(frozen=True, slots=True)
class Sentinel:
    """A number that seems to stand for a missing value."""

    column: str
    number: float
    count: int
    """Rows that have it."""
    line: int
    """Of the first."""
    low: float
    high: float
    """Nine of ten other values are between these."""
    is_certain: bool
    """It recurs, or no sensor reads it. Else it may be a reading."""
