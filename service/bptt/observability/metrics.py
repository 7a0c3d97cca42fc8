"""Prometheus metrics: what the engine and the RPC layer report, turned into series when scraped.

Reports are added to plain counters; Prometheus's types are built only at a scrape.
So a report costs little on the event loop (0.3 µs a value of a histogram, measured), and the series
of a deleted model are gone with it.

A gauge and a histogram cannot share a name. Gauges have the plain one and show the last update;
the histograms of all updates are called `bptt_update_…`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from bptt.domain import Gauges, ModelState, RunReport
from bptt_core import Figures, GradientFlow

LOSS_BOUNDS = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0)
NORM_BOUNDS = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, 1e6)
SECONDS_BOUNDS = (
    *(2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
CALL_BOUNDS = (*SECONDS_BOUNDS, 60.0, 600.0, 3600.0)  # a Learn call may be open for hours
STREAMS_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@functools.cache
def _labels(bounds: tuple[float, ...]) -> tuple[str, ...]:
    """How Prometheus writes the bounds: once for all models."""
    return (*(repr(float(bound)) for bound in bounds), "+Inf")


class Histogram:
    """Counts between bounds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value, `count` times over."""
        if math.isfinite(value):
            self._counts[bisect_left(self._bounds, value)] += count
            self._sum += value * count
        else:  # above the last bound, and not in the sum
            self._counts[-1] += count

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound, and the sum."""
        counts = list(accumulate(self._counts))
        return list(zip(_labels(self._bounds), counts, strict=True)), self._sum


class ModelMetrics:
    """The counts and figures that one model has reported."""

    def __init__(self, figures: Figures, gauges: Callable[[], Gauges]) -> None:
        self.goes_on(figures, gauges)
        self.steps = self.updates = self.clipped = self.duplicates = self.roll_backs = 0
        self.skipped: dict[str, int] = {"not_finite": 0}
        self.rejected: dict[str, int] = {}
        self.loss = Histogram(LOSS_BOUNDS)
        self.gradient_norm = Histogram(NORM_BOUNDS)
        self.clipped_gradient_norm = Histogram(NORM_BOUNDS)
        self.tick_streams = Histogram(STREAMS_BOUNDS)
        self.update_seconds = Histogram(SECONDS_BOUNDS)
        self.predict_seconds = Histogram(SECONDS_BOUNDS)
        self.checkpoint_seconds = Histogram(SECONDS_BOUNDS)
        self.journal_commit_seconds = Histogram(SECONDS_BOUNDS)
        self.recovery_seconds = math.nan

    def goes_on(self, figures: Figures, gauges: Callable[[], Gauges]) -> None:
        """The model is in memory, for the first time or again."""
        self.figures = figures
        self.gauges: Callable[[], Gauges] | None = gauges
        self.gradient_flow: GradientFlow | None = None

    def rests(self) -> None:
        """The model has left memory. Drops its gauges, which would keep the model alive."""
        self.gauges = self.gradient_flow = None
        self.recovery_seconds = math.nan

    def run(self, report: RunReport) -> None:
        """See `ModelSink`."""
        self.figures = report.figures
        for tick in report.ticks:
            self.steps += tick.steps
            self.tick_streams.observe(tick.streams)
            if tick.updates:
                count = len(tick.updates)
                self.update_seconds.observe(tick.seconds / count, count)
                self.updates += count
            for each in tick.updates:
                self.loss.observe(each.loss)
                self.gradient_norm.observe(each.gradient_norm)
                self.clipped_gradient_norm.observe(each.clipped_gradient_norm)
                self.clipped += each.clipped
                self.skipped["not_finite"] += each.skipped

    def flow(self, flow: GradientFlow | None) -> None:
        """See `ModelSink`."""
        self.gradient_flow = flow

    def refused(self, reason: str) -> None:
        """See `ModelSink`."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def duplicate(self, steps: int) -> None:
        """See `ModelSink`."""
        self.duplicates += steps

    def predicted(self, seconds: float) -> None:
        """See `ModelSink`."""
        self.predict_seconds.observe(seconds)

    def saved(self, seconds: float) -> None:
        """See `ModelSink`."""
        self.checkpoint_seconds.observe(seconds)

    def committed(self, seconds: float) -> None:
        """See `ModelSink`."""
        self.journal_commit_seconds.observe(seconds)

    def rolled_back(self) -> None:
        """See `ModelSink`."""
        self.roll_backs += 1

    def recovered(self, seconds: float) -> None:
        """See `ModelSink`."""
        self.recovery_seconds = seconds


class MethodMetrics:
    """The calls of one method."""

    def __init__(self) -> None:
        self.counts = {"started": 0, "received": 0, "sent": 0}
        self.codes: dict[str, int] = {}
        self.seconds = Histogram(CALL_BOUNDS)

    def started(self) -> None:
        """See `MethodSink`."""
        self.counts["started"] += 1

    def received(self) -> None:
        """See `MethodSink`."""
        self.counts["received"] += 1

    def sent(self) -> None:
        """See `MethodSink`."""
        self.counts["sent"] += 1

    def handled(self, code: str, seconds: float) -> None:
        """See `MethodSink`."""
        self.codes[code] = self.codes.get(code, 0) + 1
        self.seconds.observe(seconds)


class Metrics:
    """All metrics of one server; a `ReportSink`, a `CallSink`, and a collector for Prometheus.

    Attributes:
        registry: holds these metrics and no others.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: dict[str, ModelMetrics] = {}
        self._methods: dict[tuple[str, str, str], MethodMetrics] = {}
        self._states: dict[str, ModelState] = {}
        self._failures: dict[str, dict[str, int]] = {}  # by model and reason
        self._lock = threading.Lock()  # of the tables; a scrape comes from another thread
        self.registry.register(self)

    def open_model(
        self, model_id: str, figures: Figures, gauges: Callable[[], Gauges]
    ) -> ModelMetrics:
        """See `ReportSink`."""
        with self._lock:
            model = self._models.get(model_id)
            if model is None:
                model = self._models[model_id] = ModelMetrics(figures, gauges)
            else:
                model.goes_on(figures, gauges)
        return model

    def rest_model(self, model_id: str) -> None:
        """See `ReportSink`."""
        with self._lock:
            self._models[model_id].rests()

    def close_model(self, model_id: str) -> None:
        """See `ReportSink`."""
        with self._lock:
            self._models.pop(model_id, None)
            self._states.pop(model_id, None)
            self._failures.pop(model_id, None)

    def model_state(self, model_id: str, state: ModelState) -> None:
        """See `ReportSink`."""
        with self._lock:
            self._states[model_id] = state

    def model_failed(self, model_id: str, reason: str) -> None:
        """See `ReportSink`."""
        with self._lock:
            reasons = self._failures.setdefault(model_id, {})
            reasons[reason] = reasons.get(reason, 0) + 1

    def method(self, kind: str, service: str, method: str) -> MethodMetrics:
        """See `CallSink`."""
        with self._lock:
            return self._methods.setdefault((kind, service, method), MethodMetrics())

    def render(self) -> bytes:
        """The metrics page, in Prometheus's text format. May be called from any thread."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """All series as of now, for prometheus_client."""
        with self._lock:
            models = list(self._models.items())
            methods = list(self._methods.items())
            states = list(self._states.items())
            failures = [(name, dict(reasons)) for name, reasons in self._failures.items()]
        yield from _model_families(models)
        yield _state_family(states)
        yield _by_reason(
            "bptt_model_failures",
            "Times the model failed or could not be loaded; reason: the activity that failed",
            failures,
        )
        yield from _method_families(methods)


# Help texts of a model's series; docs/metrics.md says more about each.

_FIGURES = {
    "loss": "Loss of the last update, before the parameters changed",
    "baseline_loss": "Loss of the naive forecast: the last value, or the running mean",
    "gradient_norm": "L2 norm of the last update's gradient before clipping",
    "clipped_gradient_norm": "L2 norm of the last update's gradient after clipping",
    "skill_ratio": "Prequential error relative to the naive forecast; below 1 is better",
    "parameter_norm": "L2 norm of all parameters",
    "learning_rate": "Step size of the optimizer",
    "diverged": "1 while learning is stopped because updates were not finite; otherwise 0",
}
_CLASS_FIGURES = {
    "accuracy": "Share of recent targets that were predicted as the likeliest class or token",
    "cross_entropy_bits": "Prequential cross-entropy of recent classes or tokens, in bits",
}
_GAUGES = {
    "streams": "Streams of the model",
    "queue_chunks": "Chunks that wait to be learned",
    "snapshot_age_steps": "Steps that were accepted but are not visible to predictions yet",
}
_COUNTERS = {
    "steps": "Steps learned or held for the next window",
    "updates": "Optimizer steps, including skipped ones",
    "clipped_updates": "Updates whose gradient was clipped",
    "duplicate_steps": "Steps that were already known and trimmed",
    "roll_backs": "Divergences after which the model returned to a checkpoint",
}
_HISTOGRAMS = {
    "update_loss": ("loss", "Loss of every update, before the parameters changed"),
    "update_gradient_norm": ("gradient_norm", "L2 norm of every update's gradient before clipping"),
    "update_clipped_gradient_norm": (
        "clipped_gradient_norm",
        "L2 norm of every update's gradient after clipping",
    ),
    "tick_streams": ("tick_streams", "Streams that were learned from in one tick"),
    "update_seconds": ("update_seconds", "Duration of an update: its tick's, shared evenly"),
    "predict_seconds": ("predict_seconds", "Duration of a prediction, from request to answer"),
    "checkpoint_seconds": ("checkpoint_seconds", "Time until a checkpoint is durable"),
    "journal_commit_seconds": ("journal_commit_seconds", "Duration of a commit to the journal"),
}


def _model_families(models: Iterable[tuple[str, ModelMetrics]]) -> Iterator[Metric]:
    models = list(models)
    gauged = [(name, each, each.gauges) for name, each in models]
    in_memory = [(name, each, gauges) for name, each, gauges in gauged if gauges is not None]
    looked = [(name, dataclasses.asdict(gauges())) for name, _, gauges in in_memory]
    for figure, meaning in _FIGURES.items():
        gauge = GaugeMetricFamily(f"bptt_{figure}", meaning, labels=["model"])
        for name, each, _ in in_memory:
            gauge.add_metric([name], getattr(each.figures, figure))
        yield gauge
    for figure, meaning in _CLASS_FIGURES.items():
        gauge = GaugeMetricFamily(f"bptt_{figure}", meaning, labels=["model"])
        for name, each, _ in in_memory:
            value = getattr(each.figures, figure)
            if not math.isnan(value):  # of other tasks, and before the first target
                gauge.add_metric([name], value)
        yield gauge
    for key, meaning in _GAUGES.items():
        gauge = GaugeMetricFamily(f"bptt_{key}", meaning, labels=["model"])
        for name, values in looked:
            gauge.add_metric([name], values[key])
        yield gauge
    recovery = GaugeMetricFamily(
        "bptt_recovery_seconds",
        "Duration of the model's last recovery from the store",
        labels=["model"],
    )
    for name, each in models:
        if not math.isnan(each.recovery_seconds):
            recovery.add_metric([name], each.recovery_seconds)
    yield recovery
    yield from _flow_families(models)
    for key, meaning in _COUNTERS.items():
        counter = CounterMetricFamily(f"bptt_{key}", meaning, labels=["model"])
        attribute = {"clipped_updates": "clipped", "duplicate_steps": "duplicates"}.get(key, key)
        for name, each in models:
            counter.add_metric([name], getattr(each, attribute))
        yield counter
    for key, (attribute, meaning) in _HISTOGRAMS.items():
        histogram = HistogramMetricFamily(f"bptt_{key}", meaning, labels=["model"])
        for name, each in models:
            histogram.add_metric([name], *getattr(each, attribute).read())
        yield histogram
    yield _by_reason(
        "bptt_skipped_updates",
        "Updates that changed no parameter; reason: loss or gradient not finite",
        [(name, each.skipped) for name, each in models],
    )
    yield _by_reason(
        "bptt_rejected_chunks",
        "Chunks that were refused; reason: the reason of the error in lower case",
        [(name, each.rejected) for name, each in models],
    )


def _state_family(states: Iterable[tuple[str, ModelState]]) -> Metric:
    """One series for each model, not one for each state: a scrape may cover 1,000 models."""
    gauge = GaugeMetricFamily(
        "bptt_model_state", "1; the label `state` is the model's state", labels=["model", "state"]
    )
    for name, state in states:
        gauge.add_metric([name, state.value], 1)
    return gauge


def _flow_families(models: Iterable[tuple[str, ModelMetrics]]) -> Iterator[Metric]:
    ratio = GaugeMetricFamily(
        "bptt_gradient_flow_ratio",
        "Share of a gradient's norm that remains `lag` steps back",
        labels=["model", "lag"],
    )
    horizon = GaugeMetricFamily(
        "bptt_memory_horizon_steps",
        "Largest lag at which more than 1 % of a gradient's norm remains; k2 means k2 or more",
        labels=["model"],
    )
    radius = GaugeMetricFamily(
        "bptt_recurrent_spectral_radius",
        "Largest absolute eigenvalue of W; LSTM and GRU: of the candidate's block",
        labels=["model"],
    )
    for name, each in models:
        flow = each.gradient_flow
        if flow is not None:
            for lag, left in flow.by_lag.items():
                ratio.add_metric([name, str(lag)], left)
            horizon.add_metric([name], flow.memory_horizon)
            radius.add_metric([name], flow.spectral_radius)
    yield from (ratio, horizon, radius)


def _by_reason(
    family: str, meaning: str, counts: Iterable[tuple[str, dict[str, int]]]
) -> CounterMetricFamily:
    counter = CounterMetricFamily(family, meaning, labels=["model", "reason"])
    for name, reasons in counts:
        for reason, count in list(reasons.items()):
            counter.add_metric([name, reason], count)
    return counter


_METHOD_LABELS = ["grpc_type", "grpc_service", "grpc_method"]
_METHOD_COUNTERS = {
    "started": ("grpc_server_started", "Calls that started"),
    "received": ("grpc_server_msg_received", "Messages received"),
    "sent": ("grpc_server_msg_sent", "Messages sent"),
}


def _method_families(
    methods: Iterable[tuple[tuple[str, str, str], MethodMetrics]],
) -> Iterator[Metric]:
    methods = list(methods)
    for key, (family, meaning) in _METHOD_COUNTERS.items():
        counter = CounterMetricFamily(family, meaning, labels=_METHOD_LABELS)
        for labels, each in methods:
            counter.add_metric(labels, each.counts[key])
        yield counter
    handled = CounterMetricFamily(
        "grpc_server_handled",
        "Calls that ended, by grpc_code",
        labels=[*_METHOD_LABELS, "grpc_code"],
    )
    handling = HistogramMetricFamily(
        "grpc_server_handling_seconds", "Time from a call's start to its end", labels=_METHOD_LABELS
    )
    for labels, each in methods:
        for code, count in list(each.codes.items()):
            handled.add_metric([*labels, code], count)
        handling.add_metric(labels, *each.seconds.read())
    yield handled
    yield handling
