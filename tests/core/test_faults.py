"""One bad reading, a shift, a wrap or an unlucky start does not ruin what follows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec
from tests.support.jit import PLAIN_PYTHON

STEPS = 4000
FAULT_AT = 1000
LATER = (2500, 3200, 3900)  # faults of 25 deviations of the noise
long = pytest.mark.skipif(PLAIN_PYTHON, reason="thousands of steps: too slow in plain Python")
FOUND = 1e-6  # the score below which `bptt learn` reports an anomaly


class Learned(NamedTuple):
    """One stream, learned with all defaults."""

    errors: Any
    """(T - 1,) absolute errors of the forecasts of steps 1, 2, …"""
    scores: Any
    norms: list[float]
    """Gradient norms before clipping, update by update."""
    learner: Learner


def learn(x: Any) -> Learned:
    learner = Learner(ModelSpec(input_size=1))
    made: list[Any] = []
    scores: list[Any] = []
    norms: list[float] = []
    for start in range(0, len(x), 50):
        result = learner.apply([Chunk("a", start, x[start : start + 50, np.newaxis])])
        made.append(result.chunks[0].predictions)
        scores.append(result.chunks[0].anomaly_scores)
        norms += [each.gradient_norm for each in result.updates]
    errors = np.abs(x[1:] - np.concatenate(made)[:-1, 0])
    return Learned(errors, np.concatenate(scores), norms, learner)


def wave(steps: int = STEPS, later: bool = True) -> Any:
    """A rhythm with noise, at 20; with faults later."""
    t = np.arange(steps)
    x = 20 + 3 * np.sin(t / 30) + np.random.default_rng(3).normal(0, 0.1, steps)
    if later:
        x[list(LATER)] += 2.5
    return x


@cache
def undisturbed() -> Learned:
    return learn(wave())


def spike(size: float) -> Callable[[], Any]:
    def make() -> Any:
        x = wave()
        x[FAULT_AT] = size
        return x

    return make


def shift(size: float) -> Callable[[], Any]:
    def make() -> Any:
        x = wave()
        x[FAULT_AT:] += size
        return x

    return make


def error_code() -> Any:
    """A sensor that says 65,535 for a while."""
    x = wave()
    x[FAULT_AT - 4 : FAULT_AT + 1] = 65_535
    return x


FAULTS: dict[str, tuple[Callable[[], Any], int]] = {
    "65,535": (spike(65_535), 200),
    "-127": (spike(-127), 200),
    "1e9": (spike(1e9), 200),
    "-1e30": (spike(-1e30), 200),
    "1e300": (spike(1e300), 200),
    "shift of 50": (shift(50), 50),
    "shift of -5,000": (shift(-5_000), 50),
    "shift of 1e7": (shift(1e7), 50),
    "error code": (error_code, 200),
}
"""Series with a fault at FAULT_AT, and steps after which it must be forgotten."""


@long
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_then_forgotten(name: str) -> None:
    make, patience = FAULTS[name]
    found, usual = learn(make()), undisturbed()
    first = FAULT_AT if "code" not in name else FAULT_AT - 4
    assert found.scores[first] < FOUND
    for begin, end in ((FAULT_AT + patience, FAULT_AT + patience + 300), (1500, 2490)):
        mine, its = found.errors[begin:end].mean(), usual.errors[begin:end].mean()
        assert mine < 1.25 * its
    assert (found.scores[list(LATER)] < FOUND).all()
    assert np.mean(found.scores[1500:2490] < 0.001) < 0.01
    assert max(found.norms) < 200
    assert found.learner.figures.skill_ratio == pytest.approx(
        usual.learner.figures.skill_ratio, rel=0.15
    )
    low, high = found.learner.error_band()
    assert high - low < 1.5 * np.subtract(*usual.learner.error_band()[::-1])
    assert found.learner.figures.limited_inputs > usual.learner.figures.limited_inputs


@long
@pytest.mark.parametrize("unit", [1e-8, 1e-3, 1e3, 1e5, 1e8])
def test_scores_do_not_depend_on_the_unit(unit: float) -> None:
    found, usual = learn(wave() * unit), undisturbed()
    np.testing.assert_allclose(found.scores, usual.scores, rtol=0.05, atol=1e-3)
    assert (found.scores[list(LATER)] < FOUND).all()
    assert max(found.norms) == pytest.approx(max(usual.norms), rel=1e-2)


@long
@pytest.mark.parametrize("first", [0.0, 85.0, 1e9, -1e300])
def test_a_first_reading_that_is_off_silences_nothing(first: float) -> None:
    random = np.random.default_rng(3)
    x = 1013 + np.cumsum(random.normal(0, 0.02, 3000))
    x[0] = first
    faults = [300, 1000, 2500]
    x[faults] += 0.5
    found = learn(x)
    assert (found.scores[faults] < FOUND).all()
    naive = np.abs(np.diff(x))
    assert found.errors[200:].mean() < 1.1 * naive[200:].mean()
    assert max(found.norms) < 200


@long
def test_a_counter_that_wraps() -> None:
    random = np.random.default_rng(4)
    x = np.cumsum(random.integers(5, 15, 3000)).astype(float) + 2**32 - 20_000
    wrap = int(np.argmax(x >= 2**32))
    x[wrap:] -= 2**32
    found = learn(x)
    naive = np.abs(np.diff(x))
    assert found.scores[wrap] < FOUND
    assert found.errors[wrap + 50 : wrap + 250].mean() < 0.6 * naive[wrap + 50 : wrap + 250].mean()
    assert max(found.norms) < 200


@long
def test_two_equal_first_changes_silence_nothing() -> None:
    x = wave(later=False)
    x[:3] = 20.0, 20.5, 21.0
    x[600], x[2000] = x[600] + 2.5, x[2000] + 2.5
    found = learn(x)
    assert (found.scores[[600, 2000]] < FOUND).all()
    assert np.isfinite(found.scores[100:]).all()


@long
@pytest.mark.parametrize("steps", [30, 400, 2000])
def test_constant_stretches(steps: int) -> None:
    """A sensor that hangs, at first or later: the end of it is an anomaly, and faults are found."""
    x = wave()
    x[:steps] = x[0]
    x[FAULT_AT : FAULT_AT + min(steps, 1000)] = x[FAULT_AT]
    found = learn(x)
    assert (found.scores[list(LATER)] < (FOUND if steps < 2000 else 1e-4)).all()
    assert found.errors[2300:2490].mean() < 1.25 * undisturbed().errors[2300:2490].mean()
    assert max(found.norms) < 200
    constant = learn(np.full(500, 7.0))
    assert not constant.errors.any()
    assert (constant.scores[50:] > 0.5).all()


@long
def test_heavy_tails_do_not_alarm() -> None:
    random = np.random.default_rng(5)
    x = np.cumsum(random.standard_t(2.5, 20_000))
    x[15_000] += 1e4
    found = learn(x)
    assert found.scores[15_000] < FOUND
    for p in (0.01, 0.001):
        assert 0.5 * p < np.mean(found.scores[1000:] < p) < 2 * p


@long
@pytest.mark.parametrize("noise", ["normal", "laplace"])
def test_scores_are_calibrated_in_the_tail(noise: str) -> None:
    random = np.random.default_rng(6)
    x = getattr(random, noise)(size=40_000).cumsum()
    scores = learn(x).scores[500:]
    for p in (0.01, 0.001):
        assert 0.6 * p < np.mean(scores < p) < 1.6 * p
    assert np.mean(scores < 1e-6) < 1e-4


@long
@pytest.mark.parametrize("horizon", [1, 12])
def test_coverage_is_held_where_errors_change(horizon: int) -> None:
    """Volatility that changes tenfold every 500 steps."""
    random = np.random.default_rng(7)
    sizes = np.repeat(10 ** random.uniform(0, 1, 20), 500)
    x = np.cumsum(sizes * random.normal(size=10_000))
    learner, inside = Learner(ModelSpec(input_size=1, horizon=horizon)), []
    for start in range(0, len(x), 10):
        low, high = learner.error_band()
        (chunk,) = learner.apply([Chunk("a", start, x[start : start + 10, np.newaxis])]).chunks
        if low.size and start + 10 + horizon <= len(x):
            assert chunk.predictions is not None
            truth = x[start + horizon : start + horizon + 10]
            error = truth - chunk.predictions[:, -1]
            inside.append((low[-1] <= error) & (error <= high[-1]))
    assert 0.87 < np.mean(inside[100:]) < 0.93


@long
def test_limited_targets_of_a_regression() -> None:
    random = np.random.default_rng(8)
    x = random.normal(size=(2000, 1))
    y = 5 + 2 * x + random.normal(0, 0.1, (2000, 1))
    y[1000], x[1200] = 1e9, -1e9
    learner = Learner(
        ModelSpec(task="regression", input_size=1, output_size=1, learning_rate=0.003)
    )
    result = learner.apply([Chunk("a", 0, x, y)])
    made = result.chunks[0].predictions
    assert made is not None
    errors = np.abs(y - made)[:, 0]
    assert errors[1400:].mean() < 1.25 * errors[800:1000].mean()
    assert max(each.gradient_norm for each in result.updates) < 100


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_a_state_of_an_earlier_version_goes_on_as_before(backend: Any) -> None:
    """Its statistics weigh all steps alike, as they did: `scaling_memory` is 0."""
    spec = ModelSpec(input_size=1, hidden_size=4, horizon=2, scaling_memory=0)
    x = wave(300, later=False)[:, np.newaxis]
    learner = Learner(spec, backend=backend)
    learner.apply([Chunk("a", 0, x[:150])])
    arrays, metadata = learner.state()
    later = ("input_level", "target_level", "change_scale", "limited", "band_width", "score_ring",
             "score_tail", "expert_level", "regret", "regret_square", "changes_inverse",
             "changes_fit", "levels_inverse", "levels_fit", "network_error")  # fmt: skip
    for name in (*(f"model.{name}" for name in later), "streams.changes", "streams.moves"):
        assert arrays.pop(name).size == 0
    del metadata["spec"]["scaling_memory"], metadata["spec"]["combine"]
    old = Learner.from_state(arrays, metadata, backend=backend)
    assert old.spec == spec
    for each in (learner, old):
        each.apply([Chunk("a", 150, x[150:])])
    found, expected = old.state()[0], learner.state()[0]
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    learner.roll_back(arrays, metadata, learning_rate=0.01)
