"""Gradients against finite differences of the loss, through the public learner, in float64.

A step of SGD at a learning rate of 1 is the gradient itself; the loss is what the update reports.
Both are those of a window that begins inside a sequence, from a state that earlier updates left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt_core import Learner, ModelSpec
from bptt_core.cells import CELLS
from tests.core.support import random_steps, twin
from tests.support.jit import PLAIN_PYTHON

EPSILON = 1e-5
STREAMS = 2
KINDS: dict[str, dict[str, Any]] = {
    "squared_error": {"task": "regression", "loss": "squared_error"},
    "huber": {"task": "regression", "loss": "huber"},
    "bernoulli": {"task": "regression", "loss": "bernoulli"},
    "cross_entropy": {"task": "classification"},
}
KINDS |= {
    f"{name}, some missing": {**kind, "missing_targets": True} for name, kind in KINDS.items()
}
KINDS |= {
    "tokens": {"task": "next_token", "vocabulary_size": 5},
    "forecast": {"task": "forecast", "horizon": 3, "target_columns": (1, 2)},
    "forecast, inputs missing": {"task": "forecast", "horizon": 2, "missing_inputs": True},
    "late labels": {"task": "regression", "label_delay": 2},
    "late classes, inputs missing": {
        "task": "classification",
        "label_delay": 3,
        "missing_inputs": True,
    },
}
WINDOWS, LAYERS = [(2, 6), (1, 4), (3, 3), (3, 5)], [2, 1, 3]
if PLAIN_PYTHON:
    del WINDOWS[1:], LAYERS[1:]


def spec_of(kind: str, **others: Any) -> ModelSpec:
    shape: dict[str, Any] = {} if kind == "tokens" else {"input_size": 3}
    if KINDS[kind]["task"] in ("regression", "classification"):
        shape["output_size"] = 4
    return ModelSpec(
        **shape,
        **KINDS[kind],
        **others,
        hidden_size=4,
        optimizer="sgd",
        learning_rate=1.0,
        clip="none",
        scaling=False,
        dtype="float64",
    )


def learner_in_a_sequence(spec: ModelSpec, backend: Any) -> tuple[Learner, Any, Any]:
    """A learner after three updates, and the steps that make the fourth."""
    late, k1 = spec.delay, spec.k1
    x, target = random_steps(spec, 4 * k1 + late, streams=STREAMS, seed=spec.layers)
    learner = Learner(spec, backend=backend)
    past = slice(0, 3 * k1 + late)
    learner.feed(x[past], None if target is None else target[past])
    random = np.random.default_rng(spec.k2)
    learner.load_parameters(  # a forecast's head begins at zero, and others may be far by now
        {name: random.uniform(-0.6, 0.6, each.shape) for name, each in learner.parameters().items()}
    )
    if target is None:
        return learner, x[past.stop :], None
    new = np.ascontiguousarray(target[past.stop :])
    if spec.missing_targets:  # but for one
        new[-1, 0] = 0
    return learner, x[past.stop :], new


def check_slope(spec: ModelSpec, backend: Any) -> None:
    """The gradient of an update is the slope of its loss, in random directions."""
    learner, x, target = learner_in_a_sequence(spec, backend)
    before = learner.parameters()
    random = np.random.default_rng(1)

    def loss_and_parameters(direction: dict[str, Any], size: float) -> tuple[float, Any]:
        moved = twin(learner, backend)
        moved.load_parameters({name: before[name] + size * direction[name] for name in before})
        (report,) = moved.feed(x, target, predictions=False).updates
        return report.loss, moved.parameters()

    _, after = loss_and_parameters(before, 0.0)
    gradient = {name: before[name] - after[name] for name in before}
    norm = np.sqrt(sum(float((g * g).sum()) for g in gradient.values()))
    assert norm > 0
    for _ in range(2):
        direction = {name: random.normal(size=array.shape) for name, array in before.items()}
        length = np.sqrt(sum(float((d * d).sum()) for d in direction.values()))
        direction = {name: array / length for name, array in direction.items()}
        up, _ = loss_and_parameters(direction, EPSILON)
        down, _ = loss_and_parameters(direction, -EPSILON)
        slope = sum(float((gradient[name] * direction[name]).sum()) for name in before)
        assert abs((up - down) / (2 * EPSILON) - slope) <= 1e-6 * max(abs(slope), 0.1 * norm)


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("k1", "k2"), WINDOWS)
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_is_the_slope_of_the_loss(
    cell: Any, kind: str, layers: int, k1: int, k2: int, reduction: Any, backend: Any
) -> None:
    spec = spec_of(kind, cell=cell, layers=layers, k1=k1, k2=k2, reduction=reduction)
    check_slope(spec, backend)
