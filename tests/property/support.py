"""The number of examples that hypothesis tries."""

from __future__ import annotations

from hypothesis import settings

from tests.support.jit import PLAIN_PYTHON


def examples(count: int) -> settings:
    """A fixed set of examples, smaller when kernels run as plain Python."""
    return settings(
        max_examples=min(count, 2) if PLAIN_PYTHON else count, deadline=None, derandomize=True
    )
