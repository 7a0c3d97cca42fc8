"""The experts beside the network against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt_core import experts, ModelSpec
from bptt_core.kernels import experts as kernels
from bptt_core.kernels import scoring, sizes
from bptt_core.state import Model, new_model, new_streams, ORDER, Streams
from tests.core import naive
from tests.core.support import assert_twin

STEPS = 120
backends = pytest.mark.parametrize("backend", ["reference", "compiled"])


def follow(
    spec: ModelSpec, backend: str, model: Model, streams: Streams, m: int, *step: Any
) -> None:
    """One step of the stream in row 0."""
    truth, seen, unit, made = step
    if backend == "reference":
        experts.follow(spec, model, streams, 0, m, truth, seen, unit, made)
        return
    kernels.follow(
        sizes.sizes(spec), model, streams.forecasts[0], streams.changes[0], streams.moves[0], m,
        truth, seen, unit, made, sizes.room(spec, 1, 1, 1).fitted,
    )  # fmt: skip


def series(columns: int) -> tuple[Any, Any]:
    """Values and the last ones seen: a walk with a spike, a shift, and missing values."""
    random = np.random.default_rng(5)
    x = random.normal(size=(STEPS, columns)).cumsum(axis=0)
    x[40, 0], x[70:, 0] = 1e6, x[70:, 0] + 500
    x[[20, 21, 80], 0] = x[0, -1] = np.nan
    seen = x.copy()
    for t in range(1, STEPS):
        seen[t] = np.where(np.isnan(x[t]), seen[t - 1], x[t])
    return x, seen


@pytest.mark.twin_of(
    "experts.follow", "experts.fit_column", "experts.kept", "experts.mix", "experts.move_of",
    "experts.read_changes", "experts.say", "experts.take_averages", "experts.take_regrets",
)  # fmt: skip
@pytest.mark.parametrize("horizon", [1, 5])
@backends
def test_mixtures(backend: str, horizon: int) -> None:
    n, O = 2, 2 * horizon
    spec = ModelSpec(input_size=n, horizon=horizon, hidden_size=2, dtype="float64")
    x, seen = series(n)
    random = np.random.default_rng(6)
    unit = 0.5 + random.random((STEPS, O))
    unit[:3, ::2] = 0.0
    network = np.tile(np.nan_to_num(seen), horizon) + random.normal(size=(STEPS, O))
    network[50, 0], network[60] = np.nan, np.inf
    model, streams, twin = new_model(spec), new_streams(spec, 1), naive.Experts(n, horizon)
    remembered = [naive.Remembered() for _ in range(n)]
    for t in range(STEPS):
        made = network[t].copy()
        follow(spec, backend, model, streams, t, x[t], seen[t], unit[t], made)
        ref = twin.follow(
            remembered, x[t].tolist(), seen[t].tolist(), unit[t].tolist(), network[t].tolist()
        )
        np.testing.assert_allclose(made, ref, 1e-7, 1e-9)
        streams.forecasts[0, t % horizon] = [*made, *seen[t]]
    for k, column in enumerate(twin.columns):
        np.testing.assert_allclose(model.regret[:, k::n], np.array(column.regret), 1e-8, 1e-9)
        np.testing.assert_allclose(
            model.regret_square[:, k::n], np.array(column.square), 1e-8, 1e-9
        )
        np.testing.assert_allclose(model.changes_fit[k], column.changes.coefficients, 1e-7, 1e-9)
        np.testing.assert_allclose(model.levels_fit[k], column.levels.coefficients, 1e-7, 1e-9)
    shares = experts.shares(model)
    assert shares.sum() == pytest.approx(1)
    assert (shares >= 0).all()


@pytest.mark.twin_of("experts.fit")
@backends
def test_least_squares(backend: str) -> None:
    random = np.random.default_rng(7)
    K, h = ORDER, 3
    inverse, coefficients, twin = np.eye(K), np.zeros((h, K)), naive.Fit(K, h)

    def learn(q: Any, y: Any, known: Any) -> None:
        if backend == "reference":
            experts.fit(inverse, coefficients, q, y, known)
        else:
            kernels.fit(inverse, coefficients, q, np.where(known, y, np.nan), np.zeros(K))

    for _ in range(300):
        q = random.normal(size=K) * random.choice([0.1, 1.0, 8.0])
        y, known = random.normal(size=h), random.random(h) < 0.6
        learn(q, y, known)
        twin.learn(q.tolist(), [v if k else None for v, k in zip(y, known, strict=True)])
    np.testing.assert_allclose(coefficients, twin.coefficients, 1e-8, 1e-9)
    np.testing.assert_allclose(np.linalg.inv(inverse), twin.sum, 1e-6, 1e-9)
    kept = coefficients.copy()
    for ruined in (-1.0, np.nan):
        inverse[2, 2] = ruined
        learn(np.ones(K), np.ones(h), np.ones(h, bool))
        np.testing.assert_array_equal(inverse, np.eye(K))
        np.testing.assert_array_equal(coefficients, kept)


@pytest.mark.twin_of("scoring.fade_one")
def test_the_network_s_own_error() -> None:
    errors = np.array([0.0, 1.0])
    for error, rival in ((2.0, 1.0), (np.nan, 1.0), (2.0, np.nan), (np.inf, 1.0)):
        scoring.fade_one(errors, 1, error, rival)
    assert_twin(errors, [0.0, 1.001])
