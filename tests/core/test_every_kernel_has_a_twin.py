"""Every kernel is compared with its scalar twin by some test."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import bptt_core.kernels

COMPILERS = {"compiled", "entry", "inlined"}
WITHIN = dict.fromkeys(
    [
        "updates.update_groups",
        "windows.end_sequences",
        "windows.list_active",
        "windows.list_ending",
        "windows.push_steps",
        "windows.push_targets",
        "windows.steps_until_full",
    ],
    "keeps the books of windows.advance, whose twin keeps whole sequences and has no such books",
)
"""Kernels that are compared only as part of another one, with the reason."""


def kernels() -> Iterator[str]:
    """module.function of all that is compiled: decorated, or compiled under another name."""
    for path in sorted(Path(bptt_core.kernels.__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                used = {name for each in node.decorator_list for name in names_in(each)}
                if COMPILERS & used:
                    yield f"{path.stem}.{node.name}"
            elif isinstance(node, ast.Assign) and compiles(node.value):
                for target in node.targets:
                    assert isinstance(target, ast.Name)
                    yield f"{path.stem}.{target.id}"


def compiles(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and bool(COMPILERS & set(names_in(value.func)))


def names_in(node: ast.AST) -> Iterator[str]:
    return (each.id for each in ast.walk(node) if isinstance(each, ast.Name))


def compared() -> Iterator[str]:
    """The kernels that tests are marked to compare."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.core.{path.stem}")
        for test in vars(module).values():
            for mark in getattr(test, "pytestmark", ()):
                if mark.name == "twin_of":
                    assert mark.args, f"{path.name}: {test.__name__} names no kernel"
                    yield from mark.args


def test_every_kernel_has_a_twin() -> None:
    found, twins = set(kernels()), set(compared())
    assert len(found) > 30
    missing = found - twins - set(WITHIN)
    assert not missing, f"no test marked twin_of compares {sorted(missing)}"
    assert not set(WITHIN) - found, "declared, and no kernel any more"
    assert not set(WITHIN) & twins, "declared, and compared all the same"


def test_every_compared_kernel_exists() -> None:
    for name in compared():
        module, _, function = name.partition(".")
        assert hasattr(importlib.import_module(f"bptt_core.kernels.{module}"), function), name
