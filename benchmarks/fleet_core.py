"""The core's side of the comparison of fleets: `python -m benchmarks.fleet_core`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.fleet_cases import answer, CLIP, FleetCase, INPUT_SIZE, LEARNING_RATE
from bptt_core import Batch, Learner, ModelSpec

DISTINCT_TICKS = 64


def spec_of(case: FleetCase) -> dict[str, Any]:
    """Return the fields of a case's model."""
    return {
        "input_size": INPUT_SIZE,
        "hidden_size": case.hidden_size,
        "k1": case.k1,
        "k2": case.k2,
        "optimizer": "adam",
        "learning_rate": LEARNING_RATE,
        "clip": "norm",
        "clip_threshold": CLIP,
        "max_batch_streams": case.batch,
    }


class Fleet:
    """A learner and its streams.

    Attributes:
        kernel_seconds: processor time in the compiled kernels.
        seconds: processor time in `Learner.apply`.
    """

    def __init__(self, case: FleetCase) -> None:
        self._case = case
        self._learner = Learner(ModelSpec(**spec_of(case)))
        self._names = tuple(f"sensor-{place}" for place in range(case.streams))
        self._lengths = np.full(case.streams, case.steps)
        self._values = fleet_walk(case)
        self._tick = 0
        self.kernel_seconds = self.seconds = 0.0
        run = self._learner._backend.run

        def timed(*arguments: object) -> object:
            start = time.process_time()
            done = run(*arguments)  # type: ignore[arg-type]
            self.kernel_seconds += time.process_time() - start
            return done

        self._learner._backend.run = timed  # type: ignore[method-assign, assignment]

    def learn(self, ticks: int) -> None:
        """Learn a number of ticks, with predictions."""
        case = self._case
        for _ in range(ticks):
            first_steps = np.full(case.streams, self._tick * case.steps)
            values = self._values[self._tick % len(self._values)]
            batch = Batch(self._names, first_steps, self._lengths, values)
            start = time.process_time()
            self._learner.apply(batch)
            self.seconds += time.process_time() - start
            self._tick += 1


def fleet_walk(case: FleetCase) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Return the values of some ticks: (streams steps, D), stream after stream."""
    ticks = max(4, min(DISTINCT_TICKS, 100_000 // (case.streams * case.steps)))
    generator = np.random.default_rng(case.streams)
    shape = (case.streams, ticks * case.steps, INPUT_SIZE)
    walk = generator.standard_normal(shape).cumsum(axis=1).astype(np.float32)
    return [
        np.ascontiguousarray(part).reshape(-1, INPUT_SIZE) for part in np.split(walk, ticks, axis=1)
    ]


def build(case: FleetCase) -> Callable[[int], None]:
    """Create a fleet and a function that learns its ticks."""
    return Fleet(case).learn


if __name__ == "__main__":
    answer(build)
