"""Rows and batches: missing values, lines of errors, packed files, half-written last lines."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import math
import os
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bptt.cli.data.options import ReadOptions
from bptt.cli.data.problem import InputError, join_names
from bptt.cli.data.source import Batch
from bptt.cli.data.table import DataTable
from bptt.cli.data.understood import Choice, Understood
from tests.support import tables
from tests.support.tables import write

SMALL = b"a,b\n1.5,2\n3.5,4\n"


def understood(folder: Path, text: str | bytes) -> Understood:
    with DataTable(str(write(folder, text))) as table:
        return table.understand()


def read(folder: Path, text: str | bytes, *columns: str, rows: int = 64) -> list[Batch]:
    found: list[Batch] = []
    with DataTable(str(write(folder, text))) as table:
        known = table.understand()
        chosen = [known.index("--columns", name) for name in columns]
        table.read(Choice(columns=chosen), rows, found.append)
    return found


def test_columns_are_classified_as_numbers_times_or_text(tmp_path: Path) -> None:
    found = understood(tmp_path, "time,when,a,place,b\n2020-01-01,12:30,1.5,Oslo,-2e3\n")
    assert found.numeric == ["a", "b"]
    assert found.left_out == {"time": "a time", "when": "a time", "place": "text"}


def test_columns_without_values_or_numbers_are_left_out(tmp_path: Path) -> None:
    found = understood(tmp_path, "a,b,c\n,NA,\n,x,\n1,y,\n")
    assert found.numeric == ["a"]
    assert found.left_out == {"b": "text", "c": "without values"}


def test_batches_carry_their_line_numbers(tmp_path: Path) -> None:
    batches = read(tmp_path, "a,b\n1,2\n3,4\n5,6\n", "b", "a", rows=2)
    assert [batch.values.tolist() for batch in batches] == [[[2, 1], [4, 3]], [[6, 5]]]
    assert [(batch.first_line, batch.last_line) for batch in batches] == [(2, 3), (4, 4)]


@pytest.mark.parametrize(
    "missing", ["", " ", "NaN", "NA", "null", "nil", "n/a", "-", "#N/A", "#DIV/0!", "unavailable"]
)
def test_a_row_with_a_missing_value_is_left_out_and_counted(tmp_path: Path, missing: str) -> None:
    batches = read(tmp_path, f"a,b\n1,2\n{missing},4\n5,6\n", "a", "b")
    assert np.concatenate([batch.values for batch in batches]).tolist() == [[1, 2], [5, 6]]
    assert sum(batch.missing for batch in batches) == 1


def test_missing_values_in_other_columns_do_not_matter(tmp_path: Path) -> None:
    (batch,) = read(tmp_path, "a,b\n1,\n2,x\n", "a")
    assert batch.values.tolist() == [[1], [2]]


def test_rows_left_out_at_the_end_are_counted(tmp_path: Path) -> None:
    batches = read(tmp_path, "a\n1\nnan\n", "a", rows=1)
    assert sum(batch.missing for batch in batches) == 1


@pytest.mark.parametrize("word", ["abc", "1.5x", "inf", "-Infinity", "1e39", "1_000", "12:30"])
def test_text_is_an_error_with_line_and_column_after_the_rows_before_it(
    tmp_path: Path, word: str
) -> None:
    found: list[Batch] = []
    with DataTable(str(write(tmp_path, f'a,b\n1,2\n\n3,"{word}"\n5,6\n'))) as table:
        columns = [table.understand().index("--columns", "b")]
        with pytest.raises(InputError, match="line 4, column 'b'"):
            table.read(Choice(columns=columns), 64, found.append)
    assert [batch.values.tolist() for batch in found] == [[[2]]]


@pytest.mark.parametrize("row", ["1", "1,2,3"])
def test_a_row_with_another_number_of_values_is_an_error_with_its_line(
    tmp_path: Path, row: str
) -> None:
    with pytest.raises(InputError, match=r"line 4 .* but its header in line 1 has 2"):
        read(tmp_path, f"a,b\n1,2\n3,4\n{row}\n", "a")


def test_an_unknown_column_is_an_error_that_lists_the_columns(tmp_path: Path) -> None:
    found = understood(tmp_path, "temp,b\n1,2\n")
    with pytest.raises(InputError, match=r"--target.*'tmp'.*temp, b; did you mean 'temp'\?"):
        found.index("--target", "tmp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("1,2\n3,4\n", "has no header: line 1"),
        ("a,b\n", "no rows"),
        ("a,b", "line 1 .* no line end"),
        ('{"a": 1}\n', "JSON"),
        ("<html>\n", "HTML"),
        ("PAR1\x15\x04", "a Parquet file"),
        ("%PDF-1.4\n", "a PDF"),
    ],
)
def test_what_is_no_table_with_a_header_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        understood(tmp_path, text)


def test_a_cell_of_two_lines_is_one_cell(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbf"a";note;b\r\n1;"two\nlines; here";2\r\n3;x;4\r\n'
    assert understood(tmp_path, text).header == ["a", "note", "b"]
    assert read(tmp_path, text, "a", "b")[0].values.tolist() == [[1, 2], [3, 4]]


def test_a_quote_that_nothing_closes_is_an_error_with_its_line(tmp_path: Path) -> None:
    rows = "".join(f"{i}.5,{i}.25,{chr(34) + 'x' if i == 9 else 'y'}\n" for i in range(40))
    with pytest.raises(InputError, match=r"line 11 .* quote"):
        read(tmp_path, "a,b,note\n" + rows, "a")


def _zipped(data: bytes, *names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("packing", "data"),
    [
        ("gzip", gzip.compress(SMALL)),
        ("gzip", gzip.compress(SMALL[:10]) + gzip.compress(SMALL[10:])),
        ("xz", lzma.compress(SMALL)),
        ("bzip2", bz2.compress(SMALL)),
        ("zip", _zipped(SMALL, "a.csv")),
        ("zip", _zipped(SMALL, "a.csv", "__MACOSX/._a.csv")),
    ],
)
def test_a_packed_file_is_known_by_its_content(tmp_path: Path, packing: str, data: bytes) -> None:
    assert understood(tmp_path, data).packing == packing
    assert read(tmp_path, data, "a")[0].values.tolist() == [[1.5], [3.5]]


def test_zstandard_is_unpacked(tmp_path: Path) -> None:
    zstd = importlib.import_module(
        "backports.zstd" if sys.version_info < (3, 14) else "compression.zstd"
    )
    data = zstd.compress(SMALL)
    assert read(tmp_path, data, "a")[0].values.tolist() == [[1.5], [3.5]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_zipped(SMALL, "a.csv", "b.csv"), r"2 files.*a.csv, b.csv.*unzip -p"),
        (_zipped(SMALL, "[Content_Types].xml", "xl/workbook.xml"), "spreadsheet"),
        (gzip.compress(b"a\n" + b"1.5\n" * 1000)[:-12], "cannot read"),
        (lzma.compress(b"a\n" + b"1.5\n" * 1000)[:-12], "cannot read"),
        (b"PK\x03\x04 no archive", "cannot read"),
    ],
)
def test_a_packed_file_that_is_no_table_is_an_error(
    tmp_path: Path, data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, data, "a")


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file not found:"):
        DataTable(str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match="cannot read"):
        DataTable(str(tmp_path))


def test_a_long_list_of_names_is_cut() -> None:
    assert join_names(["a", "b"]) == "a, b"
    assert join_names([str(i) for i in range(300)]) == "0, 1, 2, 3, 4, 5, 6, 7, … and 292 more"


def test_a_number_beyond_float32_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 4.*'1e300', which does not fit float32"):
        read(tmp_path, "a\n1\n2\n1e300\n", "a")


def test_a_last_line_without_its_end_waits_until_it_is_whole(tmp_path: Path) -> None:
    half = "a,b\n1,2\n3,4\n5,6"
    found = tables.read(write(tmp_path, half))
    assert found.values.tolist() == [[1, 2], [3, 4]]
    assert "waits for the next run" in found.text
    assert tables.read(write(tmp_path, half + "0\n")).values[-1].tolist() == [5, 60]


def test_a_live_input_hands_on_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    came: list[Batch] = []
    first = threading.Event()

    def emit(batch: Batch) -> None:
        came.append(batch)
        first.set()

    def feed() -> None:
        with path.open("wb", buffering=0) as pipe:
            pipe.write(b"time,a\n2024-01-01 00:00,1\n2024-01-01 00:01,2\n")
            assert first.wait(60)
            pipe.write(b"2024-01-01 00:02,3\n2024-01-01 00:03,4")

    writer = threading.Thread(target=feed)
    writer.start()
    with DataTable(str(path)) as table:
        assert table.understand().numeric == ["a"]
        table.read(Choice(columns=[1]), 64, emit)
    writer.join()
    assert np.concatenate([batch.values for batch in came]).tolist() == [[1], [2], [3]]
    assert table.skipped["has no line end yet"] == 1


def test_a_live_input_may_be_packed(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(gzip.compress(SMALL)))
    writer.start()
    came: list[Batch] = []
    with DataTable(str(path)) as table:
        table.understand()
        table.read(Choice(columns=[0]), 64, came.append)
    writer.join()
    assert came[0].values.tolist() == [[1.5], [3.5]]


def test_a_large_file_is_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = 200_000
    with path.open("w") as file:
        file.write("a,b\n")
        file.writelines(f"{i % 97}.25,{i % 89}.5\n" for i in range(rows))
    sizes: list[int] = []
    with DataTable(str(path)) as table:
        table.understand()
        assert table.size is not None
        assert sum(map(len, table._head)) < table.size
        table.read(Choice(columns=[0, 1]), 1024, lambda batch: sizes.append(len(batch.values)))
    assert sum(sizes) == rows
    assert max(sizes) == 1024


def test_what_contradicts_the_first_rows_is_an_error_with_its_line(tmp_path: Path) -> None:
    rows = "".join(f"{i % 7}.5,\n" for i in range(12_000))
    with pytest.raises(InputError, match=r"line 12002, column 'b'.*no value in this column"):
        tables.read(write(tmp_path, f"a,b\n{rows}1.5,2.5\n"))
    with pytest.raises(InputError, match=r"line 12002, column 'a'.*--decimal"):
        tables.read(write(tmp_path, f'a,b\n{rows}"1.234,5",\n'))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"decimal": "x"}, "--decimal"),
        ({"decimal": ",", "thousands": ","}, "must differ"),
        ({"no_time": True, "sort": True}, "--no-time"),
    ],
)
def test_options_that_make_no_sense_are_errors(options: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        ReadOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "options", "word"),
    [
        ("a;b\n1;2\n", ReadOptions(delimiter="xx"), "--delimiter"),
        ("a;b\n1;2\n", ReadOptions(encoding="latin-99"), "--encoding"),
        ("a;b\n1;2\n", ReadOptions(time="t"), "--time: no column 't'"),
        ("a;b\n1;2\n", ReadOptions(time_format="%Y"), "--time-format needs a column"),
        ("t;b\nx;2\n", ReadOptions(time="t"), "line 2, column 't'.*--time-format"),
        ("t;b\n2024-01-01;2\n", ReadOptions(time_zone="Mars"), "--time-zone is 'Mars'"),
        ("t;b\n2024-01-01;2\n", ReadOptions(time="t", time_format="dd/MM"), "--time-format is"),
    ],
)
def test_options_that_do_not_fit_the_file_are_errors(
    tmp_path: Path, text: str, options: ReadOptions, word: str
) -> None:
    with pytest.raises(InputError, match=word):
        tables.read(write(tmp_path, text), options=options)


def test_rows_and_lines_can_be_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, "junk,1,2\n; x\na,b\n1,2\n; y\n3,4\n")
    found = tables.read(path, options=ReadOptions(skip_rows=1, comment=";"))
    assert found.values.tolist() == [[1, 2], [3, 4]]
    assert "--skip-rows" in found.text
    assert "each is a comment: 1" in found.text


def test_a_gap_begins_a_sequence(tmp_path: Path) -> None:
    text = "time,a\n" + "".join(f"2024-01-0{d}T0{h}:00,{h}\n" for d in (1, 2) for h in range(5))
    assert tables.read(write(tmp_path, text), gap=7200).sequences == 1
    assert tables.read(write(tmp_path, text), gap=math.inf).sequences == 0
