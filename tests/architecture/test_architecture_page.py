"""docs/architecture.md: the generated block is current, and the modules it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bptt.engine import lifecycle

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
BLOCK = re.compile(r"<!-- lifecycle:begin -->\n(.*)<!-- lifecycle:end -->", re.DOTALL)
SERVICE = ROOT / "service"
FOLDERS = (
    ROOT,
    ROOT / "bptt_core",
    ROOT / "bptt_core" / "cells",
    SERVICE,
    SERVICE / "bptt",
    SERVICE / "bptt" / "engine",
    SERVICE / "bptt" / "rpc",
)
"""Paths on the page are relative to one of these."""


def test_the_lifecycle_is_drawn_from_its_table() -> None:
    block = BLOCK.search(PAGE)
    assert block is not None
    expected = f"\n```mermaid\n{lifecycle.diagram()}```\n\n{lifecycle.table()}\n"
    assert block[1] == expected


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+\.py)`", PAGE))))
def test_each_module_it_names_exists(name: str) -> None:
    assert any((folder / name).is_file() for folder in FOLDERS)
