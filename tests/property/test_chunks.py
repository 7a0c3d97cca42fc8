"""Cutting a sequence into chunks changes no bit of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bptt_core import Chunk, Learner, ModelSpec, UpdateReport
from tests.core.support import assert_same_memory, chunk_of, random_steps
from tests.property.support import examples
from tests.support.jit import PLAIN_PYTHON

pytestmark = pytest.mark.same_bits

STEPS = 50
REGRESSION = ModelSpec(input_size=2, hidden_size=8, task="regression", output_size=1)
CLASSES = ModelSpec(input_size=2, hidden_size=8, task="classification", output_size=3)
TOKENS = ModelSpec(task="next_token", vocabulary_size=9, hidden_size=8)
SPECS = {
    "forecast": ModelSpec(input_size=2, hidden_size=16),
    "horizon 5": ModelSpec(input_size=1, hidden_size=8, horizon=5, k1=3, k2=10),
    "regression": replace(REGRESSION, k1=8, k2=8),
    "regression, 2 layers": replace(REGRESSION, layers=2, k1=2),
    "regression, some missing": replace(REGRESSION, missing_targets=True, k1=3, k2=11),
    "float64": replace(REGRESSION, dtype="float64", loss="bernoulli", cell="rnn_relu"),
    "float64 lstm": ModelSpec(input_size=2, hidden_size=8, cell="lstm", dtype="float64"),
    "large": ModelSpec(input_size=2, hidden_size=20 if PLAIN_PYTHON else 132, k1=5, k2=12),
    "lstm, 2 layers": ModelSpec(input_size=2, hidden_size=8, cell="lstm", layers=2, horizon=2),
    "gru": ModelSpec(input_size=2, hidden_size=8, cell="gru", horizon=2),
    "gru, 3 layers": replace(REGRESSION, cell="gru", layers=3, k1=5, k2=9),
    "classification": replace(CLASSES, cell="lstm"),
    "classification, some missing": replace(CLASSES, missing_targets=True, k1=1, k2=6),
    "missing inputs": ModelSpec(input_size=2, hidden_size=8, horizon=3, missing_inputs=True),
    "missing inputs of a regression": replace(REGRESSION, missing_inputs=True, scaling=False),
    "late targets": replace(REGRESSION, label_delay=5, cell="lstm"),
    "late classes": replace(CLASSES, label_delay=17, k1=3, k2=8, missing_inputs=True),
    "tokens": replace(TOKENS, k1=6, k2=6),
    "tokens of a gru": replace(TOKENS, cell="gru", layers=2, optimizer="rmsprop"),
    "tokens in float64": replace(TOKENS, cell="lstm", dtype="float64"),
}


def learn(spec: ModelSpec, backend: Any, cuts: list[int]) -> tuple[Learner, Any, Any]:
    learner = Learner(spec, backend=backend)
    x, target = random_steps(spec, STEPS, streams=1)
    if x.dtype.kind == "f":
        x = x.astype(np.float32)
    predictions: list[Any] = []
    scores: list[Any] = []
    reports: list[UpdateReport] = []
    for start, stop in zip([0, *cuts], [*cuts, STEPS], strict=True):
        y = None if target is None else target[start:stop, 0]
        ends = stop == STEPS
        (chunk,) = learner.apply([Chunk("a", start, x[start:stop, 0], y, ends)]).chunks
        assert chunk.predictions is not None
        predictions.append(chunk.predictions)
        reports += chunk.updates
        if chunk.anomaly_scores is not None:
            scores.append(chunk.anomaly_scores)
    return learner, np.concatenate(predictions + scores, axis=None), reports


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("name", SPECS)
@examples(20)
@given(cuts=st.sets(st.integers(1, STEPS - 1)).map(sorted))
def test_cuts_change_no_bit(name: str, backend: Any, cuts: list[int]) -> None:
    spec = SPECS[name]
    whole, predictions, reports = learn(spec, backend, [])
    cut, its_predictions, its_reports = learn(spec, backend, cuts)
    assert reports == its_reports
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


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("task", ["regression", "classification"])
@examples(20)
@given(data=st.data())
def test_when_a_late_label_comes_changes_no_bit(task: Any, backend: Any, data: Any) -> None:
    """A label may arrive with its step or in a later message."""
    spec = replace(REGRESSION if task == "regression" else CLASSES, label_delay=6, k1=3, k2=9)
    x, target = random_steps(spec, STEPS, streams=1)
    whole = Learner(spec, backend=backend)
    whole.apply([Chunk("a", 0, x[:, 0], target[:, 0], end_of_sequence=True)])
    late, labelled, none = Learner(spec, backend=backend), 0, x[:0, 0]
    for t in range(STEPS):
        late.apply([Chunk("a", t, x[t : t + 1, 0])])
        oldest = max(labelled, t - 5)
        if oldest > labelled or data.draw(st.booleans()) or t - labelled >= 4:
            stop = data.draw(st.integers(labelled + 1, t + 1))
            late.apply([Chunk("a", t + 1, none, target[labelled:stop, 0], False, labelled)])
            labelled = stop
        while t - labelled >= 5:
            late.apply(
                [Chunk("a", t + 1, none, target[labelled : labelled + 1, 0], False, labelled)]
            )
            labelled += 1
    rest = target[labelled:, 0] if labelled < STEPS else None
    first = labelled if labelled < STEPS else None
    late.apply([Chunk("a", STEPS, none, rest, True, first)])
    assert_same_memory(whole, late, 0)
    assert late.figures.updates == 17
