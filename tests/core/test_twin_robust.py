"""Robust statistics and calibrated scores against their scalar twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bptt_core import calibration, robust, scoring
from bptt_core.kernels import calibration as kernels
from bptt_core.kernels import robust as robust_kernels
from bptt_core.kernels import scoring as scoring_kernels
from tests.core import naive
from tests.core.support import assert_twin

RANDOM = np.random.default_rng(23)
backends = pytest.mark.parametrize("backend", ["reference", "compiled"])


def values(steps: int) -> Any:
    """Noise with a bad first value, zeros, spikes, a shift, a missing value, and calm."""
    x = RANDOM.normal(size=steps)
    x[0], x[40], x[60], x[61] = 1e6, 1e9, -1e300, math.nan
    x[80:90] = 0.0
    x[120:180] *= 1e3
    x[180:] *= 1e-4
    return x


@pytest.mark.twin_of("robust.follow_scale")
@pytest.mark.parametrize("memory", [20, 2000])
@backends
def test_scales(backend: Any, memory: int) -> None:
    state, twin = np.zeros(robust.SCALE_FIELDS), naive.Scale(memory)
    for value in values(260):
        if backend == "reference":
            robust.follow_scale(state, np.array(value), memory)
        elif math.isfinite(value):
            robust_kernels.follow_scale(state, value, memory)
        twin.take(float(value))
        expected = [twin.square, twin.count, twin.beyond, len(twin.block)]
        assert_twin(state[: robust.PEAK], expected)


@pytest.mark.twin_of("robust.follow_change", "robust.change_unit")
@pytest.mark.parametrize("drift", [0.0, 0.5, 30.0])
@backends
def test_changes(backend: Any, drift: float) -> None:
    state, twin = np.zeros(robust.CHANGE_FIELDS), naive.Change(50)
    found: Any = 0.0
    for value in drift + values(260):
        if backend == "reference":
            robust.follow_change(state, np.array(value), 50)
            found = robust.change_unit(state)
        elif math.isfinite(value):
            robust_kernels.follow_change(state, value, 50)
            found = robust_kernels.change_unit(state)
        twin.take(float(value))
        assert found == pytest.approx(twin.deviation(), rel=1e-6)
        assert state[robust.DRIFT] == pytest.approx(twin.drift, rel=1e-6, abs=1e-9)


@pytest.mark.twin_of("robust.follow_level", "robust.scaled")
@pytest.mark.parametrize("memory", [20, 2000])
@backends
def test_levels(backend: Any, memory: int) -> None:
    state, twin = np.zeros((1, robust.LEVEL_FIELDS)), naive.Level(memory)
    for value in 7 + values(260):
        x = np.array([value])
        if backend == "reference":
            robust.follow_level(state, x, memory)
            found = robust.scaled(x - twin.mean(), np.array([twin.deviation()]))[0]
        else:
            robust_kernels.follow_level(state, x, memory)
            found = robust_kernels.scaled(value - twin.mean(), twin.deviation())
        assert found == pytest.approx(
            naive.scaled(value - twin.mean(), twin.deviation()), nan_ok=True
        )
        twin.take(float(value))
        assert state[0, robust.MEAN] == pytest.approx(twin.mean(), rel=1e-9, abs=1e-12)
        assert state[0, robust.VARIANCE] == pytest.approx(twin.variance, rel=1e-6)
        assert state[0, robust.COUNT] == twin.count


@pytest.mark.twin_of(
    "calibration.anomaly_score", "calibration.probability", "calibration.tail_shape",
    "calibration.excess_at", "calibration.tail_probability", "calibration.hold_share",
    "calibration.enter", "calibration.find_threshold",
)  # fmt: skip
@pytest.mark.parametrize("kind", ["normal", "heavy", "discrete"])
@backends
def test_scores_of_two_streams(backend: Any, kind: str) -> None:
    makers: dict[str, Callable[[], Any]] = {
        "normal": lambda: np.abs(RANDOM.normal(size=(1200, 2))),
        "heavy": lambda: np.abs(RANDOM.standard_t(2, (1200, 2))),
        "discrete": lambda: RANDOM.integers(0, 3, (1200, 2)).astype(float),
    }
    sizes = makers[kind]()
    sizes[50], sizes[300, 0], sizes[700:703, 1], sizes[900] = 30.0, 1e9, 40.0, np.nan
    sizes[1000:, 1] *= 100
    model = naive.Calibration()
    twins = [naive.Surprise(model), naive.Surprise(model)]
    ring, tail = np.zeros(calibration.RANKED), np.zeros(calibration.TAIL_FIELDS)
    held, ordered = np.zeros((2, calibration.SURPRISE_FIELDS)), np.zeros(calibration.RANKED)
    for row in sizes:
        for i, size in enumerate(row):
            if backend == "reference":
                found = calibration.anomaly_score(held[i], ring, tail, float(size))
            else:
                found = kernels.anomaly_score(held[i], ring, tail, size, ordered)
            ref = twins[i].score(float(size))
            assert found == pytest.approx(ref, rel=1e-6, abs=0, nan_ok=True)
    expected = [
        len(model.sizes), model.threshold, model.share, model.count, model.mean, model.square,
        model.near, model.far,
    ]  # fmt: skip
    assert_twin(tail, expected)


def test_the_threshold_is_the_least_excess() -> None:
    """A score that is larger than the share of excesses is that of no excess."""
    for function in (calibration.excess_at, kernels.excess_at):
        assert function(0.2, 0.1, 0.1, 1.0) == 0.0
        assert 0 < function(0.09, 0.1, 0.1, 1.0) < function(0.05, 0.1, 0.1, 1.0)


@pytest.mark.twin_of("scoring.error_size", "scoring.limited")
def test_sizes_of_errors() -> None:
    for errors, units in [
        ([3.0, -4.0], [1.0, 2.0]), ([math.nan, 2.0], [1.0, 0.5]), ([math.nan] * 2, [1.0] * 2),
        ([0.0, 1.0], [0.0, 1.0]), ([1e200, 1.0], [1e-200, 1.0]),
    ]:  # fmt: skip
        (ref,) = naive.sizes_of([errors], [units])
        for function in (scoring.error_size, scoring_kernels.error_size):
            assert function(np.array(errors), np.array(units)) == pytest.approx(ref, nan_ok=True)
    for error, most, ref in [(1.0, 2.0, 1.0), (3.0, 2.0, 2.0), (math.inf, 2.0, math.inf)]:
        assert scoring_kernels.limited(error, most) == ref
        assert scoring._limited(np.array([error]), np.array([most]))[0] == ref
    assert math.isnan(scoring_kernels.limited(math.nan, 1.0))
