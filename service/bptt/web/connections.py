"""The HTTP connections of a server: how many there are, and how long each may keep it waiting.

uvicorn has a time-out for idle connections only. A client that sends half a request, or does not
read its answer, would hold a connection for ever. `BoundedProtocol` adds these bounds:

| a connection | is closed |
|---|---|
| has not sent a whole request | `REQUEST_SECONDS` after it was opened or began the request |
| is idle after an answer | after `IDLE_SECONDS` |
| does not read its answer | when it takes longer than `STALLED_SECONDS` to take one piece of it |
| waits for the server | never |

Beyond `CONNECTIONS_MAX` the oldest connection that is not being answered makes room for a new one.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

CONNECTIONS_MAX = 128
"""Prometheus, probes and a few browsers need ten. Leaves most of the 1,024 descriptors that a
process may have by default to gRPC and the store."""
REQUEST_SECONDS = 5.0
"""A request without a body fits one packet."""
IDLE_SECONDS = 75.0
"""Longer than the usual scrape intervals, so that Prometheus keeps its connection."""
STALLED_SECONDS = 10.0
"""Prometheus gives up after 10 s by default."""
IMPATIENT_SECONDS = 1.0
"""After this time a client that does not read makes room for another one."""
REQUEST_BYTES = 16 << 10
"""Request line and headers."""
YIELD_SECONDS = 50e-6
"""Pause before each piece of work on the HTTP thread. Without it a burst of requests keeps the
interpreter's lock, and the event loop of gRPC waits up to 5 ms each time it needs the lock."""


def give_way() -> None:
    """Release the interpreter's lock for long enough that another thread takes it."""
    time.sleep(YIELD_SECONDS)


class State(enum.Enum):
    """What a connection waits for."""

    REQUEST = "request"
    """The client: the rest of its request."""
    ANSWER = "answer"
    """The server: its answer."""
    IDLE = "idle"
    """The client: its next request."""


_PATIENCE = {State.REQUEST: REQUEST_SECONDS, State.IDLE: IDLE_SECONDS, State.ANSWER: None}


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, with bounds in time and number. See the module's docstring."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        give_way()
        self._state = State.REQUEST
        self._timer: asyncio.TimerHandle | None = None
        self._stalled_timer: asyncio.TimerHandle | None = None
        self._stalled_since: float | None = None
        self._opened_at = self.loop.time()
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # `pause_writing` is called for every byte left
        self._enter(State.REQUEST)
        if len(self.connections) > CONNECTIONS_MAX:
            make_room(self.connections)

    def data_received(self, data: bytes) -> None:
        """A piece of a request arrived."""
        give_way()
        if self._state is State.IDLE:
            self._enter(State.REQUEST)
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """An answer was handed to the transport. A pipelined request may begin at once."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._unset_keepalive_if_required()  # the timer of `_enter` takes its place
            if not self._look():
                self._enter(State.IDLE)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        super().pause_writing()
        self._stalled_since = self.loop.time()
        self._stalled_timer = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read most of what was written."""
        super().resume_writing()
        self._stalled_since = None
        if self._stalled_timer is not None:
            self._stalled_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by whichever side."""
        for timer in (self._timer, self._stalled_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    @property
    def is_stalled(self) -> bool:
        """True: the client has not read its answer for `IMPATIENT_SECONDS`."""
        since = self._stalled_since
        return since is not None and self.loop.time() - since > IMPATIENT_SECONDS

    @property
    def waits_for_client(self) -> bool:
        """True: closing the connection now ends no answer that its client reads."""
        if self._stalled_since is not None:
            return self.is_stalled
        return self._state is not State.ANSWER

    @property
    def opened_at(self) -> float:
        """When the client connected, in the event loop's time."""
        return self._opened_at

    def _look(self) -> bool:
        """Enter ANSWER if a whole request is there; return whether one is."""
        # uvicorn's type hides that there is no cycle before the first request.
        cycle: RequestResponseCycle | None = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if answering and self._state is not State.ANSWER:
            self._enter(State.ANSWER)
        return answering

    def _enter(self, state: State) -> None:
        self._state = state
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        seconds = _PATIENCE[state]
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self.transport.abort)


def make_room(connections: Iterable[Any]) -> None:
    """Close the oldest connection that waits for its client, if there is one."""
    _close_oldest(each for each in connections if each.waits_for_client)


def end_stalled(connections: Iterable[Any]) -> bool:
    """Close the oldest connection whose client does not read its answer; False: there is none."""
    return _close_oldest(each for each in connections if each.is_stalled)


def _close_oldest(candidates: Iterable[BoundedProtocol]) -> bool:
    still_open = [each for each in candidates if not each.transport.is_closing()]
    if still_open:
        min(still_open, key=lambda each: each.opened_at).transport.abort()
    return bool(still_open)
