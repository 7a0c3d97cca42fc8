"""What a model needs to predict elsewhere: its parameters and the statistics that scale values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec
from bptt_core.errors import InvalidArgument

SPECS = {
    "forecast": ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4, horizon=2),
    "regression": ModelSpec(task="regression", input_size=2, output_size=1, hidden_size=4),
    "tokens": ModelSpec(task="next_token", vocabulary_size=5, hidden_size=4, layers=2),
}


def learned(spec: ModelSpec) -> Learner:
    learner = Learner(spec, backend="reference")
    random = np.random.default_rng(2)
    x: Any = random.normal(3.0, 7.0, (20, 2))
    target: Any = random.normal(size=(20, 1)) if spec.task == "regression" else None
    if spec.task == "next_token":
        x = random.integers(0, 5, 20)
    learner.apply([Chunk("s", 0, x, target)])
    return learner


@pytest.mark.parametrize("name", SPECS)
def test_parameters_and_statistics_are_what_predictions_need(name: str) -> None:
    spec = SPECS[name]
    snapshot = learned(spec).snapshot()
    other = Learner(spec, backend="reference")
    other.load_parameters(snapshot.parameters())
    other.load_statistics(snapshot.statistics())
    x: Any = np.arange(6) % 5 if name == "tokens" else np.random.default_rng(3).normal(size=(6, 2))
    given, found = (each.predict(None, x) for each in (snapshot, other.snapshot()))
    np.testing.assert_array_equal(found, given)


def test_what_is_given_out_is_a_copy() -> None:
    snapshot = learned(SPECS["forecast"]).snapshot()
    before = snapshot.predict(None, np.ones((1, 2)))
    for array in (*snapshot.parameters().values(), *snapshot.statistics().values()):
        array[...] = 0
    np.testing.assert_array_equal(snapshot.predict(None, np.ones((1, 2))), before)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"extra": np.zeros(1)}, "extra is given"),
        ({"input_mean": None}, "input_mean is missing"),
        ({"input_mean": np.zeros(3)}, r"input_mean is of shape \(3,\)"),
        ({"input_mean": np.zeros(2, np.int64)}, "input_mean is of dtype int64"),
        ({"input_mean": np.array([0.0, np.inf])}, "input_mean is not finite"),
        ({"input_m2": np.array([0.0, -1.0])}, "input_m2 is -1.0, but must be at least 0"),
    ],
)
def test_wrong_statistics_are_refused_and_change_nothing(change: Any, told: str) -> None:
    learner = learned(SPECS["forecast"])
    before = learner.snapshot().statistics()
    source = {name: each + 1 for name, each in before.items()} | change
    source = {name: each for name, each in source.items() if each is not None}
    with pytest.raises(InvalidArgument, match=told):
        learner.load_statistics(source)
    for name, each in learner.snapshot().statistics().items():
        np.testing.assert_array_equal(each, before[name])
