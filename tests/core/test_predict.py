"""A snapshot scales steps with its own statistics and predicts in the user's units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt_core import Learner, ModelSpec
from tests.core import naive
from tests.core.support import assert_twin, random_steps

STEPS, MORE = 25, 4
FORECAST = ModelSpec(
    input_size=3, hidden_size=4, horizon=2, target_columns=(2, 0), cell="gru", dtype="float64",
    combine="none",
)  # fmt: skip
REGRESSION = ModelSpec(
    task="regression", input_size=2, output_size=2, hidden_size=4, cell="lstm", dtype="float64"
)
backends = pytest.mark.parametrize("backend", ["reference", "compiled"])


def fed(spec: ModelSpec, backend: Any) -> tuple[Learner, Any, Any]:
    learner = Learner(spec, backend=backend)
    x, y = random_steps(spec, STEPS + MORE, streams=1)
    x, y = 20 + 7 * x, None if y is None else 50 + 3 * y
    learner.feed(x[:STEPS], None if y is None else y[:STEPS])
    return learner, x[:, 0], None if y is None else y[:, 0]


def unfolded(learner: Learner, features: Any, fresh: bool) -> Any:
    state = learner.carried_state("0")
    state = np.zeros_like(state) if fresh else state
    network = naive.Network(learner.spec, learner.parameters())
    return network.forward(features, state.tolist()).outputs


@pytest.mark.parametrize("fresh", [False, True])
@backends
def test_forecast(fresh: bool, backend: Any) -> None:
    learner, x, _ = fed(FORECAST, backend)
    twin = naive.Scaler(FORECAST)
    for t in range(STEPS):
        twin.forecast(x[:t].tolist(), x[t].tolist())
    before, features = x[STEPS if fresh else STEPS - 1], []
    for step in x[STEPS:]:
        levels = [twin.level(i, step[i]) for i in range(3)]
        features.append(levels + [(step[i] - before[i]) / twin.unit(1, i) for i in range(3)])
        before = step
    ref = [
        [x[STEPS + t][i] + twin.unit(j, i) * row[2 * (j - 1) + k]
         for j in (1, 2) for k, i in enumerate((2, 0))]
        for t, row in enumerate(unfolded(learner, features, fresh))
    ]  # fmt: skip
    view = None if fresh else learner.stream_view("0")
    assert_twin(learner.snapshot().predict(view, x[STEPS:].copy()), ref)


@pytest.mark.parametrize("fresh", [False, True])
@backends
def test_regression(fresh: bool, backend: Any) -> None:
    learner, x, y = fed(REGRESSION, backend)
    twin = naive.Scaler(REGRESSION)
    for t in range(STEPS):
        twin.step(x[t].tolist(), y[t].tolist())
    features = [[twin.level(i, step[i]) for i in range(2)] for step in x[STEPS:]]
    ref = [
        [each.mean() + each.deviation() * s for each, s in zip(twin.targets, row, strict=True)]
        for row in unfolded(learner, features, fresh)
    ]
    view = None if fresh else learner.stream_view("0")
    assert_twin(learner.snapshot().predict(view, x[STEPS:].copy()), ref)


@pytest.mark.parametrize(
    "spec",
    [
        FORECAST,
        REGRESSION,
        ModelSpec(task="classification", input_size=2, output_size=3, hidden_size=4),
        ModelSpec(task="next_token", vocabulary_size=5, hidden_size=4),
    ],
    ids=lambda spec: spec.task,
)
@backends
def test_warming_up_changes_nothing(spec: ModelSpec, backend: Any) -> None:
    learner = Learner(spec, backend=backend)
    learner.feed(*random_steps(spec, 9, streams=2))
    before, metadata = learner.state()
    assert learner.parameter_count == before["model.parameters"].size
    learner.warm_up()
    after, its_metadata = learner.state()
    assert metadata == its_metadata
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name
