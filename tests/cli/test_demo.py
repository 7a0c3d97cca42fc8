"""`bptt demo`: a first run, and every way to end it."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import psutil
import pytest

from bptt_core import Learner, ModelSpec
from tests.cli.conftest import BPTT, Ran, run

DATA = Path(__file__).parents[2] / "service" / "bptt" / "data"
SERIES = DATA / "sea_surface_temperature.csv.gz"

GONE_SECONDS = 30


@pytest.fixture(scope="module")
def as_json() -> Ran:
    return run("demo", "--json")


def test_it_succeeds_and_shows_the_table(demo_shown: Ran) -> None:
    assert demo_shown.status == 0, demo_shown.err
    for words in (
        "19,226",
        "steps a second",
        "error, whole series",
        "error, second half",
        "relative to the last-value forecast",
        "updates clipped",
        "median gradient norm",
        "half hours from now",
        "bptt serve",
    ):
        assert words in demo_shown.out
    assert max(len(line.rstrip()) for line in demo_shown.out.splitlines()) <= 90


def test_settings_of_this_machines_own_server_are_not_for_the_demos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bptt.toml").write_text("[limits]\nmodels = 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BPTT_DURABILITY", "never")
    assert run("demo", "--json").status == 0


@pytest.mark.same_bits
def test_json_contains_the_figures(as_json: Ran) -> None:
    """The core, fed the same series in this process, gives the same forecast and errors."""
    found = as_json.document
    assert as_json.status == 0
    assert as_json.err == ""
    assert found["steps"] == 19_226
    assert found["whole"]["steps"] == 19_225
    assert len(found["forecast"]) == found["horizon"] == 12
    with gzip.open(SERIES, "rt") as file:
        rows = [row["temperature (celsius)"] for row in csv.DictReader(file)]
    x = np.array(rows, np.float32)
    alone = Learner(ModelSpec(input_size=1, horizon=12)).feed(x[:, np.newaxis, np.newaxis])
    assert alone.predictions is not None
    predictions = alone.predictions[:, 0].astype(np.float32)
    np.testing.assert_array_equal(np.float32(found["forecast"]), predictions[-1])
    error = np.abs(np.diff(x.astype(float)) - (predictions[:-1, 0] - x[:-1].astype(float)))
    ratio = error.sum() / np.abs(np.diff(x.astype(float))).sum()
    assert found["whole"]["error_ratio"] == pytest.approx(ratio, rel=1e-6)


@contextlib.contextmanager
def _kept() -> Iterator[subprocess.Popen[str]]:
    command = [*BPTT, "demo", "--keep"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as demo:
        try:
            yield demo
        finally:
            if demo.poll() is None:  # otherwise Popen would wait for ever
                demo.kill()


def _until_kept(out: IO[str]) -> str:
    text = ""
    for line in out:
        text += line
        if "curl http://" in line:
            return text
    raise AssertionError(text)


def _all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=GONE_SECONDS)
    return not alive


def test_keep_leaves_the_server_up_until_ctrl_c() -> None:
    with _kept() as demo:
        assert demo.stdout is not None
        text = _until_kept(demo.stdout)
        children = psutil.Process(demo.pid).children(recursive=True)
        assert children
        match = re.search(r"bptt predict --address (\S+) --model (\S+) --stream (\S+)", text)
        assert match is not None
        where = ("--address", match[1], "--model", match[2], "--stream", match[3])
        assert run("predict", *where).status == 0
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=GONE_SECONDS)
    assert demo.returncode == 0
    assert _all_gone(children)


@pytest.mark.parametrize("is_kept", [False, True], ids=["learning", "kept"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_signal_leaves_a_server_or_a_traceback(number: signal.Signals, is_kept: bool) -> None:
    with _kept() as demo:
        assert demo.stdout is not None
        if is_kept:
            _until_kept(demo.stdout)
        else:
            demo.stdout.readline()  # the server is running and learning
        children = psutil.Process(demo.pid).children(recursive=True)
        assert children
        demo.send_signal(number)
        _, err = demo.communicate(timeout=GONE_SECONDS)
    statuses = {signal.SIGINT: (0, 130), signal.SIGTERM: (143,), signal.SIGHUP: (129,)}
    assert demo.returncode in statuses.get(number, (-9,))
    assert "Traceback" not in err
    assert _all_gone(children)


def test_a_server_that_dies_is_reported() -> None:
    with _kept() as demo:
        assert demo.stdout is not None
        _until_kept(demo.stdout)
        (server,) = psutil.Process(demo.pid).children(recursive=True)
        server.kill()
        _, err = demo.communicate(timeout=GONE_SECONDS)
    assert demo.returncode == 1
    assert err.splitlines()[-1].startswith("bptt: the server ended")


def test_it_runs_without_home_locale_and_terminal() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    environment |= {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    done = subprocess.run(
        [*BPTT, "demo"], env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "19,226" in done.stdout


def test_json_has_no_nan(as_json: Ran) -> None:
    json.loads(as_json.out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
