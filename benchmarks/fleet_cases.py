"""Fleets that the core and PyTorch are timed with, and the protocol of their processes.

A process reads one case a line from standard input, as JSON, and answers with one line: the
microseconds of processor time a step and stream. Processor time, because it does not depend on what
else the machine does. It keeps the fleet of a case, so that later rounds start at once.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

SECONDS = 1.0  # one timing, at least
UPDATE_TICKS = 4  # = k1 of all cases; a timing holds whole updates
CLIP = 1.0
LEARNING_RATE = 1e-3
INPUT_SIZE = 8


@dataclass(frozen=True, slots=True)
class FleetCase:
    """A forecast of many streams by an RNN with tanh, Adam, clipped by norm."""

    streams: int
    batch: int
    """Windows in an update, at most."""
    hidden_size: int = 64
    steps: int = 1
    """Steps of each stream in a tick."""
    k1: int = UPDATE_TICKS
    k2: int = 32


def answer(build: Callable[[FleetCase], Callable[[int], None]]) -> None:
    """Time the cases from standard input until it ends.

    Args:
        build: returns, for a case, a function that learns a number of ticks.
    """
    built: dict[FleetCase, Callable[[int], None]] = {}
    for line in sys.stdin:
        case = FleetCase(**json.loads(line))
        if case not in built:
            built[case] = build(case)
            built[case](2 * case.k2)  # fills the windows
        learn, ticks, start = built[case], 0, time.process_time()
        while (seconds := time.process_time() - start) < SECONDS:
            learn(UPDATE_TICKS)
            ticks += UPDATE_TICKS
        print(1e6 * seconds / (ticks * case.steps * case.streams), flush=True)
