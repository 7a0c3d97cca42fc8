"""Real streams: missing values, late labels, error bands and anomalies, divergence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec
from tests.cli.conftest import Bptt

ROWS = 1500
PRINTED = 1e-8  # relative; figures are printed with nine digits
DELAY = 10


def write(path: Path, header: str, rows: list[str]) -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


# ---------------------------------------------------------------------- missing values


@pytest.fixture
def holes(tmp_path: Path) -> str:
    """Two waves; a fifth of the first wave's values are missing, in three spellings."""
    missing = np.random.default_rng(0).random(ROWS) < 0.2
    spellings = ["", "NaN", "n/a"]
    rows = []
    for t in range(ROWS):
        a = spellings[t % 3] if missing[t] else f"{np.sin(t / 9):.5f}"
        rows.append(f"{a},{np.cos(t / 5):.5f}")
    return write(tmp_path / "holes.csv", "a,b", rows)


def test_missing_values_are_learned_as_missing(bptt: Bptt, holes: str, name: str) -> None:
    done = bptt("learn", holes, "--model", name)
    assert done.status == 0, done.err
    assert re.search(r"column 'a' lacks \d+ values: the model treats them as missing", done.err)
    assert f"{ROWS:,} steps learned" in done.out
    assert "left out" not in done.err
    model = next(each for each in bptt("models", "--json").document if each["model_id"] == name)
    assert model["spec"]["missing_inputs"] is True
    rows = [line.split(",") for line in Path(holes).read_text().splitlines()[1:]]
    x = np.array([[a if "." in a else "nan", b] for a, b in rows], np.float32)
    alone = Learner(ModelSpec(input_size=2, missing_inputs=True))
    alone.apply([Chunk("holes", 0, x)])
    assert model["skill_ratio"] == pytest.approx(alone.figures.skill_ratio, rel=PRINTED)
    shown = bptt("predict", "--model", name, "--stream", "holes", "--input", "nan,0.5", "--json")
    assert np.isfinite(shown.document["predictions"]).all()
    infinite = bptt("predict", "--model", name, "--stream", "holes", "--input", "inf,0.5")
    assert infinite.status == 1
    assert "inputs is inf in step 0, column 0 (a)" in infinite.err


def test_rows_with_missing_values_can_be_left_out(bptt: Bptt, holes: str, name: str) -> None:
    done = bptt("learn", holes, "--model", name, "--missing", "leave-out", "--json")
    assert 1100 < done.lines[-1]["steps"] < 1300
    assert done.lines[-1]["steps"] + done.lines[-1]["rows_left_out"] == ROWS
    model = next(each for each in bptt("models", "--json").document if each["model_id"] == name)
    assert "missing_inputs" not in model["spec"] or not model["spec"]["missing_inputs"]
    refused = bptt("predict", "--model", name, "--stream", "holes", "--input", "nan,0.5")
    assert refused.status == 1
    assert "must be finite numbers" in refused.err


def test_a_model_without_missing_inputs_leaves_incomplete_rows_out(
    bptt: Bptt, holes: str, tmp_path: Path, name: str
) -> None:
    whole = write(tmp_path / "whole.csv", "a,b", ["1,2", "2,1"] * 20)
    assert bptt("learn", whole, "--model", name).status == 0
    done = bptt("learn", holes, "--model", name)
    assert done.status == 0, done.err
    assert "rows left out because a value is missing" in done.err


# ---------------------------------------------------------------------- late labels


def labelled(path: Path, *, gap_at: int = 0) -> str:
    """Write two inputs a minute, and as a label which input was larger DELAY rows earlier.

    After a gap in time, the first DELAY rows have labels of rows before the gap.
    """
    x = np.random.default_rng(0).normal(size=(ROWS, 2))
    larger = np.where(x[:, 0] > x[:, 1], "left", "right")
    rows = []
    for t in range(ROWS):
        minute = t + 10_000 * (0 < gap_at <= t)
        label = larger[t - DELAY] if t >= DELAY else ""
        rows.append(f"{minute * 60},{x[t, 0]:.4f},{x[t, 1]:.4f},{label}")
    return write(path, "time,a,b,larger", rows)


LATE = ("--task", "classification", "--targets", "larger", "--label-delay", str(DELAY))


def listed(bptt: Bptt, name: str) -> Any:
    return next(each for each in bptt("models", "--json").document if each["model_id"] == name)


@pytest.mark.same_bits
def test_late_labels_are_learned_with_their_steps(bptt: Bptt, tmp_path: Path, name: str) -> None:
    """The figures equal those of the core in this process."""
    file = labelled(tmp_path / "late.csv")
    done = bptt("learn", file, "--model", name, *LATE, "--learning-rate", "0.01", "--json")
    assert done.status == 0, done.err
    last = done.lines[-1]
    assert last["steps"] == ROWS
    assert last["whole"]["steps"] == ROWS - DELAY
    table = [line.split(",") for line in Path(file).read_text().splitlines()[1:]]
    x = np.array([row[1:3] for row in table], np.float32)
    classes = np.array([["left", "right"].index(row[3]) for row in table[DELAY:]])
    spec = ModelSpec(
        task="classification", input_size=2, output_size=2, label_delay=DELAY, learning_rate=0.01
    )
    alone = Learner(spec)
    (truth,) = alone.apply([Chunk("late", 0, x, classes)]).chunks
    assert truth.predictions is not None
    right = truth.predictions[:-DELAY].argmax(axis=1) == classes
    assert last["accuracy"] == pytest.approx(right.mean(), rel=PRINTED)
    model = listed(bptt, name)
    assert model["spec"]["label_delay"] == DELAY
    assert model["accuracy"] == pytest.approx(alone.figures.accuracy, rel=PRINTED)
    bits = alone.figures.cross_entropy_bits
    assert model["cross_entropy_bits"] == pytest.approx(bits, rel=PRINTED)
    shown = bptt("models").out
    assert "accuracy" in shown
    assert f"{model['accuracy']:.1%}" in shown
    # A single row is classified at once, though its label arrives ten rows later.
    answer = bptt("predict", "--model", name, "--stream", "late", "--input", "2,-2", "--json")
    assert answer.document["targets"] == ["left", "right"]
    sure = alone.snapshot().predict(alone.stream_view("late"), np.array([[2.0, -2.0]]))
    answered = np.array(answer.document["predictions"][0], np.float32)
    np.testing.assert_array_equal(answered, sure.astype(np.float32))


def test_late_labels_in_two_runs_and_across_a_gap_give_the_same_model(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    gap = 700
    whole = labelled(tmp_path / "whole.csv", gap_at=gap)
    text = Path(whole).read_text().splitlines()
    options = (*LATE, "--gap", "3600", "--stream", "s")
    assert bptt("learn", whole, "--model", f"{name[:50]}-1", *options).status == 0
    expected = listed(bptt, f"{name[:50]}-1")
    assert expected["steps"] == ROWS
    for place, cut in enumerate((400, gap, gap + 3, gap + 30)):
        half = write(tmp_path / f"half{cut}.csv", text[0], text[1 : cut + 1])
        model = f"{name[:50]}-2{place}"
        for file in (half, whole):
            done = bptt("learn", file, "--model", model, *options)
            assert done.status == 0, done.err
        got = listed(bptt, model)
        assert (got["loss"], got["updates"]) == (expected["loss"], expected["updates"])


# ---------------------------------------------------------------------- bands and anomalies


def test_the_error_band_and_the_anomaly_are_printed(bptt: Bptt, tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, ROWS)
    values = np.sin(np.arange(ROWS) / 9) + noise
    values[1200] += 3
    file = write(tmp_path / "spike.csv", "a", [f"{value:.4f}" for value in values])
    done = bptt("learn", file, "--model", name, "--json")
    last = done.lines[-1]
    # The ranges are of single seeds: 12 seeds on each of three processors.
    assert -0.4 < last["error_low"][0][0] < 0  # -0.230 to -0.213
    assert 0 < last["error_high"][0][0] < 0.4  # 0.192 to 0.207
    lowest = last["lowest_anomaly_scores"]
    assert {each["step"] for each in lowest if each["score"] < 1e-6} <= {1200, 1201}
    assert lowest[0]["score"] < 1e-6
    assert last["model_state"] == "running"
    printed = bptt("learn", file, "--model", name, "--stream", "again").out
    assert re.search(r"^90 % of recent errors: a -0\.\d+ to 0\.\d+$", printed, re.M)
    assert re.search(
        r"^anomalies: \d+ steps? with a score below 1e-06; lowest at 1,20", printed, re.M
    )
    shown = bptt("predict", "--model", name, "--stream", "spike")
    assert "held 90 % of recent targets" in " ".join(shown.out.split())


# ---------------------------------------------------------------------- divergence


def test_a_diverged_model_is_reported_and_can_be_resumed(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    file = write(tmp_path / "wild.csv", "a", ["1", "-2", "5"] * 100)
    wild = ("--cell", "rnn_relu", "--optimizer", "sgd", "--clip", "none", "--learning-rate", "1e30")
    done = bptt("learn", file, "--model", name, *wild, "--divergence-patience", "7")
    assert done.status == 0, done.err
    assert "300 steps learned" in done.out
    assert re.search(r"^7 of \d+ updates skipped: loss or gradient not finite", done.out, re.M)
    assert f"model {name} is diverged (too many consecutive updates were not finite)" in done.err
    assert f"`bptt models update {name} --resume`" in done.err
    assert listed(bptt, name)["state"] == "diverged"
    assert "diverged" in bptt("models").out
    resumed = bptt("models", "update", name, "--resume", "--learning-rate", "0.001")
    assert resumed.out.startswith(f"model {name}: running, learning rate 0.001")
    assert listed(bptt, name)["spec"]["on_divergence"] == "stop"


def test_roll_back_is_a_setting_of_the_model(bptt: Bptt, tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "a.csv", "a", ["1", "2"] * 20)
    options = ("--on-divergence", "roll_back", "--divergence-patience", "25")
    assert bptt("learn", file, "--model", name, *options).status == 0
    spec = listed(bptt, name)["spec"]
    assert (spec["on_divergence"], spec["divergence_patience"]) == ("roll_back", 25)
    other = bptt("learn", file, "--model", name, "--on-divergence", "stop")
    assert other.status == 1
    assert "exists with on_divergence roll_back, but stop was requested" in other.err


# ---------------------------------------------------------------------- invalid arguments


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--label-delay", "3"), 1, "spec.label_delay is 3, but must be 0 for task forecast"),
        (("--task", "regression", "--targets", "b", "--label-delay", "1025"), 1, "1025"),
        (("--label-delay", "x"), 2, "'--label-delay'"),
        (("--divergence-patience", "0"), 1, "spec.divergence_patience is 0"),
        (("--on-divergence", "explode"), 2, "'explode' is not one of 'stop', 'roll_back'"),
        (
            ("--missing", "take", "--missing", "leave-out"),
            2,
            "--missing is both take and leave-out",
        ),
        (("--text", "--missing", "leave-out"), 2, "--missing applies to columns, but --text"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_invalid_arguments_are_one_line(
    bptt: Bptt, tmp_path: Path, options: tuple[str, ...], status: int, message: str
) -> None:
    file = write(tmp_path / "a.csv", "a,b", ["1,2", "2,1"] * 20)
    done = bptt("learn", file, "--model", "never-made", *options)
    assert done.status == status
    assert message in done.err.replace("\n", " ")
    assert "never-made" not in bptt("models").out
