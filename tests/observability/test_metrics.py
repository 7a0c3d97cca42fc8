"""The metrics page: its text, its detail, its cost, and its reference."""

from __future__ import annotations

import math
import subprocess
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as LibraryHistogram
from prometheus_client.parser import text_string_to_metric_families

from bptt.config import MetricsDetail
from bptt.domain import Gauges, ModelState, RunReport, TickReport
from bptt.observability import exposition, reference
from bptt.observability.counts import SECONDS_BOUNDS
from bptt.observability.exposition import Family, labels_of, Pace, page
from bptt.observability.metrics import Metrics
from bptt_core import Figures, GradientFlow, UpdateReport
from tests.support.metrics import families
from tests.support.tools import program

ROOT = Path(__file__).parents[2]
DETAILS: tuple[MetricsDetail, ...] = get_args(MetricsDetail)
PROCESSOR_SECONDS = 0.3
FLOW = GradientFlow(np.geomspace(1.0, 1e-4, 33), np.ones(1), 0.9)


def figures(**changed: float) -> Figures:
    fields = dict.fromkeys(Figures.__dataclass_fields__, 0.1234567890123)
    fixed = {"diverged": False, "accuracy": math.nan, "expert_weights": {"network": 1.0}}
    return Figures(**{**fields, **fixed, **changed})  # type: ignore[arg-type]


def update(loss: float) -> UpdateReport:
    fields = dict.fromkeys(UpdateReport.__dataclass_fields__, 0)
    return UpdateReport(**{**fields, "loss": loss, "gradient_norm": 2.5})  # type: ignore[arg-type]


def filled(detail: MetricsDetail, models: int = 3) -> Metrics:
    metrics = Metrics(detail, queue_chunks=1024)
    for number in range(models):
        model_id = f"plant-{number:04d}"
        model = metrics.open_model(model_id, figures(), lambda: Gauges(1, 2, 3))
        metrics.model_state(model_id, ModelState.RUNNING)
        model.flow(FLOW)
        model.run(RunReport([TickReport(1, 4, [update(0.3), update(math.inf)], 0.01)], figures()))
    metrics.method("unary", "bptt.v1.LearnerService", "Predict").handled("OK", 0.002)
    return metrics


def test_the_reference_is_that_of_the_code() -> None:
    assert (ROOT / "docs/metrics.md").read_text() == reference.text(), "run `make docs`"


@pytest.mark.tools
@pytest.mark.parametrize("detail", DETAILS)
def test_promtool_finds_nothing_to_complain_of(detail: MetricsDetail) -> None:
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"],
        input=filled(detail).render(),
        capture_output=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


@pytest.mark.parametrize("detail", ["full", "model"])
def test_a_thousand_models_cost_a_third_of_a_second(detail: MetricsDetail) -> None:
    metrics = filled(detail, 1000)
    took = []
    for _ in range(3):  # the first one fills caches; a busy machine disturbs any of them
        start = time.thread_time()
        text = metrics.render()
        took.append(time.thread_time() - start)
    assert min(took) < PROCESSOR_SECONDS
    assert text.count(b"bptt_steps_total{") == 1000


def test_rendering_gives_other_threads_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no pause, another thread would wait for the interpreter's 5 ms each time."""
    metrics = filled("model", 200)
    metrics.render()
    at: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda _: at.append(time.thread_time()))
    start = time.thread_time()
    metrics.render()
    between = np.diff([start, *at, time.thread_time()])
    assert len(between) > 5
    assert np.median(between) < 3 * exposition.WORK_SECONDS


def test_full_detail_has_buckets_and_the_flow_by_lag() -> None:
    full, model = families(filled("full")), families(filled("model"))
    assert set(full) - set(model) == {"bptt_gradient_flow_ratio", "bptt_expert_weight"}
    lags = {each.labels["lag"] for each in full["bptt_gradient_flow_ratio"].samples}
    assert lags == {"1", "2", "4", "8", "16", "32"}
    assert full["bptt_update_loss"].type == "histogram"
    assert model["bptt_update_loss"].type == "summary"
    for shown in (full, model):
        values = {
            each.name: each.value
            for each in shown["bptt_update_loss"].samples
            if each.labels == {"model": "plant-0001"}
        }
        # An infinite loss is counted, and not added.
        assert values == {"bptt_update_loss_count": 2, "bptt_update_loss_sum": 0.3}


def test_server_detail_shows_no_model() -> None:
    metrics = filled("server")
    assert b"plant" not in metrics.render()
    shown = families(metrics)
    states = {each.labels["state"]: each.value for each in shown["bptt_models"].samples}
    assert states == {each.value: 3 if each is ModelState.RUNNING else 0 for each in ModelState}
    assert shown["bptt_queue_limit_chunks"].samples[0].value == 1024
    assert shown["process_resident_memory_bytes"].samples[0].value > 1e6
    assert shown["bptt_build_info"].samples[0].labels["version"] == "0.1.0"
    assert "grpc_server_handling_seconds" in shown


def test_counters_start_at_zero_and_all_series_go_with_the_model() -> None:
    metrics = Metrics("full")
    metrics.open_model("brand-new", figures(), lambda: Gauges(0, 0, 0))
    metrics.model_state("brand-new", ModelState.RUNNING)
    counted = {
        (each.name, each.labels.get("reason")): each.value
        for family in families(metrics).values()
        for each in family.samples
        if family.type == "counter" and each.labels.get("model") == "brand-new"
    }
    assert set(counted.values()) == {0}
    for name in ("steps", "updates", "clipped_updates", "duplicate_steps", "roll_backs"):
        assert (f"bptt_{name}_total", None) in counted
    assert ("bptt_skipped_updates_total", "not_finite") in counted
    assert ("bptt_rejected_chunks_total", "gap") in counted
    assert ("bptt_model_failures_total", "learning") in counted
    assert b'bptt_recovery_seconds{model="brand-new"} 0' in metrics.render()
    metrics.close_model("brand-new")
    assert b"brand-new" not in metrics.render()


def test_a_histogram_is_written_as_the_library_writes_it() -> None:
    registry = CollectorRegistry()
    theirs = LibraryHistogram("a", "b", ["model"], buckets=SECONDS_BOUNDS, registry=registry)
    metrics = Metrics("full")
    ours = metrics.open_model("m", figures(), lambda: Gauges(0, 0, 0))
    for seconds in (1e-6, 2e-5, 0.003, 0.7, 9.9, 11.0):
        theirs.labels("m").observe(seconds)
        ours.predicted(seconds)
    (expected,) = registry.collect()
    shown = families(metrics)["bptt_predict_seconds"]

    def limits(family: object) -> dict[str, float]:
        return {each.labels["le"]: each.value for each in family.samples if "le" in each.labels}  # type: ignore[attr-defined]

    assert limits(shown) == limits(expected)
    total = sum((1e-6, 2e-5, 0.003, 0.7, 9.9, 11.0))
    assert [each.value for each in shown.samples[-2:]] in ([total, 6], [6, total])


@pytest.mark.parametrize("name", ['a"b\\c\nd', " nan", "x} 1", "%s %d", "\0"])
def test_any_name_and_number_is_read_back(name: str) -> None:
    family = Family[float]("bptt_a", "gauge", "Line\nand \\ slash.", lambda value: value)
    for value in (math.nan, math.inf, -math.inf, 1e-300, 12345678901234567, np.float64(0.1)):
        out: list[str] = []
        family.render([(labels_of(model=name), value)], out, Pace())
        (read,) = text_string_to_metric_families(page(out).decode())
        assert read.samples[0].labels == {"model": name}
        assert read.samples[0].value == pytest.approx(value, rel=0, abs=0, nan_ok=True)
        assert read.documentation == "Line\nand \\ slash."
