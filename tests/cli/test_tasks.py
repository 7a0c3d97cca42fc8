"""`bptt learn` and `predict` with classes, text, gaps in time, and columns by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec
from tests.cli.conftest import Bptt

ROWS = 1200


@pytest.fixture
def faults(tmp_path: Path) -> str:
    """Two inputs, and a class that depends on the first input of the previous row."""
    x = np.random.default_rng(0).normal(size=(ROWS, 2))
    past = np.concatenate([[0], x[:-1, 0]])
    names = np.where(past > 0.7, "high", np.where(past < -0.7, "low", "fine"))
    lines = [f"{a:.4f},{b:.4f},{name}" for (a, b), name in zip(x, names, strict=True)]
    path = tmp_path / "faults.csv"
    path.write_text("a,b,state\n" + "\n".join(lines) + "\n")
    return str(path)


def test_classes_are_learned_by_name(bptt: Bptt, faults: str, name: str) -> None:
    options = ("--task", "classification", "--targets", "state", "--learning-rate", "0.01")
    done = bptt("learn", faults, "--model", name, *options, "--json")
    assert done.status == 0, done.err
    last = done.lines[-1]
    assert last["steps"] == ROWS
    rows = [line.split(",") for line in Path(faults).read_text().splitlines()[1:]]
    x = np.array([row[:2] for row in rows], np.float32)
    classes = np.array([["fine", "high", "low"].index(row[2]) for row in rows])
    alone = Learner(
        ModelSpec(task="classification", input_size=2, output_size=3, learning_rate=0.01)
    )
    (truth,) = alone.apply([Chunk("faults", 0, x, classes)]).chunks
    assert truth.predictions is not None
    right = truth.predictions.argmax(axis=1) == classes
    assert last["accuracy"] == pytest.approx(right.mean(), rel=1e-8)  # nine digits are printed
    model = next(each for each in bptt("models", "--json").document if each["model_id"] == name)
    assert model["spec"]["target_names"] == ["fine", "high", "low"]
    shown = bptt("predict", "--model", name, "--stream", "faults", "--input", "1,2")
    assert "high" in shown.out
    probabilities = bptt(
        "predict", "--model", name, "--stream", "faults", "--input", "1,2", "--json"
    ).document["predictions"]
    assert np.sum(probabilities) == pytest.approx(1)
    more = bptt("learn", faults, "--model", name, "--append", "--targets", "state")
    assert "accuracy" in more.out


def test_an_unknown_class_is_an_error_that_names_it(
    bptt: Bptt, faults: str, tmp_path: Path, name: str
) -> None:
    options = ("--task", "classification", "--targets", "state")
    assert bptt("learn", faults, "--model", name, *options).status == 0
    path = tmp_path / "other.csv"
    path.write_text("a,b,state\n1,2,fine\n3,4,broken\n")
    done = bptt("learn", str(path), "--model", name, *options)
    assert done.status == 1
    assert "line 3, column 'state'" in done.err
    assert "'broken', but the classes are fine, high, low" in done.err
    live = bptt("learn", "-", "--model", f"{name}-live", *options, stdin="a,b,state\n1,2,fine\n")
    assert live.status == 1
    assert "--classes is required" in live.err
    done = bptt(
        "learn", "-", "--model", f"{name}-live", *options, "--classes", "fine,bad",
        stdin="a,b,state\n1,2,fine\n3,4,bad\n",
    )  # fmt: skip
    assert done.status == 0, done.err


def test_a_text_is_learned_byte_by_byte(bptt: Bptt, tmp_path: Path, name: str) -> None:
    text = "the cat sat on the mat. " * 200
    path = tmp_path / "cats.txt"
    path.write_text(text)
    done = bptt("learn", str(path), "--model", name, "--text", "--learning-rate", "0.01")
    assert done.status == 0, done.err
    assert f"{len(text):,} steps learned on stream cats.txt" in done.out
    assert "top-1 accuracy in the second half" in done.out
    options = ("predict", "--model", name, "--stream", "cats.txt")
    assert "'h'" in bptt(*options, "--text", "the cat sat on t").out
    best = bptt(*options, "--text", "the cat s", "--json").document["top_tokens"][-1][0]
    assert best == ord("a")
    packed = tmp_path / "cats.txt.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    again = bptt("learn", str(packed), "--model", name, "--text", "--stream", "gz", "--json")
    assert again.lines[-1]["next_step"] == len(text)
    piped = bptt("learn", "-", "--model", name, "--text", stdin=text)
    assert f"next step {len(text):,}" in piped.out


def test_text_has_no_columns(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc")
    done = bptt("learn", str(path), "--model", name, "--text", "--columns", "a")
    assert done.status == 2
    assert "--columns applies to columns, but --text reads a text without columns" in done.err
    assert bptt("learn", str(path), "--model", name, "--text").status == 0
    csv = tmp_path / "a.csv"
    csv.write_text("a\n1\n2\n")
    other = bptt("learn", str(csv), "--model", name)
    assert other.status == 1
    assert "was made for text" in other.err
    shown = bptt("predict", "--model", name, "--stream", "a.txt", "--input", "97")
    assert "next byte" in shown.out


GAPPY = "when,a\n" + "".join(
    f"2024-03-0{day}T{hour:02d}:00:00,{hour % 7}\n" for day in (1, 4) for hour in range(20)
)


@pytest.mark.parametrize("gap", [None, "7200"])
def test_a_gap_in_time_begins_a_new_sequence_with_gap(
    bptt: Bptt, tmp_path: Path, name: str, gap: str | None
) -> None:
    path = tmp_path / "gappy.csv"
    path.write_text(GAPPY)
    options = () if gap is None else ("--gap", gap)
    done = bptt("learn", str(path), "--model", name, "--k1", "4", *options, "--json")
    # Each sequence of 20 steps has 19 targets, and an update for the 3 left at its end.
    whole = 39 // 4
    assert done.lines[-1]["updates"] == (whole if gap is None else 5 + 19 // 4)
    assert done.lines[-1]["whole"]["steps"] == (39 if gap is None else 38)
    notes = bptt("learn", str(path), "--model", name, "--stream", "again", *options).err
    assert ("1 gap in column 'when' of at least 10 times" in notes) == (gap is None)


def test_two_runs_split_near_a_gap_learn_the_same(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "gappy.csv"
    path.write_text(GAPPY)
    options = ("--gap", "7200", "--stream", "s")
    assert bptt("learn", str(path), "--model", f"{name}-1", *options).status == 0
    half = tmp_path / "half.csv"
    half.write_text("\n".join(GAPPY.splitlines()[:30]) + "\n")
    for file in (half, path):
        assert bptt("learn", str(file), "--model", f"{name}-2", *options).status == 0
    models = {each["model_id"]: each for each in bptt("models", "--json").document}
    assert models[f"{name}-1"]["loss"] == models[f"{name}-2"]["loss"]


def test_gap_requires_a_column_of_times(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("a\n1\n2\n3\n")
    done = bptt("learn", str(path), "--model", name, "--gap", "10")
    assert done.status == 1
    assert "--gap needs a column of times" in done.err


def test_columns_with_other_names_are_an_error_without_other_names(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text("a,b\n" + "1,2\n3,4\n" * 10)
    second.write_text("c,b\n" + "1,2\n3,4\n" * 10)
    assert bptt("learn", str(first), "--model", name).status == 0
    done = bptt("learn", str(second), "--model", name)
    assert done.status == 1
    assert f"model {name} was made for columns a, b, but" in done.err
    swapped = bptt("learn", str(first), "--model", name, "--columns", "b,a")
    assert swapped.status == 1
    assert "made for columns a, b, not b, a; add --other-names" in swapped.err
    done = bptt("learn", str(second), "--model", name, "--columns", "c,b", "--other-names")
    assert done.status == 0, done.err
    assert "note: model" in done.err


def test_a_file_shorter_than_its_stream_is_an_error(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a\n" + "1\n2\n" * 20)
    assert bptt("learn", str(path), "--model", name).status == 0
    same = bptt("learn", str(path), "--model", name)
    assert same.status == 0
    assert "nothing new" in same.err
    path.write_text("a\n1\n2\n")
    shorter = bptt("learn", str(path), "--model", name)
    assert shorter.status == 1
    assert "is shorter than its stream: 2 rows, but stream a" in shorter.err
    assert "has 40 steps" in shorter.err


def test_the_end_of_the_horizon_is_evaluated(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "ramp.csv"
    path.write_text("a\n" + "".join(f"{i}\n" for i in range(60)))
    done = bptt("learn", str(path), "--model", name, "--horizon", "5", "--json").lines[-1]
    assert done["farthest_whole"]["naive_error"] == [5]
    assert done["farthest_whole"]["steps"] == 55
    assert done["whole"]["naive_error"] == [1]


def test_a_column_of_token_ids_is_learned(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "ids.csv"
    path.write_text("id\n" + "0\n5\n9\n" * 100)
    options = ("--task", "next_token", "--vocabulary-size", "10", "--learning-rate", "0.01")
    done = bptt("learn", str(path), "--model", name, *options, "--json")
    assert done.lines[-1]["second_half"]["error"] == [0]
    shown = bptt("predict", "--model", name, "--stream", "ids", "--input", "0")
    assert shown.out.splitlines()[1].split() == ["5", "100.0%"]


def test_a_model_can_be_updated_and_paused(bptt: Bptt, faults: str, name: str) -> None:
    assert bptt("learn", faults, "--model", name, "--columns", "a,b").status == 0
    changed = bptt("models", "update", name, "--learning-rate", "0.01", "--pause")
    assert changed.out == f"model {name}: paused, learning rate 0.01, clip norm at 1\n"
    assert "paused" in bptt("models").out
    resumed = bptt("models", "update", name, "--resume", "--json").document
    assert (resumed["state"], resumed["learning_rate"]) == ("running", 0.01)
    nothing = bptt("models", "update", name)
    assert nothing.status == 2
    assert "nothing to change" in nothing.err
    bad = bptt("models", "update", name, "--clip-threshold", "0")
    assert bad.status == 1
    assert "clip_threshold is 0" in bad.err
    assert bptt("models", "checkpoints", name).out == f"model {name} has no checkpoints\n"
    unsaved = bptt("models", "save", name)
    assert unsaved.status == 1
    assert "data folder" in unsaved.err
