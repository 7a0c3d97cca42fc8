"""The commands, programs and links of README.md and the pages it leads to, executed as printed."""

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
METRICS = (ROOT / "docs" / "metrics.md").read_text()
FULL_ONLY = re.findall(r"^\| `(\w+)` .*`--metrics-detail full`", METRICS, re.MULTILINE)
OF_PYTORCH = ROOT / "docs" / "pytorch.md"  # tests/interop runs its programs and commands
PAGES = [ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - {OF_PYTORCH})]
ADDRESS = "127.0.0.1:50051"
LINE_CHARACTERS_MAX = 120


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages."""
    text = page.read_text()
    found = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def commands() -> list[list[str]]:
    """The bptt commands of all pages, as lists of words."""
    shell = [block for page in PAGES for block in blocks(page, "sh")]
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    found = [match[1].split() for line in lines if (match := re.search(r"\bbptt (\w.*)", line))]
    return [words for words in found if words[0] in group.list_commands(click.Context(group))]


def test_the_pages_contain_commands() -> None:
    assert {words[0] for words in commands()} >= {"demo", "serve", "learn", "predict", "models"}


def test_the_readme_can_be_read_in_a_terminal() -> None:
    long = [line for line in README.splitlines() if len(line) > LINE_CHARACTERS_MAX]
    assert not long


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_command_and_option_exists(words: list[str]) -> None:
    command = group.get_command(click.Context(group), words[0])
    assert command is not None
    if isinstance(command, click.Group) and words[1:] and words[1] in command.commands:
        command, words = command.commands[words[1]], words[1:]
    known = {name for option in command.params for name in option.opts}
    assert {word for word in words if word.startswith("--")} <= known
    # Click parses the line, and complains if a required option is missing.
    command.make_context(words[0], words[1:], parent=click.Context(group))


@pytest.mark.parametrize("target", re.findall(r"`make (\w+)`", README))
def test_each_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_commands_succeed(bptt: Bptt) -> None:
    for words in commands():
        if words[0] in ("serve", "demo", "certificate", "token") or "-" in words:
            continue  # they do not end by themselves, or have a test of their own
        if "--tls-ca" in words:
            continue  # tests/cli/test_secured.py runs the session of docs/security.md
        done = subprocess.run(
            [sys.executable, "-m", "bptt.cli", *words, "--address", bptt.server.address],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_python_programs_run(bptt: Bptt) -> None:
    found = blocks(ROOT / "README.md", "python")
    assert len(found) == 2
    for text in found + found:  # a second run must succeed too
        code = text.replace(ADDRESS, bptt.server.address)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") >= 21


def test_the_live_sensor_runs(bptt: Bptt) -> None:
    done = subprocess.run(
        [sys.executable, "examples/live_sensor.py", bptt.server.address, "2000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ratio = re.search(r"second half, error relative to .*: ([\d.]+)", done.stdout)
    assert ratio is not None
    # The core, fed the same readings in this process, is as good.
    noise = random.Random(0)
    x = [20 + 5 * math.sin(step / 12) + noise.gauss(0, 0.05) for step in range(2000)]
    alone = Learner(ModelSpec(input_size=1)).feed(np.reshape(x, (-1, 1, 1))).predictions
    assert alone is not None
    error = np.abs(x[1000:] - alone[999:-1, 0, 0]).sum()
    assert ratio[1] == f"{error / np.abs(np.diff(x[999:])).sum():.2f}"


def test_the_live_sensor_without_a_server_prints_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "examples/live_sensor.py", "127.0.0.1:1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "no server answers at 127.0.0.1:1; `bptt serve` starts a server\n"


def test_the_table_of_metrics_matches_the_endpoint(bptt: Bptt) -> None:
    url = f"http://{bptt.server.metrics_address}/metrics"
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    rows = re.findall(r"^\| `((?:bptt|grpc|process)_\w+)` \| (\w+) \|", METRICS, re.MULTILINE)
    table = dict(rows)
    assert len(table) == len(rows), "each metric has one row"
    summaries = {name for name, kind in types.items() if kind == "summary"}
    assert types == {
        name: "summary" if name in summaries else kind
        for name, kind in table.items()
        if name not in FULL_ONLY
    }
    assert {table[name] for name in summaries} == {"histogram"}


def _form(text: str) -> list[str]:
    """Labels of the demo's lines: figures, spaces and the picture's frame are left out."""
    lines = [re.sub(r"[\d.,:%–]+", "#", line) for line in text.splitlines()]
    lines = [" ".join(line.split()) for line in lines]
    return [line for line in lines if re.match(r"[a-zN]", line)]


def test_the_demos_block_has_the_lines_of_the_demo(demo_shown: Ran) -> None:
    (block,) = blocks(ROOT / "README.md", "text")
    printed = _form(demo_shown.out)
    assert len(printed) >= 10
    assert _form(block) == printed


LINKS = [
    (page, link)
    for page in PAGES
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text())
    if not link.startswith("http")
]


@pytest.mark.parametrize(
    ("page", "link"), LINKS, ids=[f"{page.name}-{link}" for page, link in LINKS]
)
def test_each_link_leads_to_a_file(page: Path, link: str) -> None:
    assert (page.parent / link).exists()
