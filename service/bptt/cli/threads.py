"""Runs blocking reads in daemon threads beside the event loop.

Daemon threads, because a thread blocked on standard input must not keep the process from exiting.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

READ_AHEAD_MAX = 64  # items read but not yet consumed; with 64 rows each, milliseconds of work

Item = TypeVar("Item")
Result = TypeVar("Result")


async def run_in_thread(function: Callable[[], Result]) -> Result:
    """Run a blocking function in a daemon thread; return its result or raise its exception.

    Cancelling takes effect at once: the thread is abandoned, and its result is discarded.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - raised again by the awaiting task
            _call(loop, _set, future, None, error)
        else:
            _call(loop, _set, future, result, None)

    threading.Thread(target=run, name="reader", daemon=True).start()
    return await future


async def iterate_in_thread(
    function: Callable[[Callable[[Item], None]], None],
) -> AsyncIterator[Item]:
    """Run a blocking function that calls back for each item; yield the items as they come.

    The function blocks in its callback while READ_AHEAD_MAX items have not been consumed. Its
    exception is raised after its last item.
    """
    queue: asyncio.Queue[Item | None] = asyncio.Queue()
    room = threading.Semaphore(READ_AHEAD_MAX)
    loop = asyncio.get_running_loop()

    def emit(item: Item) -> None:
        room.acquire()
        _call(loop, queue.put_nowait, item)

    done = asyncio.ensure_future(run_in_thread(lambda: function(emit)))
    # The callback runs after every item's own callback, which was scheduled earlier.
    done.add_done_callback(lambda _: queue.put_nowait(None))
    try:
        while (item := await queue.get()) is not None:
            room.release()
            yield item
        await done
    finally:
        done.cancel()


def _set(future: asyncio.Future[Result], result: Result | None, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    """Schedule a call in the loop; do nothing if the loop was closed because the process exits."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise
