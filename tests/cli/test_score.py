"""Prequential errors, against a loop that does the same slowly."""

import numpy as np
import pytest

from service.cli import score as score_module
from service.cli.score import ForecastScore, RegressionScore


def test_a_forecast_is_held_against_the_last_value_however_it_is_cut() -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(50, 3)).astype(np.float32)
    predictions = random.normal(size=(50, 4, 2)).astype(np.float32)
    columns = [2, 0]
    error = [abs(inputs[t + 1, columns] - predictions[t, 0]) for t in range(49)]
    naive = [abs(inputs[t + 1, columns] - inputs[t, columns]) for t in range(49)]
    for cut in (1, 7, 50):
        score = ForecastScore(columns)
        for first in range(0, 50, cut):
            part = inputs[first : first + cut]
            score.learned(part, part[:, :0], predictions[first : first + cut])
        found = score.blocks.errors()
        assert found.steps == 49
        np.testing.assert_allclose(found.error, np.mean(error, axis=0), rtol=1e-6)
        np.testing.assert_allclose(found.naive_error, np.mean(naive, axis=0), rtol=1e-6)
        ratio = np.mean(np.mean(error, axis=0) / np.mean(naive, axis=0))
        assert found.ratio == pytest.approx(ratio, rel=1e-6)


def test_a_regression_is_held_against_the_mean_of_all_targets_before() -> None:
    random = np.random.default_rng(1)
    targets = random.normal(size=(30, 2)).astype(np.float32)
    predictions = random.normal(size=(30, 1, 2)).astype(np.float32)
    naive = [abs(targets[t] - targets[:t].mean(axis=0)) for t in range(1, 30)]
    error = [abs(targets[t] - predictions[t, 0]) for t in range(1, 30)]
    for cut in (1, 4, 30):
        score = RegressionScore(2)
        for first in range(0, 30, cut):
            part = targets[first : first + cut]
            score.learned(part, part, predictions[first : first + cut])
        np.testing.assert_allclose(
            score.blocks.errors().naive_error, np.mean(naive, axis=0), rtol=1e-5
        )
        np.testing.assert_allclose(score.blocks.errors().error, np.mean(error, axis=0), rtol=1e-5)


def test_the_second_half_is_the_later_steps() -> None:
    score = ForecastScore([0])
    values = np.arange(101, dtype=np.float32)[:, None]
    predictions = values[:, None, :] + 1.0
    predictions[:50] += 4.0
    for first in range(101):
        part = values[first : first + 1]
        score.learned(part, part[:, :0], predictions[first : first + 1])
    assert score.blocks.errors(second_half=True).ratio == 0
    assert score.blocks.errors().ratio == pytest.approx(2.0)


def test_blocks_are_merged_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_module, "BLOCKS_MAX", 8)
    score = ForecastScore([0])
    for value in range(1000):
        score.blocks.add(np.array([[float(value)]]), np.ones((1, 1)))
    assert score.blocks.errors().steps == 1000
    assert score.blocks.errors().error[0] == pytest.approx(499.5)


def test_there_is_no_ratio_before_there_is_an_error() -> None:
    assert np.isnan(ForecastScore([0]).blocks.errors().ratio)
