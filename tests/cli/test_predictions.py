"""`--predictions`, `--plot` and `--steps`: what is predicted, written to files and drawn."""

from __future__ import annotations

import asyncio
import csv
import json
import math
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pyarrow import parquet

from bptt.client import Client
from tests.cli.conftest import BPTT, Bptt, Ran

CASES = Path(__file__).parent / "data" / "cases"
HORIZON = 3
NEW = ("--horizon", str(HORIZON), "--hidden-size", "8")
Record = dict[str, Any]
Key = tuple[Any, ...]
WAIT_SECONDS = 60


def german(rows: int) -> str:
    """A table of two columns in a German form, a row every ten minutes."""
    lines = ["Zeit;Druck;Fluss"]
    for i in range(rows):
        when = datetime(2024, 1, 31, 22) + timedelta(minutes=10 * i)
        values = f"{1013.25 + math.sin(i / 7) / 2:.2f};{i % 7 * 1.5:.1f}".replace(".", ",")
        lines.append(f"{when:%d.%m.%Y %H:%M};{values}")
    return "\n".join(lines) + "\n"


def written(path: Path) -> list[Record]:
    """The rows of a file of predictions, with the types of its columns."""
    if path.suffix == ".parquet":
        rows: list[Record] = parquet.read_table(path).to_pylist()
        return rows
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    whole, real = ("step", "ahead"), ("value", "prediction", "low", "high", "score", "probability")
    found = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            record: Record = dict(row)
            record |= {name: int(row[name]) for name in whole if name in row}
            texts = row.get("target") is None and "probability" in row  # classes have names
            numbers = [name for name in real if name in row]
            if texts:
                numbers = ["probability"]
            record |= {name: float(row[name]) if row[name] else None for name in numbers}
            found.append(record)
    return found


def keys(rows: list[Record]) -> Counter[Key]:
    return Counter(
        (row["stream"], row["step"], row.get("target"), row.get("ahead")) for row in rows
    )


def learn(bptt: Bptt, path: Path, model: str, *options: str, stdin: str | None = None) -> Ran:
    done = bptt("learn", str(path), "--model", model, *options, stdin=stdin)
    assert done.status == 0, done.err
    return done


# ---------------------------------------------------------------------- bptt learn --predictions


def test_going_on_writes_what_one_run_would_have_written(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    path, parts, whole = tmp_path / "p.csv", tmp_path / "parts.csv", tmp_path / "whole.csv"
    path.write_text(german(300))
    done = learn(bptt, path, name, *NEW, "--predictions", str(parts))
    rows = written(parts)
    assert f"predictions: {len(rows):,} rows written to {parts}" in done.err
    future = [row for row in rows if row["value"] is None]
    assert {(row["step"], row["ahead"]) for row in future} == {
        (300, 1), (300, 2), (300, 3), (301, 2), (301, 3), (302, 3)
    }  # fmt: skip
    assert {row["time"] for row in future if row["step"] == 302} == {"03.02.2024 00:20"}
    path.write_text(german(350))
    more = learn(bptt, path, name, "--predictions", str(parts))
    assert f"{parts}: continuing with step 300" in more.err
    nothing = learn(bptt, path, name, "--predictions", str(parts))
    assert "nothing new" in nothing.err
    learn(bptt, path, name + "-whole", *NEW, "--predictions", str(whole))
    found, expected = written(parts), written(whole)
    assert set(keys(found).values()) == {1}
    assert keys(found) == keys(expected)
    assert len([row for row in found if row["value"] is not None]) == 350 * HORIZON * 2
    exact = ("time", "value", "prediction", "score")
    for one, other in zip(found, expected, strict=True):
        assert [one[each] for each in exact] == [other[each] for each in exact]
    late = [row for row in found if row["step"] >= 200 and row["value"] is not None]
    inside = [row["low"] <= row["value"] <= row["high"] for row in late]
    assert sum(inside) > 0.8 * len(inside)
    lines = parts.read_text().splitlines()
    assert lines[1].split(",")[2:6] == ["31.01.2024 22:00", "Druck", "1", "1013.25"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_all_formats_hold_the_same(bptt: Bptt, tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / "p.csv"
    for rows in (60, 90):
        path.write_text(german(rows))
        for kind in (".csv", suffix):
            options = NEW if rows == 60 else ()
            learn(
                bptt, path, name + kind[1:], *options, "--predictions", str(tmp_path / f"o{kind}")
            )
    assert written(tmp_path / f"o{suffix}") == written(tmp_path / "o.csv")
    assert not [each for each in tmp_path.iterdir() if each.name.endswith(".part")]


def test_each_series_of_a_file_has_its_rows(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path, out = tmp_path / "p.csv", tmp_path / "o.csv"
    for rows in (40, 60):
        lines = [f"{'ab'[i % 2]};{i % 7}.5" for i in range(rows)]
        path.write_text("sensor;v\n" + "\n".join(lines) + "\n")
        options = NEW if rows == 40 else ()
        learn(bptt, path, name, *options, "--stream-column", "sensor", "--predictions", str(out))
    found = written(out)
    assert set(keys(found).values()) == {1}
    for stream in "ab":
        values = [row for row in found if row["stream"] == stream and row["value"] is not None]
        assert [row["step"] for row in values] == [i // HORIZON for i in range(30 * HORIZON)]


@pytest.mark.parametrize("task", ["regression", "classification", "text"])
def test_other_tasks_have_a_row_of_each_step(
    bptt: Bptt, tmp_path: Path, name: str, task: str
) -> None:
    path, out = tmp_path / "p.csv", tmp_path / "o.csv"
    options = {
        "regression": ("--task", "regression", "--targets", "y", "--label-delay", "2"),
        "classification": ("--task", "classification", "--targets", "y"),
        "text": ("--text",),
    }[task]
    for rows in (50, 80):
        labels = [("lo", "hi")[i % 2] if task == "classification" else i % 5 for i in range(rows)]
        path.write_text("a,y\n" + "".join(f"{i % 9},{label}\n" for i, label in enumerate(labels)))
        learn(bptt, path, name, *options, "--predictions", str(out))
    found = written(out)
    steps = len(path.read_bytes()) if task == "text" else 80
    assert [row["step"] for row in found][:steps] == list(range(steps))
    assert set(keys(found).values()) == {1}
    predicted = [row for row in found if row["prediction"] not in (None, "")]
    assert len(predicted) >= steps - 1
    if task == "regression":  # with a delay of 2, the first two labels belong to no step
        assert [row["value"] for row in found[:78]] == [float(i % 5) for i in range(2, 80)]
        assert [row["value"] for row in found[78:]] == [None, None]
    if task == "classification":
        assert [row["value"] for row in found] == [("lo", "hi")[i % 2] for i in range(80)]


def until(is_done: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not is_done():
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.02)


def next_step(bptt: Bptt, model: str) -> int:
    done = bptt("predict", "--model", model, "--stream", "stdin", "--json")
    return 0 if done.status else int(done.document["next_step"])


@pytest.mark.parametrize(
    ("number", "suffix"),
    [(signal.SIGKILL, ".csv"), (signal.SIGKILL, ".jsonl"), (signal.SIGINT, ".parquet")],
)
def test_a_run_that_is_ended_leaves_a_readable_file(
    bptt: Bptt, tmp_path: Path, name: str, number: signal.Signals, suffix: str
) -> None:
    out = tmp_path / f"o{suffix}"
    command = [*BPTT, "learn", "-", "--model", name, *NEW, "--predictions", str(out)]
    lines = german(120).splitlines(keepends=True)
    with subprocess.Popen(
        [*command, "--address", bptt.server.address],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.writelines(lines[:81])
        process.stdin.flush()
        until(lambda: next_step(bptt, name) >= 60)
        if number == signal.SIGKILL:
            until(lambda: out.exists() and len(out.read_text().splitlines()) > 100)
        process.send_signal(number)
        _, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), err
    before = written(out)
    assert len(before) > 100
    assert set(keys(before).values()) == {1}
    learn(bptt, Path("-"), name, "--predictions", str(out), stdin="".join(lines))
    after = written(out)
    assert set(keys(after).values()) == {1}
    assert {row["step"] for row in after if row["value"] is not None} >= set(range(100, 120))
    if number == signal.SIGINT:  # what was sent is learned and written
        assert {row["step"] for row in after if row["value"] is not None} == set(range(120))


def test_a_line_that_was_cut_is_removed(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path, out = tmp_path / "p.csv", tmp_path / "o.csv"
    path.write_text(german(60))
    learn(bptt, path, name, *NEW, "--predictions", str(out))
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])  # as after a power cut
    path.write_text(german(70))
    done = learn(bptt, path, name, "--predictions", str(out))
    assert "were learned while no predictions were written" in done.err
    found = written(out)
    assert set(keys(found).values()) == {1}
    assert {row["step"] for row in found if row["value"] is not None} == set(range(70))


def test_what_cannot_be_written_is_told_before_a_model_is_made(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    path, foreign, text = tmp_path / "p.csv", tmp_path / "x.csv", tmp_path / "x.parquet"
    path.write_text(german(40))
    foreign.write_text("a,b\n1,2\n")
    text.write_text("no Parquet file")
    for out, words in (
        (tmp_path / "o.xlsx", "must end in .csv, .jsonl or .parquet"),
        (tmp_path / "none/o.csv", f"there is no folder {tmp_path / 'none'}"),
        (foreign, f"{foreign} exists and has the columns a, b"),
        (text, f"{text} exists and is no Parquet file"),
    ):
        done = bptt("learn", str(path), "--model", name, "--predictions", str(out))
        assert done.status == 1, done.err
        assert words in done.err.splitlines()[-1]
    assert foreign.read_text() == "a,b\n1,2\n"
    assert name not in bptt("models").out
    learn(bptt, path, name, *NEW, "--predictions", str(tmp_path / "o.csv"))
    other = bptt(
        *("learn", str(path), "--model", name + "-other", "--horizon", "2"),
        *("--predictions", str(tmp_path / "o.csv")),
    )
    assert other.status == 1
    assert "with other targets or another horizon" in other.err
    assert next_step(bptt, name + "-other") == 0


@pytest.mark.parametrize(
    ("package", "option", "extra"),
    [("pyarrow", "--predictions=o.parquet", "tables"), ("matplotlib", "--plot=o.png", "plots")],
)
def test_without_the_package_the_error_says_how_to_install_it(
    tmp_path: Path, package: str, option: str, extra: str
) -> None:
    code = (
        "import sys, importlib.util as u; found = u.find_spec; "
        f"u.find_spec = lambda n, *a: None if n == {package!r} else found(n, *a); "
        f"sys.modules[{package!r}] = None; "
        "import bptt.cli; sys.argv[0] = 'bptt'; sys.exit(bptt.cli.main())"
    )
    for command in (
        ["learn", "x.csv", "--model", "m"],
        ["predict", "--model", "m", "--stream", "s"],
    ):
        done = subprocess.run(
            [BPTT[0], "-c", code, *command, option],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert f"pip install 'bptt[{extra}]'" in done.stderr


# ---------------------------------------------------------------------- bptt predict


@pytest.fixture(scope="module")
def learned(bptt: Bptt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that model `answers` learned as stream p."""
    path = tmp_path_factory.mktemp("learned") / "p.csv"
    path.write_text(german(200))
    learn(bptt, path, "answers", *NEW)
    return path


def test_a_forecast_goes_on_with_the_times_of_the_file(
    bptt: Bptt, learned: Path, tmp_path: Path
) -> None:
    out = tmp_path / "f.csv"
    ask = ("predict", "--model", "answers", "--stream", "p", "--steps", "24")
    for _ in range(2):  # the second replaces the first
        done = bptt(*ask, "--predictions", str(out))
        assert done.status == 0, done.err
        assert f"48 rows written to {out}" in done.err
    found = written(out)
    assert len(found) == 24 * 2
    first, last = datetime(2024, 1, 31, 22), found[-1]
    for row in found:
        when = first + timedelta(minutes=10 * row["step"])
        assert row["time"] == f"{when:%d.%m.%Y %H:%M}"
        assert row["ahead"] == row["step"] - 199
        has_band = row["step"] < 200 + HORIZON
        assert row["method"] == ("direct" if has_band else "iterated")
        assert (row["low"] is not None) == has_band
    shown = bptt(*ask)
    assert last["time"] in shown.out
    document = bptt(*ask, "--json").document
    assert document["times"][-1] == last["time"]
    assert document["direct_steps"] == HORIZON
    table = {(row["step"], row["target"]): row["prediction"] for row in found}
    for place, values in enumerate(document["predictions"][0]):
        for target, value in zip(document["targets"], values, strict=True):
            assert table[200 + place, target] == pytest.approx(value, rel=1e-6)


def test_times_are_not_told_where_another_program_went_on(bptt: Bptt, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(german(100).replace(" ", "T", 0))
    learn(bptt, path, "untimed", *NEW)
    ask = ("predict", "--model", "untimed", "--stream", "a", "--json")
    assert bptt(*ask).document["times"] == [
        "01.02.2024 14:40", "01.02.2024 14:50", "01.02.2024 15:00",
    ]  # fmt: skip
    read = bptt(*ask, "--input", "1013,1").document
    assert read["times"][0] == "01.02.2024 14:50"

    async def go_on() -> None:
        async with (
            Client.connect(bptt.server.address) as client,
            client.learn("untimed") as session,
        ):
            await session.send("a", [[1013.0, 1.0]])

    asyncio.run(go_on())
    assert "times" not in bptt(*ask).document


def test_steps_that_cannot_be_forecast_are_refused(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "p.csv"
    path.write_text(german(40))
    learn(bptt, path, name, *NEW, "--targets", "Druck")
    done = bptt("predict", "--model", name, "--stream", "p", "--steps", "24")
    assert done.status == 1
    assert "it also reads Fluss, which it does not forecast" in done.err
    assert "--steps 3" in done.err
    assert bptt("predict", "--model", name, "--stream", "p", "--steps", "3").status == 0


def test_as_many_digits_are_shown_as_the_band_needs(bptt: Bptt, name: str) -> None:
    path = CASES / "c18d_const_big_then_small.csv"
    learn(bptt, path, name, "--hidden-size", "8")
    shown = bptt("predict", "--model", name, "--stream", path.stem).out.splitlines()
    value, _, rest = shown[1].split(maxsplit=3)[-1].partition(" (")
    low, _, high = rest.rstrip(")").partition(" to ")
    document = bptt("predict", "--model", name, "--stream", path.stem, "--json").document
    exact = document["predictions"][-1][0][0]
    width = document["error_high"][0][0] - document["error_low"][0][0]
    assert value.startswith("1013.2")
    decimals = len(value.partition(".")[2])
    assert len(low.partition(".")[2]) == len(high.partition(".")[2]) == decimals >= 2
    assert abs(float(value) - exact) <= 10.0**-decimals
    assert low == high or float(high) - float(low) <= width + 10.0**-decimals


# ---------------------------------------------------------------------- charts


def test_charts_are_drawn_in_the_terminal_and_as_files(
    bptt: Bptt, learned: Path, tmp_path: Path, name: str
) -> None:
    ask = ("predict", "--model", "answers", "--stream", "p", "--steps", "12")
    png, svg = tmp_path / "a.png", tmp_path / "a.svg"
    shown = bptt(*ask, "--plot", "--after", str(learned))
    assert shown.status == 0, shown.err
    assert "Druck: values (line), forecast (*), 90 % band (·)" in shown.out
    assert any("\u2800" <= each <= "\u28ff" for each in shown.out)
    assert f"chart written to {png}" in bptt(*ask, "--plot", str(png)).err
    assert png.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    done = learn(bptt, learned, name, *NEW, "--plot", str(svg))
    assert f"chart written to {svg}" in done.err
    assert ElementTree.fromstring(svg.read_text()).tag.endswith("svg")
    refused = bptt(*ask, "--plot", "--json")
    assert refused.status == 2
    assert "name a file" in refused.err
    pdf = bptt(*ask, "--plot", str(tmp_path / "a.pdf"))
    assert "must end in .png or .svg" in pdf.err


# ---------------------------------------------------------------------- reading a large file


def test_a_large_file_is_told_while_it_is_read_and_ctrl_c_says_that_nothing_was_learned(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "large.csv"
    with path.open("w") as file:
        file.write("a,b\n")
        for _ in range(1500):
            file.write("".join(f"{i % 89}.5,{i % 97}\n" for i in range(1000)))
    command = [*BPTT, "learn", str(path), "--model", name, "--address", bptt.server.address]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WAIT_SECONDS)
    assert told.startswith(f"reading {path} (")
    assert "before anything is learned" in told
    assert process.returncode == 130
    assert err == "bptt: interrupted: nothing was learned\n"
    assert name not in bptt("models").out
