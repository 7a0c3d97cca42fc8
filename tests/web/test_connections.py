"""Clients that are slow, many, silent or wrong do not hold the HTTP side."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bptt.errors import AddressInUse, CannotListen, InvalidRequest
from bptt.web import connections as bounds
from bptt.web import pages
from bptt.web.health import ServerHealth
from bptt.web.server import HttpServer
from tests.web.support import is_closed, web

HALF = b"GET /metrics HTTP/1.1\r\nHost: a\r\n"
WHOLE = HALF + b"\r\n"


def test_500_half_requests_delay_no_scrape() -> None:
    with web() as served, contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(served.connect(HALF))
        start = time.monotonic()
        assert served.get("/metrics").status == 200
        assert time.monotonic() - start < bounds.REQUEST_SECONDS / 2
        assert served.server.connections <= bounds.CONNECTIONS_MAX


@pytest.mark.parametrize(
    "sent", [b"", b"GET", HALF, WHOLE + b"GET", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"]
)
def test_a_request_that_does_not_arrive_is_given_up(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bounds._PATIENCE, bounds.State.REQUEST, 0.2)
    monkeypatch.setitem(bounds._PATIENCE, bounds.State.IDLE, 0.4)
    with web() as served, served.connect(sent) as client:
        assert is_closed(client)


def test_a_request_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bounds._PATIENCE, bounds.State.REQUEST, 0.3)
    with web() as served, served.connect(HALF) as client:
        client.settimeout(0.01)
        for _ in range(1000):
            try:
                client.sendall(b"X-Slow: 1\r\n")
                assert not client.recv(1)
                return
            except TimeoutError:
                continue
            except ConnectionError:
                return
        raise AssertionError("the server still listens to it")


def test_a_client_that_does_not_read_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "STALLED_SECONDS", 0.3)
    page = b"x" * (32 << 20)
    with web(lambda: page) as served, served.connect(WHOLE, receive_bytes=4096) as client:
        deadline = time.monotonic() + 60
        while not served.server.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        while served.server.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not served.server.connections
        assert is_closed(client)


def test_clients_that_do_not_read_make_room_for_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "IMPATIENT_SECONDS", 0.1)
    page = b"x" * (32 << 20)
    with web(lambda: page) as served, contextlib.ExitStack() as stack:
        for _ in range(pages.REQUESTS_MAX + 5):
            stack.enter_context(served.connect(WHOLE, receive_bytes=4096))
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            answer = served.get("/readyz")
            if answer.status == 503 and "starting" in answer.text:
                break
        else:
            raise AssertionError("no room was made")


def test_more_requests_than_are_answered_at_one_time_are_refused() -> None:
    released = threading.Event()

    def render() -> bytes:
        released.wait(60)
        return b"a 1\n"

    many = pages.REQUESTS_MAX + 20
    with web(render) as served, ThreadPoolExecutor(many) as pool:
        asked = [pool.submit(served.get, "/metrics") for _ in range(many)]
        deadline = time.monotonic() + 60
        while sum(each.done() for each in asked) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = [each.result() for each in asked if each.done()]
        released.set()
        assert [each.status for each in refused] == [503] * 20
        assert {each.headers["Retry-After"] for each in refused} == {"1"}
        assert sorted({each.result().status for each in asked}) == [200, 503]


def test_invalid_requests_are_answered_and_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), web() as served:
        for sent in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"X" * 20_000):
            with served.connect(sent) as client:
                first = client.recv(1 << 16)
                assert first.startswith(b"HTTP/1.1 4")
                assert is_closed(client)
        assert served.get("/metrics").status == 200
    assert not [each for each in caplog.records if each.name.startswith("uvicorn")]


def test_a_stop_waits_for_no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    page = b"x" * (32 << 20)
    with contextlib.ExitStack() as stack:
        with web(lambda: page) as served:
            for sent in (b"", HALF, WHOLE):
                stack.enter_context(served.connect(sent, receive_bytes=4096))
            assert served.get("/readyz").status == 503
            start = time.monotonic()
        assert time.monotonic() - start < 5.0


def test_an_address_that_cannot_be_used_is_named() -> None:
    health = ServerHealth(asyncio.new_event_loop())
    try:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(AddressInUse, match=address):
                HttpServer(address, bytes, health)
        with pytest.raises(CannotListen, match=r"metrics_address is 192\.0\.2\.1:1"):
            HttpServer("192.0.2.1:1", bytes, health)
        with pytest.raises(InvalidRequest, match="metrics_address is 9464, but must be host:port"):
            HttpServer("9464", bytes, health)
    finally:
        health._loop.close()
