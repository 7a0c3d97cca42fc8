"""Gradients against finite differences of the loss, through the public learner, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt_core import Learner, ModelSpec
from tests.core.support import random_steps, twin

EPSILON = 1e-5


def spec_of(cell: Any, loss: Any, layers: int, k1: int, k2: int) -> ModelSpec:
    return ModelSpec(
        task="classification" if loss == "cross_entropy" else "regression",
        input_size=3,
        output_size=4,
        cell=cell,
        hidden_size=6,
        layers=layers,
        loss=loss,
        k1=k1,
        k2=k2,
        optimizer="sgd",
        learning_rate=1.0,  # an update is then the gradient itself
        clip="none",
        scaling=False,
        dtype="float64",
    )


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm", "gru"])
@pytest.mark.parametrize("loss", ["squared_error", "huber", "bernoulli", "cross_entropy"])
@pytest.mark.parametrize(("layers", "k1", "k2"), [(1, 5, 5), (2, 3, 7), (3, 1, 4)])
def test_gradient_is_the_slope_of_the_loss(
    cell: Any, loss: Any, layers: int, k1: int, k2: int, backend: Any
) -> None:
    spec = spec_of(cell, loss, layers, k1, k2)
    x, target = random_steps(spec, 4 * k1, streams=2)
    learner = Learner(spec, backend=backend)
    learner.feed(x[: 3 * k1] / 3, target[: 3 * k1])  # a window with a past of its own
    before = learner.parameters()

    def loss_and_parameters(offset: dict[str, Any], size: float) -> tuple[float, dict[str, Any]]:
        moved = twin(learner, backend)
        moved.load_parameters({name: before[name] + size * offset[name] for name in before})
        (report,) = moved.feed(x[3 * k1 :], target[3 * k1 :]).updates
        return report.loss, moved.parameters()

    zero = {name: np.zeros_like(array) for name, array in before.items()}
    _, after = loss_and_parameters(zero, 0.0)
    gradient = {name: before[name] - after[name] for name in before}
    random = np.random.default_rng(1)
    for _ in range(3):
        direction = {name: random.normal(size=array.shape) for name, array in before.items()}
        up, _ = loss_and_parameters(direction, EPSILON)
        down, _ = loss_and_parameters(direction, -EPSILON)
        slope = sum(float((gradient[name] * direction[name]).sum()) for name in before)
        scale = np.sqrt(sum(float((g * g).sum()) for g in gradient.values()))
        assert abs((up - down) / (2 * EPSILON) - slope) <= 1e-6 * max(abs(slope), scale)
