"""The contract of optimizers, for the optimizers of this library."""

from __future__ import annotations

import pytest

from bptt_core.optimizers import OPTIMIZERS
from tests.core.optimizer_contract import OptimizerContract


class TestOurOptimizers(OptimizerContract):
    @pytest.fixture(params=list(OPTIMIZERS))
    def optimizer(self, request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name
