"""The contract of cells, for the cells of this library."""

from __future__ import annotations

import pytest

from bptt_core.cells import CELLS
from tests.core.cell_contract import CellContract


class TestOurCells(CellContract):
    @pytest.fixture(params=list(CELLS))
    def cell(self, request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name
