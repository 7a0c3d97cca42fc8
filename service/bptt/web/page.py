"""The page on which people see the models learn: its files, and the figures that it asks for.

The browser loads everything from this server. A content security policy forbids all else.
"""

from __future__ import annotations

import asyncio
import gzip
import zlib
from dataclasses import dataclass
from importlib import metadata, resources

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bptt.observability.history import History

POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Plotly writes a style sheet of its own into the page, so inline styles are allowed."""
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
FILES = ("index.html", "page.css", "page.js")
PLOTLY = "plotly.js"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class _Asset:
    """A file of the page."""

    kind: str
    plain: bytes
    gzipped: bytes
    tag: str

    @classmethod
    def of(cls, name: str, body: bytes, tag: str) -> _Asset:
        kind = TYPES[name.rpartition(".")[2]]
        return cls(kind, body, gzip.compress(body, mtime=0), f'"{tag}"')

    def answer(self, request: Request) -> Response:
        """Answer with the file, or say that the browser's copy is still right."""
        headers = {**HEADERS, "ETag": self.tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        headers["Vary"] = "Accept-Encoding"
        body = self.plain
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            body = self.gzipped
        return Response(body, headers=headers, media_type=self.kind)


class Page:
    """The routes of the page.

    Args:
        history: the models' figures.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._assets: dict[str, _Asset] = {}
        version = metadata.version("bptt")
        for name in FILES:
            body = (resources.files("bptt.web") / "assets" / name).read_bytes()
            self._assets[name] = _Asset.of(name, body, f"{version}-{zlib.crc32(body):x}")

    @property
    def routes(self) -> list[Route]:
        """For the application."""
        return [
            Route("/", self._index),
            Route("/assets/{name}", self._asset),
            Route("/api/models", self._models),
            Route("/api/models/{name:path}", self._model),
        ]

    async def _index(self, request: Request) -> Response:
        return self._assets["index.html"].answer(request)

    async def _asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name == PLOTLY and PLOTLY not in self._assets:
            self._assets[PLOTLY] = await asyncio.to_thread(_plotly)
        asset = self._assets.get(name)
        return Response(status_code=404) if asset is None else asset.answer(request)

    async def _models(self, request: Request) -> Response:
        return JSONResponse(self._history.models(), headers=HEADERS)

    async def _model(self, request: Request) -> Response:
        try:
            after = float(request.query_params.get("after", "0"))
        except ValueError:
            error = {"error": "after must be a number of seconds since 1970"}
            return JSONResponse(error, 400, headers=HEADERS)
        name = request.path_params["name"]
        model = self._history.model(name, after)
        if model is None:
            return JSONResponse({"error": f"no model {name}"}, 404, headers=HEADERS)
        return JSONResponse(model, headers=HEADERS)


def _plotly() -> _Asset:
    """Plotly's JavaScript, 5 MB, which is read when the page is opened for the first time."""
    body = (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return _Asset.of(PLOTLY, body, metadata.version("plotly"))
