"""Reading real-world CSV: missing values, text, times, byte order marks, gzip, quotes."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from bptt.cli.data.csvfile import ColumnSelection, CsvTable, Sample
from bptt.cli.data.source import Batch, InputError, join_names


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "t.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def sampled(folder: Path, text: str | bytes) -> Sample:
    with CsvTable(write(folder, text)) as table:
        return table.sample()


def read(folder: Path, text: str | bytes, *columns: str, rows: int = 64) -> list[Batch]:
    found: list[Batch] = []
    with CsvTable(write(folder, text)) as table:
        sample = table.sample()
        chosen = [sample.index("--columns", name) for name in columns]
        table.read(ColumnSelection(columns=chosen), rows, found.append)
    return found


def test_columns_are_classified_as_numbers_times_or_text(tmp_path: Path) -> None:
    text = "time,when,a,place,b\n2020-01-01,12:30,1.5,Oslo,-2e3\n"
    sample = sampled(tmp_path, text)
    assert sample.numeric == ["a", "b"]
    assert sample.left_out == {"time": "a time", "when": "a time", "place": "text"}


def test_epoch_seconds_are_recognised_by_the_column_name(tmp_path: Path) -> None:
    assert sampled(tmp_path, "timestamp,a\n1700000000,1\n").numeric == ["a"]


def test_a_column_is_classified_by_its_first_value_that_is_not_missing(tmp_path: Path) -> None:
    sample = sampled(tmp_path, "a,b,c\n,NA,\n,x,\n1,y,\n")
    assert sample.numeric == ["a"]
    assert sample.left_out == {"b": "text", "c": "without values"}


def test_batches_carry_their_line_numbers(tmp_path: Path) -> None:
    batches = read(tmp_path, "a,b\n1,2\n3,4\n5,6\n", "b", "a", rows=2)
    assert [batch.values.tolist() for batch in batches] == [[[2, 1], [4, 3]], [[6, 5]]]
    assert [(batch.first_line, batch.last_line) for batch in batches] == [(2, 3), (4, 4)]
    assert batches[0].values.dtype == np.float32


@pytest.mark.parametrize("missing", ["", " ", "NaN", "nan", "NA", "null", "nil", "n/a", "-"])
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


@pytest.mark.parametrize("word", ["abc", "1,5x", "inf", "-Infinity", "1e39", "1_000", "12:30"])
def test_text_is_an_error_with_line_and_column_after_the_rows_before_it(
    tmp_path: Path, word: str
) -> None:
    found: list[Batch] = []
    with CsvTable(write(tmp_path, f'a,b\n1,2\n\n3,"{word}"\n5,6\n')) as table:
        columns = [table.sample().index("--columns", "b")]
        with pytest.raises(InputError, match="line 4, column 'b'"):
            table.read(ColumnSelection(columns=columns), 64, found.append)
    assert [batch.values.tolist() for batch in found] == [[[2]]]


@pytest.mark.parametrize("row", ["1", "1,2,3"])
def test_a_row_with_another_number_of_values_is_an_error_with_its_line(
    tmp_path: Path, row: str
) -> None:
    with pytest.raises(InputError, match=r"line 3 .* but its header has 2"):
        read(tmp_path, f"a,b\n1,2\n{row}\n", "a")


def test_an_unknown_column_is_an_error_that_lists_the_columns(tmp_path: Path) -> None:
    sample = sampled(tmp_path, "a,b\n1,2\n")
    with pytest.raises(InputError, match=r"--target.*'c'.*a, b"):
        sample.index("--target", "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), ("\n\n", "empty"), ("1,2\n3,4\n", "all numbers"), ("a,a\n1,2\n", "twice")],
)
def test_a_header_is_required(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampled(tmp_path, text)


def test_delimiters_byte_order_mark_quotes_and_windows_line_ends(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbf"a";note;b\r\n1;"two\nlines; here";2\r\n3;x;4'
    assert sampled(tmp_path, text).header == ("a", "note", "b")
    assert read(tmp_path, text, "a", "b")[0].values.tolist() == [[1, 2], [3, 4]]


def test_gzip_is_recognised_by_its_content(tmp_path: Path) -> None:
    assert read(tmp_path, gzip.compress(b"a\n1\n2\n"), "a")[0].values.tolist() == [[1], [2]]


def test_truncated_gzip_is_an_error(tmp_path: Path) -> None:
    data = gzip.compress(b"a\n" + b"1.5\n" * 1000)
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path, data[:-12], "a")


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file not found:"):
        CsvTable(str(tmp_path / "none.csv"))
    with pytest.raises(InputError, match="cannot read"):
        CsvTable(str(tmp_path))


def test_a_long_list_of_names_is_cut() -> None:
    assert join_names(["a", "b"]) == "a, b"
    assert join_names([str(i) for i in range(300)]) == "0, 1, 2, 3, 4, 5, 6, 7, … and 292 more"


def test_a_number_beyond_float32_is_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a\n1\n1e300\n")
    with CsvTable(str(path)) as table:
        table.sample()
        with pytest.raises(InputError, match=r"line 3.*'1e300', which does not fit float32"):
            table.read(ColumnSelection(columns=[0]), 8, lambda batch: None)
