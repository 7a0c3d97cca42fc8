"""What has been counted: plain numbers that the event loop adds to and a scrape reads.

Adding costs little (0.3 µs a value of a histogram, measured). Text is made only at a scrape.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate

from bptt.domain import Gauges, RunReport
from bptt_core import Figures, GradientFlow

LOSS_BOUNDS = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0)
NORM_BOUNDS = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, 1e6)
SECONDS_BOUNDS = (
    *(2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
CALL_BOUNDS = (*SECONDS_BOUNDS, 60.0, 600.0, 3600.0)  # a Learn call may be open for hours
STREAMS_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)

SKIP_REASONS = ("not_finite",)
REFUSAL_REASONS = ("invalid", "wrong_size", "not_finite", "targets", "empty", "gap", "too_long")
"""The usual reasons. They have a series from the start, so that the first refusal is an increase;
others get one when they occur."""
FAILURE_REASONS = ("recovery", "learning", "journaling", "rolling_back")


class Histogram:
    """Counts between bounds.

    Attributes:
        bounds: upper bounds, ascending; the last interval has none.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value, `count` times over."""
        if math.isfinite(value):
            self._counts[bisect_left(self.bounds, value)] += count
            self._sum += value * count
        else:  # above the last bound, and not in the sum
            self._counts[-1] += count

    def read(self) -> tuple[list[int], float]:
        """Cumulative counts by upper bound, the last one of all values, and the sum."""
        return list(accumulate(self._counts)), self._sum

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self._counts)

    @property
    def sum(self) -> float:
        """Sum of the finite values."""
        return self._sum


class ModelMetrics:
    """The counts and figures that one model has reported; a `ModelSink`."""

    def __init__(self, figures: Figures, gauges: Callable[[], Gauges]) -> None:
        self.goes_on(figures, gauges)
        self.steps = self.updates = self.clipped = self.duplicates = self.roll_backs = 0
        self.skipped = dict.fromkeys(SKIP_REASONS, 0)
        self.rejected = dict.fromkeys(REFUSAL_REASONS, 0)
        self.loss = Histogram(LOSS_BOUNDS)
        self.gradient_norm = Histogram(NORM_BOUNDS)
        self.clipped_gradient_norm = Histogram(NORM_BOUNDS)
        self.tick_streams = Histogram(STREAMS_BOUNDS)
        self.update_seconds = Histogram(SECONDS_BOUNDS)
        self.predict_seconds = Histogram(SECONDS_BOUNDS)
        self.checkpoint_seconds = Histogram(SECONDS_BOUNDS)
        self.journal_commit_seconds = Histogram(SECONDS_BOUNDS)
        self.recovery_seconds = 0.0

    def goes_on(self, figures: Figures, gauges: Callable[[], Gauges]) -> None:
        """The model is in memory, for the first time or again."""
        self.figures = figures
        self.gauges: Callable[[], Gauges] | None = gauges
        self.gradient_flow: GradientFlow | None = None

    def rests(self) -> None:
        """The model has left memory. Drops its gauges, which would keep the model alive."""
        self.gauges = self.gradient_flow = None

    def run(self, report: RunReport) -> None:
        """See `ModelSink`."""
        self.figures = report.figures
        for tick in report.ticks:
            self.steps += tick.steps
            self.tick_streams.observe(tick.streams)
            if tick.updates:
                count = len(tick.updates)
                self.update_seconds.observe(tick.seconds / count, count)
                self.updates += count
            for each in tick.updates:
                self.loss.observe(each.loss)
                self.gradient_norm.observe(each.gradient_norm)
                self.clipped_gradient_norm.observe(each.clipped_gradient_norm)
                self.clipped += each.clipped
                self.skipped["not_finite"] += each.skipped

    def flow(self, flow: GradientFlow | None) -> None:
        """See `ModelSink`."""
        self.gradient_flow = flow

    def refused(self, reason: str) -> None:
        """See `ModelSink`."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def duplicate(self, steps: int) -> None:
        """See `ModelSink`."""
        self.duplicates += steps

    def predicted(self, seconds: float) -> None:
        """See `ModelSink`."""
        self.predict_seconds.observe(seconds)

    def saved(self, seconds: float) -> None:
        """See `ModelSink`."""
        self.checkpoint_seconds.observe(seconds)

    def committed(self, seconds: float) -> None:
        """See `ModelSink`."""
        self.journal_commit_seconds.observe(seconds)

    def rolled_back(self) -> None:
        """See `ModelSink`."""
        self.roll_backs += 1

    def recovered(self, seconds: float) -> None:
        """See `ModelSink`."""
        self.recovery_seconds = seconds


class MethodMetrics:
    """The calls of one RPC method; a `MethodSink`."""

    def __init__(self) -> None:
        self.counts = {"started": 0, "received": 0, "sent": 0}
        self.codes: dict[str, int] = {"OK": 0}
        self.seconds = Histogram(CALL_BOUNDS)

    def started(self) -> None:
        """See `MethodSink`."""
        self.counts["started"] += 1

    def received(self) -> None:
        """See `MethodSink`."""
        self.counts["received"] += 1

    def sent(self) -> None:
        """See `MethodSink`."""
        self.counts["sent"] += 1

    def handled(self, code: str, seconds: float) -> None:
        """See `MethodSink`."""
        self.codes[code] = self.codes.get(code, 0) + 1
        self.seconds.observe(seconds)
