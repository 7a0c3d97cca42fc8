"""The last minutes of every model in memory, for the page: a ring of samples for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bptt.observability.counts import Histogram, ModelMetrics
from bptt.observability.exposition import Pace
from bptt.observability.families import ModelReading
from bptt.observability.metrics import Metrics

SAMPLE_SECONDS = 2.0
SAMPLES_MAX = 450
"""A quarter of an hour. A model takes 35 KB."""
LAGS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Lags of the gradient flow that are kept."""
FIGURES = (
    "loss",
    "baseline_loss",
    "skill_ratio",
    "gradient_norm",
    "clipped_gradient_norm",
    "clipped_share",
    "steps_per_second",
    "memory_horizon_steps",
    "queue_chunks",
)
COLUMNS = ("time", *FIGURES, *(f"flow_{lag}" for lag in LAGS))

_DIGITS = 6  # of a figure in an answer


@dataclass(frozen=True, slots=True)
class _Counted:
    """The counts at one sample; figures are differences to the sample before."""

    time: float
    steps: int
    updates: int
    clipped: int
    loss: tuple[int, float]
    gradient_norm: tuple[int, float]
    clipped_gradient_norm: tuple[int, float]

    @classmethod
    def of(cls, now: float, counts: ModelMetrics) -> _Counted:
        """Read the counts."""

        def both(histogram: Histogram) -> tuple[int, float]:
            return histogram.count, histogram.sum

        return cls(
            now, counts.steps, counts.updates, counts.clipped, both(counts.loss),
            both(counts.gradient_norm), both(counts.clipped_gradient_norm),
        )  # fmt: skip


class _Ring:
    """The samples of one model."""

    def __init__(self, counted: _Counted) -> None:
        self.before = counted
        self._rows = np.full((SAMPLES_MAX, len(COLUMNS)), np.nan)
        self._count = 0

    def add(self, row: list[float]) -> None:
        """Add a sample; the oldest one goes when the ring is full."""
        self._rows[self._count % SAMPLES_MAX] = row
        self._count += 1

    def after(self, moment: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Samples later than a moment, oldest first."""
        start = self._count % SAMPLES_MAX if self._count > SAMPLES_MAX else 0
        rows = np.roll(self._rows, -start, axis=0)[: min(self._count, SAMPLES_MAX)]
        return rows[rows[:, 0] > moment]

    @property
    def steps_per_second(self) -> float:
        """Of the newest sample."""
        row = self._rows[(self._count - 1) % SAMPLES_MAX]
        return float(row[COLUMNS.index("steps_per_second")])


class History:
    """Samples of all models. Used from one thread, that of the HTTP side.

    Args:
        metrics: where the figures are read.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._rings: dict[str, _Ring] = {}

    def sample(self, now: float) -> None:
        """Add a sample of each model that is in memory.

        Args:
            now: the time, in seconds since 1970.
        """
        pace = Pace()
        readings = self._metrics.readings()
        for name in self._rings.keys() - readings.keys():
            del self._rings[name]  # the model was deleted
        for name, reading in readings.items():
            if reading.gauges is not None:
                counted = _Counted.of(now, reading.counts)
                ring = self._rings.setdefault(name, _Ring(counted))
                if counted.time > ring.before.time:
                    ring.add(_row(ring.before, counted, reading))
                    ring.before = counted
            pace.step()

    def models(self) -> list[dict[str, Any]]:
        """Every model with its state and newest figures, by name."""
        states = self._metrics.states()
        readings = self._metrics.readings()
        return [self._summary(name, states[name], readings.get(name)) for name in sorted(states)]

    def model(self, name: str, after: float) -> dict[str, Any] | None:
        """One model with its samples later than a moment, by column; None: there is no such model.

        NaN and infinity, which JSON does not have, are None.
        """
        state = self._metrics.states().get(name)
        if state is None:
            return None
        ring = self._rings.get(name)
        rows = np.empty((0, len(COLUMNS))) if ring is None else ring.after(after)
        summary = self._summary(name, state, self._metrics.readings().get(name))
        columns = {
            column: values if column == "time" else [_number(value) for value in values]
            for column, values in zip(COLUMNS, rows.T.tolist(), strict=True)
        }
        return summary | {"samples": columns, "sample_seconds": SAMPLE_SECONDS}

    def _summary(self, name: str, state: str, reading: ModelReading | None) -> dict[str, Any]:
        ring = self._rings.get(name)
        summary: dict[str, Any] = {"model": name, "state": state}
        if reading is not None:
            figures = reading.counts.figures
            summary |= {
                "steps": figures.steps,
                "loss": _number(figures.loss),
                "skill_ratio": _number(figures.skill_ratio),
                "steps_per_second": None if ring is None else _number(ring.steps_per_second),
            }
        return summary


def _row(before: _Counted, now: _Counted, reading: ModelReading) -> list[float]:
    figures, gauges = reading.counts.figures, reading.gauges
    assert gauges is not None
    flow = reading.counts.gradient_flow
    by_lag: Mapping[int, float] = {} if flow is None else flow.by_lag
    return [
        now.time,
        _mean(before.loss, now.loss),
        figures.baseline_loss,
        figures.skill_ratio,
        _mean(before.gradient_norm, now.gradient_norm),
        _mean(before.clipped_gradient_norm, now.clipped_gradient_norm),
        _share(now.clipped - before.clipped, now.updates - before.updates),
        (now.steps - before.steps) / (now.time - before.time),
        math.nan if flow is None else flow.memory_horizon,
        gauges.queue_chunks,
        *(by_lag.get(lag, math.nan) for lag in LAGS),
    ]


def _mean(before: tuple[int, float], now: tuple[int, float]) -> float:
    """Mean of the values between two samples; NaN if there were none."""
    return _share(now[1] - before[1], now[0] - before[0])


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _number(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
