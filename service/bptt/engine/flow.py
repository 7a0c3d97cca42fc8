"""Measures the gradient flow of a model at intervals.

A measurement is postponed until its cost is at most COST_SHARE_MAX of the learning time since the
last one. Its cost grows with the window and the network, not with the rate of updates.
"""

from __future__ import annotations

import logging
import time

from bptt.engine.messages import Outcome
from bptt_core import gradient_flow, GradientFlow, Learner

log = logging.getLogger(__name__)

COST_SHARE_MAX = 0.005

LOOKS_MAX = 2  # times k2: if k1, k2 and the chunk's length are equal, a run leaves no window


class FlowWatch:
    """Measures the gradient flow of one model. `is_due` is cheap; call `look` in a thread."""

    def __init__(self, every_updates: int) -> None:
        """Set the number of updates between two measurements; 0: never."""
        self._every = every_updates
        self._next_update = 1
        self._updates = 0
        self._learned_seconds = 0.0  # since the last measurement
        self._cost_seconds = 0.0  # of the last measurement
        self._looks = 0  # attempts since the longest window was seen
        self._longest = 1  # steps of the longest window since a measurement became due
        self._latest: GradientFlow | None = None

    def is_due(self, outcome: Outcome) -> bool:
        """True if a measurement is due after this published run."""
        if not self._every or outcome.report is None or not outcome.answers:
            return False
        self._updates = outcome.report.figures.updates
        self._learned_seconds += outcome.seconds
        return (
            self._updates >= self._next_update
            and self._learned_seconds * COST_SHARE_MAX >= self._cost_seconds
        )

    def look(self, learner: Learner, outcome: Outcome) -> GradientFlow | None:
        """Measure a stream of the run; return the last measurement if its window is too short.

        Numerical problems raise nothing: a value that cannot be measured is None.
        """
        stream_id = next(iter(outcome.touched), None)
        if stream_id is None or stream_id in outcome.gone:
            return self._latest
        start = time.perf_counter()
        features, state = learner.window(stream_id)
        if not self._is_long_enough(len(features), learner.spec.k1, learner.spec.k2):
            if self._looks > LOOKS_MAX * learner.spec.k2:
                self._wait()
            return self._latest
        rows = slice(0, learner.spec.k2)  # more rows are steps whose targets are still unknown
        try:
            self._latest = gradient_flow(
                learner.spec, learner.parameters(), features[rows], state, seed=learner.spec.seed
            )
        except Exception as error:  # noqa: BLE001 - usually the model has diverged
            log.warning("gradient flow not measured: %s", error)
            self._latest = None
        self._cost_seconds = time.perf_counter() - start
        self._wait()
        return self._latest

    def _wait(self) -> None:
        """Start the next interval."""
        self._next_update = self._updates + self._every
        self._learned_seconds = 0.0
        self._looks, self._longest = 0, 1

    def _is_long_enough(self, steps: int, k1: int, k2: int) -> bool:
        """True if the window is full, or no longer one is expected.

        A window grows to k2 steps, and an update cuts it to k2 - k1. Its length after a run depends
        on the chunks' lengths and repeats within k1 runs; the longest one seen by then is the
        longest possible. Sequences shorter than a window get k2 runs.
        """
        if steps > self._longest:
            self._longest, self._looks = steps, 0
        self._looks += 1
        patience = k1 if self._longest >= k2 - k1 else k2
        return steps >= k2 or (self._looks > patience and steps == self._longest)
