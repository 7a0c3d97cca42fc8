"""Online statistics against their definitions over all values."""

from __future__ import annotations

import itertools
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
FORECAST = ModelSpec(
    input_size=3, hidden_size=2, horizon=3, target_columns=(2, 0), dtype="float64", combine="none"
)
REGRESSION = ModelSpec(
    task="regression", input_size=2, output_size=2, hidden_size=2, missing_targets=True,
    dtype="float64",
)  # fmt: skip
SPECS = {
    "forecast": FORECAST,
    "forecast, not scaled": replace(FORECAST, scaling=False),
    "one step ahead, float32": ModelSpec(input_size=1, hidden_size=2, combine="none"),
    "regression": REGRESSION,
    "regression, not scaled": replace(REGRESSION, scaling=False),
    "bernoulli": replace(REGRESSION, loss="bernoulli", missing_targets=False),
    "classification": replace(REGRESSION, task="classification", loss=None),
    "missing inputs": replace(FORECAST, missing_inputs=True),
    "missing inputs, not scaled": replace(REGRESSION, missing_inputs=True, scaling=False),
    "late labels": replace(REGRESSION, label_delay=3),
    "late classes": replace(REGRESSION, task="classification", loss=None, label_delay=5),
}
SPECS |= {f"{name}, no memory": replace(spec, scaling_memory=0) for name, spec in SPECS.items()}
backends = pytest.mark.parametrize("backend", ["reference", "compiled"])


@pytest.mark.twin_of("scaling.welford", "scaling.deviation")
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_welford(offset: float) -> None:
    """Also far from zero, where a sum of squares would lose its digits."""
    values = offset + RANDOM.normal(size=(40, 2))
    values[[3, 7], 1] = math.nan
    counts, its_counts, means, sums, its_means, its_sums = np.zeros((6, 2))
    refs = [naive.Statistics(), naive.Statistics()]
    for x in values:
        kernels.welford(counts, means, sums, x)
        scaling.welford(its_counts, its_means, its_sums, x)
        for i, ref in enumerate(refs):
            ref.take(float(x[i]))
            for count, mean, m2 in (
                (counts[i], means[i], sums[i]), (its_counts[i], its_means[i], its_sums[i])
            ):  # fmt: skip
                assert count == len(ref.values)
                assert mean == pytest.approx(ref.mean(), rel=1e-12)
                assert m2 == pytest.approx(ref.m2(), rel=1e-8)
            expected = pytest.approx(ref.deviation(), rel=1e-8)
            assert kernels.deviation(counts[i], sums[i]) == expected
            assert scaling.deviation(its_counts, its_sums)[i] == expected


@pytest.mark.twin_of("scaling.take_changes")
def test_changes() -> None:
    """Statistics of the second of three steps ahead."""
    values = RANDOM.normal(size=(20, 2))
    values[[3, 7], 1] = values[5, 0] = math.nan
    model, refs = new_model(replace(FORECAST, input_size=2, target_columns=())), [
        naive.Statistics(), naive.Statistics()
    ]  # fmt: skip
    for before, x in itertools.pairwise(values):
        kernels.take_changes(model.target_count, model.target_mean, model.target_m2, 1, x, before)
        for i, ref in enumerate(refs):
            ref.take(float(x[i] - before[i]))
    assert model.target_count.tolist() == [[0, 0], [len(each.values) for each in refs], [0, 0]]
    assert_twin(model.target_mean[1], [each.mean() for each in refs])
    assert_twin(model.target_m2[1], [each.m2() for each in refs])


@pytest.mark.twin_of("scaling.level_features")
@pytest.mark.parametrize("memory", [0, 20])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_levels_and_flags(scaled: bool, missing: bool, memory: int) -> None:
    spec = replace(REGRESSION, scaling=scaled, missing_inputs=missing, scaling_memory=memory)
    model, twin = new_model(spec), naive.Scaler(spec)
    told, features = sizes.sizes(spec), np.empty(spec.features)
    x, _ = random_steps(spec, STEPS, streams=1)
    for t in range(STEPS):
        kernels.level_features(
            told, model.input_count, model.input_mean, model.input_m2, model.input_level, x[t, 0],
            features,
        )  # fmt: skip
        assert_twin(features, twin.step(x[t, 0].tolist(), None).features)


@pytest.mark.twin_of("scaling.count_limited")
@pytest.mark.parametrize("changes", [False, True])
def test_limited_inputs_are_counted(changes: bool) -> None:
    """An input counts once, whether its level, its change or both are limited."""
    spec = ModelSpec(input_size=3)
    if not changes:
        spec = ModelSpec(task="regression", input_size=3, output_size=1)
    rows = [[8.0, -8.0, 7.9, 0.0, 8.0, -8.0], [-7.9, 0.0, 1.0, 8.0, 7.9, 0.0], [0.0] * 6]
    limited, model, ref = np.zeros(1), new_model(spec), 0
    for row in rows:
        kernels.count_limited(np.array(row), 3, changes, limited)
        scaling.count_limited(spec, model, np.array(row))
        ref += sum(abs(row[i]) >= 8 or (changes and abs(row[3 + i]) >= 8) for i in range(3))
        assert limited[0] == model.limited[0] == ref
    assert ref == (4 if changes else 2)


@pytest.mark.twin_of("scaling.class_entropy", "scaling.prepare_tokens")
def test_class_frequencies() -> None:
    """Frequencies of tokens, each of which is a target."""
    spec = ModelSpec(task="next_token", vocabulary_size=5, hidden_size=2, dtype="float64")
    tokens = RANDOM.integers(0, 4, (STEPS, 1)).astype(float)
    model, other, streams = new_model(spec), new_model(spec), new_streams(spec, 1)
    features, targets, naive_entropy, truth = np.empty((4, STEPS, 1))
    kernels.prepare_tokens(model, tokens, features, targets, naive_entropy, truth)
    its = scaling.prepare(spec, other, streams, 0, tokens, None, False)
    twin = naive.Scaler(spec)
    ref = [[twin.entropy(float(token))] for token in tokens[:, 0]]
    for entropy in (naive_entropy, its.naive):
        assert_twin(entropy, ref)
    for array in (features, targets, truth, its.features, its.targets, its.truth):
        assert array.tolist() == tokens.tolist()
    assert model.class_counts.tolist() == other.class_counts.tolist()
    assert model.class_counts[4] == 0.0
    assert model.class_counts.sum() == model.target_count[0, 0] == STEPS
    assert math.isnan(kernels.class_entropy(model.class_counts, model.target_count, math.nan))
    assert model.target_count[0, 0] == STEPS


def test_there_is_no_deviation_yet() -> None:
    for count, m2 in [(0.0, 0.0), (1.0, 0.0), (7.0, 0.0)]:
        assert kernels.deviation(count, m2) == naive.deviation(count, m2) == 1.0
        assert scaling.deviation(np.array([count]), np.array([m2])) == 1.0


def prepare(
    spec: ModelSpec, backend: str, model: Model, streams: Streams, x: Any, y: Any, ends: bool
) -> scaling.Prepared:
    """The next steps of the stream in row 0."""
    if backend == "reference":
        return scaling.prepare(spec, model, streams, 0, x, y, ends)
    told, begin = sizes.sizes(spec), int(streams.counters[0, SEQUENCE_STEP])
    N = len(x) + spec.label_delay * ends
    features = np.empty((len(x), spec.features), spec.dtype)
    targets = np.empty((N, spec.target_width), spec.dtype)
    base, unit = np.zeros((2, len(x), spec.outputs))
    rivals, truth = np.empty((2, N, spec.truth_width))
    filled = (features, targets, base, unit, rivals, truth)
    if spec.task == "forecast":
        kernels.prepare_forecast(
            told, sizes.columns(spec), model, streams.recent[0], begin, x,
            np.empty((spec.horizon, spec.input_size)), *filled,
        )  # fmt: skip
    else:
        kernels.prepare_steps(told, model, streams.labels[0], begin, x, y, ends, *filled)
    return scaling.Prepared(*filled)


@pytest.mark.twin_of("scaling.prepare_steps", "scaling.prepare_forecast", "scaling.find_units")
@pytest.mark.parametrize("name", SPECS)
@backends
def test_prepare(name: str, backend: Any) -> None:
    spec = SPECS[name]
    x, y = random_steps(spec, STEPS, streams=1, seed=2)
    x = np.ascontiguousarray(x[:, 0])
    if y is not None:
        y = y[:, 0].reshape(STEPS, -1).astype(float)
        y = np.where(y < 0, np.nan, y) if spec.task == "classification" else y
    twin, late = naive.Scaler(spec), spec.label_delay
    if spec.task == "forecast":
        refs = [twin.forecast(x[:t].tolist(), x[t].tolist()) for t in range(STEPS)]
    else:
        labels = [None] * late + y.tolist()
        refs = [twin.step(x[t].tolist(), labels[t]) for t in range(STEPS)]

    model, streams, made = new_model(spec), new_streams(spec, 1), []
    for start, stop in [(0, 1), (1, 2), (2, 11), (11, STEPS)]:
        own = None if y is None else y[start:stop]
        made.append(prepare(spec, backend, model, streams, x[start:stop], own, stop == STEPS))
        streams.counters[0, SEQUENCE_STEP] = stop
    features, targets, base, unit, rivals, truth = map(np.concatenate, zip(*made, strict=True))
    absent, unknown = [math.nan] * spec.target_width, [math.nan] * spec.truth_width
    assert_twin(features, [ref.features for ref in refs], spec.dtype)
    assert_twin(targets[:STEPS], [ref.target or absent for ref in refs], spec.dtype)
    if spec.task != "classification":
        assert_twin(base, [ref.base for ref in refs])
        assert_twin(unit, [ref.unit for ref in refs])
    assert_twin(truth[:STEPS], [ref.truth or unknown for ref in refs])
    known = [t for t in range(STEPS) if refs[t].naive]
    assert_twin(rivals[known], [refs[t].naive for t in known])
    for i in range(late):  # the labels of the last steps, when the sequence ends
        ref_target, ref_naive = twin.label(y[STEPS - late + i].tolist())
        assert_twin(targets[STEPS + i], ref_target, spec.dtype)
        assert_twin(rivals[STEPS + i], ref_naive)
        assert_twin(truth[STEPS + i], y[STEPS - late + i])


def test_columns() -> None:
    for spec, ref in [(FORECAST, [2, 0]), (replace(FORECAST, target_columns=()), [0, 1, 2])]:
        assert sizes.columns(spec).tolist() == ref
        assert scaling.forecast_columns(spec).tolist() == ref
