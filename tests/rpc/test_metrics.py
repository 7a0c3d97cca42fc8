"""A model's metrics, as a scrape shows them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bptt import v1 as pb
from tests.rpc.harness import Harness, wave


def _scrape(server: Harness) -> dict[str, dict[str, float]]:
    """Values by series name and model."""
    text = server.metrics.render().decode()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            if "model" in sample.labels and "le" not in sample.labels:
                found.setdefault(sample.name, {})[sample.labels["model"]] = sample.value
    return found


async def test_the_metrics_agree_with_the_update_reports(server: Harness) -> None:
    await server.create("a")
    await server.create("b")
    call = await server.learn("a")
    updates: list[pb.UpdateReport] = []
    for first in range(0, 80, 8):
        await call.send("s", wave(8, first))
        updates += (await call.learned()).updates
    await call.close()
    await server.predict("s", "a")
    series = _scrape(server)
    last = updates[-1]
    assert series["bptt_loss"]["a"] == last.loss
    assert series["bptt_gradient_norm"]["a"] == last.gradient_norm
    assert series["bptt_clipped_gradient_norm"]["a"] == last.clipped_gradient_norm
    assert series["bptt_steps_total"] == {"a": 80, "b": 0}
    assert series["bptt_updates_total"]["a"] == len(updates)
    assert series["bptt_clipped_updates_total"]["a"] == sum(each.clipped for each in updates)
    assert series["bptt_skipped_updates_total"]["a"] == 0
    assert series["bptt_update_loss_count"]["a"] == len(updates)
    total = sum(each.loss for each in updates)
    assert series["bptt_update_loss_sum"]["a"] == pytest.approx(total, rel=1e-12)
    total = sum(each.gradient_norm for each in updates)
    assert series["bptt_update_gradient_norm_sum"]["a"] == pytest.approx(total, rel=1e-12)
    assert series["bptt_update_clipped_gradient_norm_count"]["a"] == len(updates)
    assert series["bptt_update_seconds_count"]["a"] == len(updates)
    assert series["bptt_predict_seconds_count"] == {"a": 1, "b": 0}
    assert series["bptt_tick_streams_sum"]["a"] == 10
    assert series["bptt_streams"] == {"a": 1, "b": 0}
    assert series["bptt_queue_chunks"]["a"] == 0
    assert series["bptt_snapshot_age_steps"]["a"] == 0
    assert series["bptt_learning_rate"]["a"] == pytest.approx(0.001, rel=0.01)
    assert series["bptt_parameter_norm"]["a"] > 0
    assert series["bptt_skill_ratio"]["a"] == (await server.model("a")).skill_ratio
    assert series["bptt_baseline_loss"]["a"] > 0
    assert math.isnan(series["bptt_loss"]["b"])


async def test_a_deleted_models_series_go_away(server: Harness) -> None:
    await server.create("a")
    await server.create("b")
    await server.models.DeleteModel(pb.DeleteModelRequest(model_id="a"))
    series = _scrape(server)
    assert series
    assert {model for values in series.values() for model in values} == {"b"}


async def test_the_queue_length_is_shown(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    server.gate.close()
    trainer = server.registry.get("m")
    await call.send("s", wave(4))
    while trainer.expected_step("s") < 4:
        await server.model()
    for _ in range(3):
        await call.send("s", wave(4))
    while trainer.expected_step("s") < 16:
        await server.model()
    series = _scrape(server)
    assert series["bptt_queue_chunks"]["m"] == 3
    assert series["bptt_snapshot_age_steps"]["m"] == 16
    server.gate.open()
    for _ in range(4):
        await call.learned()
    await call.close()


async def test_classes_have_an_accuracy_and_other_tasks_no_such_series(server: Harness) -> None:
    await server.create("classes", task=pb.TASK_CLASSIFICATION, output_size=2)
    await server.create("values")
    for model_id, fields in (("classes", {"target_classes": [0, 1] * 20}), ("values", {})):
        call = await server.learn(model_id)
        await call.send("s", wave(40), **fields)
        await call.learned()
        await call.close()
    series = _scrape(server)
    model = await server.model("classes")
    assert series["bptt_accuracy"] == {"classes": model.accuracy}
    assert series["bptt_cross_entropy"] == {"classes": model.cross_entropy_bits}
    assert series["bptt_skill_ratio"]["classes"] == model.skill_ratio


async def test_a_divergence_shows_in_the_series(server: Harness) -> None:
    await server.create(
        task=pb.TASK_REGRESSION, output_size=1, cell=pb.CELL_RNN_RELU, clip=pb.CLIP_NONE,
        scaling=False, divergence_patience=3,
    )  # fmt: skip
    call = await server.learn()
    large = np.full((20, 2), 3.4e38)
    await call.send("s", large, targets=(-large[:, 0]).tolist())
    await call.learned()
    series = _scrape(server)
    assert series["bptt_diverged"] == {"m": 1}
    assert series["bptt_skipped_updates_total"] == {"m": 3}
    await server.models.UpdateModel(pb.UpdateModelRequest(model_id="m", paused=False))
    series = _scrape(server)
    assert series["bptt_diverged"] == {"m": 0}
    assert series["bptt_skipped_updates_total"] == {"m": 3}
    await call.close()
