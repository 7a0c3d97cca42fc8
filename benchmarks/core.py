"""Microseconds a step and stream: window forward, backward, clip and SGD, one thread.

`run` compares the core's two backends. `run_rivals` compares the core with PyTorch and a jitted JAX
scan. Each runs in its own process; they take turns, so that a change of load affects all of them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.fleet_cases import FleetCase

ROUNDS = 5  # of each side, in turns; the median is taken over them
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}
RIVALS_FOLDER = Path("build/rivals")
RIVALS = ("torch==2.13.0", "jax==0.10.2", "jaxlib==0.10.2", "numpy", "grpcio", "protobuf")

SIZES = ((1, 16), (1, 32), (1, 64), (1, 128), (1, 256), (1, 512), (8, 64), (64, 128), (64, 512))
CELLS = ("rnn_tanh", "lstm", "gru")


class Side:
    """One process that times cases."""

    def __init__(self, name: str, python: str, module: str, *, pinned: bool = True) -> None:
        self.name = name
        command = [python, "-m", module]
        # Pinned to one core, because some libraries start threads regardless of the settings.
        if pinned and Path("/usr/bin/taskset").exists():
            command = ["/usr/bin/taskset", "--cpu-list", "0", *command]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ONE_THREAD,
        )

    def time(self, case: Case | FleetCase) -> float:
        """Return microseconds a step and stream."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(case)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended on {case}")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def in_turns(sides: Sequence[Side], case: Case | FleetCase) -> list[float]:
    """Time each side in turns; return the medians."""
    batches = [[side.time(case) for side in sides] for _ in range(ROUNDS)]
    return [statistics.median(times) for times in zip(*batches, strict=True)]


def run() -> None:
    """Compare the core's two backends."""
    print("core, µs a step: one stream, k1 = k2 = 32, D = O = 8, float32, one thread")
    print(f"{'H':>5} {'compiled':>10} {'reference':>10} {'ratio':>7}")
    side = Side("core", sys.executable, "benchmarks.core_process")
    try:
        for H in (16, 32, 64, 128):
            cases = [Case("rnn_tanh", 1, H, 32, backend=b) for b in ("compiled", "reference")]
            batches = [[side.time(case) for case in cases] for _ in range(ROUNDS)]
            fast, slow = (statistics.median(times) for times in zip(*batches, strict=True))
            print(f"{H:>5} {fast:>10.2f} {slow:>10.1f} {slow / fast:>6.0f}x", flush=True)
    finally:
        side.close()


def rivals_python() -> str:
    """Return the Python of the environment with PyTorch and JAX; create it the first time."""
    python, installed = RIVALS_FOLDER / "bin" / "python", RIVALS_FOLDER / "installed"
    if not installed.exists() or installed.read_text() != " ".join(RIVALS):
        print(
            f"installing {', '.join(RIVALS)} into {RIVALS_FOLDER} (large; happens once)", flush=True
        )
        venv.create(RIVALS_FOLDER, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", *RIVALS]
        subprocess.run(install, check=True)
        installed.write_text(" ".join(RIVALS))
    return str(python)


def _print_row(sides: Sequence[Side], case: Case) -> None:
    core, torch, jax = in_turns(sides, case)
    shape = f"{case.cell:<9}{case.k:>4}{case.streams:>4}{case.hidden_size:>5}"
    ratios = f"{torch / core:>6.1f}x {jax / core:>5.1f}x"
    print(f"{shape}{core:>9.2f}{torch:>9.2f}{jax:>9.2f}  {ratios}", flush=True)


def run_rivals(cells: Sequence[str] = CELLS, ks: Sequence[int] = (32, 128)) -> None:
    """Compare the core with PyTorch and JAX."""
    rivals = rivals_python()
    sides = [
        Side("core", sys.executable, "benchmarks.core_process"),
        Side("PyTorch", rivals, "benchmarks.torch_process"),
        Side("JAX", rivals, "benchmarks.jax_process"),
    ]
    print("core, PyTorch and a jitted JAX scan, µs a step and stream, one thread")
    print(f"{'cell':<9}{'k':>4}{'B':>4}{'H':>5}{'core':>9}{'PyTorch':>9}{'JAX':>9}   faster than")
    try:
        for cell in cells:
            for k in ks:
                for B, H in SIZES:
                    _print_row(sides, Case(cell, B, H, k))
        print("next token, vocabulary 256:")
        for cell in cells:
            _print_row(sides, Case(cell, 1, 256, 64, vocabulary=256))
    finally:
        for side in sides:
            side.close()
