"""A look through a whole file before anything is learned, and the summary of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bptt.cli.console import plural
from bptt.cli.data.columns import converters, OTHER_CLASS, Sentinels
from bptt.cli.data.numbers import NumberFormat
from bptt.cli.data.options import ReadOptions
from bptt.cli.data.order import problem_of, RowOrder, seconds_text, series_column
from bptt.cli.data.problem import InputError, join_names, shown
from bptt.cli.data.records import NAMES
from bptt.cli.data.source import Batch
from bptt.cli.data.steptimes import StepTimes
from bptt.cli.data.table import DataTable
from bptt.cli.data.understood import Choice, Understood

SURVEY_ROWS = 1024  # in a batch
LINE_ENDS = {"\n": "LF", "\r\n": "CR LF", "\r": "CR"}
_MARKERS_SHOWN = 6


@dataclass(slots=True)
class Survey:
    """What a look through all rows has shown."""

    rows: int = 0
    first_line: int = 0
    last_line: int = 0
    missing: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By column and by what stands for the value."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Lines that are no rows, by reason."""
    classes: set[str] = field(default_factory=set)
    series: list[str] = field(default_factory=list)
    """Cells of the column of `--stream-column`, in the order of their first rows."""
    order: RowOrder | None = None
    bad: int = 0
    """Rows left out because they cannot be read."""
    bad_first: str = ""
    """What was wrong with the first of them."""
    notes: list[str] = field(default_factory=list)

    @property
    def lacking(self) -> dict[str, int]:
        """How many values are missing, by column."""
        counts: Counter[str] = Counter()
        for (name, _), count in self.missing.items():
            counts[name] += count
        return dict(counts)

    @property
    def step_times(self) -> StepTimes | None:
        """Times of steps and of forecasts, as the file writes them; None: rows have no times."""
        return None if self.order is None else StepTimes.of(self.order.time, self.order.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be learned of a file."""

    columns: Sequence[str]
    """Those of numbers."""
    label: str | None = None
    """The column of classes."""
    classes: frozenset[str] | None = None
    """The classes there may be; None: any."""
    gap_seconds: float | None = None
    stream_column: str | None = None


def survey(path: str, options: ReadOptions, wanted: Wanted) -> Survey:
    """Read a file to its end, so that what is wrong is told before anything is learned.

    Args:
        path: of the file, which is read anew.
        options: how to read it.
        wanted: what is to be learned.

    Raises:
        InputError: a value cannot be read, times do not run forwards, or numbers such as -9999
            seem to stand for missing values. Names the place and the option that helps.
    """
    with DataTable(path, options) as table:
        understood = table.understand()
        names = understood.header
        columns = [names.index(name) for name in wanted.columns]
        found = Survey()
        sentinels = Sentinels(wanted.columns)
        watch = _Watch(understood, wanted, found)
        lines: list[int] = []

        def look(line: int, cells: list[str], now: float | None) -> None:
            lines.append(line)
            watch.row(line, cells, now)

        def count(batch: Batch) -> None:
            if len(batch.values):
                sentinels.add(batch.values.astype(np.float64), lines[-len(batch.values) :])
            lines.clear()

        needs_time = wanted.gap_seconds is not None or options.sort
        choice = Choice(
            columns=columns,
            keep_missing=[True] * len(columns),
            gap_seconds=1e300 if needs_time else math.inf,
        )
        table.read(choice, SURVEY_ROWS, count, look)
        found.missing, found.skipped = table.missing, table.skipped
        found.bad, found.bad_first = table.bad.count, table.bad.first
    found.notes += _judged(understood, sentinels, found.rows)
    watch.finish(options)
    absent = [text for text in options.missing if not _is_seen(text, found.missing)]
    if absent:
        markers = join_names(list(map(repr, absent)))
        found.notes.append(f"--missing names {markers}, which no cell of a learned column holds")
    return found


def _is_seen(marker: str, missing: Counter[tuple[str, str]]) -> bool:
    """Whether a cell held the marker, or a number that equals it."""
    number = NumberFormat().value(marker)
    return any(
        text.lower() == marker.lower()
        or (number is not None and NumberFormat().value(text.replace(",", ".")) == number)
        for _, text in missing
    )


def survey_sample(understood: Understood, wanted: Wanted, options: ReadOptions) -> Survey:
    """The same of the first rows of a live input, which cannot be read twice."""
    found = Survey()
    watch = _Watch(understood, wanted, found)
    clock = understood.time.clock() if understood.time is not None else None
    for line, cells in understood.sample:
        now = None
        if clock is not None and understood.time is not None:
            try:
                now = clock.seconds(understood.time.cell(cells))
            except ValueError:
                now = None  # told with its line when the row is read
        watch.row(line, cells, now)
    watch.finish(options)
    sentinels = _sentinels_of_sample(understood, wanted)
    found.notes += _judged(understood, sentinels, found.rows)
    return found


def _sentinels_of_sample(understood: Understood, wanted: Wanted) -> Sentinels:
    """Those of the first rows; cells that are no numbers are left out."""
    names = understood.header
    makers = converters(understood.columns, understood.numbers)
    sentinels = Sentinels(wanted.columns)
    rows, lines = [], []
    for line, cells in understood.sample:
        made = [makers[place](cells[place]) for place in map(names.index, wanted.columns)]
        markers = understood.markers.numbers
        rows.append([math.nan if one is None or one in markers else one for one in made])
        lines.append(line)
    if rows and wanted.columns:
        sentinels.add(np.array(rows), lines)
    return sentinels


class _Watch:
    """Follows rows for what concerns more than one of them."""

    def __init__(self, understood: Understood, wanted: Wanted, found: Survey) -> None:
        self._understood = understood
        self._wanted = wanted
        self._found = found
        names = understood.header
        self._label = names.index(wanted.label) if wanted.label is not None else None
        self._stream = names.index(wanted.stream_column) if wanted.stream_column else None
        self._empty = [i for i, each in enumerate(understood.columns) if each.kind == "empty"]
        self._orders: dict[str, RowOrder] = {}
        self._seen: dict[str, None] = {}
        self._early: list[tuple[tuple[int, list[str]], float]] = []
        self._early_max = len(understood.sample)

    def row(self, line: int, cells: list[str], now: float | None) -> None:
        found = self._found
        found.rows += 1
        found.first_line = found.first_line or line
        found.last_line = line
        if self._label is not None:
            self._class(line, cells[self._label])
        for column in self._empty:
            if not self._understood.markers.is_missing(cells[column]):
                name = self._understood.columns[column].name
                raise InputError(
                    f"line {line}, column {name!r} of {self._understood.name} is "
                    f"{shown(cells[column])}, but the rows before have no value in this column; "
                    "say with --columns which columns to learn"
                )
        key = cells[self._stream] if self._stream is not None else ""
        if self._stream is not None:
            self._seen.setdefault(key)
        time = self._understood.time
        if time is None or now is None:
            return
        if key not in self._orders:
            self._orders[key] = RowOrder(time, self._wanted.gap_seconds)
        self._orders[key].add(line, now, cells)
        if len(self._early) < self._early_max:
            self._early.append(((line, cells), now))

    def _class(self, line: int, text: str) -> None:
        classes = self._wanted.classes
        if self._understood.markers.is_missing_class(text):
            return
        if classes is not None and text not in classes:
            known = join_names(sorted(classes))
            way = (
                f"--new-classes learns it as {OTHER_CLASS!r}"
                if OTHER_CLASS in classes
                else "a new --model with --classes, or with --new-classes, has room for it"
            )
            raise InputError(
                f"line {line}, column {self._wanted.label!r} of {self._understood.name} is "
                f"{text!r}, but the classes are {known}; --missing {shown(text)} takes it as a "
                f"missing class, {way}"
            )
        self._found.classes.add(text)

    def finish(self, options: ReadOptions) -> None:
        """Judge the order of all rows.

        Raises:
            InputError: rows must be sorted, are of several series, or the unit of times is wrong.
        """
        found, time = self._found, self._understood.time
        found.series = list(self._seen)
        if time is None or not self._orders:
            if self._wanted.gap_seconds is not None:
                raise InputError(
                    "--gap needs a column of times; name it with --time, and how times are written "
                    "with --time-format"
                )
            return
        for order in self._orders.values():
            order.finish()
        found.order = max(self._orders.values(), key=lambda each: each.rows)
        self._check_gap(found.order)
        if options.sort:
            return
        series = None
        if self._stream is None and (found.order.backwards or found.order.repeats):
            rows, seconds = zip(*self._early, strict=True)
            series = series_column(self._understood.header, rows, seconds, time.columns)
        for order in self._orders.values():
            problem, notes = problem_of(order, series)
            if problem is not None:
                raise InputError(f"{self._understood.name}, {problem}")
            found.notes += notes
        if self._wanted.gap_seconds is not None:
            found.notes.append(_gaps_text(self._orders.values(), self._wanted.gap_seconds))
        if order_unknown := self._order_unknown():
            found.notes.append(order_unknown)

    def _order_unknown(self) -> str | None:
        time = self._understood.time
        if time is None or not time.rivals:
            return None
        line, cells = self._understood.sample[0]
        orders = [time.format.order, *(each.order for each in time.rivals)]
        text = (
            f"times of column {time.name} of {self._understood.name} can be read in more than one "
            f"way: {' or '.join(orders)}, as in line {line}: {shown(time.cell(cells))}; say which "
            f"with --time-format, such as --time-format {orders[0].replace(' ', '-')}"
        )
        if self._wanted.gap_seconds is not None:
            raise InputError(text)
        return text

    def _check_gap(self, order: RowOrder) -> None:
        gap = self._wanted.gap_seconds
        time = self._understood.time
        if gap is None or time is None or order.steps.count < 2:
            return
        median = order.steps.quantile(0.5)
        if abs(median) >= gap:
            raise InputError(
                f"--gap is {gap:g} seconds, but rows of {self._understood.name} are usually "
                f"{seconds_text(abs(median))} apart (column {time.name}, {time.format.label}), so "
                "each row would begin a new sequence; give a larger --gap, or the unit of the "
                "times with --time-format s, ms, us or ns"
            )


def _gaps_text(orders: Iterable[RowOrder], least: float) -> str:
    """A note on what --gap does to the rows."""
    gaps = sum(order.gaps for order in orders)
    begun = plural(gaps, "gap") if gaps else "no gap"
    end = ", each of which begins a new sequence" if gaps > 1 else ""
    end = ", which begins a new sequence" if gaps == 1 else end
    return f"{begun} of {seconds_text(least)} or more{end}"


def _judged(understood: Understood, sentinels: Sentinels, rows: int) -> list[str]:
    """Notes on numbers that may stand for missing values.

    Raises:
        InputError: one certainly does.
    """
    notes = []
    for each in sentinels.found(understood.markers):
        number = f"{each.number:g}"
        times = f"as in {each.count:,} of {rows:,} rows, " if each.count > 1 else ""
        text = (
            f"line {each.line}, column {each.column!r} of {understood.name} is {number}, {times}"
            f"far from the other values (nine of ten are from {each.low:g} to {each.high:g})"
        )
        way = f"--missing={number} takes it as a missing value"
        if each.is_certain:
            raise InputError(f"{text}; {way}, --not-missing={number} as a reading")
        notes.append(f"{text}; it is learned as a reading, {way}")
    return notes


# ---------------------------------------------------------------------- the summary


def summary(
    understood: Understood, found: Survey, wanted: Wanted, *, is_live: bool = False
) -> Iterator[str]:
    """What was understood, in a few lines for people.

    Args:
        understood: of the first rows.
        found: in all rows, or in the first ones of a live input.
        wanted: what is learned.
        is_live: more rows may come.
    """
    dialect, numbers = understood.dialect, understood.numbers
    parts = [understood.packing] if understood.packing else []
    parts.append(f"{understood.encoding.name} ({understood.encoding.why})")
    if understood.line_end:
        parts.append(f"lines end in {LINE_ENDS.get(understood.line_end, 'CR LF')}")
    parts.append(f"delimiter {NAMES.get(dialect.delimiter, repr(dialect.delimiter))}")
    parts.append(f"decimal mark {numbers.decimal!r}")
    if numbers.thousands:
        parts.append(f"{numbers.thousands!r} between thousands")
    where = f"header in line {dialect.title_line}" if dialect.title_line else "no header"
    yield f"{understood.name}: {', '.join(parts)}; {where}"
    for text in dialect.left_out:
        yield f"left out: {text}"
    yield _time_line(understood, found)
    what = [*wanted.columns, *([wanted.label] if wanted.label else [])]
    yield f"learned: {join_names(list(map(repr, what)))}"
    for name, reason in understood.left_out.items():
        if name not in what:
            yield f"column {name!r} is left out: {reason}"
    yield from _missing_lines(found)
    if not is_live:
        yield f"rows: {found.rows:,} (lines {found.first_line:,} to {found.last_line:,})"
    yield from skipped_lines(found.skipped)
    if found.bad:
        rows = "1 row" if found.bad == 1 else f"{found.bad:,} rows"
        yield f"left out because they cannot be read: {rows}, the first: {found.bad_first}"
    for note in (*understood.notes, *found.notes):
        yield f"note: {note}"


def _time_line(understood: Understood, found: Survey) -> str:
    time = understood.time
    if time is None:
        return "time: none, rows are taken in the file's order"
    line, cells = understood.sample[0]
    text = f"time: {time.name} as {time.format.label} (line {line}: {time.cell(cells)})"
    if time.why and time.why != "--time":
        text += f", {time.why}"
    if time.zone is not None:
        text += f", in {time.zone}"
    if found.order is not None and found.order.steps.count:
        steps = found.order.steps
        low, median, high = (steps.quantile(share) for share in (0.1, 0.5, 0.9))
        text += f", step {seconds_text(median)}"
        if not np.isclose(low, high, rtol=0.01):
            text += f" (eight of ten from {seconds_text(low)} to {seconds_text(high)})"
    return text


def _missing_lines(found: Survey) -> Iterator[str]:
    """One line a column that lacks values."""
    columns: dict[str, Counter[str]] = {}
    for (name, text), count in found.missing.items():
        columns.setdefault(name, Counter())[text] += count
    for name, texts in columns.items():
        shares = [
            f"{shown(text) if text else 'empty'} ({count:,})"
            for text, count in texts.most_common(_MARKERS_SHOWN)
        ]
        yield f"missing in column {name!r}: {join_names(shares)}"


def skipped_lines(skipped: Counter[str]) -> Iterator[str]:
    """Lines that are no rows, or rows that are not as the others."""
    for reason, count in skipped.items():
        if reason == "has no line end yet":
            yield (
                "note: the last line has no line end, so it may not be whole: it waits for the "
                "next run; end it with a line end if the file is complete"
            )
        elif reason == "time not read":
            yield f"note: {count:,} rows have a time that cannot be read"
        else:
            yield f"lines left out because each {reason}: {count:,}"
