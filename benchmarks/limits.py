"""The core against its own limits: the machine's matrix products, memory, and longer windows."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace

import numpy as np

from benchmarks.cases import Case, INPUT_SIZE, OUTPUT_SIZE
from benchmarks.core import ONE_THREAD, ROUNDS, Side
from bptt_core import Learner, ModelSpec

PEAK_SIZE = 2048  # rows of the matrices whose product is the peak: 34 GFLOP a second and more
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
    """Best of some float32 matrix products of one thread, in GFLOP/s."""
    a = np.random.default_rng(0).normal(size=(PEAK_SIZE, PEAK_SIZE)).astype(np.float32)
    best = 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * PEAK_SIZE**3 / (time.perf_counter() - start) / 1e9)
    return best


def allocated_bytes(steps: int) -> float:
    """Bytes that a warm learner of one stream takes and does not give back, a step."""
    learner = Learner(SPEC)
    random = np.random.default_rng(0)
    x = random.normal(size=(320, 1, INPUT_SIZE)).astype(np.float32)
    learner.feed(x, x, predictions=False)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(steps // len(x)):
        learner.feed(x, x, predictions=False)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / steps


def resident_bytes(k: int, steps: int) -> int:
    """Most memory resident in a process that feeds so many steps with windows of k."""
    learner = Learner(replace(SPEC, k1=min(k, 32), k2=k))
    x = np.random.default_rng(0).normal(size=(256, 1, INPUT_SIZE)).astype(np.float32)
    for _ in range(steps // len(x)):
        learner.feed(x, x, predictions=False)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _measure(what: str, *arguments: int) -> float:
    """One of the figures above, from a process of its own with one thread."""
    command = [sys.executable, "-m", "benchmarks.limits", what, *map(str, arguments)]
    environment = os.environ | ONE_THREAD
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(output.stdout))


def run() -> None:
    """Print them."""
    side = Side("core", sys.executable, "benchmarks.core_process")
    try:
        batch = Case("rnn_tanh", 64, 512, 32)
        rounds = [(_measure("peak_gflops"), side.time(batch)) for _ in range(ROUNDS)]
        peak, step = (statistics.median(column) for column in zip(*rounds, strict=True))
        reached = FLOP_A_WEIGHT * 512 * 512 / step / 1e3
        print(f"share of one thread's matrix-product peak, B=64 H=512 k=32: {reached / peak:.0%}")
        print(f"  ({reached:.0f} of {peak:.0f} GFLOP/s)")
        print(f"bytes kept a step by a warm learner: {_measure('allocated_bytes', 320_000):.4f}")
        first, second = (_measure("resident_bytes", 32, steps) for steps in (50_000, 500_000))
        grown = (second - first) / 2**20
        print(f"resident memory after 500,000 steps, over that after 50,000: {grown:+.1f} MB")
        print("longer windows, B=1 H=64, k1 = k2 = k: µs a step; resident MB over that of k = 8")
        least = _measure("resident_bytes", WINDOWS[0], 10_000)
        for k in WINDOWS:
            times = [side.time(Case("rnn_tanh", 1, 64, k)) for _ in range(ROUNDS)]
            more = (_measure("resident_bytes", k, 10_000) - least) / 2**20
            print(f"  k = {k:>4}: {statistics.median(times):6.2f}  {more:+.1f}", flush=True)
    finally:
        side.close()


if __name__ == "__main__":
    functions = {each.__name__: each for each in (peak_gflops, allocated_bytes, resident_bytes)}
    print(json.dumps(functions[sys.argv[1]](*map(int, sys.argv[2:]))))
