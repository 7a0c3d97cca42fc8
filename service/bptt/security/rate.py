"""A log whose rate is bounded, for events that clients can cause at will."""

from __future__ import annotations

import logging
import time

SECONDS = 10.0  # between two lines: what an operator reads, and 1 MB a day


class RateLimitedLog:
    """Logs the first of many events of one kind, and every SECONDS how many there were since."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._next = 0.0
        self._left_out = 0

    def info(self, text: str, *values: object) -> None:
        """Log an event, or count it if one was logged a short time ago."""
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        more = f" (and {self._left_out} times before)" if self._left_out else ""
        self._next, self._left_out = now + SECONDS, 0
        self._log.info(text + more, *values)
