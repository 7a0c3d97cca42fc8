"""Blocking reads in a thread, for asyncio.

The threads are daemons: one that waits for standard input must not keep the program from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

AHEAD_MAX = 64  # items read and not yet taken; with 64 rows each, milliseconds of work

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_thread(function: Callable[[], Result]) -> Result:
    """The result of a blocking function, or what it raised. Can be cancelled at once."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - it is raised again, where it is awaited
            _call(loop, _set, future, None, error)
        else:
            _call(loop, _set, future, result, None)

    threading.Thread(target=run, name="reader", daemon=True).start()
    return await future


async def emitted(function: Callable[[Callable[[Item], None]], None]) -> AsyncIterator[Item]:
    """What a blocking function hands to its argument, and then what it raised.

    The function waits while `AHEAD_MAX` items have not been taken.
    """
    queue: asyncio.Queue[Item | None] = asyncio.Queue()
    room = threading.Semaphore(AHEAD_MAX)
    loop = asyncio.get_running_loop()

    def emit(item: Item) -> None:
        room.acquire()
        _call(loop, queue.put_nowait, item)

    done = asyncio.ensure_future(in_thread(lambda: function(emit)))
    done.add_done_callback(lambda _: queue.put_nowait(None))  # after all items, which came earlier
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
    """Run in the loop; nothing if the program is about to end and the loop is closed."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise
