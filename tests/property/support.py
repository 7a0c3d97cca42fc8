"""How long hypothesis looks."""

from __future__ import annotations

from hypothesis import settings

from tests.support.jit import PLAIN_PYTHON


def examples(count: int) -> settings:
    """The same ones each time; in plain Python a few, to see that each test still holds."""
    return settings(
        max_examples=min(count, 2) if PLAIN_PYTHON else count, deadline=None, derandomize=True
    )
