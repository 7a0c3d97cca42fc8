"""The samples behind the page, and the page's files as HTTP serves them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bptt.config import ServerConfig
from bptt.domain import Gauges, ModelState, RunReport, TickReport
from bptt.observability.history import COLUMNS, History, SAMPLES_MAX
from bptt.observability.metrics import Metrics
from bptt_core import Figures, GradientFlow, UpdateReport
from tests.web.support import web


def figures() -> Figures:
    fields = dict.fromkeys(Figures.__dataclass_fields__, 0.5)
    fixed = {"steps": 8, "diverged": False, "skill_ratio": math.nan, "expert_weights": {}}
    return Figures(**{**fields, **fixed})  # type: ignore[arg-type]


def update(loss: float, clipped: bool) -> UpdateReport:
    fields = dict.fromkeys(UpdateReport.__dataclass_fields__, 0)
    norms = {"gradient_norm": 4.0, "clipped_gradient_norm": 1.0, "clipped": clipped}
    return UpdateReport(**{**fields, **norms, "loss": loss})  # type: ignore[arg-type]


def opened() -> Metrics:
    metrics = Metrics()
    metrics.open_model("a", figures(), lambda: Gauges(1, 7, 0))
    metrics.model_state("a", ModelState.RUNNING)
    return metrics


def test_a_sample_has_the_means_since_the_sample_before() -> None:
    metrics = opened()
    history = History(metrics)
    history.sample(100.0)
    model = metrics.open_model("a", figures(), lambda: Gauges(1, 7, 0))
    model.flow(GradientFlow(np.linspace(1.0, 0.0, 5), np.ones(1), 0.9))
    updates = [update(1.0, True), update(3.0, False)]
    model.run(RunReport([TickReport(1, 8, updates, 0.1)], figures()))
    history.sample(102.0)
    history.sample(104.0)
    answer = history.model("a", 0.0)
    assert answer is not None
    samples = answer["samples"]
    assert samples["time"] == [102.0, 104.0]
    assert samples["loss"] == [2.0, None], "no update, no loss"
    assert samples["gradient_norm"] == [4.0, None]
    assert samples["clipped_share"] == [0.5, None]
    assert samples["steps_per_second"] == [4.0, 0.0]
    assert samples["skill_ratio"] == [None, None]
    assert samples["queue_chunks"] == [7, 7]
    assert samples["flow_1"] == [0.75, 0.75]
    assert samples["flow_128"] == [None, None]
    assert (answer["state"], answer["steps"], answer["steps_per_second"]) == ("running", 8, 0.0)
    later = history.model("a", 102.0)
    assert later is not None
    assert later["samples"]["time"] == [104.0]
    json.dumps(answer, allow_nan=False)


def test_the_history_is_bounded_and_goes_with_the_model() -> None:
    metrics = opened()
    history = History(metrics)
    for moment in range(SAMPLES_MAX + 11):
        history.sample(float(moment))
    answer = history.model("a", 0.0)
    assert answer is not None
    assert set(answer["samples"]) == set(COLUMNS)
    assert answer["samples"]["time"] == [float(each) for each in range(11, SAMPLES_MAX + 11)]
    metrics.close_model("a")
    history.sample(1e6)
    assert history.model("a", 0.0) is None
    assert history.models() == []


def test_a_model_that_is_not_in_memory_is_listed() -> None:
    metrics = Metrics()
    metrics.model_state("asleep", ModelState.FAILED)
    assert History(metrics).models() == [{"model": "asleep", "state": "failed"}]


def test_the_page_and_its_figures_are_served() -> None:
    with web(history=History(opened())) as served:
        index = served.get("/")
        assert index.status == 200
        assert "script-src 'self'" in index.headers["Content-Security-Policy"]
        for name in ("page.css", "page.js", "plotly.js"):
            asset = served.get(f"/assets/{name}")
            assert asset.status == 200
            again = served.get(f"/assets/{name}", If_None_Match=asset.headers["ETag"])
            assert (again.status, again.body) == (304, b"")
        assert served.get("/assets/other.js").status == 404
        assert json.loads(served.get("/api/models").body)[0]["model"] == "a"
        assert json.loads(served.get("/api/models/a?after=0").body)["state"] == "running"
        assert served.get("/api/models/b").status == 404
        wrong = served.get("/api/models/a?after=x")
        assert (wrong.status, json.loads(wrong.body)) == (
            400, {"error": "after must be a number of seconds since 1970"},
        )  # fmt: skip
    with web() as served:
        assert served.get("/").status == 404


@pytest.mark.parametrize(
    ("address", "page", "has_page"),
    [
        ("127.0.0.1:0", "auto", True), ("[::1]:0", "auto", True), ("localhost:0", "auto", True),
        ("0.0.0.0:0", "auto", False), ("0.0.0.0:0", "on", True), ("127.0.0.1:0", "off", False),
        (None, "auto", False), ("127.evil.example.org:0", "auto", False),
    ],
)  # fmt: skip
def test_the_page_is_on_by_default_on_loopback(
    address: str | None, page: str, has_page: bool
) -> None:
    assert ServerConfig(metrics_address=address, page=page).has_page is has_page  # type: ignore[arg-type]
