"""What tests of all folders share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.jit import PLAIN_PYTHON
from tests.support.server import Served, serving

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background process, whose processes
    signal.signal(signal.SIGINT, signal.default_int_handler)  # would be deaf to Ctrl-C like it


@pytest.fixture
def served() -> Iterator[Served]:
    """A server of the test's own, without models of other tests."""
    with serving() as server:
        yield server


@pytest.fixture(autouse=PLAIN_PYTHON)
def _kernels_as_plain_python() -> Iterator[None]:
    """What overflows in a kernel is looked for there; only plain Python warns of it as well."""
    with np.errstate(all="ignore"):
        yield
