"""When the gradient flow of a model is measured, and the measurement.

A measurement is put off until it costs at most COST_SHARE_MAX of the time spent learning since the
last one: its cost grows with the window and the network, but not at the rate of updates.
"""

from __future__ import annotations

import logging
import time

from bptt.engine.messages import Outcome
from bptt_core import gradient_flow, GradientFlow, Learner

log = logging.getLogger(__name__)

COST_SHARE_MAX = 0.005

LOOKS_MAX = 2  # times k2: with k1 = k2 and chunks of as many steps, a run leaves no window at all


class FlowWatch:
    """Watches one model. `is_due` costs nothing; `look` is for a trainer's thread."""

    def __init__(self, every_updates: int) -> None:
        """Look every so many updates; 0: never."""
        self._every = every_updates
        self._next_update = 1
        self._updates = 0
        self._learned_seconds = 0.0  # since the last look
        self._cost_seconds = 0.0  # of the last look
        self._looks = 0  # since it was due and a window was longer than all before
        self._longest = 1  # window since it was due
        self._latest: GradientFlow | None = None

    def is_due(self, outcome: Outcome) -> bool:
        """Whether to look now, after a run that is published."""
        if not self._every or outcome.report is None or not outcome.answers:
            return False
        self._updates = outcome.report.figures.updates
        self._learned_seconds += outcome.seconds
        return (
            self._updates >= self._next_update
            and self._learned_seconds * COST_SHARE_MAX >= self._cost_seconds
        )

    def look(self, learner: Learner, outcome: Outcome) -> GradientFlow | None:
        """The newest there is: of a stream of the run, if its window is long enough, or the last.

        Numerical problems raise nothing: a value that cannot be measured is None.
        """
        stream_id = outcome.answers[0][0].stream_id
        if outcome.views.get(stream_id) is None:  # refused, or deleted
            return self._latest
        start = time.perf_counter()
        features, state = learner.window(stream_id)
        if not self._is_long_enough(len(features), learner.spec.k1, learner.spec.k2):
            if self._looks > LOOKS_MAX * learner.spec.k2:
                self._wait()
            return self._latest
        rows = slice(0, learner.spec.k2)  # it may hold more, whose targets are still to come
        try:
            self._latest = gradient_flow(
                learner.spec, learner.parameters(), features[rows], state, seed=learner.spec.seed
            )
        except Exception as error:  # noqa: BLE001 - a model that diverged, most likely; it goes on
            log.warning("gradient flow not measured: %s", error)
            self._latest = None
        self._cost_seconds = time.perf_counter() - start
        self._wait()
        return self._latest

    def _wait(self) -> None:
        """Until it is due again."""
        self._next_update = self._updates + self._every
        self._learned_seconds = 0.0
        self._looks, self._longest = 0, 1

    def _is_long_enough(self, steps: int, k1: int, k2: int) -> bool:
        """A window grows to k2 steps and is cut to k2 - k1 by an update. Wait for a long one.

        What a run leaves depends on how the sequence comes. It repeats within k1 runs; then the
        longest that was seen is the longest there will be. Sequences that are shorter than a window
        get k2 runs.
        """
        if steps > self._longest:
            self._longest, self._looks = steps, 0
        self._looks += 1
        patience = k1 if self._longest >= k2 - k1 else k2
        return steps >= k2 or (self._looks > patience and steps == self._longest)
