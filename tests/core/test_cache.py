"""Kernels are compiled once: a second process loads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# What numba calls a miss, it compiles; a hit, it loads.
PROGRAM = """
import json
import numpy as np
from bptt_core import Learner, ModelSpec
from bptt_core.kernels import cells, learning, linear, network, rnn, scaling, windows
learner = Learner(ModelSpec(input_size=1, hidden_size=4))
learner.feed(np.zeros((64, 1, 1), np.float32))
learner.snapshot().predict(learner.stream_view("0"), np.zeros((1, 1), np.float32))
hits = misses = 0
for module in (cells, learning, linear, network, rnn, scaling, windows):
    for function in vars(module).values():
        if hasattr(function, "stats") and not function.targetoptions.get("inline"):
            hits += sum(function.stats.cache_hits.values())
            misses += sum(function.stats.cache_misses.values())
print(json.dumps([hits, misses]))
"""


def run(folder: Path) -> tuple[int, int]:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, env=environment
    )
    hits, misses = json.loads(done.stdout)
    return hits, misses


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    _, compiled = run(tmp_path)
    assert compiled > 0
    hits, misses = run(tmp_path)
    assert hits > 0
    assert misses == 0
