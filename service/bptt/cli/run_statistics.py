"""Collects the statistics of a run of `learn` or `demo` and summarises them."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.cli.console import number
from bptt.cli.prequential import (
    Anomalies,
    ClassificationEvaluator,
    DelayedLabelEvaluator,
    Errors,
    Evaluator,
    ForecastEvaluator,
    Predictions,
    RegressionEvaluator,
    TokenEvaluator,
)
from bptt.client import Learned, Model, UpdateReport

NORMS_MAX = 100_000  # gradient norms kept for the median: the last 400,000 steps with k1 = 4

Band = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Low and high offsets to add to a prediction, (horizon, targets) each."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run."""

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
    """Forecast of more than one step: the same two at the end of the horizon."""
    accuracy: float | None
    """Classification: share of known classes that were predicted as the likeliest."""
    band: Band | None = None
    """Forecast and regression: the error band of the last answer that had one."""
    anomalies: Anomalies | None = None
    """Forecast: the steps with very low anomaly scores."""
    model_state: str = "unspecified"
    """The model's state in the last answer."""

    @property
    def steps_per_second(self) -> float:
        """Steps answered in a second."""
        return self.steps / self.seconds if self.seconds else float("nan")

    @property
    def clipped_share(self) -> float:
        """Share of updates whose gradient was clipped; NaN before the first update."""
        return self.clipped_updates / self.updates if self.updates else float("nan")

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
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


def make_evaluators(model: Model) -> list[Evaluator]:
    """Return the evaluators of a model: for a forecast, one step ahead and at its horizon."""
    if model.task == "next_token":
        return [TokenEvaluator(model.targets)]
    if model.task == "forecast":
        columns = list(model.spec["target_columns"]) or list(range(model.spec["input_size"]))
        return [ForecastEvaluator(columns, ahead) for ahead in sorted({1, model.horizon})]
    is_regression = model.task == "regression"
    evaluator = (RegressionEvaluator if is_regression else ClassificationEvaluator)(model.targets)
    delay = model.spec.get("label_delay", 0)
    return [DelayedLabelEvaluator(evaluator, delay) if delay else evaluator]


def _errors_to_json(errors: Errors) -> dict[str, Any]:
    return {
        "steps": errors.steps,
        "error": errors.error,
        "naive_error": errors.naive_error,
        "error_ratio": errors.ratio,
    }


class RunStatistics:
    """Collects the figures of a run; `summary` may be called at any time."""

    def __init__(self, model: Model) -> None:
        """Start the clock.

        Args:
            model: the model that learns.
        """
        self._evaluators = make_evaluators(model)
        self._band: Band | None = None
        self._anomalies = Anomalies() if model.task == "forecast" else None
        self._model_state = "unspecified"
        self.naive = self._evaluators[0].naive
        self.steps = 0
        self._updates = self._clipped = self._skipped = 0
        self._loss = self._norm = float("nan")
        self._norms: deque[float] = deque(maxlen=NORMS_MAX)
        self._started = time.perf_counter()

    def add_answer(self, answer: Learned) -> None:
        """Add what one answer reports: steps, updates, error band and anomaly scores."""
        self.steps += answer.next_step - answer.first_step
        self._model_state = answer.model_state
        if self._anomalies is not None:
            self._anomalies.add(answer.first_step, answer.anomaly_scores)
        if len(answer.error_low):
            self._band = answer.error_low, answer.error_high
        self.add_updates(answer.updates)

    def add_updates(self, updates: Sequence[UpdateReport]) -> None:
        """Add the reports of updates."""
        for update in updates:
            self._updates += 1
            self._clipped += update.clipped
            self._skipped += update.skipped
            self._loss = update.loss
            self._norm = update.gradient_norm
            self._norms.append(update.gradient_norm)

    def add_predictions(
        self,
        inputs: NDArray[np.floating[Any]],
        targets: NDArray[np.floating[Any]],
        predictions: Predictions,
        *,
        begins: bool = False,
    ) -> None:
        """Evaluate learned steps.

        Args:
            inputs: (T, inputs).
            targets: (T, targets).
            predictions: made before each step was learned; see the task's evaluator.
            begins: the first of these steps begins a new sequence.
        """
        if begins:
            self.begin_sequence()
        for evaluator in self._evaluators:
            evaluator.update(inputs, targets, predictions)

    def begin_sequence(self) -> None:
        """Discard pending predictions: the next steps do not continue the earlier ones."""
        for evaluator in self._evaluators:
            evaluator.begin_sequence()

    def _accuracy(self) -> float | None:
        evaluator = self._evaluators[0]
        if isinstance(evaluator, DelayedLabelEvaluator):
            evaluator = evaluator.evaluator
        return evaluator.accuracy if isinstance(evaluator, ClassificationEvaluator) else None

    def summary(self) -> Summary:
        """Return the figures of the run so far."""
        first, last = self._evaluators[0].sums, self._evaluators[-1].sums
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

    def figures(self) -> list[str]:
        """Return the figures of the run so far, each as a few words; the error is the first."""
        errors = self._evaluators[0].sums.errors()
        return [
            f"relative error {number(errors.ratio)}",
            f"loss {number(self._loss)}",
            f"gradient {number(self._norm)}",
        ]
