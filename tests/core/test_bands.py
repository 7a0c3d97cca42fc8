"""Error bands, anomaly scores, and the figures of classes and tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec

FORECAST = ModelSpec(input_size=1, hidden_size=8, horizon=3, learning_rate=1e-9, combine="none")
backends = pytest.mark.parametrize("backend", ["reference", "compiled"])


def walk(steps: int, seed: int = 0, columns: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=(steps, columns)).cumsum(axis=0)


@backends
def test_the_band_holds_nine_of_ten_and_grows_with_the_horizon(backend: Any) -> None:
    """A random walk: its changes over j steps have a deviation of √j."""
    learner = Learner(FORECAST, backend=backend)
    x = walk(1200)
    assert [each.size for each in learner.error_band()] == [0, 0]
    learner.apply([Chunk("a", 0, x[:700])])
    low, high = learner.error_band()
    for j in range(3):
        assert low[j] == pytest.approx(-1.645 * (j + 1) ** 0.5, rel=0.25)
        assert high[j] == pytest.approx(1.645 * (j + 1) ** 0.5, rel=0.25)
    inside = [
        np.mean((x[700 + j :] - x[700 : len(x) - j] >= low[j - 1])
                & (x[700 + j :] - x[700 : len(x) - j] <= high[j - 1]))
        for j in (1, 2, 3)
    ]  # fmt: skip
    assert all(0.8 < share < 0.97 for share in inside)
    for mine, its in zip(learner.snapshot().error_band(), (low, high), strict=True):
        np.testing.assert_array_equal(mine, its)


@backends
def test_the_band_is_in_the_users_units_and_follows(backend: Any) -> None:
    spec = ModelSpec(task="regression", input_size=1, output_size=1, hidden_size=4)
    learner = Learner(spec, backend=backend)
    random = np.random.default_rng(0)
    x = random.normal(size=(1200, 1))
    learner.apply([Chunk("a", 0, x[:600], 1000 + 100 * random.normal(size=(600, 1)))])
    low, high = learner.error_band()
    assert low[0] == pytest.approx(-164.5, rel=0.4)
    assert high[0] == pytest.approx(164.5, rel=0.4)
    learner.apply([Chunk("a", 600, x[600:], 1000 + random.normal(size=(600, 1)))])
    later_low, later_high = learner.error_band()
    assert later_high[0] - later_low[0] < (high[0] - low[0]) / 2
    learner.apply([Chunk("a", 1200, x[:100], np.full((100, 1), 1000.0))], predictions=False)
    np.testing.assert_array_equal(learner.error_band()[0], later_low)


@backends
@pytest.mark.parametrize(("memory", "least"), [(2000, 20), (0, 32)])
def test_there_is_a_band_as_soon_as_there_are_errors_enough(
    backend: Any, memory: int, least: int
) -> None:
    """Of 20 errors it reaches from the smallest to the largest."""
    learner = Learner(replace(FORECAST, horizon=1, scaling_memory=memory), backend=backend)
    x = walk(least + 1)
    learner.apply([Chunk("a", 0, x[:least])])
    assert learner.error_band()[0].size == 0
    learner.apply([Chunk("a", least, x[least:])])
    errors = np.diff(x[:, 0])
    share = 0.0 if memory else 0.05
    low, high = learner.error_band()
    np.testing.assert_allclose(low, np.quantile(errors, share), 1e-5)
    np.testing.assert_allclose(high, np.quantile(errors, 1 - share), 1e-5)


@pytest.mark.parametrize("columns", [1, 4])
@backends
def test_anomaly_scores_are_probabilities(columns: int, backend: Any) -> None:
    """On stationary noise, scores are uniformly distributed for any number of columns."""
    spec = ModelSpec(input_size=columns, hidden_size=4, learning_rate=1e-9, k1=32, k2=32)
    learner = Learner(spec, backend=backend)
    x = walk(3000, columns=columns)
    x[2500:] += 12.0  # a step of 12 deviations
    (chunk,) = learner.apply([Chunk("a", 0, x)]).chunks
    scores = chunk.anomaly_scores
    assert scores is not None
    assert np.isnan(scores[:33]).all()
    assert not np.isnan(scores[33:]).any()
    for share in (0.01, 0.1, 0.5, 0.9):
        found = np.mean(np.delete(scores[33:], 2500 - 33) < share)
        assert found == pytest.approx(share, abs=0.01 + 0.1 * share)
    assert scores[2500] == np.min(scores[33:])
    assert scores[2500] < 1e-6
    assert scores[2501] > 1e-3


def test_anomaly_scores_are_relative_to_each_stream() -> None:
    """A change that is usual on one stream is an anomaly on another."""
    spec = ModelSpec(input_size=1, hidden_size=4, learning_rate=1e-9)
    learner = Learner(spec)
    calm, wild = walk(400), 20 * walk(400, seed=1)
    calm[350:] += 20.0
    chunks = learner.apply([Chunk("calm", 0, calm), Chunk("wild", 0, wild)]).chunks
    scores = [chunk.anomaly_scores for chunk in chunks]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0][350] < 1e-4
    assert np.mean(scores[1][100:] < 1e-4) < 0.02
    (quiet,) = learner.apply([Chunk("calm", 400, calm[:5])], predictions=False).chunks
    assert quiet.anomaly_scores is None
    (unscored,) = learner.apply([Chunk("calm", 405, calm[:2])]).chunks
    assert unscored.anomaly_scores is not None
    assert np.isnan(unscored.anomaly_scores[0])  # of the step before there was no forecast
    assert not np.isnan(unscored.anomaly_scores[1])


@backends
def test_figures_of_classes_are_of_the_predictions_that_were_given(backend: Any) -> None:
    spec = ModelSpec(
        task="classification", input_size=1, output_size=3, hidden_size=4, learning_rate=0.01
    )
    learner = Learner(spec, backend=backend)
    random = np.random.default_rng(0)
    y = random.choice(3, size=3000, p=[0.7, 0.2, 0.1])
    result = learner.apply([Chunk("a", 0, random.normal(size=(3000, 1)), y)])
    figures = learner.figures
    made = result.chunks[0].predictions
    assert made is not None
    fading = 0.999 ** np.arange(3000)[::-1]
    entropies = -np.log2(made[np.arange(3000), y])
    assert figures.cross_entropy_bits == pytest.approx(np.average(entropies, weights=fading))
    hits = made.argmax(axis=1) == y
    assert figures.accuracy == pytest.approx(np.average(hits, weights=fading))
    counts = 1 + np.cumsum(np.eye(3)[y], axis=0) - np.eye(3)[y]  # before each step
    naive = -np.log2(counts[np.arange(3000), y] / counts.sum(axis=1))
    ratio = np.average(entropies, weights=fading) / np.average(naive, weights=fading)
    assert figures.skill_ratio == pytest.approx(ratio)


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_figures_of_tokens_are_of_the_predictions_that_were_given(backend: Any) -> None:
    spec = ModelSpec(task="next_token", vocabulary_size=6, hidden_size=8, learning_rate=0.01)
    learner = Learner(spec, backend=backend)
    assert np.isnan(learner.figures.accuracy)
    assert np.isnan(learner.figures.cross_entropy_bits)
    tokens = np.arange(1600) % 5
    tokens[::7] = 5
    made: list[Any] = []
    for start in range(0, 1600, 5):  # the next one is scored across chunks, too
        (chunk,) = learner.apply([Chunk("a", start, tokens[start : start + 5])]).chunks
        made.append(chunk.predictions)
    given, wanted = np.concatenate(made)[:-1], tokens[1:]
    fading = 0.999 ** np.arange(1599)[::-1]
    entropies = -np.log2(given[np.arange(1599), wanted])
    figures = learner.figures
    assert figures.cross_entropy_bits == pytest.approx(np.average(entropies, weights=fading))
    hits = given.argmax(axis=1) == wanted
    assert figures.accuracy == pytest.approx(np.average(hits, weights=fading))
    assert [each.size for each in learner.error_band()] == [0, 0]
    assert np.isnan(Learner(FORECAST, backend="reference").figures.accuracy)


def test_classes_are_not_scored_without_predictions() -> None:
    spec = ModelSpec(task="next_token", vocabulary_size=6, hidden_size=8)
    learner = Learner(spec)
    tokens = np.arange(40) % 6
    learner.apply([Chunk("a", 0, tokens)], predictions=False)
    assert np.isnan(learner.figures.skill_ratio)
    assert learner.state()[0]["model.class_counts"].sum() == 40
