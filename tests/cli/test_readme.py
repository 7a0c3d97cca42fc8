"""The README, followed to the letter."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import click
import numpy as np
import pytest

from bptt.cli.main import bptt as group
from bptt_core import Learner, ModelSpec
from tests.cli.conftest import Bptt, Ran

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "127.0.0.1:50051"


def blocks(*languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    found = [match[1].split() for line in lines if (match := re.search(r"\bbptt (\w.*)", line))]
    return [words for words in found if words[0] in group.commands]


def test_there_are_commands_to_test() -> None:
    assert {words[0] for words in commands()} >= {"serve", "learn", "predict", "models"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_command_and_option_exists(words: list[str]) -> None:
    command, words = group.commands[words[0]], words
    if isinstance(command, click.Group) and words[1:] and words[1] in command.commands:
        command, words = command.commands[words[1]], words[1:]
    known = {name for option in command.params for name in option.opts}
    assert {word for word in words if word.startswith("--")} <= known
    # Parses with all its options, and names all that are required.
    command.make_context(words[0], words[1:], parent=click.Context(group))


@pytest.mark.parametrize("target", re.findall(r"`make (\w+)`", README))
def test_each_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_csv_session_works(bptt: Bptt) -> None:
    for words in commands():
        if words[0] == "serve" or "-" in words:
            continue
        done = subprocess.run(
            [sys.executable, "-m", "bptt.cli", *words, "--address", bptt.server.address],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_python_blocks_run(bptt: Bptt) -> None:
    found = blocks("python")
    assert len(found) == 2
    for text in found + found:  # a second run must work as well
        code = text.replace(ADDRESS, bptt.server.address)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") >= 21


def test_the_example_runs(bptt: Bptt) -> None:
    done = subprocess.run(
        [sys.executable, "examples/live_sensor.py", bptt.server.address, "2000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ratio = re.search(r"second half: ([\d.]+) of the error", done.stdout)
    assert ratio is not None
    # The core, fed the same readings in this process, is as good.
    noise = random.Random(0)
    x = [20 + 5 * math.sin(step / 12) + noise.gauss(0, 0.05) for step in range(2000)]
    alone = Learner(ModelSpec(input_size=1)).feed(np.reshape(x, (-1, 1, 1))).predictions
    assert alone is not None
    error = np.abs(x[1000:] - alone[999:-1, 0, 0]).sum()
    assert ratio[1] == f"{error / np.abs(np.diff(x[999:])).sum():.2f}"


def test_the_example_without_a_server_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "examples/live_sensor.py", "127.0.0.1:1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "no server answers at 127.0.0.1:1; `bptt serve` starts a server\n"


def test_the_table_of_metrics_is_what_the_endpoint_gives(bptt: Bptt) -> None:
    url = f"http://{bptt.server.metrics_address}/metrics"
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    rows = re.findall(r"^\| `((?:bptt|grpc)_\w+)` \| (\w+) \|", README, re.MULTILINE)
    table = dict(rows)
    assert len(table) == len(rows), "no metric stands there twice"
    assert table == {
        name: kind for name, kind in types.items() if name.startswith(("bptt_", "grpc_server_"))
    }


def test_the_picture_has_the_lines_of_the_demo(demo_shown: Ran) -> None:
    shown = [line.strip() for line in demo_shown.out.splitlines()]
    (picture,) = blocks("text")
    for line in picture.splitlines():
        label = line.strip().split("  ")[0]
        if re.match(r"[a-z]", label) and not label.startswith("server"):
            assert any(other.startswith(label) for other in shown), label


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_each_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
