"""Cases in which the core, PyTorch and JAX are timed, and the protocol of their processes.

A process reads one case a line from standard input, as JSON, and answers with one number a line:
microseconds a step and stream. It keeps the model of a case, so that the next round of the same
case starts at once.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

INPUT_SIZE = OUTPUT_SIZE = 8
SECONDS = 0.25  # one timing: long compared with the clock, short compared with changes of load
CLIP = 1.0
LEARNING_RATE = 1e-3


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table: truncated BPTT(k, k) of one layer."""

    cell: str
    """rnn_tanh, lstm or gru"""
    streams: int
    hidden_size: int
    k: int
    vocabulary: int = 0
    """0: INPUT_SIZE inputs and OUTPUT_SIZE targets. Otherwise: number of token ids."""
    backend: str = "compiled"
    """Backend of the core."""


def answer(build: Callable[[Case], Callable[[int], None]]) -> None:
    """Time the cases from standard input until it ends.

    Args:
        build: returns, for a case, a function that learns a number of windows.
    """
    built: dict[Case, Callable[[int], None]] = {}
    for line in sys.stdin:
        case = Case(**json.loads(line))
        if case not in built:
            built[case] = build(case)
            built[case](2)  # compile
        learn = built[case]
        start = time.perf_counter()
        learn(2)
        windows = max(2, int(SECONDS / ((time.perf_counter() - start) / 2)))
        start = time.perf_counter()
        learn(windows)
        seconds = time.perf_counter() - start
        print(1e6 * seconds / (windows * case.k * case.streams), flush=True)
