"""What a stream remembers of its source, and what a later run makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bptt.cli.data.known_rows import compare_file, LiveRows, ReadBatches
from bptt.cli.data.options import ReadOptions
from bptt.cli.data.source import Batch
from bptt.cli.data.trail import Known, LAST_ROWS, Trail, TRAIL_BYTES_MAX
from tests.support.tables import read, write

Values = NDArray[np.float64]
START = 1_700_000_000.0


def batch(values: Values, seconds: Values | None = None, line: int = 2) -> Batch:
    times = [] if seconds is None else [str(now) for now in seconds]
    last = line + len(values) - 1
    return Batch(values, line, last, 0, 0, seconds=seconds, times=times)


def walk(rows: int, seed: int = 0) -> Values:
    steps = np.random.default_rng(seed).normal(size=(rows, 2))
    values: Values = steps.cumsum(axis=0)
    return values


def minutes(rows: int, first: int = 0) -> Values:
    return np.arange(first, first + rows, dtype=np.float64) * 60.0 + START


def known(values: Values, seconds: Values | None = None, size: int = 7) -> Known:
    trail = Trail()
    for first in range(0, len(values), size):
        part = None if seconds is None else seconds[first : first + size]
        trail.add(batch(values[first : first + size], part))
    found = Known.read(trail.position())
    assert found is not None
    return found


def reading(values: Values, seconds: Values | None = None) -> ReadBatches:
    def read(rows_max: int, emit: Callable[[Batch], None]) -> None:
        for first in range(0, len(values), 5):
            part = None if seconds is None else seconds[first : first + 5]
            emit(batch(values[first : first + 5], part, line=first + 2))

    return read


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
def test_a_trail_does_not_depend_on_how_rows_are_cut(rows: int, one: int, other: int) -> None:
    values, seconds = walk(rows), minutes(rows)
    assert known(values, seconds, one) == known(values, seconds, other)


def test_a_trail_of_many_rows_fits_a_source_position() -> None:
    trail = Trail()
    trail.steps = [b"abc"] * 32
    assert len(trail.position()) <= TRAIL_BYTES_MAX
    assert Known.read(trail.position()) is not None
    for other in (b"", b"orders-7: 1234", b"\x02" + trail.position()[1:], b"\x01" * 60):
        assert Known.read(other) is None


@pytest.mark.parametrize(
    ("first", "second", "options"),
    [
        ("31.12.2023 22:00", "31.12.2023 23:00", ReadOptions()),
        ("1/13/2024 9:45 PM", "1/13/2024 10:15 PM", ReadOptions(time_zone="Europe/Berlin")),
        ("2024-01-01T00:00:00+02:00", "2024-01-01T00:00:10+02:00", ReadOptions()),
        ("1700000000000", "1700000010000", ReadOptions()),
        ("9:30", "9:35", ReadOptions()),
        ("3 days 00:00:01", "3 days 00:00:02", ReadOptions()),
        ("07|01|2024", "08|01|2024", ReadOptions(time_format="%d|%m|%Y", time="time")),
        ("2024-01-01 00:00", "2024-01-02 00:00", ReadOptions(time_zone="-05:00")),
    ],
)
def test_a_stream_remembers_how_its_source_writes_times(
    tmp_path: Path, first: str, second: str, options: ReadOptions
) -> None:
    batches: list[Batch] = []
    path = write(tmp_path, f"time;v\n{first};1.5\n{second};2\n")
    times = read(path, options=options, emit=batches.append).found.step_times
    assert times is not None
    trail = Trail(times)
    trail.add(batches[0])
    assert len(trail.position()) <= TRAIL_BYTES_MAX
    told = Known.read(trail.position())
    assert told is not None
    assert told.last_time == second
    assert told.times is not None
    assert told.times.forecast(told.seconds, 3) == times.forecast(told.seconds, 3)
    assert told.times.format.is_moment == times.format.is_moment


# ---------------------------------------------------------------------- files


@given(st.integers(1, 200), st.integers(0, 50))
@settings(max_examples=50)
def test_a_file_that_has_grown_begins_with_what_is_known(rows: int, more: int) -> None:
    values = walk(rows + more)
    found = compare_file(known(values[:rows]), reading(values), is_moment=False)
    assert (found.outcome, found.skip) == ("same", rows)


@given(st.integers(1, 200), st.data())
@settings(max_examples=100)
def test_an_edited_row_is_found_among_few(rows: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, rows - 1))
    values = walk(rows)
    edited = values.copy()
    edited[place, 1] += 0.01
    found = compare_file(known(values), reading(edited), is_moment=False)
    # Where the last rows are the same and in the same place, what follows them is new.
    goes_on = place < rows - LAST_ROWS
    assert (found.outcome, found.skip) == (("edited", rows) if goes_on else ("different", 0))
    assert found.rows[0] <= place + 1 <= found.rows[1]
    assert found.lines[0] <= place + 2 <= found.lines[1]


def test_a_file_with_later_rows_only_goes_on() -> None:
    before = known(walk(50), minutes(50))
    later = compare_file(before, reading(walk(30, 1), minutes(30, 50)), is_moment=True)
    assert (later.outcome, later.skip) == ("later", 0)
    overlapping = compare_file(before, reading(walk(30, 1), minutes(30, 49)), is_moment=True)
    assert (overlapping.outcome, overlapping.rows, overlapping.lines) == (
        "different",
        (1, 1),
        (2, 2),
    )
    no_moments = compare_file(before, reading(walk(30, 1), minutes(30, 50)), is_moment=False)
    assert no_moments.outcome == "different"


def test_a_file_whose_head_was_cut_off_goes_on_where_the_known_rows_end() -> None:
    values = walk(100)
    found = compare_file(known(values[:60]), reading(values[40:]), is_moment=False)
    assert (found.outcome, found.skip) == ("moved", 20)
    constant = np.ones((100, 2))
    twice = np.concatenate([[[5.0, 5.0]], constant])
    assert compare_file(known(constant), reading(twice), is_moment=False).outcome == "different"


def test_a_file_that_is_the_beginning_of_what_is_known_is_shorter() -> None:
    values = walk(100)
    found = compare_file(known(values), reading(values[:70]), is_moment=False)
    assert (found.outcome, found.skip) == ("shorter", 70)


# ---------------------------------------------------------------------- live


def fed(live: LiveRows, values: Values, seconds: Values | None = None, size: int = 3) -> Values:
    new: list[Values] = [np.zeros((0, 2))]
    for first in range(0, len(values), size):
        part = None if seconds is None else seconds[first : first + size]
        for each in live.take(batch(values[first : first + size], part)):
            new.append(each.values.astype(np.float64))
    return np.concatenate(new)


def test_known_rows_of_a_live_source_are_skipped_by_time() -> None:
    values, seconds = walk(40), minutes(40)
    seconds[18:21] = seconds[20]  # three rows of one time, of which the stream has two
    said: list[str] = []
    before = known(values[:20], seconds[:20])
    live = LiveRows(before, said.append, is_moment=True)
    np.testing.assert_array_equal(fed(live, values[5:], seconds[5:]), values[20:])
    assert live.skipped == 15
    assert len(said) == 1


def test_other_rows_that_are_skipped_by_time_are_told() -> None:
    said: list[str] = []
    live = LiveRows(known(walk(20), minutes(20)), said.append, is_moment=True)
    assert len(fed(live, walk(30, 1), minutes(30))) == 10
    assert "not those that the stream has" in said[-1]


def test_a_time_before_an_earlier_one_tells_nothing() -> None:
    seconds = minutes(20)
    seconds[-1] = seconds[3]
    values = walk(20)
    live = LiveRows(known(values, seconds), lambda text: None, is_moment=True)
    assert len(fed(live, values, seconds)) == 0
    assert live.skipped == 20


@given(st.integers(1, 100), st.integers(0, 30), st.integers(1, 20))
@settings(max_examples=50)
def test_known_rows_of_a_live_source_without_times_are_skipped(
    rows: int, more: int, size: int
) -> None:
    values = walk(rows + more)
    live = LiveRows(known(values[:rows]), lambda text: None, is_moment=False)
    np.testing.assert_array_equal(fed(live, values, size=size), values[rows:])
    assert live.skipped == rows


@given(st.integers(1, 100), st.data())
@settings(max_examples=50)
def test_a_live_source_that_differs_is_new_from_its_first_row(
    rows: int, data: st.DataObject
) -> None:
    values = walk(rows)
    other = np.concatenate([values, walk(5, 1)])
    other[data.draw(st.integers(0, rows - 1)), 0] += 1
    live = LiveRows(known(values), lambda text: None, is_moment=False)
    np.testing.assert_array_equal(fed(live, other), other)
    assert live.skipped == 0
