"""`bptt_core/README.md` against the code it explains: equations, names, figures, the example."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt.cli.gradients import Network, NETWORKS
from bptt_core import cells, ModelSpec, network, params
from bptt_core.cells import Cell

CORE = Path(__file__).parents[2] / "bptt_core"
README = (CORE / "README.md").read_text()


def file_of(cell: Cell) -> str:
    """The file that holds a cell's equations."""
    forward = cell.forward.func if isinstance(cell.forward, functools.partial) else cell.forward
    return f"{forward.__module__.rpartition('.')[2]}.py"


CELLS = {cell.equations: file_of(cell) for cell in cells.CELLS.values()}

MATH = re.findall(r"\$\$(.+?)\$\$|(?<!\$)\$([^$\n]+)\$(?!\$)", README)
# Patterns that GitHub's Markdown interprets, or that its renderer refuses.
BREAKS = {
    r"\\[^a-zA-Z]": "an escape that Markdown swallows",
    r"\\(operatorname|newcommand|def|require|text|begin)\b": "a macro that is refused or fragile",
    r"(^|[^a-zA-Z0-9])_": "an underscore that may begin emphasis",
    r"[<*]": "a tag or emphasis",
    r"\]\(": "a link",
}


def test_the_readme_contains_formulas() -> None:
    assert len(MATH) > 150


@pytest.mark.parametrize("pattern", BREAKS, ids=BREAKS.get)
def test_nothing_in_the_formulas_breaks_on_a_code_host(pattern: str) -> None:
    found = [block + inline for block, inline in MATH]
    assert [formula for formula in found if re.search(pattern, formula)] == []


def test_every_formula_is_closed() -> None:
    without_code = re.sub(r"```.*?```|`[^`\n]*`", "", README, flags=re.DOTALL)
    for paragraph in without_code.split("\n\n"):
        assert paragraph.count("$") % 2 == 0, paragraph
    for block, inline in MATH:
        formula = block + inline
        assert formula.count("{") == formula.count("}"), formula
        opened, closed = (re.findall(rf"\\{side}\b", formula) for side in ("left", "right"))
        assert len(opened) == len(closed), formula


def plain(formula: str) -> str:
    """TeX as the cells' files write it, without spaces."""
    inner = r"\{\\partial ((?:[^{}]|\{[^{}]*\})+)\}"
    text = re.sub(rf"\\frac{inner}{inner}", r"∂\1/∂\2", formula).replace(r"^{\prime}", "'")
    for tex, letter in {
        r"\left(": "(",
        r"\right)": ")",
        r"^\top": "ᵀ",
        r"\tanh^2": "tanh²",
        r"\tanh": "tanh",
        r"\sigma": "σ",
        r"\odot": "⊙",
        r"\sum": "Σ",
        "^2": "²",
        " ": "",
    }.items():
        text = text.replace(tex, letter)
    return text


def equations_of_the_readme(letter: str) -> dict[str, str]:
    found = re.findall(rf"^\$\$(.+) \\tag\{{({letter}\d+)\}}\$\$$", README, re.MULTILINE)
    return {label: plain(formula) for formula, label in found}


def equations_of_the_cell(letter: str) -> dict[str, str]:
    docstring = ast.get_docstring(ast.parse((CORE / "cells" / CELLS[letter]).read_text())) or ""
    found = re.findall(rf"^    \(({letter}\d+)\) +(\S+(?: \S+)*)", docstring, re.MULTILINE)
    return {label: formula.replace(" ", "") for label, formula in found}


@pytest.mark.parametrize("letter", CELLS)
def test_a_cell_has_the_readmes_equations_in_its_order_and_letters(letter: str) -> None:
    mine, theirs = equations_of_the_readme(letter), equations_of_the_cell(letter)
    assert len(mine) >= 9
    assert list(mine.items()) == list(theirs.items())
    assert list(mine) == [f"{letter}{number}" for number in range(1, len(mine) + 1)]


@pytest.mark.parametrize("letter", CELLS)
def test_each_equation_has_its_line_of_code(letter: str) -> None:
    lines = (CORE / "cells" / CELLS[letter]).read_text().splitlines()
    coded = {
        label: line
        for line in lines
        if " = " in line or "return" in line or "+=" in line
        for label in re.findall(rf"\(({letter}\d+)\)", line.partition("  # ")[2])
    }
    assert set(coded) == set(equations_of_the_readme(letter))


def test_labels_in_the_text_are_those_of_equations() -> None:
    known = {label for letter in CELLS for label in equations_of_the_readme(letter)}
    letters = "".join(CELLS)
    mentioned = set(re.findall(rf"\(([{letters}]\d+)\)", README))
    assert mentioned
    assert mentioned <= known


def sections_about_files() -> list[tuple[str, str]]:
    """Sections that link a cell's file, each with the source of the file."""
    sections = re.split(r"^##+ ", README, flags=re.MULTILINE)[1:]
    found = []
    for section in sections:
        files = set(re.findall(r"\]\((cells/\w+\.py)\)", section))
        if files:
            source = "".join((CORE / file).read_text() for file in sorted(files))
            found.append((section, source))
    return found


def test_names_in_the_text_are_those_of_the_code() -> None:
    names = [
        (name, source)
        for section, source in sections_about_files()
        for paragraph in section.split("\n\n")
        if paragraph.startswith("In the code:")
        for name in re.findall(r"`([^`]+)`", paragraph)
    ]
    assert len(names) > 10
    assert [name for name, source in names if name not in source] == []


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_each_link_leads_somewhere(link: str) -> None:
    assert (CORE / link).exists()


def test_the_example_runs_and_prints_what_is_shown() -> None:
    match = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    assert match is not None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(match[1], "README.md", "exec"), {})  # noqa: S102 - our own text
    number = re.compile(r"[\d.]+(e[-+]\d+)?")
    assert number.sub("#", printed.getvalue()) == number.sub("#", match[2])


def gradient_of_the_last_step(spec: ModelSpec, named: Any, x: Any, tape: Any, kept: int) -> Any:
    """Gradient of all parameters from the last step's loss, truncated after `kept` steps."""
    first = len(x) - kept
    window = network.forward(spec, named, x[first:], tape.state_after(first))
    d_output = np.zeros_like(window.output)
    d_output[-1] = 1
    return network.backward(spec, named, window, d_output)


def table(title: str) -> dict[str, list[str]]:
    """Rows of the table whose head begins with `title`."""
    block = README[README.index(f"| {title} |") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return {row[0]: row[1:] for row in rows if not row[0].startswith("-")}


@pytest.mark.parametrize("each", NETWORKS, ids=lambda each: each.cell)
def test_the_truncation_error_matches_the_table(each: Network) -> None:
    spec = ModelSpec(
        task="regression", output_size=1, cell=each.cell, hidden_size=64, dtype="float64"
    )
    named = params.views(spec, params.initialise(spec))
    each.initialise(spec, named, np.random.default_rng(0), 64)
    x = np.random.default_rng(0).normal(size=(64, 1, 1))
    tape = network.forward(spec, named, x, np.zeros((1, spec.state_parts, 1, 64)))
    full = gradient_of_the_last_step(spec, named, x, tape, 64)
    rows = table("steps kept")
    for kept, shown in zip(rows["steps kept"], rows[each.name], strict=True):
        part = gradient_of_the_last_step(spec, named, x, tape, int(kept))
        assert f"{np.linalg.norm(part - full) / np.linalg.norm(full):.1g}" == shown


def test_the_steps_of_an_open_gate_match_the_table() -> None:
    rows = table("$f$")
    (bias,) = (cells for title, cells in rows.items() if title.startswith("bias"))
    for gate, shown_bias, steps in zip(rows["$f$"], bias, rows["steps"], strict=True):
        f = float(gate)
        assert int(np.log(0.01) / np.log(f)) == int(steps)
        assert np.log(f / (1 - f)) == pytest.approx(float(shown_bias), abs=0.05)
