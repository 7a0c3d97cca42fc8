"""`bptt demo`, as a stranger runs it first, and as it is interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from typing import IO

import psutil
import pytest

from tests.cli.conftest import BPTT, Ran, run

GONE_SECONDS = 30


@pytest.fixture(scope="module")
def shown() -> Ran:
    return run("demo")


def test_it_ends_well_and_shows_the_table(shown: Ran) -> None:
    assert shown.status == 0, shown.err
    for words in (
        "19,226",
        "steps a second",
        "error, whole series",
        "error, second half",
        "repeating the last value",
        "updates clipped",
        "median gradient norm",
        "half hours from now",
        "bptt serve",
    ):
        assert words in shown.out
    assert max(len(line.rstrip()) for line in shown.out.splitlines()) <= 90


def test_its_figures_as_json() -> None:
    done = run("demo", "--json")
    found = done.document
    assert done.status == 0
    assert done.err == ""
    assert found["steps"] == 19_226
    assert found["whole"]["steps"] == 19_225
    assert found["second_half"]["error_ratio"] <= 0.97
    assert len(found["forecast"]) == found["horizon"] == 12
    # Near the sea's last value: nothing jumps by 3 °C in six hours.
    assert all(abs(value - found["last_values"][-1]) < 3 for value in found["forecast"])


@contextlib.contextmanager
def _kept() -> Iterator[subprocess.Popen[str]]:
    command = [*BPTT, "demo", "--keep"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as demo:
        try:
            yield demo
        finally:
            if demo.poll() is None:  # or leaving would wait for it for ever
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


def test_keep_is_ended_by_sigterm_without_a_traceback() -> None:
    with _kept() as demo:
        assert demo.stdout is not None
        _until_kept(demo.stdout)
        children = psutil.Process(demo.pid).children(recursive=True)
        demo.send_signal(signal.SIGTERM)
        _, err = demo.communicate(timeout=GONE_SECONDS)
    assert demo.returncode == 143
    assert "Traceback" not in err
    assert _all_gone(children)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_end_leaves_a_server_behind(number: signal.Signals) -> None:
    with _kept() as demo:
        assert demo.stdout is not None
        demo.stdout.readline()  # the server is up, and is learning
        children = psutil.Process(demo.pid).children(recursive=True)
        assert children
        demo.send_signal(number)
        _, err = demo.communicate(timeout=GONE_SECONDS)
    assert demo.returncode in {signal.SIGINT: (0, 130), signal.SIGTERM: (143,)}.get(number, (-9,))
    assert "Traceback" not in err
    assert _all_gone(children)


def test_a_server_that_dies_is_told() -> None:
    with _kept() as demo:
        assert demo.stdout is not None
        _until_kept(demo.stdout)
        (server,) = psutil.Process(demo.pid).children(recursive=True)
        server.kill()
        _, err = demo.communicate(timeout=GONE_SECONDS)
    assert demo.returncode == 1
    assert err.splitlines()[-1].startswith("bptt: the server ended")


def test_the_environment_may_be_poor() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    environment |= {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    done = subprocess.run(
        [*BPTT, "demo"], env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "19,226" in done.stdout


def test_its_json_has_no_nan() -> None:
    text = run("demo", "--json").out
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
