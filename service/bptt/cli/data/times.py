"""Times of rows: which columns hold them, how they are written, and what they say of the order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo

import numpy as np

from bptt.cli.data.cells import is_missing, is_time
from bptt.cli.data.clock import Clock
from bptt.cli.data.dayorder import resolved
from bptt.cli.data.othertimes import Given, Number, OfDay
from bptt.cli.data.problem import InputError, shown
from bptt.cli.data.timeformat import (
    DAY,
    PLAUSIBLE_SECONDS,
    SERIALS,
    TimeFormat,
    UNITS,
    Written,
    written_formats,
    zone_of,
)
from bptt.cli.data.titles import TIME_TITLE

READ_SHARE = 0.9  # of a column's cells that must be times
WORDS = {
    "iso": "year first",
    "year-first": "year first",
    "day-first": "day first",
    "month-first": "month first",
}
"""What `--time-format` takes beside strptime's signs and units."""
_ELAPSED_TITLE = re.compile(
    r"(?i)^(t|time|times|sec|secs|seconds?|minutes?|hours?|days?|elapsed|elapsed[ _]time|duration|"
    r"uptime|unix|(unix)?[ _]?time[ _]?stamp|ts|date|datum|zeit|laufzeit|year|jahr|année|año)"
    r"([ _]?[\[( _/]?[ _]?(?P<unit>s|sec|secs|seconds?|ms|msec|milliseconds?|us|µs|microseconds?|"
    r"ns|nanoseconds?|min|minutes?|h|hours?|d|days?)?[\]) ]?)?$"
)
_UNIT_WORDS = {"sec": "s", "secs": "s", "second": "s", "seconds": "s", "msec": "ms", "µs": "us"}
_UNIT_WORDS |= {"millisecond": "ms", "milliseconds": "ms", "minute": "min", "minutes": "min"}
_UNIT_WORDS |= {"microsecond": "us", "microseconds": "us", "nanosecond": "ns", "nanoseconds": "ns"}
_UNIT_WORDS |= {"hour": "h", "hours": "h", "day": "d", "days": "d"}
_YEAR_TITLE = re.compile(r"(?i)(year|jahr|année|año|anno)$")
YEARS = (1500, 2200)
YEAR = 365.2425 * DAY
YEARS_LABEL = "years"
_DATE_PARTS = (
    ("year", "yyyy", "yy", "yr", "jahr"),
    ("month", "mm", "mo", "mon", "monat"),
    ("day", "dd", "dy", "tag"),
    ("hour", "hh", "hr", "stunde"),
    ("minute", "mm", "mn", "min", "mi"),
    ("second", "ss", "sec", "se"),
)
"""Titles of columns that hold a part of the time each, side by side."""


@dataclass(frozen=True, slots=True)
class TimeOptions:
    """What the options say of times."""

    columns: tuple[str, ...] = ()
    format: str | None = None
    zone: str | None = None
    none: bool = False
    """The rows have no times that matter."""


@dataclass(slots=True)
class TimeColumn:
    """The columns of the rows' times, and how they are written."""

    columns: tuple[int, ...]
    """By index; the cells of several are joined by a blank."""
    titles: tuple[str, ...]
    format: TimeFormat
    rivals: list[Written] = field(default_factory=list)
    """Other orders of day and month that read the cells as well."""
    zone: tzinfo | None = None
    why: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return " + ".join(repr(title) for title in self.titles)

    def cell(self, cells: Sequence[str]) -> str:
        """The text of the time in a row."""
        return " ".join(cells[column] for column in self.columns)

    def clock(self) -> Clock:
        """A reader of the column from its first row."""
        return Clock(self.format, self.zone)

    @property
    def is_only_date(self) -> bool:
        """The column has no time of day."""
        return isinstance(self.format, Written) and "%H" not in self.format.label and (
            "%I" not in self.format.label
        )  # fmt: skip


def find(
    titles: Sequence[str], rows: Sequence[tuple[int, list[str]]], options: TimeOptions, name: str
) -> TimeColumn | None:
    """The column of the rows' times.

    Args:
        titles: of all columns.
        rows: line numbers and cells of the first rows.
        options: what is said of times.
        name: of the input, for messages.

    Raises:
        InputError: a column that was named is not there or cannot be read as times.
    """
    if options.none:
        return None
    zone = zone_of(options.zone) if options.zone is not None else None
    found: TimeColumn | None
    if options.columns:
        found = _named(titles, rows, options, name)
    else:
        found = _guessed(titles, rows, options)
    if found is None and (options.format or options.zone):
        flag = "--time-format" if options.format else "--time-zone"
        raise InputError(
            f"{flag} needs a column of times, but {name} has none that is known as such; name it "
            "with --time"
        )
    if found is not None:
        found.zone = zone
        _choose_order(found, [found.cell(cells) for _, cells in rows])
    return found


def _named(
    titles: Sequence[str], rows: Sequence[tuple[int, list[str]]], options: TimeOptions, name: str
) -> TimeColumn:
    columns = tuple(titles.index(title) for title in options.columns)
    examples = _examples(rows, columns)
    form = _format(examples, options.format, " ".join(options.columns), is_asked=True)
    if form is None:
        line, cell = next(
            ((line, _cell(cells, columns)) for line, cells in rows if not _blank(cells, columns)),
            (0, ""),
        )
        asked = f" with --time-format {options.format}" if options.format else ""
        raise InputError(
            f"line {line}, column {' + '.join(map(repr, options.columns))} of {name} is "
            f"{shown(cell)}, which cannot be read as a time{asked}; say how it is written with "
            "--time-format, such as '%d/%m/%Y %H:%M', day-first, s or ms"
        )
    return TimeColumn(columns, options.columns, form[0], form[1], why="--time")


def _guessed(
    titles: Sequence[str], rows: Sequence[tuple[int, list[str]]], options: TimeOptions
) -> TimeColumn | None:
    """The best of the columns that are times: a date with a time of day before others."""
    found: list[tuple[int, int, TimeColumn]] = []
    for column, title in enumerate(titles):
        examples = _examples(rows, (column,))
        form = _format(examples, options.format, title, is_asked=False)
        if form is None:
            continue
        one = TimeColumn((column,), (title,), *form)
        found.append((_rank(one), column, one))
    parts = _date_parts(titles, rows)
    if parts is not None and not any(rank == 0 for rank, _, _ in found):
        return parts
    pair = _pair([one for _, _, one in found], titles, rows, options)
    if pair is not None and not any(rank == 0 for rank, _, _ in found):
        return pair
    return min(found, key=lambda each: each[:2])[2] if found else None


def _rank(one: TimeColumn) -> int:
    if isinstance(one.format, (Written, Given)):
        return 1 if one.is_only_date else 0
    if one.format.is_moment and one.format.label != YEARS_LABEL:
        return 0
    return 3 if isinstance(one.format, Number) else 2


def _pair(
    found: Sequence[TimeColumn],
    names: Sequence[str],
    rows: Sequence[tuple[int, list[str]]],
    options: TimeOptions,
) -> TimeColumn | None:
    """A date and a time of day in two columns."""
    days = [one for one in found if one.is_only_date]
    clocks = [
        one.columns[0] for one in found if isinstance(one.format, OfDay) and one.format.wraps
    ] or [
        column
        for column, title in enumerate(names)
        if TIME_TITLE.search(title) and _is_compact_clock(_examples(rows, (column,)))
    ]
    if not days or not clocks:
        return None
    columns = (days[0].columns[0], clocks[0])
    examples = _examples(rows, columns)
    titles = (days[0].titles[0], names[clocks[0]])
    form = _format(examples, options.format, " ".join(titles), is_asked=True)
    if form is None or not isinstance(form[0], (Written, Given)):
        return None
    return TimeColumn(columns, titles, *form)


def _is_compact_clock(examples: Sequence[str]) -> bool:
    """Hours and minutes, or with seconds, without a sign between them: 1730."""
    return bool(examples) and all(len(each) in (4, 6) and each.isdigit() for each in examples)


def _date_parts(titles: Sequence[str], rows: Sequence[tuple[int, list[str]]]) -> TimeColumn | None:
    """Year, month, day and more in columns of their own."""
    lower = [title.lower().lstrip("#") for title in titles]
    first = next((i for i, title in enumerate(lower) if title in _DATE_PARTS[0]), len(lower))
    pairs = zip(lower[first:], _DATE_PARTS, strict=False)
    length = len(list(itertools.takewhile(lambda pair: pair[0] in pair[1], pairs)))
    if length < 3:
        return None
    columns = tuple(range(first, first + length))
    forms = written_formats(_examples(rows, columns), READ_SHARE)
    named = tuple(titles[column] for column in columns)
    return TimeColumn(columns, named, forms[0]) if forms else None


def _cell(cells: Sequence[str], columns: Sequence[int]) -> str:
    return " ".join(cells[column] for column in columns)


def _blank(cells: Sequence[str], columns: Sequence[int]) -> bool:
    return all(is_missing(cells[column]) for column in columns)


def _examples(rows: Sequence[tuple[int, list[str]]], columns: Sequence[int]) -> list[str]:
    return [_cell(cells, columns) for _, cells in rows if not _blank(cells, columns)]


def _format(
    examples: Sequence[str], asked: str | None, title: str, *, is_asked: bool
) -> tuple[TimeFormat, list[Written]] | None:
    """How a column's times are written, and other orders of day and month that fit too."""
    if not examples:
        return None
    if asked is not None and "%" in asked:
        given = Given(asked)
        return (given, []) if _reads(given, examples) else None
    if asked is not None and asked not in WORDS:
        return _unit(asked, examples)
    if _share(examples, is_time) >= READ_SHARE or is_asked:
        forms = written_formats(examples, READ_SHARE)
        if asked is not None:
            forms = [form for form in forms if form.order in (WORDS[asked], "named month")]
        if forms:
            return forms[0], list(forms[1:])
        of_day = OfDay()
        if _reads(of_day, examples):
            of_day.learn(examples)
            return of_day, []
    number = _number(examples, title, is_asked=is_asked)
    return (number, []) if number is not None else None


def _share(examples: Sequence[str], test: Callable[[str], bool]) -> float:
    return sum(map(test, examples)) / len(examples)


def _reads(form: TimeFormat, examples: Sequence[str]) -> bool:
    return _share(examples, lambda each: form.seconds(each) is not None) >= READ_SHARE


def _unit(asked: str, examples: Sequence[str]) -> tuple[TimeFormat, list[Written]] | None:
    """What `--time-format s`, `ms` or `excel` says."""
    decimals = _decimals(examples)
    if asked in SERIALS:
        form = Number(DAY, f"days ({asked})", True, SERIALS[asked][0], decimals=decimals)
    elif asked in UNITS:
        form = Number(UNITS[asked], asked, False, decimals=decimals)
        first = form.seconds(examples[0])
        low, high = PLAUSIBLE_SECONDS
        form.is_moment = first is not None and low <= first[0] <= high
    else:
        words = ", ".join((*WORDS, *UNITS, *SERIALS))
        raise InputError(
            f"--time-format is {asked!r}, but must be in strptime's signs, such as "
            f"'%d/%m/%Y %H:%M:%S', or one of {words}"
        )
    return (form, []) if _reads(form, examples) else None


def _number(examples: Sequence[str], title: str, *, is_asked: bool) -> TimeFormat | None:
    """Numbers that are times by their size, or by the title and because they grow."""
    try:
        values = np.array([float(each.replace(",", ".")) for each in examples])
    except ValueError:
        return None
    steps = np.diff(values)
    grows = bool((steps >= 0).all() or (steps <= 0).all()) and bool(np.isfinite(values).all())
    mostly = grows or bool((steps >= 0).mean() >= READ_SHARE)  # a run may start again
    is_named = is_asked or bool(TIME_TITLE.search(title) or _YEAR_TITLE.match(title))
    decimals = _decimals(examples)
    if is_named or (grows and len(steps) > 0 and abs(values[0]) > 1e11):
        compact = _compact(examples)
        if compact is not None:
            return compact
        low, high = PLAUSIBLE_SECONDS
        for unit in ("s", "ms", "us", "ns"):
            if ((values * UNITS[unit] >= low) & (values * UNITS[unit] <= high)).all():
                return Number(UNITS[unit], f"{unit} since 1970", True, decimals=decimals)
    if is_named and decimals:
        for serial, (since, (low, high)) in SERIALS.items():
            if ((values >= low) & (values <= high)).all():
                return Number(DAY, f"days ({serial})", True, since, decimals=decimals)
    match = _ELAPSED_TITLE.match(title.strip())
    low, high = YEARS
    is_year = _YEAR_TITLE.match(title) is not None
    if is_year and mostly and bool(((values >= low) & (values <= high)).all()):
        return Number(YEAR, YEARS_LABEL, True, 1970, decimals=decimals)
    if is_asked or (match is not None and mostly):
        word = (match["unit"] or "") if match is not None else ""
        unit = _UNIT_WORDS.get(word.lower(), word.lower()) or _unit_of_title(title)
        return Number(UNITS[unit], f"{unit} since a start", False, decimals=decimals)
    return None


def _unit_of_title(title: str) -> str:
    first = re.split(r"[^a-zµ]", title.strip().lower())[0]
    unit = _UNIT_WORDS.get(first, first)
    return unit if unit in UNITS else "s"


def _compact(examples: Sequence[str]) -> TimeFormat | None:
    """Digits that are a date and a time of day: 20240131, 20240131120000."""
    if not all(len(each) in (8, 12, 14) and each.isdigit() for each in examples):
        return None
    forms = written_formats(examples, 1.0)
    return forms[0] if forms else None


def _decimals(examples: Sequence[str]) -> int:
    return max(len(each.replace(",", ".").partition(".")[2]) for each in examples)


# ---------------------------------------------------------------------- day or month first


def _choose_order(time: TimeColumn, texts: Iterable[str]) -> None:
    """Decide between orders of day and month by what the rows show, as far as they do."""
    if not isinstance(time.format, Written):
        return
    if not time.rivals:
        return
    forms = [time.format, *time.rivals]
    left = resolved(forms, texts)
    time.format, time.rivals = left[0], left[1:]
    if not time.rivals:
        time.why = f"{time.format.order}: so the rows follow one another evenly"
