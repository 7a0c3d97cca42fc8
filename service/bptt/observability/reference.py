"""The reference page of all metrics, docs/metrics.md. `make docs` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector

from bptt.observability.exposition import Family
from bptt.observability.families import (
    BUILD_FAMILY,
    FAILURE_FAMILY,
    METHOD_FAMILIES,
    MODEL_FAMILIES,
    SERVER_FAMILIES,
    STATE_FAMILY,
)

HEAD = """\
# Metrics

<!-- `make docs` writes this page from the help texts in service/bptt/observability/families.py. -->

The server exports its metrics for Prometheus at `http://127.0.0.1:9464/metrics`;
`--metrics-address` changes the address. Gauges show the last update; histograms contain every
update. A counter ends in `_total` and starts at 0 when the server starts.
[monitoring.md](monitoring.md) describes the alerts and dashboards that come with the server.

`--metrics-detail` sets how much is exported:

| detail | contents | lines a model |
|---|---|---|
| `full` | everything | about 190 |
| `model` (default) | models' histograms as summaries: count and sum only; no flow by lag | 50 |
| `server` | nothing of single models | 0 |

1,000 models are rendered in 0.05 s of processor time, and in 0.14 s with `full`. The work is done
in pieces of 0.2 ms, between which other threads run. Scrapes that come together share one
rendering.
"""
TABLE = "| metric | type | meaning |\n|---|---|---|\n"


def _table(families: Iterable[Family[Any]]) -> str:
    return TABLE + "".join(_row(each) for each in families)


def _row(family: Family[Any]) -> str:
    note = " Needs `--metrics-detail full`." if family.full_only else ""
    return f"| `{family.name}` | {family.kind} | {family.help}{note} |\n"


def text() -> str:
    """The whole page."""
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    rows = "".join(
        f"| `{each.name}{'_total' if each.type == 'counter' else ''}` | {each.type} "
        f"| {each.documentation.removesuffix('.')}. |\n"
        for each in process.collect()
    )
    return f"""{HEAD}
## Of each model

Label `model`. The series of a model exist from its creation and go when it is deleted. While a
model is not in memory (`--models-in-memory`), its counters and histograms are exported and its
gauges are not.

{_table([*MODEL_FAMILIES, STATE_FAMILY, FAILURE_FAMILY])}
## Of the server

{_table([BUILD_FAMILY, *SERVER_FAMILIES])}
## Of each RPC method

Labels `grpc_type`, `grpc_service` and `grpc_method`; a method has series from its first call on.

{_table(METHOD_FAMILIES)}
## Of the process

{TABLE}{rows}"""


if __name__ == "__main__":
    sys.stdout.write(text())
