"""The pages of the HTTP side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bptt.web.health import ALIVE_SECONDS, ServerHealth
from bptt.web.page import Page
from bptt.web.scrapes import Scrapes

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus's text format, which all its versions read."""
PIECE_BYTES = 64 << 10
"""Piece of an answer. The buffer of a client that does not read holds two."""
REQUESTS_MAX = 32
"""Requests that are answered at one time."""


def pages(health: ServerHealth, scrapes: Scrapes, page: Page | None = None) -> Starlette:
    """Build the application.

    Args:
        health: what the probes answer.
        scrapes: renders the metrics page.
        page: the page for people; None: there is none.
    """

    async def metrics(request: Request) -> Response:
        try:
            page = await scrapes.page()
        except Exception:  # noqa: BLE001 - it is logged, once for all who asked
            return _text(500, "the metrics could not be rendered; the server's log says why")
        headers = {"Content-Type": METRICS_TYPE, "Vary": "Accept-Encoding"}
        body = page.plain
        if accepts_gzip(request.headers.get("accept-encoding", "")):
            headers["Content-Encoding"] = "gzip"
            body = page.gzipped
        headers["Content-Length"] = str(len(body))
        return StreamingResponse(_pieces(body), headers=headers)

    async def livez(_: Request) -> Response:
        if await health.is_alive():
            return _text(200, "alive")
        return _text(503, f"the event loop has not answered within {ALIVE_SECONDS:g} s")

    async def readyz(_: Request) -> Response:
        is_ready, reason = health.readiness
        return _text(200 if is_ready else 503, reason)

    routes = [
        Route("/metrics", metrics),
        Route("/livez", livez),
        Route("/readyz", readyz),
    ]
    if page is not None:
        routes += page.routes
    paths = ", ".join(each.path for each in routes if "{" not in each.path)

    async def unknown(request: Request, _: Exception) -> Response:
        return _text(404, f"no page here; the pages are {paths}")

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _text(error.status_code, error.detail, error.headers)

    app = Starlette(routes=routes, exception_handlers={404: unknown, HTTPException: refused})
    app.router.redirect_slashes = False
    return app


class AtMost:
    """Answers 503 while `REQUESTS_MAX` requests are being answered and none of them can be ended.

    Args:
        app: the application.
        end_stalled: closes the connection of a client that does not read its answer; False: there
            is none.
    """

    def __init__(self, app: ASGIApp, end_stalled: Callable[[], bool]) -> None:
        self._app = app
        self._end_stalled = end_stalled
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self._requests >= REQUESTS_MAX and not self._end_stalled():
            text = f"{REQUESTS_MAX} requests are being answered; try again in a second"
            await _text(503, text, {"Retry-After": "1", "Connection": "close"})(
                scope, receive, send
            )
            return
        self._requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._requests -= 1


def accepts_gzip(header: str) -> bool:
    """Return whether an Accept-Encoding header allows gzip."""
    for coding in header.split(","):
        name, _, weight = coding.partition(";")
        if name.strip().lower() in ("gzip", "*"):
            return weight.replace(" ", "").lower() not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    """Yield the body piece by piece; uvicorn waits between two until the client has read."""
    whole = memoryview(body)
    for start in range(0, len(whole), PIECE_BYTES):
        yield whole[start : start + PIECE_BYTES]


def _text(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(text + "\n", status, {**(headers or {}), "Cache-Control": "no-store"})
