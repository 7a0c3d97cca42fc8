"""The order of rows in time.

Usual steps, gaps, and rows that run backwards, repeat, or are of several series.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, UTC

import numpy as np

from bptt.cli.data.problem import shown
from bptt.cli.data.times import TimeColumn

STEPS_KEPT_MAX = 65_536  # then every second one is let go of
JUMP = 10  # times the usual step: what is told to be a gap
CLOCK_SET_SECONDS = 7200.0  # a step back that a clock which is set, or daylight saving, explains
DISORDER_SHARE = 0.1  # of steps that may run back, or rows that may repeat, with a note only
SERIES_MAX = 1000
_EARLY_STEPS = 512  # from which the usual step is taken
_HOUR = 3600.0


@dataclass(slots=True)
class Steps:
    """Steps in time between rows, of which a bounded number is kept."""

    count: int = 0
    _kept: list[float] = field(default_factory=list)
    _every: int = 1

    def add(self, step: float) -> None:
        """Count a step."""
        if self.count % self._every == 0:
            self._kept.append(step)
            if len(self._kept) == STEPS_KEPT_MAX:
                self._kept = self._kept[::2]
                self._every *= 2
        self.count += 1

    def quantile(self, share: float) -> float:
        """Of the steps; NaN before the first."""
        return float(np.quantile(self._kept, share, method="nearest")) if self._kept else math.nan


@dataclass(slots=True)
class RowOrder:
    """Follows the times of all rows."""

    time: TimeColumn
    gap_seconds: float | None = None
    steps: Steps = field(default_factory=Steps)
    backwards: int = 0
    backwards_line: int = 0
    farthest_back: float = 0.0
    repeats: int = 0
    repeats_line: int = 0
    copies: int = 0
    """Rows that are the row before once more."""
    copies_line: int = 0
    gaps: int = 0
    """Steps of `gap_seconds` or more; without that, of JUMP times the usual step or more."""
    hours: int = 0
    """Steps that are an hour off on the days when clocks are set."""
    hours_line: int = 0
    rows: int = 0
    first: float = math.nan
    _last: float = math.nan
    _cells: list[str] = field(default_factory=list)
    _usual: float = math.nan
    _early: list[tuple[int, float, float]] = field(default_factory=list)

    def add(self, line: int, seconds: float, cells: list[str]) -> None:
        """Take the next row."""
        self.rows += 1
        if math.isnan(self._last):
            self.first = seconds
        else:
            self._step(line, seconds - self._last, cells)
        self._last = seconds
        self._cells = cells

    def _step(self, line: int, step: float, cells: list[str]) -> None:
        self.steps.add(step)
        if step < 0:
            self.backwards += 1
            self.backwards_line = self.backwards_line or line
            self.farthest_back = min(self.farthest_back, step)
        elif step == 0:
            self.repeats += 1
            self.repeats_line = self.repeats_line or line
            if cells == self._cells:
                self.copies += 1
                self.copies_line = self.copies_line or line
        if len(self._early) < _EARLY_STEPS and math.isnan(self._usual):
            self._early.append((line, self._last, step))
            if len(self._early) == _EARLY_STEPS:
                self.finish()
        else:
            self._judge(line, self._last, step)

    def finish(self) -> None:
        """Judge the first steps, once the usual step is known or no more rows come."""
        self._usual = self.steps.quantile(0.5)
        early, self._early = self._early, []
        for each in early:
            self._judge(*each)

    def _judge(self, line: int, before: float, step: float) -> None:
        """Whether a step is a gap, or an hour off."""
        if self.gap_seconds is not None:
            self.gaps += step >= self.gap_seconds
        elif self._usual > 0:
            self.gaps += step >= JUMP * self._usual
        if self._is_set_clock(before, step):
            self.hours += 1
            self.hours_line = self.hours_line or line

    def _is_set_clock(self, before: float, step: float) -> bool:
        """An hour too much, on a Sunday in spring."""
        if not self.time.format.is_moment or not 0 < self._usual < _HOUR:
            return False
        if abs(step - self._usual - _HOUR) > 0.01 * self._usual:
            return False
        when = datetime.fromtimestamp(before, UTC)
        return when.weekday() == 6 and when.month in (3, 4, 9, 10) and when.hour <= 4


def problem_of(order: RowOrder, series: str | None) -> tuple[str | None, list[str]]:
    """What keeps rows from being learned in their order, and notes on lesser things.

    Args:
        order: of all rows.
        series: the column that tells several series apart, if one does.

    Returns:
        An error's text or None, and the notes.
    """
    time, steps = order.time.name, max(1, order.steps.count)
    if series is not None:
        at = order.repeats_line or order.backwards_line
        return (
            f"line {at}: times of column {time} repeat or run backwards, because the rows seem to "
            f"be of several series, which column {series!r} tells apart; --stream-column "
            f"{shown(series)} learns each as a stream of its own"
        ), []
    if order.backwards > steps / 2:
        return (
            f"line {order.backwards_line}: times of column {time} run backwards, the newest row "
            "comes first; --sort learns the rows in the order of their times"
        ), []
    if order.copies > DISORDER_SHARE * steps and order.copies > 1:
        return (
            f"line {order.copies_line} repeats the line before it, as {order.copies:,} of "
            f"{order.rows:,} rows do; --sort sorts the rows by time and leaves repeated ones out"
        ), []
    notes = []
    if order.backwards and not order.time.format.is_moment:
        notes.append(
            f"times of column {time} start again at line {order.backwards_line} "
            f"({_times(order.backwards)} in all): with --gap each start begins a new sequence"
        )
    elif order.backwards:
        far = -order.farthest_back
        if order.backwards > DISORDER_SHARE * steps:
            return (
                f"line {order.backwards_line}: times of column {time} run backwards, "
                f"{_times(order.backwards)} in all, by up to {seconds_text(far)}; --sort learns "
                "the rows in the order of their times, --no-time in the order of the file"
            ), []
        cause = (
            ": a clock that was set, or daylight saving; --time-zone names the zone"
            if far <= CLOCK_SET_SECONDS
            else "; rows are learned in the file's order"
        )
        notes.append(
            f"times of column {time} run backwards at line {order.backwards_line}, by up to "
            f"{seconds_text(far)} ({_times(order.backwards)} in all){cause}, --sort sorts the rows"
        )
    elif order.hours and order.time.zone is None:
        notes.append(
            f"at line {order.hours_line} times of column {time} leap by an hour, as where clocks "
            "go forward; --time-zone, such as Europe/Berlin, names the zone"
        )
    if order.repeats:
        notes.append(
            f"{order.repeats:,} rows have the time of the row before them, the first in line "
            f"{order.repeats_line}; they are learned in the file's order"
        )
    return None, notes


def _times(many: int) -> str:
    return "once" if many == 1 else f"{many:,} times"


def seconds_text(seconds: float) -> str:
    """A duration for people."""
    for unit, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.4g} {name}"
    return f"{seconds:.6g} s"


def series_column(
    names: Sequence[str],
    rows: Sequence[tuple[int, list[str]]],
    seconds: Sequence[float],
    skip: Sequence[int],
) -> str | None:
    """The column that tells several series apart, if times grow within each of them only.

    Args:
        names: of all columns.
        rows: line numbers and cells of the first rows.
        seconds: their times.
        skip: columns of times.
    """
    steps = np.diff(np.asarray(seconds))
    is_mixed = len(steps) > 1 and (steps > 0).mean() <= 0.8 and not (steps < 0).all()
    if not is_mixed and not _is_chained(steps):
        return None
    best: tuple[int, str] | None = None
    moments = len(set(seconds))
    for column, name in enumerate(names):
        if column in skip:
            continue
        values = [cells[column] for _, cells in rows]
        kinds = len(set(values))
        if not 2 <= kinds <= min(SERIES_MAX, len(rows) // 2):
            continue
        # Either each time has a row of nearly every series, or the series follow one another.
        changes = sum(a != b for a, b in itertools.pairwise(values))
        if kinds * moments > 1.4 * len(rows) and changes != kinds - 1:
            continue
        if _grows_within(values, seconds) and (best is None or kinds < best[0]):
            best = kinds, name
    return best[1] if best else None


def _is_chained(steps: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
    """A few leaps back over most of the time that was covered: series one after another."""
    if len(steps) < 2 or not (steps < 0).any() or (steps < 0).mean() > 0.5:
        return False
    return bool(-steps.min() > 0.5 * steps[steps > 0].sum() / (1 + (steps < 0).sum()))


def _grows_within(values: Sequence[str], seconds: Sequence[float]) -> bool:
    last: dict[str, float] = {}
    for value, now in zip(values, seconds, strict=True):
        if value in last and now <= last[value]:
            return False
        last[value] = now
    return True
