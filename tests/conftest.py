"""What tests of all folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.server import Served, serving


@pytest.fixture
def served() -> Iterator[Served]:
    """A server of the test's own, that nobody else has taught anything."""
    with serving() as server:
        yield server


@pytest.fixture(autouse=os.environ.get("NUMBA_DISABLE_JIT", "0") != "0")
def _kernels_as_plain_python() -> Iterator[None]:
    """What overflows in a kernel is looked for there; only plain Python warns of it as well."""
    with np.errstate(all="ignore"):
        yield
