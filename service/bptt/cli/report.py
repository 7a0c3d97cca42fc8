"""What a run of `learn` or `demo` has to say: gathered as answers come, shown as it goes."""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bptt.cli.console import number, print_json
from bptt.cli.score import (
    Anomalies,
    ClassScore,
    Errors,
    ForecastScore,
    LateScore,
    Predictions,
    RegressionScore,
    Score,
    TokenScore,
)
from bptt.client import Learned, Model

NORMS_MAX = 100_000  # gradient norms kept for the median: the last 400,000 steps with k1 = 4
JSON_SECONDS = 1.0  # between two lines of progress

Band = tuple[NDArray[np.float32], NDArray[np.float32]]
"""What to add to a prediction for the low and the high end, (horizon, targets) each."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures."""

    steps: int
    seconds: float
    updates: int
    clipped_updates: int
    skipped_updates: int
    loss: float
    gradient_norm: float
    median_gradient_norm: float
    whole: Errors
    second_half: Errors
    farthest: tuple[Errors, Errors] | None
    """The same two at the end of a forecast's horizon, if that is more than one step ahead."""
    accuracy: float | None
    """Classification: share of known classes that were the likeliest."""
    band: Band | None = None
    """Forecast and regression: the error band, as last told."""
    anomalies: Anomalies | None = None
    """Forecast: the steps that were least expected."""
    model_state: str = "unspecified"
    """As the last answer told."""

    @property
    def steps_per_second(self) -> float:
        """Learned and acknowledged."""
        return self.steps / self.seconds if self.seconds else float("nan")

    @property
    def clipped_share(self) -> float:
        """Of the updates; NaN before the first."""
        return self.clipped_updates / self.updates if self.updates else float("nan")

    def to_json(self) -> dict[str, Any]:
        """The same, for machines."""
        facts: dict[str, Any] = {
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": self.steps_per_second,
            "updates": self.updates,
            "clipped_updates": self.clipped_updates,
            "skipped_updates": self.skipped_updates,
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "median_gradient_norm": self.median_gradient_norm,
            "whole": _errors_to_json(self.whole),
            "second_half": _errors_to_json(self.second_half),
        }
        if self.farthest is not None:
            names = ("farthest_whole", "farthest_second_half")
            facts |= {
                name: _errors_to_json(errors)
                for name, errors in zip(names, self.farthest, strict=True)
            }
        if self.accuracy is not None:
            facts["accuracy"] = self.accuracy
        if self.band is not None:
            facts |= {"error_low": self.band[0], "error_high": self.band[1]}
        if self.anomalies is not None:
            facts["anomalies"] = self.anomalies.steps
            facts["lowest_anomaly_scores"] = [
                {"step": step, "score": score} for score, step in self.anomalies.lowest
            ]
        return facts | {"model_state": self.model_state}


def scores(model: Model) -> list[Score]:
    """What tells how well a model does: of a forecast one step ahead and at its horizon."""
    if model.task == "next_token":
        return [TokenScore(model.targets)]
    if model.task == "forecast":
        columns = list(model.spec["target_columns"]) or list(range(model.spec["input_size"]))
        return [ForecastScore(columns, ahead) for ahead in sorted({1, model.horizon})]
    score = (RegressionScore if model.task == "regression" else ClassScore)(model.targets)
    delay = model.spec.get("label_delay", 0)
    return [LateScore(score, delay) if delay else score]


def _errors_to_json(errors: Errors) -> dict[str, Any]:
    return {
        "steps": errors.steps,
        "error": errors.error,
        "naive_error": errors.naive_error,
        "error_ratio": errors.ratio,
    }


class Report:
    """Gathers answers; `summary` at any time."""

    def __init__(self, model: Model) -> None:
        """Nothing was learned yet; the clock starts."""
        self._scores = scores(model)
        self._band: Band | None = None
        self._anomalies = Anomalies() if model.task == "forecast" else None
        self._model_state = "unspecified"
        self.naive = self._scores[0].naive
        self.steps = 0
        self._updates = self._clipped = self._skipped = 0
        self._loss = self._norm = float("nan")
        self._norms: deque[float] = deque(maxlen=NORMS_MAX)
        self._started = time.perf_counter()

    def add(self, answer: Learned) -> None:
        """Count what one answer reports."""
        self.steps += answer.next_step - answer.first_step
        self._model_state = answer.model_state
        if self._anomalies is not None:
            self._anomalies.add(answer.first_step, answer.anomaly_scores)
        if len(answer.error_low):
            self._band = answer.error_low, answer.error_high
        for update in answer.updates:
            self._updates += 1
            self._clipped += update.clipped
            self._skipped += update.skipped
            self._loss = update.loss
            self._norm = update.gradient_norm
            self._norms.append(update.gradient_norm)

    def learned(
        self,
        inputs: NDArray[np.float32],
        targets: NDArray[np.float32],
        predictions: Predictions,
        *,
        begins: bool = False,
    ) -> None:
        """Score steps that were learned; see `Score`. `begins`: a new sequence does with them."""
        if begins:
            self.begin()
        for score in self._scores:
            score.learned(inputs, targets, predictions)

    def begin(self) -> None:
        """Steps that come do not follow those before: predictions that wait are not scored."""
        for score in self._scores:
            score.begin()

    def _accuracy(self) -> float | None:
        score = self._scores[0]
        inner = score.score if isinstance(score, LateScore) else score
        return inner.accuracy if isinstance(inner, ClassScore) else None

    def summary(self) -> Summary:
        """The run so far."""
        first, last = self._scores[0].blocks, self._scores[-1].blocks
        return Summary(
            steps=self.steps,
            seconds=time.perf_counter() - self._started,
            updates=self._updates,
            clipped_updates=self._clipped,
            skipped_updates=self._skipped,
            loss=self._loss,
            gradient_norm=self._norm,
            median_gradient_norm=statistics.median(self._norms) if self._norms else float("nan"),
            whole=first.errors(),
            second_half=first.errors(second_half=True),
            farthest=None if last is first else (last.errors(), last.errors(second_half=True)),
            accuracy=self._accuracy(),
            band=self._band,
            anomalies=self._anomalies,
            model_state=self._model_state,
        )

    def line(self) -> str:
        """The run so far, in a few words."""
        errors = self._scores[0].blocks.errors()
        return (
            f"{self.steps:,} steps · error ×{number(errors.ratio)} "
            f"· loss {number(self._loss)} · gradient {number(self._norm)}"
        )


class Display:
    """Shows a report as it grows: a bar in a terminal, lines of JSON, or nothing."""

    def __init__(self, console: Console, *, total: int | None, as_json: bool) -> None:
        """Show nothing yet.

        Args:
            console: where the bar goes; one that is no terminal gets none.
            total: what `update` counts up to; None if nobody knows.
            as_json: write lines of JSON on standard output instead.
        """
        self._as_json = as_json
        self._said = time.perf_counter()
        self._last: tuple[Report, int] | None = None
        bar = (
            BarColumn(bar_width=12, complete_style="cyan", finished_style="green")
            if total
            else SpinnerColumn("line")
        )
        self._progress = Progress(
            bar,
            TextColumn("{task.fields[line]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal or as_json,
        )
        self._task = self._progress.add_task("learning", total=total, line="")

    def __enter__(self) -> Display:
        """Begin."""
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the bar as it stands at the end."""
        if self._last is not None:
            report, done = self._last
            self._progress.update(self._task, completed=done, line=report.line())
        self._progress.stop()

    def update(self, report: Report, done: int) -> None:
        """Show the report; `done` of the total."""
        self._last = report, done
        now = time.perf_counter()
        interval = JSON_SECONDS if self._as_json else 0.1
        if now - self._said < interval:
            return
        self._said = now
        if self._as_json:
            print_json({"event": "progress", **_progress_to_json(report.summary())})
        else:
            self._progress.update(self._task, completed=done, line=report.line())


def _progress_to_json(summary: Summary) -> dict[str, Any]:
    return {
        "steps": summary.steps,
        "updates": summary.updates,
        "loss": summary.loss,
        "gradient_norm": summary.gradient_norm,
        "error": summary.whole.error,
        "error_ratio": summary.whole.ratio,
    }
