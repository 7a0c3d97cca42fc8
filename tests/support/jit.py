"""Whether kernels are compiled in this run, or walk as plain Python under coverage."""

from __future__ import annotations

import os

PLAIN_PYTHON = os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"
"""Line by line, and a hundred times as slow: tests look at fewer examples, and the longest are left
out."""
