"""`bptt gradients`: the three curves in the terminal, in files and as JSON."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import BPTT, Ran, run

ROOT = Path(__file__).parents[2]
SERIES = str(ROOT / "service" / "bptt" / "data" / "CGM.csv.gz")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def networks(*arguments: str) -> dict[str, Any]:
    done = run("gradients", "--json", *arguments)
    assert done.status == 0, done.err
    return {each["name"]: each for each in done.document["networks"]}


@pytest.fixture(scope="module")
def shown() -> Ran:
    return run("gradients")


def test_the_terminal_shows_three_curves_and_their_figures(shown: Ran) -> None:
    assert shown.status == 0, shown.err
    assert shown.err == ""
    inside = "".join(re.findall(r"[│┤](.*)│", shown.out))
    assert all(inside.count(mark) > 20 for mark in "·+o")
    for words in (
        "tanh RNN",
        "ReLU RNN",
        "LSTM",
        "spectral radius",
        "memory horizon",
        "64 or more",
    ):
        assert words in shown.out
    assert max(map(len, map(str.rstrip, shown.out.splitlines()))) <= 90


def test_the_table_in_the_cores_readme_matches_the_output(shown: Ran) -> None:
    readme = (ROOT / "bptt_core" / "README.md").read_text()
    rows = re.findall(r"^\| (?:tanh RNN|ReLU RNN|LSTM) \| [^|]*[a-zA-Z].*$", readme, re.MULTILINE)
    assert len(rows) == 3
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    for row in rows:
        words = " ".join(row.replace("|", " ").split())
        assert any(line.endswith(words) for line in lines), words


@pytest.mark.parametrize(
    "arguments", [(), ("--seed", "5"), ("--hidden-size", "32"), ("--input", SERIES)]
)
def test_one_gradient_vanishes_one_explodes_one_lasts(arguments: tuple[str, ...]) -> None:
    found = networks(*arguments)
    tanh, relu, lstm = (found[name] for name in ("tanh RNN", "ReLU RNN", "LSTM"))
    assert [len(each["ratios"]) for each in (tanh, relu, lstm)] == [65] * 3
    assert tanh["ratios"][64] < 1e-6
    assert tanh["memory_horizon"] < 16
    assert relu["ratios"][64] > 100
    assert 0.01 < lstm["ratios"][64] < 1
    assert lstm["memory_horizon"] == relu["memory_horizon"] == 64
    assert relu["spectral_radius"] > 1.5
    assert tanh["spectral_radius"] < 1


def test_the_memory_horizon_follows_from_the_curve() -> None:
    for each in networks("--steps", "40").values():
        ratios = np.array(each["ratios"])
        assert each["memory_horizon"] == np.flatnonzero(ratios > 0.01)[-1]
        assert ratios[0] == 1


def test_the_output_depends_on_the_seed_only() -> None:
    first, again = (run("gradients", "--json", "--steps", "8").out for _ in range(2))
    other = run("gradients", "--json", "--steps", "8", "--seed", "1").out
    assert first == again
    assert first != other


def test_the_longest_curve_is_finite() -> None:
    for each in networks("--steps", "1024", "--hidden-size", "32").values():
        assert None not in each["ratios"]
    drawn = run("gradients", "--steps", "1024", "--hidden-size", "32")
    assert drawn.status == 0, drawn.err
    assert "1e-16" in drawn.out


def test_a_picture_is_written_as_png_and_svg(tmp_path: Path) -> None:
    png, svg = tmp_path / "a.png", tmp_path / "b.SVG"
    assert str(png) in run("gradients", "--output", str(png)).out
    assert png.read_bytes().startswith(PNG_MAGIC)
    assert run("gradients", "--output", str(svg), "--json").document["steps"] == 64
    root = ElementTree.fromstring(svg.read_text())
    assert root.tag.endswith("svg")
    assert "LSTM" in svg.read_text()


def test_without_matplotlib_the_error_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError('not here')")
    picture = tmp_path / "a.png"
    done = subprocess.run(
        [*BPTT, "gradients", "--output", str(picture)],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'bptt[plots]'" in done.stderr
    assert not picture.exists()


def test_matplotlib_is_imported_only_for_a_picture_file() -> None:
    sources = [*ROOT.glob("bptt_core/**/*.py"), *ROOT.glob("service/**/*.py")]
    users = {
        path.name for path in sources if re.search(r"(import|from) matplotlib", path.read_text())
    }
    assert users == {"chart.py", "gradients.py"}
    code = (
        "import sys; from bptt.cli.gradients import gradients; "
        "gradients.main(['--steps', '4'], standalone_mode=False); "
        "sys.exit('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--output", "x.pdf"), 2, "x.pdf"),
        (("--output", "/no/such/folder/x.png"), 1, "cannot write"),
        (("--steps", "1"), 2, "--steps"),
        (("--steps", "many"), 2, "--steps"),
        (("--hidden-size", "7"), 2, "--hidden-size"),
        (("--seed", "-1"), 2, "--seed"),
        (("--input", "missing.csv"), 1, "file not found: missing.csv"),
        (("--input", "-"), 1, "10 rows"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], status: int, words: str) -> None:
    ten = "time,a\n" + "".join(f"2020-01-0{day % 9},{day}\n" for day in range(10))
    done = run("gradients", *arguments, stdin=ten)
    assert done.status == status
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("bptt: ")
    assert words in line


def test_constant_columns_and_missing_values_are_accepted() -> None:
    rows = "a,b\n" + "".join(f"{row % 3},7\n,7\n" for row in range(20))
    done = run("gradients", "--json", "--steps", "20", "--input", "-", stdin=rows)
    assert done.status == 0, done.err


def test_a_series_without_numbers_is_an_error() -> None:
    done = run("gradients", "--input", "-", stdin="a,b\nx,y\n")
    assert done.status == 1
    assert "no numeric column" in done.err
