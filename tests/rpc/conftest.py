from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.rpc.harness import Harness, harness


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Harness]:
    """A server for this test only."""
    async with harness() as running:
        yield running
