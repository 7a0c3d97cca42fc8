"""What Ctrl-C does while rows are learned."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def handle_interrupts(stop: asyncio.Event, notify: Callable[[str], None]) -> Iterator[list[bool]]:
    """Set `stop` at the first Ctrl-C and cancel the task at the second.

    Yields:
        A list that is not empty once Ctrl-C was pressed.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    pressed: list[bool] = []

    def interrupt() -> None:
        if pressed:
            task.cancel()
        else:
            notify("waiting until all rows that were sent are learned; Ctrl-C again quits at once")
        pressed.append(True)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield pressed
    finally:
        loop.remove_signal_handler(signal.SIGINT)
