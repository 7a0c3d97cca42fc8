"""Figures of merit against their definitions over all errors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt_core import ModelSpec, params, scoring
from bptt_core.kernels import scoring as kernels
from bptt_core.kernels import sizes, transition
from bptt_core.scaling import Prepared
from bptt_core.state import error_rows, Model, new_model, new_streams, SEQUENCE_STEP, Streams
from tests.core import naive
from tests.core.naive.learner import odds_of
from tests.core.support import assert_twin

STEPS = 90
RANDOM = np.random.default_rng(17)
FORECAST = ModelSpec(
    input_size=3, hidden_size=2, horizon=3, target_columns=(2, 0), dtype="float64", combine="none"
)
REGRESSION = ModelSpec(
    task="regression", input_size=2, output_size=2, hidden_size=2, missing_targets=True,
    dtype="float64",
)  # fmt: skip
CLASSES = replace(REGRESSION, task="classification", output_size=4, loss=None)
TOKENS = ModelSpec(
    task="next_token", vocabulary_size=5, hidden_size=3, layers=2, cell="lstm", dtype="float64"
)
backends = pytest.mark.parametrize("backend", ["reference", "compiled"])
CUTS = [(0, 2), (2, 2), (2, 12), (12, STEPS)]
NONE = np.empty((0, 0))


def figures(spec: ModelSpec) -> naive.Figures:
    outputs = 1 if spec.loss == "cross_entropy" else spec.outputs
    targets = spec.target_count if spec.task == "forecast" else outputs
    return naive.Figures(outputs, error_rows(spec), targets, spec.robust)


def assert_same_figures(model: Model, twin: naive.Figures) -> None:
    assert_twin(model.error, twin.error)
    assert_twin(model.naive_error, twin.naive_error)
    assert_twin(model.hits, [twin.hits, twin.weight])
    if model.error_band.size:
        assert_twin(model.error_band, twin.band())
    if model.band_width.size:
        assert_twin(model.band_width, twin.width)


def score(
    spec: ModelSpec,
    backend: str,
    model: Model,
    streams: Streams,
    begin: int,
    predictions: Any,
    prepared: Prepared,
) -> Any:
    """The next steps of the stream in row 0; anomaly scores."""
    if backend == "reference":
        return scoring.score(spec, model, streams, 0, begin, predictions, prepared)
    room, scores = sizes.room(spec, 1, 1, 1), np.empty(len(predictions))
    transition.score(
        sizes.sizes(spec), model, streams, 0, begin, predictions, prepared.unit, prepared.naive,
        prepared.truth, room, scores,
    )  # fmt: skip
    return scores


@pytest.mark.twin_of("scoring.quantile")
@pytest.mark.parametrize("n", [19, 20, 21, 64, 511, 512])
def test_quantiles(n: int) -> None:
    values = RANDOM.normal(size=600).round(1)  # with ties
    for share in (0.05, 0.3, 0.5, 0.95):
        ref = naive.quantile(values[:n].tolist(), share)
        for guess in (math.nan, -9.0, -0.5, ref, 0.5, 9.0, math.inf):  # good and bad
            comp = kernels.quantile(values, n, share, guess, np.empty(n))
            assert comp == pytest.approx(ref, nan_ok=True)
        assert scoring._quantile(np.sort(values[:n]), share) == pytest.approx(ref, nan_ok=True)
        assert math.isnan(ref) == (n < 20)


@pytest.mark.twin_of("scoring.keep_errors", "scoring.find_band", "scoring.hold_coverage")
@backends
@pytest.mark.parametrize("memory", [0, 2000])
@pytest.mark.parametrize("size", ["small", "large"])
def test_the_ring_of_errors(backend: Any, size: str, memory: int) -> None:
    """The ring wraps around; missing errors are not stored."""
    outputs, ring = {"small": (1100, 64), "large": (300, 218)}[size]
    robust = memory > 0
    spec = ModelSpec(
        input_size=outputs // 2, horizon=2, hidden_size=2, scaling_memory=memory, dtype="float64"
    )
    model, twin = new_model(spec), naive.Figures(outputs, ring, outputs // 2, robust)
    assert len(model.errors) == ring
    scratch = np.empty((2, ring))
    for step in range(500):
        errors = RANDOM.normal(size=outputs)
        errors[RANDOM.random(outputs) < 0.3] = np.nan
        if step % 7 == 0:
            errors[:] = np.nan
        errors[1] = np.inf if step % 3 else np.nan
        twin.keep(errors.tolist())
        if backend == "reference":
            scoring._keep(spec, model, errors)
        else:
            kernels.keep_errors(
                robust, outputs // 2, model.errors, model.counters, model.error_band,
                model.band_width, errors, scratch[0], scratch[1],
            )  # fmt: skip
        if step in (40, 100, 199, 350, 499):
            assert_twin(model.error_band, twin.band())
            assert_twin(model.band_width, twin.width if robust else [])
    low, high = scoring.error_band(model)
    assert np.isnan(low[1])
    assert (low[2:] < high[2:]).all()


@pytest.mark.twin_of("scoring.surprise")
@backends
def test_surprise(backend: Any) -> None:
    errors = RANDOM.normal(size=(200, 2))
    errors[RANDOM.random(errors.shape) < 0.2] = np.nan
    errors[150] = 8.0
    held, unit = np.zeros(3), np.array([2.0, 0.5])
    comp = [
        scoring._surprise(held, row)
        if backend == "reference"
        else kernels.surprise(held, row * unit, unit)
        for row in errors
    ]
    ref = naive.anomaly_scores(errors.tolist())
    np.testing.assert_allclose(comp, ref, 1e-6, 1e-12)
    assert np.nanargmin(comp) == 150
    past = [size for size in naive.sizes(errors.tolist()) if not math.isnan(size)]
    assert_twin(held, [len(past), np.mean(past), np.var(past)])


@backends
def test_surprise_of_zero_and_of_non_finite_errors(backend: Any) -> None:
    held, one = np.zeros(3), np.ones(1)

    def told(error: float) -> float:
        if backend == "reference":
            return scoring._surprise(held, np.array([error]))
        return kernels.surprise(held, np.array([error]), one)

    assert all(math.isnan(told(0.0)) for _ in range(32))
    assert told(0.0) == 1.0
    assert math.isnan(told(math.nan))
    with np.errstate(over="ignore"):
        assert math.isnan(told(1e200))  # its square is not finite
    assert told(1e-3) == 0.0
    held[:] = 1000, 1.0, 0.04
    assert told(1.0) == pytest.approx(0.5)
    assert held[0] == 1000


@pytest.mark.twin_of("scoring.fade", "scoring.take_class")
@backends
def test_one_target(backend: Any) -> None:
    model, twin = new_model(REGRESSION), figures(REGRESSION)
    for error, rival in [(0.5, 0.25), (math.nan, 1.0), (2.0, math.inf), (1.0, 3.0)]:
        if backend == "compiled":
            kernels.fade(model.error, model.naive_error, 1, error, rival)
        else:
            scoring._fade(model, slice(1, 2), np.array([error]), np.array([rival]))
        twin.numbers(1, [error], [rival])
    assert_same_figures(model, twin)
    model, twin = new_model(CLASSES), figures(CLASSES)

    def take(model: Model, *target: Any) -> None:
        if backend == "compiled":
            kernels.take_class(model.error, model.naive_error, model.hits, *target)
        else:
            scoring._take_class(model, *target)

    odds = [[0.1, 0.2, 0.4, 0.3], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]
    for row, wanted in [(0, 2.0), (0, 3.0), (1, 0.0), (1, 1.0), (2, 3.0), (2, math.nan)]:
        take(model, np.array(odds[row]), wanted, 1.25)
        twin.a_class(odds[row], wanted, 1.25)
    take(model, np.full(4, np.nan), 1.0, 1.25)  # a network that is not finite
    assert_same_figures(model, twin)
    accuracy, bits = scoring.of_classes(model)
    assert accuracy == pytest.approx(2 / 5, rel=1e-2)
    assert bits == pytest.approx(1 / 5 * sum(
        -math.log2(p) for p in (0.4, 0.3, 0.25, 0.25, 1e-300)), rel=1e-2)  # fmt: skip


@pytest.mark.twin_of("scoring.score_labels", "transition.score")
@pytest.mark.parametrize("late", [0, 1, 7])
@pytest.mark.parametrize("spec", [REGRESSION, CLASSES], ids=lambda spec: spec.task)
@backends
def test_score_of_labels(spec: ModelSpec, late: int, backend: Any) -> None:
    """A prediction is scored when its label is complete, `label_delay` steps later."""
    spec = replace(spec, label_delay=late)
    classes = spec.task == "classification"
    predictions = RANDOM.random((STEPS, spec.outputs))
    rivals, truth = RANDOM.normal(size=(2, STEPS, spec.truth_width))
    if classes:
        truth = RANDOM.integers(0, 4, (STEPS, 1)).astype(float)
    truth[4, -1] = truth[9] = np.nan
    twin = figures(spec)
    for t in range(STEPS):
        if classes:
            twin.a_class(predictions[t].tolist(), truth[t, 0], rivals[t, 0])
        else:
            errors = (truth[t] - predictions[t]).tolist()
            twin.numbers(0, errors, (truth[t] - rivals[t]).tolist(), twin.sums())
            twin.keep(errors)

    model, streams = new_model(spec), new_streams(spec, 1)
    complete = np.vstack([np.full((late, spec.truth_width), np.nan), truth])
    rivals = np.vstack([np.full((late, spec.truth_width), np.nan), rivals])
    for start, stop in CUTS:
        rows = slice(start, stop + late if stop == STEPS else stop)
        part = Prepared(NONE, NONE, NONE, NONE, rivals[rows], complete[rows])
        score(spec, backend, model, streams, start, predictions[start:stop], part)
    assert_same_figures(model, twin)


@pytest.mark.twin_of("scoring.score_tokens", "transition.score_live")
@backends
def test_score_of_tokens(backend: Any) -> None:
    """Each token is scored by the previous prediction; the first one by the live state."""
    spec = TOKENS
    predictions, rivals = RANDOM.random((STEPS, 5)), RANDOM.normal(size=(STEPS, 1))
    tokens = RANDOM.integers(0, 5, (STEPS, 1)).astype(float)
    model, streams, twin = new_model(spec), new_streams(spec, 1), figures(spec)
    streams.counters[0, SEQUENCE_STEP] = 1
    streams.live_state[:] = RANDOM.normal(size=streams.live_state.shape)
    prepared = Prepared(NONE, NONE, NONE, NONE, rivals, tokens)
    told = sizes.sizes(spec)
    if backend == "reference":
        scoring.score_live(spec, model, streams, 0, prepared)
    else:
        raw, odds = np.empty((2, 5))
        transition.score_live(
            told, model, streams.live_state[0], tokens[0, 0], rivals[0, 0], raw, odds
        )
    score(spec, backend, model, streams, 1, predictions, prepared)
    named = params.views(spec, model.parameters)
    head = naive.Network(spec, named).named
    h = streams.live_state[0, 1, 0].tolist()
    output = naive.affine(head["head.weight"], h, head["head.bias"])
    twin.a_class(odds_of(output), tokens[0, 0], rivals[0, 0])
    for t in range(1, STEPS):
        twin.a_class(predictions[t - 1].tolist(), tokens[t, 0], rivals[t, 0])
    assert_same_figures(model, twin)


@pytest.mark.twin_of("scoring.score_forecast")
@pytest.mark.parametrize("memory", [0, 2000])
@backends
def test_score_of_a_forecast(backend: Any, memory: int) -> None:
    """A forecast made at step s for j steps ahead is scored at step s + j."""
    spec, (h, n) = replace(FORECAST, scaling_memory=memory), (3, 2)
    x = RANDOM.normal(size=(STEPS, 2)).cumsum(axis=0)
    predictions, units = RANDOM.normal(size=(STEPS, h * n)), 1 + RANDOM.random((STEPS, h * n))
    predictions[5, 1] = np.nan  # one that was not made
    x[[8, 9], 0] = np.nan
    seen = x.copy()
    seen[[8, 9], 0] = x[7, 0]
    seen[0, 1] = x[0, 1] = np.nan  # none yet
    twin, one_ahead = figures(spec), []
    for t in range(STEPS):
        errors = [math.nan] * (h * n)
        for j in range(1, min(h, t) + 1):
            rivals = (x[t] - seen[t - j]).tolist()
            for k in range(n):
                at = (j - 1) * n + k
                if not math.isnan(seen[t - j, k]):
                    errors[at] = x[t, k] - predictions[t - j, at]
            outputs = slice((j - 1) * n, j * n)
            most = (16 * units[t, outputs]).tolist() if memory else None
            twin.numbers((j - 1) * n, errors[outputs], rivals, most)
        twin.keep(errors)
        one_ahead.append(errors[:n])

    model, streams, scores = new_model(spec), new_streams(spec, 1), []
    for start, stop in CUTS:
        part = slice(start, stop)
        prepared = Prepared(NONE, NONE, NONE, units[part], seen[part], x[part])
        scores.append(score(spec, backend, model, streams, start, predictions[part], prepared))
    assert_same_figures(model, twin)
    if memory:
        stream = naive.Surprise(naive.Calibration())
        ref = [stream.score(size) for size in naive.sizes_of(one_ahead, units[:, :n].tolist())]
    else:
        ref = naive.anomaly_scores((np.array(one_ahead) / units[:, :n]).tolist())
    np.testing.assert_allclose(np.concatenate(scores), ref, 1e-6)
