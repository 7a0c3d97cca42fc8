"""Prequential errors, compared with slow loops that compute the same."""

import numpy as np
import pytest

from bptt.cli import prequential
from bptt.cli.prequential import (
    Anomalies,
    DelayedLabelEvaluator,
    Float32Array,
    ForecastEvaluator,
    RegressionEvaluator,
)


def test_forecasts_are_compared_with_the_last_value_for_any_chunk_size() -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(50, 3)).astype(np.float32)
    predictions = random.normal(size=(50, 4, 2)).astype(np.float32)
    columns = [2, 0]
    error = [abs(inputs[t + 1, columns] - predictions[t, 0]) for t in range(49)]
    naive = [abs(inputs[t + 1, columns] - inputs[t, columns]) for t in range(49)]
    for cut in (1, 7, 50):
        evaluator = ForecastEvaluator(columns)
        for first in range(0, 50, cut):
            part = inputs[first : first + cut]
            evaluator.update(part, part[:, :0], predictions[first : first + cut])
        found = evaluator.sums.errors()
        assert found.steps == 49
        np.testing.assert_allclose(found.error, np.mean(error, axis=0), rtol=1e-6)
        np.testing.assert_allclose(found.naive_error, np.mean(naive, axis=0), rtol=1e-6)
        ratio = np.mean(np.mean(error, axis=0) / np.mean(naive, axis=0))
        assert found.ratio == pytest.approx(ratio, rel=1e-6)


def test_regressions_are_compared_with_the_mean_of_earlier_targets() -> None:
    random = np.random.default_rng(1)
    targets = random.normal(size=(30, 2)).astype(np.float32)
    predictions = random.normal(size=(30, 1, 2)).astype(np.float32)
    naive = [abs(targets[t] - targets[:t].mean(axis=0)) for t in range(1, 30)]
    error = [abs(targets[t] - predictions[t, 0]) for t in range(1, 30)]
    for cut in (1, 4, 30):
        evaluator = RegressionEvaluator(2)
        for first in range(0, 30, cut):
            part = targets[first : first + cut]
            evaluator.update(part, part, predictions[first : first + cut])
        np.testing.assert_allclose(
            evaluator.sums.errors().naive_error, np.mean(naive, axis=0), rtol=1e-5
        )
        np.testing.assert_allclose(evaluator.sums.errors().error, np.mean(error, axis=0), rtol=1e-5)


def test_the_second_half_covers_the_later_steps() -> None:
    evaluator = ForecastEvaluator([0])
    values = np.arange(101, dtype=np.float32)[:, None]
    predictions = values[:, None, :] + 1.0
    predictions[:50] += 4.0
    for first in range(101):
        part = values[first : first + 1]
        evaluator.update(part, part[:, :0], predictions[first : first + 1])
    assert evaluator.sums.errors(second_half=True).ratio == 0
    assert evaluator.sums.errors().ratio == pytest.approx(2.0)


def test_merging_blocks_keeps_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prequential, "BLOCKS_MAX", 8)
    evaluator = ForecastEvaluator([0])
    for value in range(1000):
        evaluator.sums.add(np.array([[float(value)]]), np.ones((1, 1)))
    assert evaluator.sums.errors().steps == 1000
    assert evaluator.sums.errors().error[0] == pytest.approx(499.5)


def test_the_ratio_is_nan_before_the_first_error() -> None:
    assert np.isnan(ForecastEvaluator([0]).sums.errors().ratio)


def late_rows() -> tuple[Float32Array, Float32Array]:
    """Predictions (40, 1, 1), and targets that arrive three rows late."""
    predictions = np.arange(40, dtype=np.float32).reshape(-1, 1, 1)
    targets = np.arange(-3, 37, dtype=np.float32).reshape(-1, 1)
    targets[:3] = np.nan
    return predictions, targets


@pytest.mark.parametrize("cut", [1, 2, 7, 40])
def test_late_targets_are_matched_with_the_predictions_of_their_steps(cut: int) -> None:
    predictions, targets = late_rows()
    evaluator = DelayedLabelEvaluator(RegressionEvaluator(1), 3)
    for first in range(0, 40, cut):
        part = slice(first, first + cut)
        evaluator.update(targets[part], targets[part], predictions[part])
    errors = evaluator.sums.errors()
    assert errors.steps == 36, "the first target has no mean before it"
    assert errors.error == 0


def test_late_targets_of_lost_predictions_are_not_evaluated() -> None:
    predictions, targets = late_rows()
    evaluator = DelayedLabelEvaluator(RegressionEvaluator(1), 3)
    for first, last in ((0, 10), (20, 40)):
        evaluator.begin_sequence()
        evaluator.update(targets[first:last], targets[first:last], predictions[first:last])
    assert evaluator.sums.errors().steps == 6 + 17
    assert evaluator.sums.errors().error == 0


def test_the_lowest_anomaly_scores_are_kept_for_any_chunk_size() -> None:
    scores = np.full(100, 0.5, np.float32)
    scores[[5, 40, 60, 90]] = 1e-7, 1e-12, 1e-9, 1e-30
    scores[0] = np.nan
    for cut in (1, 9, 100):
        anomalies = Anomalies()
        for first in range(0, 100, cut):
            anomalies.add(1000 + first, scores[first : first + cut])
        assert anomalies.steps == 4
        assert [step for _, step in anomalies.lowest] == [1090, 1040, 1060]
