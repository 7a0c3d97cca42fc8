"""Logs calls as they begin and end, if the server's settings ask for it."""

from __future__ import annotations

import logging

from bptt.config import LogCalls
from bptt.domain import CallSink, MethodSink

log = logging.getLogger(__name__)

SESSION_METHOD = "Learn"
"""Its calls are sessions: they stay open while a client feeds its streams."""


class LoggedCalls:
    """A `CallSink` that logs calls and passes everything on to another one.

    Args:
        sink: counts the calls.
        calls: which calls are logged; see `LogCalls`.
    """

    def __init__(self, sink: CallSink, calls: LogCalls) -> None:
        self._sink = sink
        self._calls = calls

    def method(self, kind: str, service: str, method: str) -> MethodSink:
        """See `CallSink`."""
        inner = self._sink.method(kind, service, method)
        is_session = method == SESSION_METHOD
        if self._calls == "all" or (self._calls == "sessions" and is_session):
            return _LoggedMethod(inner, method, is_session)
        return inner


class _LoggedMethod:
    """Logs the end of each call of a method, and the beginning of a session."""

    def __init__(self, inner: MethodSink, method: str, is_session: bool) -> None:
        self._method = method
        self._is_session = is_session
        self._handled = inner.handled
        self._started = inner.started
        self.received = inner.received
        self.sent = inner.sent

    def started(self) -> None:
        """See `MethodSink`."""
        self._started()
        if self._is_session:
            log.info("%s began", self._method)

    def handled(self, code: str, seconds: float) -> None:
        """See `MethodSink`."""
        self._handled(code, seconds)
        log.info("%s ended with %s after %.4f s", self._method, code, seconds)
