"""Online statistics and figures of merit against their definitions, over all values kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt_core import ModelSpec, scaling
from bptt_core.kernels import scaling as kernels
from bptt_core.kernels import sizes
from bptt_core.state import Model, new_model, new_streams, SEQUENCE_STEP, Streams
from tests.core import naive
from tests.core.support import assert_twin, random_steps

STEPS = 30
RANDOM = np.random.default_rng(15)
FORECAST = ModelSpec(input_size=3, hidden_size=2, horizon=3, target_columns=(2, 0), dtype="float64")
REGRESSION = ModelSpec(
    task="regression", input_size=2, output_size=2, hidden_size=2, missing_targets=True,
    dtype="float64",
)  # fmt: skip
SPECS = {
    "forecast": FORECAST,
    "forecast, not scaled": replace(FORECAST, scaling=False),
    "one step ahead, float32": ModelSpec(input_size=1, hidden_size=2),
    "regression": REGRESSION,
    "regression, not scaled": replace(REGRESSION, scaling=False),
    "bernoulli": replace(REGRESSION, loss="bernoulli", missing_targets=False),
    "classification": replace(REGRESSION, task="classification", loss=None),
}
backends = pytest.mark.parametrize("backend", ["reference", "compiled"])


@pytest.mark.twin_of("scaling.welford", "scaling.deviation")
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_welford(offset: float) -> None:
    """Far from zero too, where a sum of squares would have lost its digits."""
    values = offset + RANDOM.normal(size=(40, 2))
    means, sums, its_means, its_sums = np.zeros((4, 2))
    refs = [naive.Statistics(), naive.Statistics()]
    for count, x in enumerate(values, start=1):
        kernels.welford(float(count), means, sums, x)
        scaling.welford(float(count), its_means, its_sums, x)
        for i, ref in enumerate(refs):
            ref.values.append(float(x[i]))
            for mean, m2 in ((means[i], sums[i]), (its_means[i], its_sums[i])):
                assert mean == pytest.approx(ref.mean(), rel=1e-12)
                assert m2 == pytest.approx(ref.m2(), rel=1e-8)
            expected = pytest.approx(ref.deviation(), rel=1e-8)
            assert kernels.deviation(float(count), sums[i]) == expected
            assert scaling.deviation(float(count), sums)[i] == expected


def test_there_is_no_deviation_yet() -> None:
    for count, m2 in [(0.0, 0.0), (1.0, 0.0), (7.0, 0.0)]:
        assert kernels.deviation(count, m2) == naive.deviation(count, m2) == 1.0
        assert scaling.deviation(count, np.array([m2])) == 1.0


def prepare(
    spec: ModelSpec, backend: str, model: Model, streams: Streams, x: Any, y: Any
) -> scaling.Prepared:
    """The next steps of the stream in row 0."""
    if backend == "reference":
        return scaling.prepare(spec, model, streams, 0, x, y)
    features = np.empty((len(x), spec.features), spec.dtype)
    targets = np.empty((len(x), spec.target_width), spec.dtype)
    base, unit, rivals = np.zeros((3, len(x), spec.outputs))
    if spec.task == "forecast":
        begin = int(streams.counters[0, SEQUENCE_STEP])
        kernels.prepare_forecast(
            sizes.sizes(spec), sizes.columns(spec), model, streams.recent[0], begin, x,
            features, targets, base, unit,
        )  # fmt: skip
        rivals = base
    else:
        regression = spec.task == "regression"
        scaled = spec.scaling and regression and spec.loss != "bernoulli"
        kernels.prepare_steps(
            spec.scaling, scaled, regression, model, x, y, features, targets, base, unit, rivals
        )
    return scaling.Prepared(features, targets, base, unit, rivals)


@pytest.mark.twin_of("scaling.prepare_steps", "scaling.prepare_forecast")
@pytest.mark.parametrize("name", SPECS)
@backends
def test_prepare(name: str, backend: Any) -> None:
    spec = SPECS[name]
    x, y = random_steps(spec, STEPS, streams=1, seed=2)
    x = np.ascontiguousarray(x[:, 0])
    if y is not None:
        y = y[:, 0].reshape(STEPS, -1).astype(float)
        y = np.where(y < 0, np.nan, y) if spec.task == "classification" else y
    twin = naive.Scaler(spec)
    if spec.task == "forecast":
        refs = [twin.forecast(x[:t].tolist(), x[t].tolist()) for t in range(STEPS)]
    else:
        refs = [twin.step(x[t].tolist(), y[t].tolist()) for t in range(STEPS)]

    model, streams, made = new_model(spec), new_streams(spec, 1), []
    for start, stop in [(0, 1), (1, 2), (2, 11), (11, STEPS)]:
        truth = None if y is None else y[start:stop]
        made.append(prepare(spec, backend, model, streams, x[start:stop], truth))
        streams.counters[0, SEQUENCE_STEP] = stop
    features, targets, base, unit, rivals = map(np.concatenate, zip(*made, strict=True))
    absent = [math.nan] * spec.outputs
    assert_twin(features, [ref.features for ref in refs], spec.dtype)
    assert_twin(targets, [ref.target or absent for ref in refs], spec.dtype)
    assert_twin(base, [ref.base for ref in refs])
    assert_twin(unit, [ref.unit for ref in refs])
    assert_twin(rivals, [ref.naive for ref in refs])


@pytest.mark.twin_of("scaling.score_regression", "scaling.fade")
@backends
def test_score_of_a_regression(backend: Any) -> None:
    spec = REGRESSION
    predictions, rivals, truth = RANDOM.normal(size=(3, STEPS, 2))
    truth[4, 1] = truth[9] = np.nan
    model, streams = new_model(spec), new_streams(spec, 1)
    if backend == "reference":
        scaling.score(spec, model, streams, 0, 0, predictions, rivals, truth)
    else:
        kernels.score_regression(model, predictions, rivals, truth)
    for i in range(2):
        error = naive_error = 0.0
        for t in range(STEPS):
            if not np.isnan(truth[t]).any():
                error = naive.fade(error, abs(truth[t, i] - predictions[t, i]))
                naive_error = naive.fade(naive_error, abs(truth[t, i] - rivals[t, i]))
        assert model.error[i] == pytest.approx(error, rel=1e-12)
        assert model.naive_error[i] == pytest.approx(naive_error, rel=1e-12)
    comp = new_model(spec)
    kernels.fade(comp, 1, 0.5, 0.25)
    assert comp.error.tolist() == pytest.approx([0.0, naive.fade(0.0, 0.5)])
    assert comp.naive_error.tolist() == pytest.approx([0.0, naive.fade(0.0, 0.25)])


@pytest.mark.twin_of("scaling.score_forecast")
@backends
def test_score_of_a_forecast(backend: Any) -> None:
    """A forecast made at step s for j steps ahead is scored when step s + j has come."""
    spec, (h, n) = FORECAST, (3, 2)
    x = RANDOM.normal(size=(STEPS, 3)).cumsum(axis=0)
    predictions = RANDOM.normal(size=(STEPS, h * n))
    predictions[5, 1] = np.nan  # one that was not made
    rivals = np.tile(x[:, [2, 0]], h)
    model, streams = new_model(spec), new_streams(spec, 1)
    for start, stop in [(0, 2), (2, 12), (12, STEPS)]:
        part = slice(start, stop)
        made, last, truth = predictions[part], rivals[part], x[part]
        if backend == "reference":
            scaling.score(spec, model, streams, 0, start, made, last, truth)
        else:
            held, columns = streams.forecasts[0], sizes.columns(spec)
            kernels.score_forecast(columns, model, held, start, made, last, truth)
    error, naive_error = [0.0] * (h * n), [0.0] * (h * n)
    for t in range(STEPS):
        for j in range(1, h + 1):
            if t - j < 0:
                continue
            outputs = range((j - 1) * n, j * n)
            forecast = [predictions[t - j, at] for at in outputs]
            if any(math.isnan(each) for each in forecast):
                continue
            for k, at in enumerate(outputs):
                now, last = x[t, (2, 0)[k]], x[t - j, (2, 0)[k]]
                error[at] = naive.fade(error[at], abs(now - forecast[k]))
                naive_error[at] = naive.fade(naive_error[at], abs(now - last))
    assert_twin(model.error, error)
    assert_twin(model.naive_error, naive_error)


def test_columns() -> None:
    for spec, ref in [(FORECAST, [2, 0]), (replace(FORECAST, target_columns=()), [0, 1, 2])]:
        assert sizes.columns(spec).tolist() == ref
        assert scaling.forecast_columns(spec).tolist() == ref
