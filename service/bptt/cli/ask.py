"""One request to a server, from a command that is not asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bptt.cli.connection import connect
from bptt.client import Client

Answer = TypeVar("Answer")


def request(address: str, ask: Callable[[Client], Awaitable[Answer]]) -> Answer:
    """Connect to a server, ask it one thing and return the answer."""

    async def run() -> Answer:
        async with connect(address) as client:
            return await ask(client)

    return asyncio.run(run())
