"""When gradient flow is measured, on which window, and how it reaches the metrics."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from bptt.config import ServerConfig
from bptt.domain import Gauges
from bptt.engine.flow import COST_SHARE_MAX, FlowWatch
from bptt.engine.messages import Outcome
from bptt.engine.responses import ResponseQueue
from bptt.engine.run import run
from bptt.errors import InvalidRequest
from bptt.observability.counts import ModelMetrics
from bptt.observability.metrics import Metrics
from bptt_core import Chunk, gradient_flow, GradientFlow, Learner, ModelSpec
from tests.engine.support import rounds
from tests.engine.test_trainer import answers, give, inputs, training
from tests.support.metrics import families

SECONDS = 1e6  # of learning: every measurement is within its share


def learner_of(**spec: Any) -> Learner:
    values = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 8}
    return Learner(ModelSpec(**{**values, **spec}), backend="reference")


def feed(learner: Learner, first: int, steps: int) -> Outcome:
    x = inputs(steps, first)
    y = None if learner.spec.task == "forecast" else x
    chunk = Chunk("a", first, x, y, end_of_sequence=False)
    outcome = run(learner, rounds(chunk))
    assert outcome.failure is None
    outcome.seconds = SECONDS
    return outcome


def flows(learner: Learner, watch: FlowWatch, chunk: int, count: int) -> list[GradientFlow]:
    """The measurements while chunks are learned."""
    found: list[GradientFlow] = []
    for first in range(0, chunk * count, chunk):
        outcome = feed(learner, first, chunk)
        if watch.is_due(outcome):
            flow = watch.look(learner, outcome)
            if flow is not None and (not found or flow is not found[-1]):
                found.append(flow)
    return found


@pytest.mark.parametrize(
    ("spec", "chunk", "steps"),
    [
        ({}, 8, 8),
        ({}, 1, 8),
        ({}, 5, 8),
        ({"k1": 8}, 16, 8),
        ({"horizon": 3}, 1, 8),
        ({"task": "regression", "output_size": 2}, 8, 6),  # ends with an update: k2 - k1 are left
        ({"task": "regression", "output_size": 2, "k1": 8}, 1, 7),
        ({"task": "regression", "output_size": 2, "k1": 8}, 3, 7),
    ],
)
def test_the_longest_window_is_measured(spec: Any, chunk: int, steps: int) -> None:
    found = flows(learner_of(**spec), FlowWatch(5), chunk, 200)
    assert len(found) >= 2
    assert {flow.steps for flow in found} == {steps}


def test_a_measurement_uses_the_current_model() -> None:
    learner, watch = learner_of(), FlowWatch(1)
    outcome = feed(learner, 0, 16)
    assert watch.is_due(outcome)
    flow = watch.look(learner, outcome)
    features, state = learner.window("a")
    expected = gradient_flow(learner.spec, learner.parameters(), features[:8], state)
    assert flow is not None
    np.testing.assert_array_equal(flow.ratios, expected.ratios)


def test_a_measurement_is_due_after_a_number_of_updates() -> None:
    learner, watch = learner_of(), FlowWatch(50)
    looked = []
    for first in range(0, 800, 8):
        outcome = feed(learner, first, 8)
        assert outcome.report is not None
        if watch.is_due(outcome):
            watch.look(learner, outcome)
            looked.append(outcome.report.figures.updates)
    assert len(looked) == 8
    assert all(50 <= later - earlier < 54 for earlier, later in pairwise(looked))


def test_zero_updates_disable_the_measurement() -> None:
    assert flows(learner_of(), FlowWatch(0), 8, 20) == []


def test_a_measurement_waits_until_its_cost_is_within_its_share() -> None:
    learner, watch = learner_of(), FlowWatch(1)
    outcome = feed(learner, 0, 8)
    assert watch.is_due(outcome)
    start = time.perf_counter()
    watch.look(learner, outcome)
    cost = time.perf_counter() - start
    outcome = feed(learner, 8, 8)
    outcome.seconds = 0.1 * cost
    assert not watch.is_due(outcome), "it has learned ten times too little"
    outcome.seconds = cost / COST_SHARE_MAX
    assert watch.is_due(outcome)


def test_the_search_ends_if_no_run_leaves_a_window() -> None:
    learner, watch = learner_of(task="regression", output_size=2, k1=8), FlowWatch(1000)
    due = []
    for first in range(0, 8 * 60, 8):
        outcome = feed(learner, first, 8)
        due.append(watch.is_due(outcome))
        if due[-1]:
            assert watch.look(learner, outcome) is None
    assert due[0]
    assert not any(due[20:])


def test_a_refused_or_deleted_stream_is_not_measured() -> None:
    learner, watch = learner_of(), FlowWatch(1)
    outcome = feed(learner, 0, 16)
    assert watch.is_due(outcome)
    learner.delete_stream("a")
    outcome.gone = ["a"]
    assert watch.look(learner, outcome) is None


def test_a_model_that_diverged_has_no_flow() -> None:
    learner = learner_of(cell="rnn_relu", dtype="float64")
    watch = FlowWatch(1)
    outcome = feed(learner, 0, 16)
    assert watch.is_due(outcome)
    assert watch.look(learner, outcome) is not None
    outcome = feed(learner, 16, 16)
    assert watch.is_due(outcome)
    learner.load_parameters(
        {
            name: np.full_like(array, 1e200 if "bias" in name else 1e100)
            for name, array in learner.parameters().items()
        }
    )
    assert watch.look(learner, outcome) is None


def series(metrics: Metrics) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    return {
        name: {tuple(sorted(s.labels.items())): s.value for s in family.samples}
        for name, family in families(metrics).items()
    }


def test_the_metrics_show_the_measurement() -> None:
    metrics = Metrics("full")
    model = metrics.open_model("m", learner_of().figures, lambda: Gauges(0, 0, 0))
    names = ("gradient_flow_ratio", "memory_horizon_steps", "recurrent_spectral_radius")
    assert [series(metrics)[f"bptt_{name}"] for name in names] == [{}] * 3
    model.flow(GradientFlow(np.array([1, 0.5, 0.25, 0.001, math.inf]), np.ones(1), 0.9))
    ratio, horizon, radius = (series(metrics)[f"bptt_{name}"] for name in names)
    assert {labels[0]: value for labels, value in ratio.items()} == {
        ("lag", "1"): 0.5,
        ("lag", "2"): 0.25,
        ("lag", "4"): math.inf,
    }
    of_model = (("model", "m"),)
    assert horizon == {of_model: 4}
    assert radius == {of_model: 0.9}
    model.flow(None)
    assert series(metrics)["bptt_memory_horizon_steps"] == {}


async def test_a_trainer_reports_the_gradient_flow() -> None:
    async with training() as trainer:
        responses = ResponseQueue(10, 1000)
        for first in range(0, 40, 4):
            give(trainer, responses, "a", inputs(4, first))
            await answers(responses, 1)
        # The measurement comes after the answer of its run, and before the next run.
        assert isinstance(trainer.sink, ModelMetrics)
        assert trainer.sink.gradient_flow is not None
        assert trainer.sink.gradient_flow.steps == 4


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="gradient_flow_updates"):
        ServerConfig(gradient_flow_updates=-1)
