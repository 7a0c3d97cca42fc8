"""Whole learners of both backends against their scalar twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt_core import Learner, ModelSpec
from tests.core import naive
from tests.core.test_backends import SPECS, ticks


def check_learner(spec: ModelSpec, backend: Any) -> None:
    """Reports, predictions, parameters, states and figures are those of the scalar twin."""
    learner = Learner(spec, backend=backend)
    twin = naive.Learner(spec, learner.parameters())
    updates = 0
    for tick in ticks(spec, seed=4):
        expected, predictions = twin.apply(tick)
        found = learner.apply(tick)
        assert len(found.updates) == len(expected)
        for report, ref in zip(found.updates, expected, strict=True):
            for figure, value in vars(ref).items():
                comp = getattr(report, figure)
                assert comp == pytest.approx(value, rel=1e-8, abs=1e-12), figure
        for chunk, ref_rows, scores in zip(found.chunks, predictions, twin.scores, strict=True):
            assert chunk.predictions is not None
            rows = np.array(ref_rows).reshape(-1, spec.outputs)
            np.testing.assert_allclose(chunk.predictions, rows, 1e-8, 1e-10)
            if chunk.anomaly_scores is not None:
                np.testing.assert_allclose(chunk.anomaly_scores, scores, 1e-6, 1e-10)
        updates += len(expected)
    assert updates > 20
    for key, array in learner.parameters().items():
        np.testing.assert_allclose(array, twin.network.named[key], 1e-8, 1e-10, err_msg=key)
    for stream_id, stream in twin.streams.items():
        np.testing.assert_allclose(learner.carried_state(stream_id), stream.live, 1e-8, 1e-10)
    scored, its = learner.state()[0], twin.figures
    np.testing.assert_allclose(scored["model.error"], its.error, 1e-8)
    np.testing.assert_allclose(scored["model.naive_error"], its.naive_error, 1e-8)
    if spec.mixture:
        check_experts(scored, twin.experts)
    if spec.loss == "cross_entropy":
        np.testing.assert_allclose(scored["model.hits"], [its.hits, its.weight], 1e-8)
    else:
        np.testing.assert_allclose(scored["model.error_band"], its.band(), 1e-8)


def check_experts(scored: dict[str, Any], twin: naive.Experts) -> None:
    """Regrets, fits, and the network's own error."""
    columns = twin.columns
    for name, each in (("regret", "regret"), ("regret_square", "square")):
        comp = scored[f"model.{name}"]
        ref = np.array([getattr(column, each) for column in columns]).transpose(1, 2, 0)
        np.testing.assert_allclose(comp, ref.reshape(comp.shape), 1e-8, 1e-10, err_msg=name)
    for name in ("changes", "levels"):
        ref = np.array([getattr(column, name).coefficients for column in columns])
        np.testing.assert_allclose(scored[f"model.{name}_fit"], ref, 1e-7, 1e-9, err_msg=name)
    alone = np.array([column.network_error for column in columns]).T.reshape(-1)
    np.testing.assert_allclose(scored["model.network_error"], alone, 1e-8)


@pytest.mark.twin_of("windows.advance")
@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("name", SPECS)
def test_a_learner_equals_its_scalar_twin(name: str, backend: Any) -> None:
    check_learner(SPECS[name], backend)
