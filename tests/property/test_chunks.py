"""How a sequence is cut into chunks changes no bit of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bptt_core import Chunk, Learner, ModelSpec
from tests.core.support import assert_same_memory, chunk_of, random_steps

STEPS = 50
SPECS = [
    ModelSpec(input_size=2, hidden_size=16),
    ModelSpec(input_size=1, hidden_size=8, horizon=5, k1=3, k2=10),
    ModelSpec(input_size=2, hidden_size=8, task="regression", output_size=1, k1=8, k2=8),
    ModelSpec(input_size=2, hidden_size=8, task="regression", output_size=1, layers=2, k1=2),
    ModelSpec(input_size=2, hidden_size=132, k1=5, k2=12),  # beyond BLAS_SIZE
    ModelSpec(input_size=2, hidden_size=8, cell="lstm", layers=2, horizon=2),
    ModelSpec(input_size=2, hidden_size=8, cell="gru", horizon=2),
]


def learn(spec: ModelSpec, backend: Any, cuts: list[int]) -> tuple[Learner, Any]:
    learner = Learner(spec, backend=backend)
    x, target = random_steps(spec, STEPS, streams=1)
    x = x.astype(np.float32)
    predictions = []
    for start, stop in zip([0, *cuts], [*cuts, STEPS], strict=True):
        y = None if target is None else target[start:stop, 0]
        ends = stop == STEPS
        (chunk,) = learner.apply([Chunk("a", start, x[start:stop, 0], y, ends)]).chunks
        assert chunk.predictions is not None
        predictions.append(chunk.predictions)
    return learner, np.concatenate(predictions)


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize(
    "spec", SPECS, ids=lambda spec: f"{spec.cell}-{spec.hidden_size}-{spec.horizon}-{spec.k1}"
)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(cuts=st.sets(st.integers(1, STEPS - 1)).map(sorted))
def test_cuts_change_no_bit(spec: ModelSpec, backend: Any, cuts: list[int]) -> None:
    whole, predictions = learn(spec, backend, [])
    cut, its_predictions = learn(spec, backend, cuts)
    assert_same_memory(whole, cut, 0)
    assert predictions.tobytes() == its_predictions.tobytes()


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_the_same_ticks_give_the_same_bits(backend: Any) -> None:
    spec = ModelSpec(input_size=3, hidden_size=12, horizon=2)
    one, other = Learner(spec, backend=backend), Learner(spec, backend=backend)
    for learner in (one, other):
        x, _ = random_steps(spec, 64, streams=6)
        for start, stop in [(0, 7), (7, 40), (40, 64)]:
            tick = [chunk_of(f"s{b}", start, stop, x, None, b) for b in range(6)]
            learner.apply(tick)
    assert_same_memory(one, other, 0)
