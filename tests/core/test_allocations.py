"""Once a model is warm, a call allocates only its results, and an update nothing.

Numba counts what its kernels allocate if a variable is set before its import, so that part runs in
a process of its own. A call's arguments are counted, too, but they are as many however long it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest

from bptt_core import Learner, ModelSpec

COUNT = """
import json, sys
import numpy as np
from numba.core.runtime import rtsys
from bptt_core import Learner, ModelSpec

spec = ModelSpec(hidden_size=8, k1=4, k2=8, **json.loads(sys.argv[1]))
learner = Learner(spec)
learner.warm_up()
random = np.random.default_rng(0)
counts = []
for steps in (40, 400, 40, 400):
    x, target = random.normal(size=(steps, 2, spec.input_size)), None
    if spec.task == "next_token":
        x = random.integers(0, spec.vocabulary_size, (steps, 2))
    if spec.task == "regression":
        target = random.normal(size=(steps, 2, spec.outputs))
    before = rtsys.get_allocation_stats().alloc
    updates = learner.feed(x, target).updates
    counts.append((rtsys.get_allocation_stats().alloc - before, len(updates)))
print(json.dumps(counts))
"""
SPECS: dict[str, dict[str, Any]] = {
    "forecast, rnn": {"input_size": 2},
    "regression, lstm": {"task": "regression", "input_size": 2, "output_size": 2, "cell": "lstm"},
    "tokens, gru": {"task": "next_token", "input_size": 1, "vocabulary_size": 8, "cell": "gru"},
}


COMPILED = pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="there are no kernels to count in"
)


@COMPILED
@pytest.mark.parametrize("name", SPECS)
def test_ten_times_as_many_updates_allocate_no_more_in_kernels(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, json.dumps(SPECS[name])],
        env=os.environ | {"NUMBA_NRT_STATS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    _, _, (short, few), (long, many) = json.loads(done.stdout)
    assert many > 9 * few > 0
    assert long == short


@COMPILED
def test_a_warm_call_allocates_little_more_than_its_results() -> None:
    spec = ModelSpec(task="regression", input_size=8, output_size=8, k1=32, k2=32)
    learner = Learner(spec)
    random = np.random.default_rng(0)
    x, target = random.normal(size=(2, 3200, 1, 8))
    for _ in range(2):
        learner.feed(x, target)
    tracemalloc.start()
    try:
        learner.feed(x, target)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        result = learner.feed(x, target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.predictions is not None
    handed_over = result.predictions.nbytes + 400 * len(result.updates)
    checked = 2 * x.size  # a byte for each number, and as many again while they are counted
    assert peak - before < handed_over + checked + 16_384
