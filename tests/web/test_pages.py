"""The pages of the HTTP side, asked over real connections."""

from __future__ import annotations

import gzip
import http.client
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bptt.web import health as health_module
from bptt.web.pages import accepts_gzip
from tests.web.support import web


def test_metrics_are_served_as_prometheus_reads_them() -> None:
    page = b'bptt_loss{model="a"} 1.5\n' * 100_000
    with web(lambda: page) as served:
        plain = served.get("/metrics")
        assert (plain.status, plain.body) == (200, page)
        assert plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        packed = served.get("/metrics", Accept_Encoding="deflate, gzip;q=0.5")
        assert packed.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed.body) == page
        assert len(packed.body) < len(page) / 10
        head = served.get("/metrics", "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == str(len(page))


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True), ("deflate, GZIP ; q=1.0", True), ("*", True), ("", False),
        ("identity", False), ("gzip;q=0", False), ("gzip; q=0.0, deflate", False),
    ],
)  # fmt: skip
def test_gzip_is_used_where_the_client_accepts_it(header: str, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metricsx", "/nothing?a=b", "/%2e%2e/etc"])
def test_any_other_path_is_not_found_and_names_the_pages(path: str) -> None:
    with web() as served:
        answer = served.get(path)
        assert answer.status == 404
        assert answer.text == "no page here; the pages are /metrics, /livez, /readyz\n"


def test_pages_are_for_reading_only() -> None:
    with web() as served:
        answer = served.get("/metrics", "POST")
        assert answer.status == 405
        assert "GET" in answer.headers["Allow"]


def test_readiness_says_why() -> None:
    with web() as served:
        states = [(503, "starting\n")]
        assert [(each.status, each.text) for each in [served.get("/readyz")]] == states
        served.health.recovering("recovering: 3 of 12 models")
        answer = served.get("/readyz")
        assert (answer.status, answer.text) == (503, "recovering: 3 of 12 models\n")
        served.health.ready()
        answer = served.get("/readyz")
        assert (answer.status, answer.text) == (200, "ready\n")
        served.health.stopping()
        answer = served.get("/readyz")
        assert (answer.status, answer.text) == (503, "stopping\n")


def test_liveness_shows_whether_the_event_loop_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "ALIVE_SECONDS", 0.2)
    with web() as served:
        assert (served.get("/livez").status, served.get("/livez").text) == (200, "alive\n")
        stuck, free = threading.Event(), threading.Event()

        def hang() -> None:
            stuck.set()
            free.wait(60)

        served.loop.call_soon_threadsafe(hang)
        assert stuck.wait(60)
        answer = served.get("/livez")
        assert answer.status == 503
        assert "event loop has not answered" in answer.text
        free.set()
        assert served.get("/livez").status == 200


def test_a_connection_serves_many_requests() -> None:
    with web() as served:
        connection = http.client.HTTPConnection(*served.target, timeout=60)
        for _ in range(3):
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            assert answer.read() == b"a 1\n"
            assert not answer.will_close
        connection.close()


def test_scrapes_at_the_same_time_share_a_rendering() -> None:
    """One that runs cannot show what happened after it began: later requests share the next one."""
    begun, released = threading.Semaphore(0), threading.Event()
    rendered = 0

    def render() -> bytes:
        nonlocal rendered
        rendered += 1
        number = rendered
        begun.release()
        released.wait(60)
        return b"rendering %d\n" % number

    with web(render) as served, ThreadPoolExecutor(20) as pool:
        first = pool.submit(served.get, "/metrics")
        assert begun.acquire(timeout=60)
        others = [pool.submit(served.get, "/metrics") for _ in range(19)]
        deadline = time.monotonic() + 60
        while served.server.connections < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # the last request is on its way; later it would get a third rendering
        released.set()
        assert first.result().text == "rendering 1\n"
        assert {each.result().text for each in others} <= {"rendering 2\n", "rendering 3\n"}
        assert rendered <= 3


def test_a_rendering_that_fails_is_an_error_and_the_next_one_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = True

    def render() -> bytes:
        if failing:
            raise OSError("cannot read")
        return b"a 1\n"

    with web(render) as served:
        with caplog.at_level(logging.ERROR):
            assert served.get("/metrics").status == 500
        assert len(caplog.records) == 1
        assert "OSError: cannot read" in caplog.text
        failing = False
        assert served.get("/metrics").status == 200
