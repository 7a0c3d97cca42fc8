"""The core compared with physical limits: peak matrix products, memory, and long windows."""

from __future__ import annotations

import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.cases import Case, INPUT_SIZE, OUTPUT_SIZE
from benchmarks.core import ONE_THREAD, ROUNDS, Side
from bptt_core import Learner, ModelSpec

PEAK_SIZE = 2048  # rows of the matrices that measure the peak: 17 GFLOP, a tenth of a second
CALL_STEPS = 320
WINDOWS = (8, 32, 128, 512, 1024)
FLOP_A_WEIGHT = 6  # multiply and add: forward, backward, weight gradient
SPEC = ModelSpec(
    task="regression",
    input_size=INPUT_SIZE,
    output_size=OUTPUT_SIZE,
    k1=32,
    k2=32,
    optimizer="sgd",
    scaling=False,
)


def peak_gflops() -> float:
    """Return the fastest of several float32 matrix products of one thread, in GFLOP/s."""
    a = np.random.default_rng(0).normal(size=(PEAK_SIZE, PEAK_SIZE)).astype(np.float32)
    best = 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * PEAK_SIZE**3 / (time.perf_counter() - start) / 1e9)
    return best


def kept_bytes(steps: int) -> float:
    """Return the bytes a step that a warm learner of one stream allocates and keeps."""
    feed = _warm_call()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(steps // CALL_STEPS):
        feed()
    return (tracemalloc.get_traced_memory()[0] - before) / steps


def peak_bytes(steps: int) -> float:
    """Return the peak of bytes a step that a warm learner of one stream allocates in a call.

    The result of the call, the reports of 10 updates, is included.
    """
    feed, most = _warm_call(), 0
    for _ in range(steps // CALL_STEPS):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        feed()
        most = max(most, tracemalloc.get_traced_memory()[1] - before)
    return most / CALL_STEPS


def _warm_call() -> Callable[[], object]:
    """Return a function that feeds CALL_STEPS steps to a warm learner; allocations are traced."""
    learner = Learner(SPEC)
    x = np.random.default_rng(0).normal(size=(CALL_STEPS, 1, INPUT_SIZE))
    for _ in range(2):
        learner.feed(x, x, predictions=False)
    tracemalloc.start()
    learner.feed(x, x, predictions=False)
    return functools.partial(learner.feed, x, x, predictions=False)


FIRST_UPDATE = """
import numpy as np
from bptt_core import Learner, ModelSpec
spec = ModelSpec(task="regression", input_size=8, output_size=8, k1=32, k2=32)
x = np.zeros((32, 1, 8))
assert Learner(spec).feed(x, x).updates
"""


def first_update_seconds() -> float:
    """Measure from the start of a process to its first update, interpreter and imports included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", FIRST_UPDATE], check=True)
    return time.perf_counter() - start


def resident_bytes(k: int, steps: int) -> int:
    """Return the peak resident memory of a process that feeds steps with windows of k."""
    learner = Learner(replace(SPEC, k1=min(k, 32), k2=k))
    x = np.random.default_rng(0).normal(size=(256, 1, INPUT_SIZE)).astype(np.float32)
    for _ in range(steps // len(x)):
        learner.feed(x, x, predictions=False)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _measure(name: str, *arguments: int) -> float:
    """Measure one of the figures above in a separate process with one thread."""
    command = [sys.executable, "-m", "benchmarks.limits", name, *map(str, arguments)]
    environment = os.environ | ONE_THREAD
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(output.stdout))


def run() -> None:
    """Measure and print."""
    side = Side("core", sys.executable, "benchmarks.core_process")
    try:
        batch = Case("rnn_tanh", 64, 512, 32)
        batches = [(_measure("peak_gflops"), side.time(batch)) for _ in range(ROUNDS)]
        peak, step = (statistics.median(column) for column in zip(*batches, strict=True))
        reached = FLOP_A_WEIGHT * 512 * 512 / step / 1e3
        print(f"share of one thread's matrix-product peak, B=64 H=512 k=32: {reached / peak:.0%}")
        print(f"  ({reached:.0f} of {peak:.0f} GFLOP/s)")
        kept, most = _measure("kept_bytes", 960_000), _measure("peak_bytes", 960_000)
        print(
            f"bytes allocated a step by a warm learner: {most:.1f} at most within a call of "
            f"{CALL_STEPS} steps, reports and checks included; {kept:.4f} kept"
        )
        seconds = [first_update_seconds() for _ in range(ROUNDS + 1)][1:]  # the first may compile
        print(
            "start of a process to its first update, kernels in the cache: "
            f"{statistics.median(seconds):.2f} s"
        )
        first, second = (_measure("resident_bytes", 32, steps) for steps in (50_000, 500_000))
        grown = (second - first) / 2**20
        print(f"growth of resident memory from 50,000 to 500,000 steps: {grown:+.1f} MB")
        print("longer windows, B=1 H=64, k1 = k2 = k: µs a step; resident MB more than with k = 8")
        least = _measure("resident_bytes", WINDOWS[0], 10_000)
        for k in WINDOWS:
            times = [side.time(Case("rnn_tanh", 1, 64, k)) for _ in range(ROUNDS)]
            more = (_measure("resident_bytes", k, 10_000) - least) / 2**20
            print(f"  k = {k:>4}: {statistics.median(times):6.2f}  {more:+.1f}", flush=True)
    finally:
        side.close()


if __name__ == "__main__":
    measures = (peak_gflops, kept_bytes, peak_bytes, resident_bytes)
    functions = {each.__name__: each for each in measures}
    print(json.dumps(functions[sys.argv[1]](*map(int, sys.argv[2:]))))
