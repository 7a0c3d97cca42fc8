"""The contract of optimizers; a test file that registers an optimizer runs it too.

A subclass of `OptimizerContract` gives the names of its optimizers as the fixture `optimizer`.
"""

from __future__ import annotations

from typing import Any

import pytest

from bptt_core import bytes_of_model, Learner, ModelSpec
from bptt_core.optimizers import OPTIMIZERS
from tests.core.support import assert_same_memory, random_steps, twin
from tests.core.test_twin import check_learner
from tests.core.test_twin_learning import check_optimizer

backends = pytest.mark.parametrize("backend", ["reference", "compiled"])


def spec_of(optimizer: str, **others: Any) -> ModelSpec:
    values: dict[str, Any] = {"input_size": 2, "hidden_size": 5, "k1": 3, "k2": 7}
    return ModelSpec(**values, optimizer=optimizer, dtype="float64", **others)


class OptimizerContract:
    """The suite. A subclass supplies the fixture `optimizer`."""

    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    @pytest.mark.parametrize("factor", [1.0, 0.25])
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_both_backends_are_the_scalar_twin(
        self, optimizer: str, weight_decay: float, factor: float, dtype: Any
    ) -> None:
        check_optimizer(optimizer, weight_decay, factor, dtype)

    @backends
    def test_a_learner_equals_its_scalar_twin(self, optimizer: str, backend: Any) -> None:
        check_learner(spec_of(optimizer, weight_decay=0.01), backend)

    @backends
    def test_a_state_goes_out_and_comes_back(self, optimizer: str, backend: Any) -> None:
        x, _ = random_steps(spec_of(optimizer), 40, streams=2)
        learner = Learner(spec_of(optimizer), backend=backend)
        learner.feed(x[:25])
        again = twin(learner, backend)
        for each in (learner, again):
            each.feed(x[25:])
        assert_same_memory(learner, again, 0)
        moments = learner.state()[0]["model.moments"]
        assert len(moments) == OPTIMIZERS[optimizer].moments
        assert all(each.any() for each in moments), "a moment that is kept and never used"

    def test_specs_and_memory_follow_from_the_descriptor(self, optimizer: str) -> None:
        spec, plain = spec_of(optimizer), spec_of("sgd")
        parameters = sum(each.size for each in Learner(plain).parameters().values())
        moments = 8 * OPTIMIZERS[optimizer].moments * parameters
        assert bytes_of_model(spec) == bytes_of_model(plain) + moments
        assert spec.weight_decay == OPTIMIZERS[optimizer].weight_decay
        schedule = (spec.learning_rate, spec.decay_updates, spec.final_learning_rate)
        assert schedule == (OPTIMIZERS[optimizer].forecast_schedule or (0.001, 0, 0.0))
