"""A queue of work on a learner between two runs, each with a future for its result."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from bptt.errors import ServiceError

Work = Callable[[], Awaitable[Any]]

Request = tuple[Work, asyncio.Future[Any]]


class RequestQueue:
    """Work that waits for the worker. Lives on the event loop."""

    def __init__(self) -> None:
        self._soon: deque[Request] = deque()  # between the next two runs
        self._last: deque[Request] = deque()  # once all accepted chunks are applied

    def __bool__(self) -> bool:
        return bool(self._soon or self._last)

    @property
    def wait_for_queue(self) -> bool:
        """Whether some work waits until all accepted chunks are applied."""
        return bool(self._last)

    def put(self, work: Work, *, after_queue: bool = False) -> asyncio.Future[Any]:
        """Add work.

        Args:
            work: called by the worker, between two runs.
            after_queue: True waits until all accepted chunks are applied. False waits only for the
                current run, because a busy queue may never become empty.

        Returns:
            A future with the result or error of the work.
        """
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        (self._last if after_queue else self._soon).append((work, done))
        return done

    def next(self, *, queue_is_empty: bool, may_write: bool) -> Request | None:
        """Remove and return the next request; None if none may run now."""
        if self._last and queue_is_empty:
            return self._last.popleft()
        if self._soon and may_write:
            return self._soon.popleft()
        return None

    def refuse(self, error: ServiceError) -> None:
        """Refuse all waiting work with an error."""
        for requests in (self._soon, self._last):
            while requests:
                _, done = requests.popleft()
                if not done.done():
                    done.set_exception(error)
                    done.exception()  # the caller may have hung up; this marks the error as seen
