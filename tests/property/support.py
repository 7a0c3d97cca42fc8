"""How long hypothesis looks."""

from __future__ import annotations

import os

from hypothesis import settings

PLAIN_PYTHON = os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"
"""Kernels are not compiled: the run for coverage, a hundred times as slow."""


def examples(count: int) -> settings:
    """The same ones each time; the run for coverage only looks that each test still holds."""
    return settings(
        max_examples=min(count, 2) if PLAIN_PYTHON else count, deadline=None, derandomize=True
    )
