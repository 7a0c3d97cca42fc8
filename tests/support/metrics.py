"""The metrics page, read as Prometheus's own client library reads it."""

from __future__ import annotations

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from bptt.observability.metrics import Metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    """All families by name; a counter's name has no `_total`."""
    text = metrics.render().decode()
    return {each.name: each for each in text_string_to_metric_families(text)}


def above_zero(metrics: Metrics, family: str, label: str) -> dict[str, float]:
    """A family's values that are not 0, by one label."""
    return {
        each.labels[label]: each.value for each in families(metrics)[family].samples if each.value
    }
