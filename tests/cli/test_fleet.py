"""`bptt learn --stream-column`: the series of a table are learned together, each as a stream."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from bptt.client import Client, Stream
from tests.cli.conftest import Bptt

OPTIONS = ("--stream-column", "sensor", "--columns", "v")
SMALL = ("--hidden-size", "8")


def streams_of(bptt: Bptt, name: str) -> dict[str, Stream]:
    async def ask() -> list[Stream]:
        async with Client.connect(bptt.server.address) as client:
            return await client.list_streams(name)

    return {each.stream_id: each for each in asyncio.run(ask())}


def write(path: Path, series: dict[str, list[Any]], *, extra: str = "") -> str:
    """Write rows of series by turns: of each its next value, until all have ended."""
    lines = [f"time,sensor,v{',' + extra if extra else ''}"]
    for place in range(max(map(len, series.values()))):
        for name, values in series.items():
            if place < len(values):
                when = f"2024-01-01 {place // 60:02d}:{place % 60:02d}:00"
                lines.append(f"{when},{name},{values[place]}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def wave(count: int, seed: int = 0) -> list[str]:
    noise = np.random.default_rng(seed)
    rows = np.sin(np.arange(count) / 5 + seed) * 10 + noise.normal(0, 0.1, count)
    return [f"{value:.3f}" for value in rows]


def test_each_series_is_a_stream(bptt: Bptt, tmp_path: Path, name: str) -> None:
    series = {"a": wave(300), "b": wave(150, 1), "c c": wave(31, 2)}
    path = write(tmp_path / "a.csv", series)
    done = bptt("learn", path, "--model", name, *OPTIONS, *SMALL, "--json")
    assert done.status == 0, done.err
    events = [line for line in done.lines if line["event"] != "progress"]
    assert [line["event"] for line in events] == [
        "understood",
        "stream",
        "stream",
        "stream",
        "done",
    ]
    told = {line["stream"]: line for line in events[1:4]}
    assert {stream: line["next_step"] for stream, line in told.items()} == {
        "a": 300, "b": 150, "c c": 31,
    }  # fmt: skip
    assert events[4]["steps"] == 481
    assert events[4]["streams"] == 3
    assert 0 < events[4]["second_half"]["error_ratio"] < 1
    whole = [line["whole"] for line in told.values()]
    assert events[4]["whole"]["steps"] == sum(each["steps"] for each in whole)
    assert {each: stream.durable_step for each, stream in streams_of(bptt, name).items()} == {
        "a": 300, "b": 150, "c c": 31,
    }  # fmt: skip
    again = bptt("learn", path, "--model", name, *OPTIONS)
    assert again.status == 0, again.err
    assert "nothing new for 3 streams" in again.err


def test_an_edited_series_is_refused_by_name_and_nothing_is_learned(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    series = {"a": wave(200), "b": wave(200, 1)}
    first = bptt("learn", write(tmp_path / "a.csv", series), "--model", name, *OPTIONS, *SMALL)
    assert first.status == 0, first.err
    series["b"] = wave(220, 5)
    series["a"] += ["1.5"]
    path = write(tmp_path / "a.csv", series)
    refused = bptt("learn", path, "--model", name, *OPTIONS)
    assert refused.status == 1
    assert f"stream b of model {name}" in " ".join(refused.err.split())
    assert streams_of(bptt, name)["a"].next_step == 200
    appended = bptt("learn", path, "--model", name, *OPTIONS, "--append")
    assert appended.status == 0, appended.err
    assert {each.next_step for each in streams_of(bptt, name).values()} == {401, 420}


def test_a_file_that_is_shorter_than_a_stream(bptt: Bptt, tmp_path: Path, name: str) -> None:
    series = {"a": wave(100), "b": wave(100, 1)}
    first = bptt("learn", write(tmp_path / "a.csv", series), "--model", name, *OPTIONS, *SMALL)
    assert first.status == 0, first.err
    path = write(tmp_path / "a.csv", {"a": series["a"][:50], "b": series["b"]})
    shorter = bptt("learn", path, "--model", name, *OPTIONS)
    assert shorter.status == 1
    assert "stream a" in " ".join(shorter.err.split())


def test_gaps_and_missing_values_are_those_of_a_series(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    rows = ["time,sensor,v"]
    for hour in range(3):  # b has no rows in the second hour
        for minute in range(40):
            for sensor in "ab":
                if sensor == "b" and hour == 1:
                    continue
                value = "" if (sensor, minute) == ("a", 7) else f"{minute % 7}.5"
                rows.append(f"2024-01-01 {hour:02d}:{minute:02d}:00,{sensor},{value}")
    path = tmp_path / "a.csv"
    path.write_text("\n".join(rows) + "\n")
    options = (*OPTIONS, *SMALL, "--gap", "4000", "--missing", "leave-out", "--json")
    done = bptt("learn", str(path), "--model", name, *options)
    assert done.status == 0, done.err
    assert done.lines[-1]["rows_left_out"] == 3
    assert {each: stream.next_step for each, stream in streams_of(bptt, name).items()} == {
        "a": 117, "b": 80,
    }  # fmt: skip


def test_late_labels_of_many_series(bptt: Bptt, tmp_path: Path, name: str) -> None:
    rows = ["sensor,v,y"]
    for step in range(120):
        rows += [f"{sensor},{step % 5},{(step - 3) % 5 * 2}" for sensor in "ab"]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(rows) + "\n")
    task = ("--task", "regression", "--targets", "y", "--label-delay", "3")
    done = bptt("learn", str(path), "--model", name, *OPTIONS, *task, *SMALL, "--json")
    assert done.status == 0, done.err
    assert done.lines[-1]["steps"] == 240
    ratios = [line["whole"]["error_ratio"] for line in done.lines if line["event"] == "stream"]
    assert len(ratios) == 2
    assert all(0 < ratio < 1.5 for ratio in ratios)


def test_many_series_are_summed_up(bptt: Bptt, tmp_path: Path, name: str) -> None:
    series = {f"s{number}": wave(60, number) for number in range(120)}
    done = bptt("learn", write(tmp_path / "a.csv", series), "--model", name, *OPTIONS, *SMALL)
    assert done.status == 0, done.err
    assert "7,200 steps learned on 120 streams" in done.out
    assert "by stream: median" in done.out
    assert "learned on stream s7" not in done.out
    assert len(done.out.splitlines()) <= 8
    again = bptt("learn", str(tmp_path / "a.csv"), "--model", name, *OPTIONS)
    assert "120 streams have steps already: continuing after them" in again.err
    assert "nothing new for 120 streams" in again.err
    assert len(again.err.splitlines()) <= 12


def test_a_row_without_a_series_is_refused_before_anything_is_learned(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / "a.csv", {"a": wave(50), "": wave(50)})
    done = bptt("learn", path, "--model", name, *OPTIONS, *SMALL)
    assert done.status == 1
    assert "--stream-column is empty" in " ".join(done.err.split())
    assert streams_of(bptt, name) == {}
