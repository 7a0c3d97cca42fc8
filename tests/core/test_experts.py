"""Forecasts are mixtures of the network and of cheap experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec
from bptt_core.errors import InvalidArgument
from bptt_core.state import EXPERTS
from tests.support.jit import PLAIN_PYTHON

backends = pytest.mark.parametrize("backend", ["reference", "compiled"])
long = pytest.mark.skipif(PLAIN_PYTHON, reason="thousands of steps: too slow in plain Python")
SPEC = ModelSpec(input_size=2, hidden_size=4, horizon=2, k1=2, k2=6, dtype="float64")


def walk(steps: int, columns: int = 2) -> Any:
    return np.random.default_rng(2).normal(size=(steps, columns)).cumsum(axis=0)


@backends
@pytest.mark.parametrize("missing", [False, True])
def test_a_prediction_without_inputs_is_the_last_one_given(backend: Any, missing: bool) -> None:
    learner = Learner(
        dataclasses.replace(
            SPEC, missing_inputs=missing, learning_rate=1e-12, final_learning_rate=0.0
        ),
        backend=backend,
    )
    x = walk(200)
    if missing:
        x[::7, 0] = np.nan
    (chunk,) = learner.apply([Chunk("a", 0, x)]).chunks
    made = learner.snapshot().predict(learner.stream_view("a"))
    assert chunk.predictions is not None
    np.testing.assert_allclose(made[0], chunk.predictions[-1], 1e-7)


def taught_to_trust(expert: str, backend: Any) -> Learner:
    """A learner whose forecasts are those of one expert."""
    learner = Learner(SPEC, backend=backend)
    learner.apply([Chunk("a", 0, walk(100))])
    learner._model.regret[:] = -1.0
    learner._model.regret[EXPERTS.index(expert)] = 1.0
    return learner


def averages(rate: float) -> Callable[[Any], Any]:
    def of(x: Any) -> Any:
        mean = x[0]
        for value in x[1:]:
            mean = mean + rate * (value - mean)
        return mean

    return of


RIVALS = {
    "last_value": lambda x: x[-1],
    "fast_average": averages(0.5),
    "slow_average": averages(0.05),
}


@backends
@pytest.mark.parametrize("expert", RIVALS)
def test_experts_read_the_further_steps_of_a_prediction(expert: str, backend: Any) -> None:
    learner, more = taught_to_trust(expert, backend), walk(100)[-1] + 0.1 * walk(5)
    made = learner.snapshot().predict(learner.stream_view("a"), more)
    for t in range(5):
        rival = RIVALS[expert](np.concatenate([walk(100), more[: t + 1]]))
        np.testing.assert_allclose(made[t], np.tile(rival, 2), 1e-9)


@backends
def test_least_squares_read_the_last_changes(backend: Any) -> None:
    learner, more = taught_to_trust("changes", backend), walk(100)[-1] + 0.1 * walk(5)
    snapshot = learner.snapshot()
    made = snapshot.predict(learner.stream_view("a"), more)
    x = np.concatenate([walk(100), more])
    unit = snapshot._unit().reshape(2, 2)
    changes = np.diff(x, axis=0)[:-9:-1] / unit[0]
    ref = x[-1] + unit * np.einsum("njk,kn->jn", learner._model.changes_fit, changes)
    np.testing.assert_allclose(made[-1].reshape(2, 2), ref, 1e-9)


@backends
def test_a_new_stream_is_predicted_from_what_others_taught(backend: Any) -> None:
    learner = taught_to_trust("fast_average", backend)
    made = learner.snapshot().predict(None, np.array([[5.0, 7.0], [6.0, 7.0]]))
    np.testing.assert_allclose(made, [[5.0, 7.0] * 2, [5.5, 7.0] * 2], 1e-12)
    trusting = taught_to_trust("network", backend)
    view = trusting.stream_view("a")
    whole = trusting.snapshot()._head(view.state[-1, 0])
    made = trusting.snapshot().predict(view)[0]
    np.testing.assert_allclose(
        made, np.tile(view.last_input, 2) + whole * trusting.snapshot()._unit()
    )


@long
def test_the_mixture_keeps_up_with_the_best_expert() -> None:
    """Where least squares are the truth, and where the last value is."""
    random = np.random.default_rng(4)
    x = np.zeros(6000)
    for t in range(2, 6000):
        x[t] = 1.6 * x[t - 1] - 0.8 * x[t - 2] + random.normal()
    learner = Learner(ModelSpec(input_size=1))
    (chunk,) = learner.apply([Chunk("a", 0, x[:, None])]).chunks
    assert chunk.predictions is not None
    error = np.abs(np.diff(x) - (chunk.predictions[:-1, 0] - x[:-1]))
    assert error[1000:].mean() < 1.01 * np.sqrt(2 / np.pi)
    figures = learner.figures
    assert figures.skill_ratio < figures.network_skill_ratio
    assert figures.expert_weights["changes"] + figures.expert_weights["levels"] > 0.5
    assert sum(figures.expert_weights.values()) == pytest.approx(1)
    walker = Learner(ModelSpec(input_size=1))
    walker.apply([Chunk("a", 0, walk(6000, 1))])
    assert walker.figures.skill_ratio < 1.01


@backends
def test_a_stream_without_predictions_has_nothing_to_judge(backend: Any) -> None:
    learner, x = Learner(SPEC, backend=backend), walk(60)
    learner.apply([Chunk("a", 0, x[:30])])
    before = learner._model.regret.copy()
    learner.apply([Chunk("a", 30, x[30:40])], predictions=False)
    learner.apply([Chunk("a", 40, x[40:41])])
    np.testing.assert_array_equal(learner._model.regret, before)
    learner.apply([Chunk("a", 41, x[41:])])
    assert (learner._model.regret != before).any()


def test_the_network_alone() -> None:
    learner = Learner(dataclasses.replace(SPEC, combine="none"))
    learner.apply([Chunk("a", 0, walk(50))])
    figures = learner.figures
    assert figures.network_skill_ratio == figures.skill_ratio
    assert figures.expert_weights == {}
    assert learner._model.regret.size == learner._table.arrays.moves.size == 0
    assert not ModelSpec(scaling=False).mixture
    assert not ModelSpec(scaling_memory=0).mixture
    assert not ModelSpec(task="regression", output_size=1).mixture
    for values in ({"scaling": False}, {"scaling_memory": 0}):
        with pytest.raises(InvalidArgument, match="combine is mixture, but must be none, but for"):
            ModelSpec(combine="mixture", **values)
    with pytest.raises(InvalidArgument, match="combine is best, but must be one of mixture, none"):
        ModelSpec(combine="best")  # type: ignore[arg-type]
