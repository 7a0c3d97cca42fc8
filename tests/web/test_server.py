"""The HTTP side of a real server."""

from __future__ import annotations

from tests.support.server import Served
from tests.web.support import fetch


def test_a_server_serves_metrics_and_probes_and_nothing_else(served: Served) -> None:
    base = f"http://{served.metrics_address}"
    ready = fetch(base + "/readyz")
    assert (ready.status, ready.text) == (200, "ready\n")
    assert fetch(base + "/livez").text == "alive\n"
    assert "grpc_server_started_total" in fetch(base + "/metrics").text
    assert fetch(base + "/other").status == 404
