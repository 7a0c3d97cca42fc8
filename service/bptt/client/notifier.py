"""Wakes tasks that wait for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Notifier:
    """Tasks that wait, each for a condition of its own."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition is true, testing it at each `ring`."""
        while not condition():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def ring(self) -> None:
        """Have all waiting tasks test their conditions."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


def is_being_cancelled() -> bool:
    """Return whether the current task itself is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
