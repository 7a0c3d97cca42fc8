"""What tests of all folders share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import Served, serving


@pytest.fixture
def served() -> Iterator[Served]:
    """A server of the test's own, that nobody else has taught anything."""
    with serving() as server:
        yield server
