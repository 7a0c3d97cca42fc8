"""Tells the client of a call that the server compiles kernels before it can answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bptt.compiling import COMPILING_KEY
from bptt_core.compilation import Event, listening


@asynccontextmanager
async def compilation_told(context: Any) -> AsyncIterator[None]:
    """Send the initial metadata with COMPILING_KEY as soon as a kernel is compiled meanwhile.

    Args:
        context: of the call; its initial metadata has not been sent.
    """
    loop = asyncio.get_running_loop()
    sending: list[asyncio.Task[None]] = []
    answered = False

    def send(kernel: str) -> None:
        if not sending and not answered:
            metadata = ((COMPILING_KEY, kernel),)
            sending.append(loop.create_task(context.send_initial_metadata(metadata)))

    def on_event(event: Event) -> None:  # in the thread that compiles
        if event.what == "begun":
            loop.call_soon_threadsafe(send, event.kernel)

    try:
        with listening(on_event):
            yield
    finally:
        answered = True
        # A client that has gone cannot be told; the call itself reports that.
        await asyncio.gather(*sending, return_exceptions=True)
