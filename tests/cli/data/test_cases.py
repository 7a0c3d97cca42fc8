"""Inputs in shapes that people's files have, each learned right or refused with a place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from bptt.cli.data.options import ReadOptions
from bptt.cli.data.problem import InputError
from tests.support.tables import read

CASES = Path(__file__).parent / "cases"
FIRST, LAST = (20.00, 57.63), (19.10, 46.94)
ISO = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True)
class Expected:
    """What a file must be understood as."""

    learned: list[str]
    time: str
    first: tuple[float, ...] = FIRST
    last: tuple[float, ...] = LAST
    rows: int = 1500
    says: list[str] = field(default_factory=list)


READ = {
    "c13_class_none.csv": Expected(["temp", "hum"], ISO),
    "c13b_class_ok.csv": Expected(["temp", "hum"], ISO),
    "c22_trunc_fields.csv": Expected(
        ["temp", "hum"], ISO, last=(22.79, 53.5), rows=800, says=["waits for the next run"]
    ),
    "c22b_trunc_number.csv": Expected(
        ["temp", "hum"], ISO, last=(22.79, 53.5), rows=800, says=["waits for the next run"]
    ),
    "c01_decimal_comma.csv": Expected(
        ["Temperatur", "Feuchte"], ISO, says=["decimal mark ','", "delimiter semicolon"]
    ),
    "c02_decimal_comma_first_whole.csv": Expected(
        ["Temperatur", "Feuchte"], ISO, first=(20, 50), says=["decimal mark ','"]
    ),
    "c12_pandas_index.csv": Expected(
        ["temp", "hum"], ISO, says=["column 'column 1' is left out: without a title"]
    ),
    "c07_header_commas.csv": Expected(
        ["Temperatur, °C", "Feuchte, %"], ISO, says=["delimiter semicolon"]
    ),
    "c07b_header_quoted_commas_tab.csv": Expected(
        ["Temp, °C (LGR S/N: 1, SEN S/N: 2)", "RH, % (LGR S/N: 1, SEN S/N: 2)"],
        ISO,
        says=["delimiter tab", "column '#' is left out: it numbers the rows"],
    ),
    "c09_sep_line.csv": Expected(["Temp", "Hum"], ISO, says=["sep=;", "header in line 2"]),
    "c10c_blank_first_semicolon.csv": Expected(["Temp", "Hum"], ISO, says=["header in line 2"]),
    "c34_pipe.csv": Expected(["temp", "hum"], ISO, says=["delimiter pipe"]),
    "c10_comments.csv": Expected(["Temp", "Hum"], ISO, says=["header in line 3"]),
    "c10b_toa5.csv": Expected(
        ["AirTC_Avg", "RH"],
        ISO,
        says=["header in line 2", "line 3: units", "'RECORD' is left out: it numbers the rows"],
    ),
    "c11_units_row.csv": Expected(["Temp", "Hum"], ISO, says=["line 2: units"]),
    "c08_utf16.csv": Expected(["Temp", "Hum"], ISO, says=["utf-16-le (byte order mark)"]),
    "c21_cr_only.csv": Expected(["temp"], ISO, FIRST[:1], LAST[:1], says=["lines end in CR,"]),
    "c21b.csv.zip": Expected(["temp"], ISO, FIRST[:1], LAST[:1], says=["zip"]),
    "c26_latin1.csv": Expected(["Temperatur °C", "Feuchte µg"], ISO, says=["cp1252"]),
    "c25_late_column.csv": Expected(
        ["temp", "hum"], ISO, first=(20.0, np.nan), says=["missing in column 'hum': empty (150)"]
    ),
    "c37b_err_first.csv": Expected(
        ["temp", "hum"], ISO, first=(20.0, np.nan), says=["missing in column 'hum': 'Err' (1)"]
    ),
    "c37d_hash_na.csv": Expected(["temp", "hum"], ISO, says=["'#N/A' (1)"]),
    "c37e_excel_div0.csv": Expected(["temp", "hum"], ISO, says=["'NaN' (1)", "'--' (1)"]),
    "c06_epoch_ms.csv": Expected(["temp", "hum"], "ms since 1970", says=["step 60 s"]),
    "c05_date_and_time.csv": Expected(["temp", "hum"], ISO, says=["'Date' + 'Time'"]),
}


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_right_and_told_how(name: str) -> None:
    expected = READ[name]
    found = read(CASES / name)
    assert found.understood.numeric == expected.learned
    assert found.time_label == expected.time
    assert len(found.values) == found.found.rows == expected.rows
    np.testing.assert_array_equal(found.values[0], expected.first)
    np.testing.assert_array_equal(found.values[-1], expected.last)
    for words in expected.says:
        assert words in found.text


@pytest.mark.parametrize(
    ("name", "label", "gaps"),
    [
        ("c04_household.csv", "%d/%m/%Y %H:%M:%S", 2),
        ("c31_us_dates.csv", "%m/%d/%Y %I:%M:%S %p", 2),
        ("c31b_jena_dates.csv", "%d.%m.%Y %H:%M:%S", 2),
        ("c31c_iso_gap.csv", ISO, 2),
        ("c31d_utc_suffix.csv", f"{ISO} %z", 2),
        ("c06_epoch_ms.csv", "ms since 1970", 0),
        ("c05_date_and_time.csv", ISO, 0),
    ],
)
def test_gaps_are_where_times_leap(name: str, label: str, gaps: int) -> None:
    found = read(CASES / name, gap=3600)
    assert found.time_label == label
    assert found.sequences == gaps
    assert found.found.order is not None
    assert found.found.order.gaps == gaps


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("c39_no_header.csv", ["line 1", "2024-01-01 00:00:00", "--no-header"]),
        ("c19_sentinel.csv", ["line 9, column 'temp'", "-9999", "240 of 12,000", "--missing"]),
        ("c33_newest_first.csv", ["line 3", "run backwards", "--sort"]),
        ("c33b_duplicate_rows.csv", ["line 3", "repeats", "--sort"]),
        ("c33c_long_format.csv", ["line 3", "several series", "--stream-column", "'sensor'"]),
    ],
)
def test_a_file_that_would_be_learned_wrong_is_refused_with_its_place(
    name: str, words: list[str]
) -> None:
    with pytest.raises(InputError) as refused:
        read(CASES / name)
    for word in words:
        assert word in str(refused.value)


def test_a_file_without_titles_is_read_if_told() -> None:
    found = read(CASES / "c39_no_header.csv", options=ReadOptions(no_header=True))
    assert found.understood.numeric == ["column 2", "column 3"]
    assert found.values.shape == (1500, 2)
    assert found.values[0].tolist() == list(FIRST)


def test_markers_that_are_numbers_are_missing_if_told() -> None:
    found = read(CASES / "c19_sentinel.csv", options=ReadOptions(missing=("-9999",)))
    assert int(np.isnan(found.values).sum()) == 240
    assert np.nanmin(found.values) > 0
    as_value = read(CASES / "c19_sentinel.csv", options=ReadOptions(not_missing=("-9999",)))
    assert as_value.values.min() == -9999


def test_rows_are_sorted_if_told() -> None:
    turned = read(CASES / "c33_newest_first.csv", options=ReadOptions(sort=True))
    assert turned.values[:, 0].tolist()[:3] == [20.00, 20.13, 20.17]
    single = read(CASES / "c33b_duplicate_rows.csv", options=ReadOptions(sort=True))
    assert len(single.values) == 1500
    assert single.values[:, 0].tolist()[:3] == [20.00, 20.13, 20.17]


def test_series_of_a_long_table_are_told_apart_if_told() -> None:
    found = read(CASES / "c33c_long_format.csv", columns=["value"], stream_column="sensor")
    assert found.found.series == ["1", "2"]


def test_a_class_may_be_called_none() -> None:
    found = read(CASES / "c13_class_none.csv", label="fault")
    assert "none" in found.found.classes
    assert not found.found.missing
