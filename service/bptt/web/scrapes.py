"""Renders the metrics page once for all who ask at the same time, and not without a rest."""

from __future__ import annotations

import asyncio
import gzip
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

log = logging.getLogger(__name__)

REST_FACTOR = 3.0
"""After a rendering the next one starts no sooner than this many times its duration later, so that
rendering takes at most a quarter of one core, however often it is asked for."""
GZIP_LEVEL = 1  # a tenth of the size for 10 ms a megabyte


@dataclass(frozen=True, slots=True)
class Page:
    """The metrics page at one moment."""

    plain: bytes
    gzipped: bytes


class Scrapes:
    """Shares renderings of the metrics page. Lives on the HTTP side's event loop.

    A request gets a rendering that began after the request arrived, so it shows all that happened
    before. At most one rendering runs and one waits; any number of requests share them.

    Args:
        render: renders the page; called on a thread of its own.
    """

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._pool = ThreadPoolExecutor(1, "metrics")
        self._running: asyncio.Task[Page] | None = None
        self._following: asyncio.Task[Page] | None = None
        self._earliest = 0.0

    async def page(self) -> Page:
        """The page, as of now or a little later."""
        if self._following is None:
            self._following = asyncio.create_task(self._next(self._running), name="scrape")
            self._following.add_done_callback(_seen)
        return await asyncio.shield(self._following)

    def close(self) -> None:
        """Wait for a rendering that runs."""
        self._pool.shutdown()

    async def _next(self, before: asyncio.Task[Page] | None) -> Page:
        if before is not None:
            await asyncio.wait([before])
        await asyncio.sleep(self._earliest - time.monotonic())
        self._running, self._following = self._following, None
        start = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._both)
        except Exception:
            log.exception("the metrics page could not be rendered")
            raise
        finally:
            end = time.monotonic()
            self._earliest = end + REST_FACTOR * (end - start)

    def _both(self) -> Page:
        plain = self._render()
        return Page(plain, gzip.compress(plain, GZIP_LEVEL, mtime=0))


def _seen(task: asyncio.Task[Page]) -> None:
    """Mark the error as seen: those who asked may be gone."""
    if not task.cancelled():
        task.exception()
