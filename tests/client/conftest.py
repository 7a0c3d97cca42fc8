"""One server for all client tests; each test uses its own models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from bptt.client import Client
from tests.support.server import Served, serving


@pytest.fixture(scope="session")
def shared() -> Iterator[Served]:
    with serving() as server:
        yield server


@pytest_asyncio.fixture
async def client(shared: Served) -> AsyncIterator[Client]:
    async with Client.connect(shared.address) as connected:
        yield connected


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model's name that no other test uses."""
    text = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())
    return text.removeprefix("test-")[:60].rstrip("-")
