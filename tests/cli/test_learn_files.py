"""`bptt learn` on files as people have them: what is told, and the options that say otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Bptt, run

CASES = Path(__file__).parent / "data" / "cases"


def test_what_was_understood_is_told_without_a_server() -> None:
    done = run("learn", str(CASES / "c01_decimal_comma.csv"), "--dry-run")
    assert done.status == 0, done.err
    assert done.out == ""
    for words in (
        "delimiter semicolon, decimal mark ','; header in line 1",
        "time: 'Zeit' as %Y-%m-%d %H:%M:%S (line 2: 2024-01-01 00:00:00), step 60 s",
        "learned: 'Temperatur', 'Feuchte'",
        "column 'Zeit' is left out: a time",
        "rows: 1,500 (lines 2 to 1,501)",
    ):
        assert words in done.err
    as_json = run("learn", str(CASES / "c01_decimal_comma.csv"), "--dry-run", "--json")
    assert as_json.document["columns"] == ["Temperatur", "Feuchte"]
    assert as_json.document["rows"] == 1500
    piped = run("learn", "-", "--dry-run", stdin="a\tb\n1,5\t2\n2,5\t3\n")
    assert "standard input: utf-8" in piped.err
    assert "delimiter tab, decimal mark ','" in piped.err


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("c39_no_header.csv", [], ["has no header", "line 1", "--no-header"]),
        ("c19_sentinel.csv", [], ["line 9, column 'temp'", "--missing"]),
        ("c33_newest_first.csv", [], ["run backwards", "--sort"]),
        ("c33b_duplicate_rows.csv", [], ["line 3 repeats", "--sort"]),
        ("c33c_long_format.csv", [], ["several series", "--stream-column"]),
        ("c06_epoch_ms.csv", ["--gap", "30"], ["each row", "--time-format"]),
        (
            "c31_us_dates.csv",
            ["--time-format", "iso", "--gap", "9"],
            ["--time-format needs", "--time"],
        ),
        (
            "c31_us_dates.csv",
            ["--time", "temp", "--time-format", "%Y"],
            ["line 2", "--time-format"],
        ),
        ("c34_pipe.csv", ["--delimiter", ";"], ["no numeric column", "--delimiter"]),
        ("c34_pipe.csv", ["--columns", "temp,tmp"], ["no column 'tmp'", "did you mean 'temp'"]),
        ("c34_pipe.csv", ["--decimal", ".."], ["--decimal is '..'"]),
        ("c34_pipe.csv", ["--no-time", "--sort"], ["--no-time"]),
        ("c08_utf16.csv", ["--encoding", "utf-8"], ["line 1", "0xff", "--encoding"]),
    ],
)
def test_a_refused_file_is_one_line_and_nothing_is_made(
    bptt: Bptt, name: str, options: list[str], words: list[str]
) -> None:
    done = bptt("learn", str(CASES / name), "--model", "refused-file", *options)
    assert done.status == 1, done.err
    (line,) = done.err.splitlines()
    assert line.startswith("bptt: ")
    for word in words:
        assert word in line
    assert "refused-file" not in bptt("models").out


def test_a_class_called_none_is_predicted(bptt: Bptt, name: str) -> None:
    options = ("--task", "classification", "--targets", "fault")
    done = bptt("learn", str(CASES / "c13_class_none.csv"), "--model", name, *options)
    assert done.status == 0, done.err
    arguments = ("--stream", "c13_class_none", "--input", "19,50", "--json")
    found = bptt("predict", "--model", name, *arguments).document
    probabilities = dict(zip(found["targets"], np.ravel(found["predictions"]), strict=True))
    assert probabilities["none"] > 0.9
    unknown = CASES / "c13b_class_ok.csv"
    refused = bptt("learn", str(unknown), "--model", name, *options)
    assert refused.status == 1
    assert "line 2, column 'fault'" in refused.err
    assert "'fine', but the classes are" in refused.err


def test_rows_are_sorted_and_series_told_apart_if_told(bptt: Bptt, name: str) -> None:
    sort = bptt("learn", str(CASES / "c33b_duplicate_rows.csv"), "--model", name, "--sort")
    assert sort.status == 0, sort.err
    assert "1,500 steps learned" in sort.out
    assert "each repeats another row: 1,500" in sort.err
    series = f"{name}-series"
    path = str(CASES / "c33c_long_format.csv")
    done = bptt("learn", path, "--model", series, "--stream-column", "sensor")
    assert done.status == 0, done.err
    for stream in ("1", "2"):
        assert f"1,500 steps learned on stream {stream} of model {series}" in done.out
        found = bptt("predict", "--model", series, "--stream", stream, "--json").document
        assert found["targets"] == ["value"]
    both = bptt("learn", path, "--model", series, "--stream-column", "sensor", "--stream", "s")
    assert both.status == 2
    live = bptt("learn", "-", "--model", series, "--sort", stdin="time,value\n2024-01-01,1\n")
    assert "--sort needs a file" in live.err


def test_markers_and_ways_of_missing_values_go_together(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1.5,2\nOVL,3\n-9999,4\n,5\n" * 20)
    options = ("--missing", "OVL,-9999", "--json")
    taken = bptt("learn", str(path), "--model", name, *options).lines
    assert taken[-1]["steps"] == 80
    assert "missing in column 'a': " in " ".join(taken[0]["summary"])
    without = bptt("learn", str(path), "--model", f"{name}-2", "--missing", "leave-out", *options)
    assert without.lines[-1]["steps"] == 20


def test_names_with_commas_and_other_forms_are_options(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "t.dat"
    rows = "".join(f"{i % 28 + 1:02d}/02/2024!1.{i:03d},5!{i % 5}\n" for i in range(28))
    path.write_bytes(("Tag!Temp, °C!b\n" + rows).encode("cp1252"))
    done = bptt(
        *("learn", str(path), "--model", name, "--columns", "Temp, °C", "--delimiter", "!"),
        *("--decimal", ",", "--thousands", ".", "--encoding", "cp1252", "--time", "Tag"),
        *("--time-format", "%d/%m/%Y", "--time-zone", "Europe/Berlin", "--json"),
    )
    assert done.status == 0, done.err
    told = json.dumps(done.lines[0], ensure_ascii=False)
    assert "%d/%m/%Y" in told
    assert "in Europe/Berlin, step 24 h" in told
    assert done.lines[-1]["steps"] == 28


def test_a_half_written_line_is_learned_once_it_is_whole(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "t.csv"
    text = (CASES / "c22b_trunc_number.csv").read_text()
    path.write_text(text)
    first = bptt("learn", str(path), "--model", name)
    assert "waits for the next run" in first.err
    assert "800 steps learned" in first.out
    path.write_text(text + "0.21\n")
    assert "1 step learned" in bptt("learn", str(path), "--model", name).out


def test_options_for_tables_are_refused_for_a_text(bptt: Bptt, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc")
    for option in (["--decimal", ","], ["--sort"], ["--missing", "x"], ["--stream-column", "a"]):
        done = bptt("learn", str(path), "--model", "m", "--text", *option)
        assert done.status == 2
        assert f"{option[0]} applies to columns" in done.err
