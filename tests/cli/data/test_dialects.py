"""Layouts that people's files have: delimiters, marks in numbers, encodings, headers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bptt.cli.data.columns import match_names, split_names
from bptt.cli.data.numbers import NumberFormat
from bptt.cli.data.options import ReadOptions
from bptt.cli.data.problem import InputError
from bptt.cli.data.records import QUOTED_LINES_MAX, Records
from tests.support.tables import read, write

ROWS = 40


def iso(place: int) -> str:
    return f"2024-01-{1 + place // 24:02d} {place % 24:02d}:00:00"


def rows(form: Callable[[int], str]) -> str:
    return "".join(form(place) + "\n" for place in range(ROWS))


def german(value: float) -> str:
    return f"{value:.2f}".replace(".", ",")


def table(sign: str, header: str = "time{s}temp{s}hum", decimal: str = ".") -> str:
    def row(place: int) -> str:
        cells = [iso(place), f"{place * 1.25:.2f}", f"{place * 0.5 + 0.5:.1f}"]
        return sign.join([cells[0], *(cell.replace(".", decimal) for cell in cells[1:])])

    return header.replace("{s}", sign) + "\n" + rows(row)


EXPECTED = np.array([[place * 1.25, place * 0.5 + 0.5] for place in range(ROWS)])


@pytest.mark.parametrize("sign", [",", ";", "\t", "|", "^", "~", "\x1f"])
def test_the_delimiter_splits_header_and_rows_alike(tmp_path: Path, sign: str) -> None:
    found = read(write(tmp_path, table(sign)))
    assert found.understood.dialect.delimiter == sign
    np.testing.assert_array_equal(found.values, EXPECTED)


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_a_decimal_comma_is_told_from_the_cells(tmp_path: Path, sign: str) -> None:
    found = read(write(tmp_path, table(sign, decimal=",")))
    assert found.understood.numbers == NumberFormat(",", "")
    np.testing.assert_array_equal(found.values, EXPECTED)


def test_columns_may_be_set_apart_by_blanks(tmp_path: Path) -> None:
    text = "time temp   hum\n" + rows(lambda i: f"{iso(i)}  {i * 1.25:6.2f} {i * 0.5 + 0.5:.1f}")
    found = read(write(tmp_path, text))
    np.testing.assert_array_equal(found.values, EXPECTED)
    assert found.time_label == "%Y-%m-%d %H:%M:%S"
    wide = "Date Time            temp  hum\n" + rows(
        lambda i: f"{iso(i)}  {i * 1.25:.2f}    {i * 0.5 + 0.5:.1f}"
    )
    found = read(write(tmp_path, wide))
    assert found.understood.header == ["Date Time", "temp", "hum"]
    np.testing.assert_array_equal(found.values, EXPECTED)


@pytest.mark.parametrize(
    ("text", "decimal", "thousands"),
    [
        (lambda v: f"{v:,.2f}", ".", ","),
        (lambda v: f"{v:,.2f}".translate(str.maketrans(",.", ".,")), ",", "."),
        (lambda v: f"{v:,.2f}".replace(",", "'"), ".", "'"),
        (lambda v: f"{v:,.2f}".translate(str.maketrans(",.", "\u202f,")), ",", " "),
        (lambda v: f"{v:,.2f}".translate(str.maketrans(",.", "\u00a0,")), ",", " "),
    ],
)
def test_thousands_are_told_from_the_cells(
    tmp_path: Path, text: Callable[[float], str], decimal: str, thousands: str
) -> None:
    values = [place * 987.25 for place in range(ROWS)]
    body = rows(lambda i: f"{iso(i)};{text(values[i])}")
    found = read(write(tmp_path, "time;power\n" + body))
    assert found.understood.numbers == NumberFormat(decimal, thousands)
    assert found.values[:, 0].tolist() == values


def test_what_can_be_decimals_or_thousands_is_refused_until_it_is_said(tmp_path: Path) -> None:
    text = "time;v\n" + rows(lambda i: f"{iso(i)};{i + 20}" if i % 2 else f"{iso(i)};{i + 1}.125")
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=r"line 2, column 'v'.*--decimal '\.'"):
        read(path)
    assert read(path, options=ReadOptions(decimal=".")).values[0, 0] == 1.125
    assert read(path, options=ReadOptions(thousands=".")).values[0, 0] == 1125


def test_points_and_commas_in_one_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a;b\n" + rows(lambda i: f"{i},5;{i}.25"))
    with pytest.raises(InputError, match=r"line 2, column 'a'.*line 2, column 'b'.*--decimal"):
        read(path)


def test_commas_that_are_both_marks_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "Zeit,T,F\n" + rows(lambda i: f"{iso(i)},{i},25,{i},5"))
    with pytest.raises(InputError, match=r"line 1 .* 3 .* line 2 has 5 values.*--delimiter"):
        read(path)


def test_quoted_decimal_commas_are_read(tmp_path: Path) -> None:
    text = "Zeit,T\n" + rows(lambda i: f'{iso(i)},"{german(i * 1.25)}"')
    assert read(write(tmp_path, text)).values[:, 0].tolist() == EXPECTED[:, 0].tolist()


@pytest.mark.parametrize(
    ("header", "titles"),
    [
        ("# time, temp, hum", ["time", "temp", "hum"]),
        ("# a logger\n#\n#time,temp,hum", ["time", "temp", "hum"]),
        ("# time,temp,hum\n# UTC,°C,%", ["time", "temp", "hum"]),
        ("time,%RH,//x", ["time", "%RH", "//x"]),
        ("%RH,temp,hum", ["%RH", "temp", "hum"]),
        ('time,"Temp\n(°C)",hum', ["time", "Temp (°C)", "hum"]),
        ("time,Inside,\n,Temp,Hum", ["time", "Inside Temp", "Inside Hum"]),
        ("time,temp,temp", ["time", "temp", "temp.2"]),
        ("time,10,20", ["time", "10", "20"]),
        ("Logger ACME\nSerial: 12\n\ntime,temp,hum\n[s],[°C],[%]", ["time", "temp", "hum"]),
        ("time,temp,hum,", ["time", "temp", "hum"]),
        ("Station,Roof,x\nSerial,1234,y\ntime,temp,hum", ["time", "temp", "hum"]),
        ("sep=,\ntime,temp,hum", ["time", "temp", "hum"]),
        ("\n\n\ntime,temp,hum", ["time", "temp", "hum"]),
        ("'time','temp','hum'", ["'time'", "'temp'", "'hum'"]),
    ],
)
def test_headers_of_all_kinds(tmp_path: Path, header: str, titles: list[str]) -> None:
    found = read(write(tmp_path, header + "\n" + table(",").partition("\n")[2]))
    assert found.understood.header == titles
    assert found.understood.numeric == titles[1:]
    np.testing.assert_array_equal(found.values, EXPECTED)


def test_a_column_without_a_title_or_values_is_left_out(tmp_path: Path) -> None:
    text = ",time,temp,\n" + rows(lambda i: f"{i},{iso(i)},{i * 1.25},")
    found = read(write(tmp_path, text))
    assert found.understood.left_out == {
        "column 1": "without a title",
        "time": "a time",
        "column 4": "without values",
    }
    one_title_less = '"time","temp"\n' + rows(lambda i: f'"{i + 1}","{iso(i)}",{i * 1.25}')
    assert read(write(tmp_path, one_title_less)).understood.numeric == ["temp"]


def test_ids_and_counters_are_not_learned_unless_they_are_asked_for(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "time,station,RECORD,n,on,temp\n"
        + rows(lambda i: f"{iso(i)},00412,{i * 2},{i + 7},{'TRUE' if i % 3 else 'FALSE'},{i}.5"),
    )
    found = read(path)
    assert found.understood.numeric == ["on", "temp"]
    assert found.values[:4, 0].tolist() == [0, 1, 1, 0]
    assert found.understood.left_out["station"] == "an id with leading zeros"
    assert found.understood.left_out["RECORD"] == "it numbers the rows"
    assert read(path, columns=["station", "n"]).values[1].tolist() == [412, 8]
    alone = write(tmp_path, "time,n\n" + rows(lambda i: f"{iso(i)},{i + 7}"))
    assert read(alone).understood.numeric == ["n"]


@pytest.mark.parametrize(
    ("codec", "title"),
    [
        ("utf-8-sig", "Temp °C"),
        ("utf-16", "Temp °C"),
        ("utf-16-le", "Temp °C"),
        ("utf-16-be", "Temp °C"),
        ("utf-32", "Temp °C"),
        ("cp1252", "Außen – Grad °C µ"),
        ("latin-1", "Température extérieure m³"),
    ],
)
def test_encodings_are_told_from_the_bytes(tmp_path: Path, codec: str, title: str) -> None:
    text = f"time;{title}\n" + rows(lambda i: f"{iso(i)};{i * 1.25}")
    found = read(write(tmp_path, text.encode(codec)))
    assert found.understood.numeric == [title]


@pytest.mark.parametrize(
    ("codec", "title"),
    [
        ("cp1251", "Температура"),
        ("cp850", "Temp °C"),
        ("mac_roman", "Temp °C"),
        ("shift_jis", "温度計"),
    ],
)
def test_an_encoding_that_cannot_be_told_is_refused_until_it_is_said(
    tmp_path: Path, codec: str, title: str
) -> None:
    text = f"time;{title}\n" + rows(lambda i: f"{iso(i)};{i * 1.25}")
    path = write(tmp_path, text.encode(codec))
    with pytest.raises(InputError, match=r"line 1 .*--encoding") as refused:
        read(path)
    assert title in str(refused.value)
    assert read(path, options=ReadOptions(encoding=codec)).understood.numeric == [title]


def test_bytes_that_are_not_of_the_encoding_are_named_by_line(tmp_path: Path) -> None:
    late = b"a,b\n" + b"1.5,2\n" * 300_000 + b"2.5,\xb0\n"
    with pytest.raises(InputError, match=r"line 300002 .*0xb0.*--encoding"):
        read(write(tmp_path, late))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_lines_end_in_any_way(tmp_path: Path, end: str) -> None:
    found = read(write(tmp_path, table(",").replace("\n", end)))
    np.testing.assert_array_equal(found.values, EXPECTED)
    assert (found.found.first_line, found.found.last_line) == (2, ROWS + 1)


def test_lines_that_are_no_data_are_left_out_and_counted(tmp_path: Path) -> None:
    text = table(",")
    header = text.partition("\n")[0]
    found = read(write(tmp_path, text + "# restarted\n" + header + "\n,,\n\n" + "#N/A,1,2\n"))
    assert len(found.values) == ROWS + 1
    for reason in ("is a comment", "repeats the header", "holds no value", "is blank"):
        assert f"each {reason}: 1" in found.text


def test_a_footer_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, table(",") + "Total rows: 40\n")
    with pytest.raises(InputError, match=r"line 42 .*'Total rows: 40'.*--comment"):
        read(path)
    assert len(read(path, options=ReadOptions(comment="Total")).values) == ROWS


@pytest.mark.parametrize("word", ["OVL", "Calib", "12 V", "(3.5)"])
def test_unknown_words_in_numbers_are_refused_until_they_are_said(
    tmp_path: Path, word: str
) -> None:
    text = table(",").replace(",0.00,", f",{word},", 1)
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=r"line 2, column 'temp'.*--missing"):
        read(path)
    found = read(path, options=ReadOptions(missing=(word,)))
    assert np.isnan(found.values[0, 0])
    assert np.isfinite(found.values[1:]).all()


@pytest.mark.parametrize("number", [-200, -9999, -99, 9999, -999])
def test_numbers_that_recur_far_from_all_others_are_refused_until_they_are_said(
    tmp_path: Path, number: int
) -> None:
    text = "time,a\n" + rows(lambda i: f"{iso(i)},{number if i % 9 == 4 else 20 + i * 0.25}")
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=rf"line 6, column 'a'.*{number}.*--missing"):
        read(path)
    assert np.isnan(read(path, options=ReadOptions(missing=(str(number),))).values[4, 0])
    assert read(path, options=ReadOptions(not_missing=(str(number),))).values[4, 0] == number


def test_one_number_that_no_sensor_reads_is_refused_until_it_is_said(tmp_path: Path) -> None:
    text = "time,a\n" + rows(lambda i: f"{iso(i)},{-9999 if i == 9 else 20 + i * 0.25}")
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=r"line 11, column 'a'.* is -9999, far.*--missing=-9999"):
        read(path)
    assert np.isnan(read(path, options=ReadOptions(missing=("-9999",))).values[9, 0])
    assert read(path, options=ReadOptions(not_missing=("-9999",))).values[9, 0] == -9999


@pytest.mark.parametrize("number", [65535, 999, -99])
def test_one_spike_or_numbers_among_others_are_values(tmp_path: Path, number: int) -> None:
    once = "time,a\n" + rows(lambda i: f"{iso(i)},{number if i == 9 else 20 + i * 0.25}")
    found = read(write(tmp_path, once))
    assert found.values[9, 0] == number
    assert f"note: line 11, column 'a' of {found.understood.name} is {number}, " in found.text
    assert f"--missing={number} takes it" in found.text
    among = "time,a\n" + rows(lambda i: f"{iso(i)},{number + (i % 7 - 3) * 10}.0")
    assert read(write(tmp_path, among)).values.max() == number + 30


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('"Temp, °C",Hum', ["Temp, °C", "Hum"]),
        ("Temp, °C,Hum", ["Temp, °C", "Hum"]),
        ("Hum,Temp, °C", ["Hum", "Temp, °C"]),
        ("Hum", ["Hum"]),
    ],
)
def test_names_in_options_may_hold_commas(text: str, names: list[str]) -> None:
    assert match_names("--columns", split_names(text), ["Temp, °C", "Hum"]) == names


def test_a_name_that_appears_twice_in_an_option_is_an_error() -> None:
    with pytest.raises(InputError, match="'a' appears twice"):
        match_names("--columns", ["a", "b", "a"], ["a", "b"])


def test_a_stray_quote_takes_a_bounded_number_of_lines() -> None:
    problems: list[InputError] = []
    lines = ["1,2", '3,"4', *(f"{i},5" for i in range(200)), '6,"7"x', "8,9"]
    found = Records(lines, ",", '"', "", name="t", on_problem=problems.append)
    rows = list(found)
    assert rows[0] == (1, ["1", "2"])
    assert rows[1] == (QUOTED_LINES_MAX + 2, [str(QUOTED_LINES_MAX - 1), "5"])
    assert rows[-1] == (204, ["8", "9"])
    assert [str(each).partition(" of ")[0] for each in problems] == ["line 2", "line 203"]
    with pytest.raises(InputError, match="line 2 of t holds a quote"):
        list(Records(lines, ",", '"', "", name="t"))


@pytest.mark.parametrize("line", ["sep=xX", "sep=x", 'sep="', "sep=", "sep=;;x"])
def test_a_line_that_names_no_delimiter_is_no_sep_line(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, f"{line}\na,b\n1.5,2\n2.5,3\n0.5,7\n")
    try:
        found = read(path)
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert found.values.tolist() == [[1.5, 2], [2.5, 3], [0.5, 7]]
    assert not refusal or "line " in refusal
