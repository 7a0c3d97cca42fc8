"""The metrics of one server: takes the reports of engine and RPC layer, and renders the page."""

from __future__ import annotations

import platform
import threading
from collections import Counter
from collections.abc import Callable
from importlib import metadata

from prometheus_client import CollectorRegistry, generate_latest, ProcessCollector

from bptt.config import MetricsDetail
from bptt.domain import Gauges, ModelState
from bptt.observability.counts import FAILURE_REASONS, MethodMetrics, ModelMetrics
from bptt.observability.exposition import labels_of, Pace, page
from bptt.observability.families import (
    BUILD_FAMILY,
    FAILURE_FAMILY,
    METHOD_FAMILIES,
    MODEL_FAMILIES,
    ModelReading,
    SERVER_FAMILIES,
    ServerReading,
    STATE_FAMILY,
)
from bptt_core import Figures


class Metrics:
    """All metrics of one server; a `ReportSink` and a `CallSink`.

    The event loop reports; `render` may be called from any thread.

    Args:
        detail: `full`: everything. `model`: without the buckets of the models' histograms and the
            gradient flow by lag. `server`: nothing of single models.
        queue_chunks: the limit of a model's queue, which is exported.
    """

    def __init__(self, detail: MetricsDetail = "model", queue_chunks: int = 0) -> None:
        self._detail = detail
        self._queue_chunks = queue_chunks
        self._build = _versions()
        self._models: dict[str, ModelMetrics] = {}
        self._methods: dict[tuple[str, str, str], MethodMetrics] = {}
        self._states: dict[str, ModelState] = {}
        self._failures: dict[str, dict[str, int]] = {}  # by model and reason
        self._lock = threading.Lock()  # of the tables
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

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
            self._failures.setdefault(model_id, dict.fromkeys(FAILURE_REASONS, 0))

    def model_failed(self, model_id: str, reason: str) -> None:
        """See `ReportSink`."""
        with self._lock:
            reasons = self._failures.setdefault(model_id, dict.fromkeys(FAILURE_REASONS, 0))
            reasons[reason] = reasons.get(reason, 0) + 1

    def method(self, kind: str, service: str, method: str) -> MethodMetrics:
        """See `CallSink`."""
        with self._lock:
            return self._methods.setdefault((kind, service, method), MethodMetrics())

    def readings(self) -> dict[str, ModelReading]:
        """What every model that was in memory has reported. May be called from any thread."""
        with self._lock:
            models = list(self._models.items())
        found = {}
        for name, counts in models:
            gauges = counts.gauges  # the event loop may drop it meanwhile
            found[name] = ModelReading(counts, None if gauges is None else gauges())
        return found

    def states(self) -> dict[str, str]:
        """The state of every model. May be called from any thread."""
        with self._lock:
            return {name: state.value for name, state in self._states.items()}

    def render(self) -> bytes:
        """The page as of now, in Prometheus's text format."""
        out: list[str] = []
        pace = Pace()
        self._render_server(out, pace)
        if self._detail != "server":
            self._render_models(out, pace)
        return page(out) + generate_latest(self._process)

    def _render_server(self, out: list[str], pace: Pace) -> None:
        with self._lock:
            states = Counter(each.value for each in self._states.values())
            methods = [
                (labels_of(grpc_type=kind, grpc_service=service, grpc_method=method), each)
                for (kind, service, method), each in self._methods.items()
            ]
        counts = {state.value: states[state.value] for state in ModelState}
        BUILD_FAMILY.render([(labels_of(**self._build), 1)], out, pace)
        reading = ServerReading(counts, self._queue_chunks)
        for family in SERVER_FAMILIES:
            family.render([("", reading)], out, pace)
        for method_family in METHOD_FAMILIES:
            method_family.render(methods, out, pace)

    def _render_models(self, out: list[str], pace: Pace) -> None:
        with self._lock:
            states = [
                (labels_of(model=name), {each.value: 1}) for name, each in self._states.items()
            ]
            failures = [
                (labels_of(model=name), dict(each)) for name, each in self._failures.items()
            ]
        readings = [(labels_of(model=name), each) for name, each in self.readings().items()]
        pace.step()
        is_full = self._detail == "full"
        for family in MODEL_FAMILIES:
            if is_full or not family.full_only:
                family.render(readings, out, pace, buckets=is_full)
        STATE_FAMILY.render(states, out, pace)
        FAILURE_FAMILY.render(failures, out, pace)


def _versions() -> dict[str, str]:
    """The versions on which the bits of a model depend, by label."""
    return {
        "version": metadata.version("bptt"),
        "python": platform.python_version(),
        "numpy": metadata.version("numpy"),
        "numba": metadata.version("numba"),
    }
