"""`bptt learn`, `predict` and `models`, end to end."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bptt.cli.main import bptt as group
from bptt.cli.progress import Pace
from tests.cli.conftest import BPTT, Bptt, run
from tests.support.server import Served

ROWS = 500


@pytest.fixture
def waves(tmp_path: Path) -> str:
    """Two waves with a time, a place, and three missing values."""
    t = np.arange(ROWS)
    rows = [f"2024-01-01T{i % 24:02d}:00,{np.sin(i / 9):.5f},x,{np.cos(i / 5):.5f}" for i in t]
    for gap in (10, 200, 499):
        rows[gap] = f"2024-01-01,,x,{gap}"
    path = tmp_path / "waves.csv"
    path.write_text("when,a,place,b\n" + "\n".join(rows) + "\n")
    return str(path)


def test_a_file_is_learned_and_predicted_from(bptt: Bptt, waves: str, name: str) -> None:
    done = bptt("learn", waves, "--model", name)
    assert done.status == 0, done.err
    assert "'when' is left out: a time" in done.err
    assert "'place' is left out: text" in done.err
    assert "column 'a' lacks 3 values: the model treats them as missing" in done.err
    assert f"500 steps learned on stream waves of model {name}" in done.out
    assert "relative to the last-value forecast" in done.out
    assert "median gradient norm" in done.out
    listed = {model["model_id"]: model for model in bptt("models", "--json").document}
    assert listed[name]["steps"] == 500
    assert listed[name]["spec"]["input_names"] == ["a", "b"]
    assert name in bptt("models").out
    predicted = bptt("predict", "--model", name, "--stream", "waves", "--json").document
    assert predicted["next_step"] == 500
    assert predicted["targets"] == ["a", "b"]
    assert np.shape(predicted["predictions"]) == (1, 1, 2)
    assert "500" in bptt("predict", "--model", name, "--stream", "waves").out


def test_json_is_the_only_output(bptt: Bptt, waves: str, name: str) -> None:
    done = bptt("learn", waves, "--model", name, "--missing", "leave-out", "--json")
    last = done.lines[-1]
    assert (last["event"], last["steps"], last["next_step"]) == ("done", 497, 497)
    assert last["rows_left_out"] == 3
    assert last["whole"]["steps"] == 496
    assert last["updates"] > 100
    assert last["median_gradient_norm"] > 0
    assert done.err == ""


def test_columns_and_targets_can_be_chosen(bptt: Bptt, waves: str, name: str) -> None:
    options = ("--columns", "b,a", "--target", "a", "--horizon", "3", "--hidden-size", "8")
    assert bptt("learn", waves, "--model", name, *options).status == 0
    predicted = bptt("predict", "--model", name, "--stream", "waves", "--json").document
    assert predicted["targets"] == ["a"]
    assert np.shape(predicted["predictions"]) == (1, 3, 1)
    (model,) = [m for m in bptt("models", "--json").document if m["model_id"] == name]
    assert model["spec"]["target_columns"] == [1]
    assert model["spec"]["hidden_size"] == 8


def test_a_regression_predicts_its_target(bptt: Bptt, waves: str, name: str) -> None:
    done = bptt("learn", waves, "--model", name, "--task", "regression", "--target", "b")
    assert done.status == 0, done.err
    assert "the running mean" in done.out
    predicted = bptt("predict", "--model", name, "--stream", "waves", "--input", "0.5", "--json")
    assert np.shape(predicted.document["predictions"]) == (1, 1, 1)


def test_a_second_run_continues_after_the_last_step(
    bptt: Bptt, tmp_path: Path, waves: str, name: str
) -> None:
    rows = Path(waves).read_text().splitlines(keepends=True)
    part = tmp_path / "part" / "waves.csv"
    part.parent.mkdir()
    part.write_text("".join(rows[:101]))
    first = bptt("learn", str(part), "--model", name, "--json").lines[-1]
    assert first["steps"] == 100
    second = bptt("learn", waves, "--model", name, "--json").lines[-1]
    assert (second["steps"], second["rows_skipped"], second["next_step"]) == (400, 100, 500)
    third = bptt("learn", waves, "--model", name)
    assert third.status == 0
    assert "nothing new" in third.err
    more = bptt("learn", waves, "--model", name, "--append", "--json").lines[-1]
    assert (more["steps"], more["next_step"]) == (500, 1000)


def test_two_partial_runs_learn_the_same(bptt: Bptt, tmp_path: Path, waves: str) -> None:
    rows = Path(waves).read_text().splitlines(keepends=True)
    part = tmp_path / "part" / "waves.csv"
    part.parent.mkdir()
    part.write_text("".join(rows[:238]))
    assert bptt("learn", waves, "--model", "at-once").status == 0
    assert bptt("learn", str(part), "--model", "in-parts").status == 0
    assert bptt("learn", waves, "--model", "in-parts").status == 0
    found = [
        bptt("predict", "--model", model, "--stream", "waves", "--json").document["predictions"]
        for model in ("at-once", "in-parts")
    ]
    assert found[0] == found[1]


def test_gzip_and_standard_input_are_read(bptt: Bptt, waves: str, name: str) -> None:
    text = Path(waves).read_text()
    packed = Path(waves + ".gz")
    packed.write_bytes(gzip.compress(text.encode()))
    assert bptt("learn", str(packed), "--model", name, "--json").lines[-1]["steps"] == 500
    piped = bptt("learn", "-", "--model", name, "--json", stdin=text).lines[-1]
    assert (piped["stream"], piped["steps"]) == ("stdin", 500)
    again = bptt("learn", "-", "--model", name, "--json", stdin=text).lines[-1]
    assert (again["steps"], again["rows_skipped"], again["next_step"]) == (0, 500, 500)
    more = bptt("learn", "-", "--model", name, "--json", "--append", stdin=text).lines[-1]
    assert (more["steps"], more["next_step"]) == (500, 1000)


def test_standard_input_is_learned_line_by_line_until_ctrl_c(bptt: Bptt, name: str) -> None:
    command = [*BPTT, "learn", "-", "--model", name, "--address", bptt.server.address]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        process.stdin.write("a\n1\n2\n3\n")
        _wait_for_step(bptt, name, 3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "3 steps learned" in out
    assert "interrupted: all rows that were sent are learned" in err
    assert "Traceback" not in err


SLOW = ("--hidden-size", "512", "--k1", "1", "--k2", "64")  # half a second a chunk


def test_a_second_ctrl_c_quits_at_once(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("a\n" + "1\n2\n" * 5000)
    serve = [*BPTT, "serve", "--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*serve, "--json"], stdout=pipe, stderr=pipe, text=True) as server:
        try:
            assert server.stdout is not None
            address = json.loads(server.stdout.readline())["address"]
            learn = [*BPTT, "learn", str(path), "--model", "m", *SLOW, "--address", address]
            with subprocess.Popen(learn, stdout=pipe, stderr=pipe, text=True) as client:
                assert client.stderr is not None
                while "created model" not in client.stderr.readline():
                    pass
                _wait_for_step(Bptt(Served(address, "", server)), "m", None, stream="long")
                client.send_signal(signal.SIGINT)
                assert "Ctrl-C again quits" in client.stderr.readline()
                client.send_signal(signal.SIGINT)
                assert client.wait(timeout=10) == 130
                left = client.stderr.read()
            assert left.count("\n") == 1
            assert "quit at once" in left
            assert server.stderr is not None
            server.send_signal(signal.SIGINT)
            while "stopping" not in server.stderr.readline():
                pass
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=10) == 130
            left = server.stderr.read()
            assert left.count("\n") == 1
            assert "stopped at once" in left
        finally:
            server.kill()


def _wait_for_step(bptt: Bptt, model: str, step: int | None, stream: str = "stdin") -> None:
    """Wait until the stream's next step is `step`; None: until the stream exists."""
    for _ in range(200):
        done = bptt("predict", "--model", model, "--stream", stream, "--json")
        if done.status == 0 and step in (None, done.document["next_step"]):
            return
    pytest.fail(f"step {step} was not reached while the input was open: {done}")


def test_a_server_stop_is_reported_in_one_line(served: Served) -> None:
    command = [*BPTT, "learn", "-", "--model", "m", "--address", served.address]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        process.stdin.write("a\n1\n2\n")
        process.stdin.flush()
        _wait_for_step(Bptt(served), "m", 2)
        served.process.terminate()
        # The input stays open: a file that ends here would have been learned successfully.
        status = process.wait(timeout=60)
        _, err = process.communicate()
    assert status == 1
    assert err.splitlines()[-1] == f"bptt: the server at {served.address} stopped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_stop_within_a_file_is_reported_in_one_line(
    served: Served, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "long.csv"
    path.write_text("a\n" + "1\n2\n" * 100_000)
    command = [*BPTT, "learn", str(path), "--model", "m", "--address", served.address]
    with subprocess.Popen(
        [*command, "--hidden-size", "128"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _wait_for_step(Bptt(served), "m", None, stream="long")
        served.process.send_signal(number)
        _, err = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        served.process.wait()
        served.process.returncode = 0  # intended: the fixture treats any other status as a failure
    assert process.returncode == 1
    advice = "stopped; run the same command again to continue"
    *before, last = err.splitlines()
    assert last == f"bptt: the server at {served.address} {advice}"
    assert not any(line.startswith(("bptt:", "Traceback")) for line in before)


def test_a_terminal_shows_a_progress_bar(bptt: Bptt, waves: str, name: str) -> None:
    command = [*BPTT, "learn", waves, "--model", name, "--address", bptt.server.address]
    controller, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        command, stdout=terminal, stderr=terminal, stdin=terminal, env=environment
    ) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                data = os.read(controller, 1 << 16)
            except OSError:  # the terminal was closed
                break
            if not data:
                break
            shown += data
    os.close(controller)
    assert process.returncode == 0
    text = shown.decode()
    assert "\x1b[" in text
    assert "━" in text
    for word in ("500 rows", " a second · ", "relative error"):
        assert word in text


def test_the_time_that_is_left_is_told_from_the_second_look_on() -> None:
    """The bytes before the first look may have been skipped, so they tell nothing of the speed."""
    pace = Pace(100)
    assert pace.seconds_left(40) is None
    left = pace.seconds_left(90)
    assert left is not None
    assert 0 <= left < 60
    assert Pace(None).seconds_left(10) is None


BAD = "a,b\n1,2\n3,x\n4,5\n"


def test_an_invalid_value_is_reported_and_no_model_is_created(
    bptt: Bptt, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(BAD)
    done = bptt("learn", str(path), "--model", name)
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "line 3, column 'b'" in done.err
    assert name not in bptt("models").out


def test_an_invalid_value_in_standard_input_ends_the_run_after_earlier_rows(
    bptt: Bptt, name: str
) -> None:
    done = bptt("learn", "-", "--model", name, "--bad-rows", "0", "--json", stdin=BAD)
    assert done.status == 1
    assert "line 3, column 'b'" in done.err
    last = json.loads(done.out.splitlines()[-1])
    assert (last["event"], last["next_step"]) == ("failed", 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--columns", "a,nope"], ["'nope'", "when, a, place, b"]),
        (["--target", "nope"], ["'nope'", "when, a, place, b"]),
        (["--columns", "a", "--target", "b"], ["'b'", "not among the columns"]),
        (["--columns", "a,place"], ["line 2, column 'place'", "'x'"]),
        (["--columns", "a,a"], ["'a' appears twice"]),
        (["--task", "regression"], ["--target"]),
        (["--hidden-size", "0"], ["hidden_size is 0", "1 to"]),
        (["--hidden-size", "-1"], ["hidden_size is -1"]),
        (["--hidden-size", "x"], ["--hidden-size", "not a valid integer"]),
        (["--k1", "8", "--k2", "4"], ["k2 is 4", "at least k1"]),
        (["--learning-rate", "0"], ["learning_rate is 0", "> 0"]),
        (["--clip-threshold", "-1"], ["clip_threshold is -1", "> 0"]),
        (["--horizon", "0"], ["horizon is 0"]),
        (["--cell", "cnn"], ["--cell", "rnn_tanh"]),
        (["--optimizer", "sgdd"], ["--optimizer", "adam"]),
        (["--stream", ""], ["--stream", "1 to 256 bytes"]),
        (["--stream", "é" * 129], ["258 bytes", "1 to 256 bytes"]),
        (["--nonsense"], ["No such option", "--nonsense"]),
    ],
)
def test_invalid_options_are_one_line(
    bptt: Bptt, waves: str, name: str, options: list[str], words: list[str]
) -> None:
    done = bptt("learn", waves, "--model", "bad-options", *options)
    assert done.status in (1, 2)
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if "is left out" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("bptt: ")
    for word in words:
        assert word in lines[0]
    assert "bad-options" not in bptt("models").out


def test_invalid_model_names_and_files_are_errors(bptt: Bptt, tmp_path: Path, waves: str) -> None:
    for model in ("", "Ü", "a b", "x" * 100):
        done = bptt("learn", waves, "--model", model)
        assert done.status == 1
        assert "model_id" in done.err
    gone = bptt("learn", str(tmp_path / "gone.csv"), "--model", "m")
    assert gone.status == 1
    assert "file not found:" in gone.err
    empty = bptt("learn", "-", "--model", "m", stdin="")
    assert empty.status == 1
    assert "header" in empty.err


def test_a_model_with_other_settings_is_refused(bptt: Bptt, waves: str, name: str) -> None:
    assert bptt("learn", waves, "--model", name).status == 0
    width = bptt("learn", waves, "--model", name, "--columns", "a")
    assert width.status == 1
    assert "exists with input_size 2" in width.err
    units = bptt("learn", waves, "--model", name, "--hidden-size", "8")
    assert units.status == 1
    assert "exists with hidden_size 64" in units.err


def test_predict_reports_errors_in_one_line(bptt: Bptt, waves: str, name: str) -> None:
    assert bptt("learn", waves, "--model", name).status == 0
    for arguments, words in (
        (("--model", "no", "--stream", "s"), "model_id is 'no'"),
        (("--model", name, "--stream", "no"), "stream_id is 'no'"),
        (
            ("--model", name, "--stream", "waves", "--input", "1"),
            "got 1 values, but a step of model",
        ),
        (
            ("--model", name, "--stream", "waves", "--input", "1,x"),
            "must be numbers separated by commas",
        ),
        (("--model", name, "--stream", "waves", "--input", "1,inf"), "inputs"),
    ):
        done = bptt("predict", *arguments)
        assert done.status in (1, 2)
        assert done.err.count("\n") == 1
        assert words in done.err


@pytest.mark.parametrize("command", ["learn", "predict", "models"])
def test_a_missing_server_is_one_line_with_the_address(command: str, waves: str) -> None:
    options = {
        "learn": [waves, "--model", "m"],
        "predict": ["--model", "m", "--stream", "s"],
        "models": [],
    }[command]
    done = run(command, *options, "--address", "127.0.0.1:1")
    assert done.status == 1
    assert done.out == ""
    assert done.err == "bptt: no server answers at 127.0.0.1:1\n"


@pytest.mark.parametrize("address", ["foo", "foo:", ":1", "foo:x", "foo:0", "foo:65536"])
@pytest.mark.parametrize("command", ["learn", "predict", "models"])
def test_an_invalid_address_is_an_error(command: str, address: str) -> None:
    runner = CliRunner()
    arguments = {"learn": ["f", "--model", "m"], "predict": ["--model", "m", "--stream", "s"]}
    done = runner.invoke(group, [command, *arguments.get(command, []), "--address", address])
    assert done.exit_code == 2
    assert "host:port" in done.output


def test_skipped_updates_are_reported(bptt: Bptt, tmp_path: Path, name: str) -> None:
    path = tmp_path / "wild.csv"
    path.write_text("a\n" + "1\n-2\n5\n" * 200)
    options = ("--cell", "rnn_relu", "--optimizer", "sgd", "--clip", "none")
    done = bptt("learn", str(path), "--model", name, *options, "--learning-rate", "1e30")
    assert done.status == 0, done.err
    assert re.search(
        r"^10 of 12 updates skipped: loss or gradient not finite; try a lower --learning-rate",
        done.out,
        re.M,
    )
