"""Times in the forms that people's files have, and what they say of the order of rows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, UTC
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from bptt.cli.data.options import ReadOptions
from bptt.cli.data.problem import InputError
from bptt.cli.data.source import Batch
from tests.support.tables import Read, read, write

ROWS = 60
START = datetime(2023, 12, 29, 21, 0, tzinfo=UTC)


def when(place: int, minutes: int = 60) -> datetime:
    return START + timedelta(minutes=minutes * place)


def table(form: Callable[[int], str], title: str = "time", sign: str = ";") -> str:
    return f"{title}{sign}v\n" + "".join(f"{form(i)}{sign}{i % 7}.5\n" for i in range(ROWS))


def first_moment(found: Read) -> float:
    assert found.found.order is not None
    return found.found.order.first


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%dT%H:%M:%SZ",
        "%Y-%m-%dT%H:%M:%S.000+00:00",
        "%Y-%m-%d %H:%M:%S UTC",
        "%Y/%m/%d %H:%M",
        "%Y.%m.%d %H:%M:%S,000",
        "%d/%m/%Y %H:%M",
        "%m/%d/%Y %H:%M",
        "%m/%d/%Y %I:%M:%S %p",
        "%d.%m.%Y %H:%M",
        "%d-%m-%Y %H:%M:%S",
        "%d/%m/%y %H:%M",
        "%y-%m-%d %H:%M",
        "%d-%b-%Y %H:%M:%S",
        "%d %B %Y %H:%M",
        "%b %d, %Y %I:%M %p",
        "%a, %d %b %Y %H:%M:%S GMT",
        "%d/%b/%Y:%H:%M:%S +0000",
        "%H:%M:%S %d/%m/%Y",
        "%Y%m%d%H%M%S",
        "%Y%m%dT%H%M%S",
        "%d.%m.%Y %H.%M",
    ],
)
def test_written_times_are_read_and_written_alike(tmp_path: Path, form: str) -> None:
    found = read(write(tmp_path, table(lambda i: when(i).strftime(form))))
    assert first_moment(found) == START.timestamp()
    assert found.found.order is not None
    assert (found.found.order.steps.quantile(0), found.found.order.steps.quantile(1)) == (3600,) * 2
    time = found.understood.time
    assert time is not None
    assert time.format.text(when(7).timestamp(), None) == when(7).strftime(form)


@pytest.mark.parametrize(
    ("unit", "label"), [(1, "s"), (1e3, "ms"), (1e6, "us"), (1e9, "ns")]
)  # fmt: skip
def test_numbers_since_1970_are_read_in_their_unit(tmp_path: Path, unit: float, label: str) -> None:
    text = table(lambda i: f"{int(when(i).timestamp()) * int(unit)}", "Timestamp")
    found = read(write(tmp_path, text), gap=7200)
    assert found.time_label == f"{label} since 1970"
    assert first_moment(found) == START.timestamp()
    assert found.sequences == 0
    assert found.understood.time is not None
    written = found.understood.time.format.text(when(3).timestamp(), None)
    assert int(written) == int(when(3).timestamp()) * int(unit)


def test_days_of_a_spreadsheet_are_read(tmp_path: Path) -> None:
    text = table(lambda i: f"{when(i).timestamp() / 86400 + 25569:.8f}", "Date")
    found = read(write(tmp_path, text))
    assert found.time_label == "days (excel)"
    assert first_moment(found) == pytest.approx(START.timestamp(), abs=0.01)


@pytest.mark.parametrize(
    ("title", "day", "clock"),
    [
        ("Date;Time", "%Y-%m-%d", "%H:%M:%S"),
        ("Datum;Uhrzeit", "%d.%m.%Y", "%H:%M"),
        ("Date;Time", "%m/%d/%Y", "%I:%M %p"),
        ("DATE;TIME", "%Y%m%d", "%H%M"),
        ("x;y", "%d/%m/%Y", "%H:%M:%S"),
    ],
)
def test_a_date_and_a_time_of_day_in_two_columns_are_one_time(
    tmp_path: Path, title: str, day: str, clock: str
) -> None:
    found = read(write(tmp_path, table(lambda i: when(i).strftime(f"{day};{clock}"), title)))
    assert first_moment(found) == START.timestamp()
    assert found.found.order is not None
    assert found.found.order.steps.quantile(1) == 3600
    assert found.understood.numeric == ["v"]


def test_year_month_day_and_hour_in_their_columns_are_one_time(tmp_path: Path) -> None:
    def form(place: int) -> str:
        now = when(place)
        return f"{place + 1};{now.year};{now.month};{now.day};{now.hour}"

    found = read(write(tmp_path, table(form, "No;year;month;day;hour")))
    assert first_moment(found) == START.timestamp()
    assert found.understood.numeric == ["v"]


def test_a_buoy_is_read(tmp_path: Path) -> None:
    head = "#YY  MM DD hh mm WDIR WSPD\n#yr  mo dy hr mn degT m/s\n"
    text = head + "".join(f"{when(i):%Y %m %d %H %M}  {i * 5 % 360} {i % 7}.5\n" for i in range(60))
    found = read(write(tmp_path, text))
    assert first_moment(found) == START.timestamp()
    assert found.understood.numeric == ["WDIR", "WSPD"]


def test_times_of_day_go_on_after_midnight(tmp_path: Path) -> None:
    found = read(write(tmp_path, table(lambda i: when(i).strftime("%H:%M:%S"))), gap=7200)
    assert found.time_label == "time of day"
    assert found.sequences == 0
    assert found.found.order is not None
    assert found.found.order.backwards == 0


@pytest.mark.parametrize(
    ("title", "form", "step"),
    [
        ("elapsed", lambda i: f"{i * 0.5:.1f}", 0.5),
        ("t_ms", lambda i: str(i * 100), 0.1),
        ("Time (min)", lambda i: str(i * 2), 120),
        ("year", lambda i: str(1950 + i), 365.2425 * 86400),
        ("time", lambda i: f"0 days 00:{i:02d}:00", 60),
        ("time", lambda i: f"{20 + i}:00:00", 3600),
    ],
)
def test_times_since_a_start_are_read(
    tmp_path: Path, title: str, form: Callable[[int], str], step: float
) -> None:
    found = read(write(tmp_path, table(form, title)))
    assert found.found.order is not None
    assert found.found.order.steps.quantile(0.5) == pytest.approx(step)
    assert found.understood.numeric == ["v"]


def test_day_or_month_first_is_decided_by_any_row_of_the_file(tmp_path: Path) -> None:
    rows = 12_000  # the first 10,000 are of one day
    start = datetime(2024, 4, 3)
    for form in ("%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S"):
        times = ((start + timedelta(seconds=8 * i)).strftime(form) for i in range(rows))
        found = read(write(tmp_path, "t,v\n" + "".join(f"{text},1.5\n" for text in times)))
        assert found.time_label == form


def test_day_or_month_first_that_no_row_decides_is_told_and_refused_for_gaps(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, table(lambda i: f"03/04/2024 00:{i:02d}"))
    assert "day first or month first" in read(path).text
    with pytest.raises(InputError, match=r"line 2.*'03/04/2024 00:00'.*--time-format"):
        read(path, gap=600)
    march = read(path, gap=600, options=ReadOptions(time_format="month-first"))
    assert first_moment(march) == datetime(2024, 3, 4, tzinfo=UTC).timestamp()
    april = read(path, gap=600, options=ReadOptions(time_format="%d/%m/%Y %H:%M"))
    assert first_moment(april) == datetime(2024, 4, 3, tzinfo=UTC).timestamp()


def test_a_gap_needs_times_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--gap needs a column of times.*--time-format"):
        read(write(tmp_path, table(lambda i: f"step {i}")), gap=60)
    bad = table(lambda i: "soon" if i == 50 else when(i).isoformat())
    with pytest.raises(InputError, match=r"line 52, column 'time'.*'soon'.*--time-format"):
        read(write(tmp_path, bad), gap=7200)
    assert "1 rows have a time that cannot be read" in read(write(tmp_path, bad)).text


def test_a_gap_that_makes_each_row_a_sequence_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, table(lambda i: str(60_000 * i), "elapsed"))
    with pytest.raises(InputError, match=r"usually 16.67 h apart.*--time-format s, ms"):
        read(path, gap=3600)
    found = read(path, gap=3600, options=ReadOptions(time_format="ms", time="elapsed"))
    assert found.sequences == 0


def test_steps_are_told_with_their_spread(tmp_path: Path) -> None:
    found = read(write(tmp_path, table(lambda i: str(1_700_000_000 + 60 * i + i * i % 23))))
    assert "step 60 s (eight of ten from" in found.text


def berlin(hours: list[tuple[int, int, int]], step: int = 10) -> str:
    """Local times without a zone, every ten minutes of hours (day, hour) in October or March."""
    lines = [
        f"2024-{month:02d}-{day:02d} {hour:02d}:{minute:02d},{minute}.5"
        for month, day, hour in hours
        for minute in range(0, 60, step)
    ]
    return "time,v\n" + "\n".join(lines) + "\n"


def test_an_hour_that_comes_twice_is_told_and_read_right_in_its_zone(tmp_path: Path) -> None:
    path = write(tmp_path, berlin([(10, 27, hour) for hour in (0, 1, 2, 2, 3, 4)]))
    plain = read(path)
    assert "run backwards at line 20" in plain.text
    assert "--time-zone" in plain.text
    found = read(path, gap=1200, options=ReadOptions(time_zone="Europe/Berlin"))
    assert found.found.order is not None
    assert (found.found.order.backwards, found.sequences) == (0, 0)
    first = datetime(2024, 10, 27, tzinfo=ZoneInfo("Europe/Berlin"))
    assert first_moment(found) == first.timestamp()


def test_an_hour_that_is_left_out_is_told_and_read_right_in_its_zone(tmp_path: Path) -> None:
    path = write(tmp_path, berlin([(3, 31, hour) for hour in (0, 1, 3, 4)]))
    assert "leap by an hour" in read(path).text
    found = read(path, gap=1200, options=ReadOptions(time_zone="Europe/Berlin"))
    assert found.sequences == 0
    without = write(tmp_path, berlin([(3, 31, hour) for hour in (0, 1, 2, 3)]))
    with pytest.raises(InputError, match=r"line 14.*02:00.*Europe/Berlin has no such time"):
        read(without, gap=1200, options=ReadOptions(time_zone="Europe/Berlin"))
    assert read(without, gap=1200, options=ReadOptions(time_zone="+01:00")).sequences == 0


def test_offsets_that_change_are_followed(tmp_path: Path) -> None:
    zone = ZoneInfo("Europe/Berlin")
    begin = datetime(2024, 10, 26, 20, tzinfo=UTC)
    text = table(lambda i: (begin + timedelta(minutes=10 * i)).astimezone(zone).isoformat())
    found = read(write(tmp_path, text), gap=1200)
    assert found.sequences == 0
    assert found.found.order is not None
    assert found.found.order.steps.quantile(1) == 600


# ---------------------------------------------------------------------- the order of rows


def stamped(places: list[int], extra: Callable[[int], str] = lambda i: f"{i % 7}.5") -> str:
    return "time,v\n" + "".join(f"{when(p)},{extra(i)}\n" for i, p in enumerate(places))


def test_rows_in_no_order_are_refused_and_sorted_if_told(tmp_path: Path) -> None:
    places = [i * 7 % 60 for i in range(60)]
    path = write(tmp_path, stamped(places, lambda i: f"{places[i]}.5"))
    with pytest.raises(InputError, match=r"line 11.*run backwards.*--sort"):
        read(path)
    found = read(path, options=ReadOptions(sort=True))
    assert found.values[:, 0].tolist() == [place + 0.5 for place in range(60)]
    assert read(path, options=ReadOptions(no_time=True)).values[1, 0] == 7.5


def test_a_clock_that_was_set_is_a_note(tmp_path: Path) -> None:
    found = read(write(tmp_path, stamped([*range(40), 38, *range(39, 60)])))
    assert "run backwards at line 42, by up to 60 min (once in all)" in found.text
    assert len(found.values) == 62


def test_times_coarser_than_rows_are_a_note(tmp_path: Path) -> None:
    found = read(write(tmp_path, stamped([i // 4 for i in range(60)])))
    assert "45 rows have the time of the row before them, the first in line 3" in found.text


@pytest.mark.parametrize("kind", ["interleaved", "one after another"])
def test_rows_of_several_series_are_refused_and_told_apart_if_told(
    tmp_path: Path, kind: str
) -> None:
    pairs = [(i, name) for i in range(30) for name in ("north", "south", "east")]
    if kind != "interleaved":
        pairs.sort(key=lambda pair: pair[1])
    text = "time,room,v\n" + "".join(f"{when(i)},{name},{i}.5\n" for i, name in pairs)
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=r"several series.*'room'.*--stream-column"):
        read(path)
    found = read(path, stream_column="room")
    assert sorted(found.found.series) == ["east", "north", "south"]


def test_a_run_that_starts_again_is_told_and_begins_a_sequence(tmp_path: Path) -> None:
    text = "elapsed,v\n" + "".join(f"{i % 30},{i % 7}.5\n" for i in range(60))
    path = write(tmp_path, text)
    found = read(path, gap=5)
    assert "start again at line 32" in found.text
    assert found.sequences == 1


def ahead(path: Path, steps: int, options: ReadOptions | None = None) -> tuple[str, str]:
    """The time of the last row as it is written again, and the time of a forecast after it."""
    batches: list[Batch] = []
    found = read(path, options=options, emit=batches.append)
    times = found.found.step_times
    assert times is not None
    last = batches[-1]
    assert last.seconds is not None
    assert len(last.seconds) == len(last.times) == len(last.values)
    now = float(last.seconds[-1])
    assert times.text(now) == last.times[-1]
    return last.times[-1], times.forecast(now, steps)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["2024-01-01 00:00:00", "2024-01-01 00:01:00"], "2024-01-01 00:06:00"),
        (["1/13/2024 9:45 PM", "1/13/2024 10:15 PM"], "1/14/2024 12:45 AM"),
        (["30.12.2023 23:00", "31.12.2023 01:00"], "31.12.2023 11:00"),
        (["2024-01-31", "2024-02-29", "2024-03-31"], "2024-08-31"),
        (["2023-10-01", "2024-01-01", "2024-04-01"], "2025-07-01"),
        (["2021", "2022", "2023"], "2028"),
        (["1700000000000", "1700000010000"], "1700000060000"),
        (["1700000000000000000", "1700000000250000000"], "1700000001500000000"),
        (["1700000000.25", "1700000000.50"], "1700000001.75"),
        (["23:30:00", "23:50:00"], "01:30:00"),
        (["9:58 PM", "9:59 PM"], "10:04 PM"),
        (["9:30", "9:35"], "10:00"),
        (["0 days 23:59:58", "0 days 23:59:59"], "1 days 00:00:04"),
        (["100:00:00", "101:00:00"], "106:00:00"),
        (["00:00:00.250", "00:00:00.500"], "00:00:01.750"),
        (["2024-01-01T00:00:00.000+01:00", "2024-01-01T00:00:10.000+01:00"],
         "2024-01-01T00:01:00.000+01:00"),
    ],
)  # fmt: skip
def test_a_forecast_has_its_time_in_the_files_own_format(
    tmp_path: Path, times: list[str], expected: str
) -> None:
    title = "year" if len(times[0]) == 4 and times[0].isdigit() else "time"
    rows = "".join(f"{time};1.5\n" for time in times)
    assert ahead(write(tmp_path, f"{title};v\n{rows}"), 5) == (times[-1], expected)


def test_a_forecast_over_a_day_of_25_hours_keeps_the_time_of_day(tmp_path: Path) -> None:
    text = "time;v\n2024-10-24 12:00;1\n2024-10-25 12:00;2\n2024-10-26 12:00;3\n"
    found = ahead(write(tmp_path, text), 2, ReadOptions(time_zone="Europe/Berlin"))
    assert found == ("2024-10-26 12:00", "2024-10-28 12:00")


def test_times_in_two_columns_are_forecast_with_a_blank_between(tmp_path: Path) -> None:
    text = "Date;Time;v\n1/2/2024;23:00:00;1\n1/2/2024;23:30:00;2\n1/3/2024;00:00:00;3\n"
    found = ahead(write(tmp_path, text), 3, ReadOptions(time_format="month-first"))
    assert found == ("1/3/2024 00:00:00", "1/3/2024 01:30:00")
