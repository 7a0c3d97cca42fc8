"""What `bptt predict` was answered, as a table, as rows of a file, as a chart and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bptt.cli.answers.ahead import Ahead, iterated_note
from bptt.cli.answers.chart import Chart, Point
from bptt.cli.answers.clock import Clock
from bptt.cli.answers.digits import band_texts
from bptt.cli.answers.files import Column, Row
from bptt.cli.answers.learned_file import Recent
from bptt.cli.answers.rows import COLUMNS, ends, known, short
from bptt.cli.data.textfile import VOCABULARY
from bptt.cli.names import target_names
from bptt.cli.plan import class_names
from bptt.cli.tables import ResultTable
from bptt.client import Model, Prediction

METHOD = Column("method", str)
"""`direct`, or `iterated`: forecast from the model's own forecasts."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """The answer to a request for predictions."""

    model: Model
    stream: str
    answer: Prediction
    """The server's first answer."""
    ahead: Ahead
    inputs: int
    """Steps that were given to be read first."""
    has_steps: bool
    """The number of steps was asked for."""
    recent: Recent | None
    """Of the file that the stream learned."""
    clock: Clock | None
    """Times of the steps after the stream's last one; None: they are not known."""

    @property
    def is_text(self) -> bool:
        """The model predicts bytes of a text."""
        return self.model.spec.get("vocabulary_size") == VOCABULARY

    def time(self, step: int) -> str:
        """Return the time of a step that is yet to come; empty if it is not known."""
        return "" if self.clock is None else self.clock.time_of(step)

    def steps(self) -> range:
        """Numbers of the steps that are predicted."""
        first = self.ahead.first_step
        return range(first, first + len(self.ahead.values))


# ---------------------------------------------------------------------- for people


def table(found: Predicted) -> ResultTable:
    """Return the table that the terminal shows."""
    if found.model.task == "next_token":
        return _continued(found) if found.has_steps else _likeliest(found)
    names = target_names(found.model)
    shown = ResultTable().numbers("step")
    times = [found.time(step) for step in found.steps()]
    if any(times):
        shown.text("time")
    shown.numbers(*names, folds=True)
    ahead = found.ahead
    columns = [
        band_texts(ahead.values[:, place], ahead.low[:, place], ahead.high[:, place])
        for place in range(len(names))
    ]
    for place, step in enumerate(found.steps()):
        cells = [column[place] for column in columns]
        shown.row(f"{step:,}", *([times[place]] if any(times) else []), *cells)
    return shown


def _likeliest(found: Predicted) -> ResultTable:
    """The likeliest tokens after everything that was read."""
    shown = ResultTable().numbers("next byte" if found.is_text else "next token", "probability")
    answer = found.answer
    last = zip(answer.top_tokens[-1], answer.top_probabilities[-1], strict=True)
    for token, probability in last:
        shown.row(_token(found, int(token)), f"{probability:.1%}")
    return shown


def _continued(found: Predicted) -> ResultTable:
    shown = ResultTable().numbers("step", "byte" if found.is_text else "token", "probability")
    for step, (token, probability) in zip(found.steps(), found.ahead.values, strict=True):
        shown.row(f"{step:,}", _token(found, int(token)), f"{probability:.1%}")
    return shown


def _token(found: Predicted, token: int) -> str:
    return repr(bytes([token]))[1:] if found.is_text else str(token)


def notes(found: Predicted, *, is_table: bool) -> list[str]:
    """Return what is to be said about the answer; `is_table`: below the terminal's table."""
    said = []
    if found.inputs and found.model.task == "forecast":
        said.append(f"forecast after reading {found.inputs} more steps")
    if is_table and np.isfinite(found.ahead.low).any():
        said.append("in brackets: the band that held 90 % of recent targets")
    note = iterated_note(found.model, found.ahead)
    if note is not None:
        said.append(note)
    if found.is_text and found.has_steps:
        text = bytes(found.ahead.values[:, 0].astype(int).tolist())
        said.append(f"text: {text.decode('utf-8', 'backslashreplace')!r}")
    return said


# ---------------------------------------------------------------------- for programs


def document(found: Predicted) -> dict[str, Any]:
    """Return the JSON document."""
    answer, ahead, task = found.answer, found.ahead, found.model.task
    said: dict[str, Any] = {
        "model": found.model.model_id,
        "stream": found.stream,
        "next_step": answer.next_step,
        "update": answer.update,
    }
    if task == "next_token":
        said |= {"top_tokens": answer.top_tokens, "top_probabilities": answer.top_probabilities}
        if found.has_steps:
            said["tokens"] = ahead.values[:, 0].astype(int)
            said["probabilities"] = ahead.values[:, 1]
    else:
        said["targets"] = target_names(found.model)
        said["predictions"] = ahead.values[np.newaxis] if found.has_steps else answer.values
    known_steps = len(ahead.values) if found.has_steps else len(answer.error_low)
    if len(answer.error_low):
        said["error_low"] = answer.error_low[:known_steps]
        said["error_high"] = answer.error_high[:known_steps]
    if found.has_steps:
        said["direct_steps"] = min(ahead.direct, len(ahead.values))
    times = [found.time(step) for step in found.steps()]
    if any(times):
        said["times"] = times
    return said


def columns(model: Model) -> tuple[Column, ...]:
    """Return the columns of the file that is written."""
    has_method = model.task in ("forecast", "next_token")
    return (*COLUMNS[model.task], METHOD) if has_method else COLUMNS[model.task]


def rows(found: Predicted) -> Iterator[Row]:
    """Yield the rows of the file: those of `bptt learn --predictions`, without values."""
    ahead, task = found.ahead, found.model.task
    names = target_names(found.model) if task in ("forecast", "regression") else []
    values = short(ahead.values)
    low, high = ends(ahead.values, ahead.low), ends(ahead.values, ahead.high)
    for place, step in enumerate(found.steps()):
        at = (found.stream, step, found.time(step))
        method = "direct" if place < ahead.direct else "iterated"
        if task == "next_token":
            token, probability = ahead.values[place]
            yield (*at, None, int(token), float(probability), method)
        elif task == "classification":
            likeliest = int(values[place].argmax())
            yield (*at, None, class_names(found.model)[likeliest], values[place, likeliest].item())
        for target, name in enumerate(names):
            cells = (values, low, high)
            answer = [known(float(each[place, target])) for each in cells]
            if task == "forecast":
                yield (*at, name, place + 1, None, *answer, None, method)
            else:
                yield (*at, name, None, *answer)


def charts(found: Predicted) -> list[Chart]:
    """Return a chart for each target: recent values, if they are known, and the forecast."""
    if found.model.task != "forecast":
        return []
    spec, recent, ahead = found.model.spec, found.recent, found.ahead
    inputs = list(spec["target_columns"]) or list(range(spec["input_size"]))
    drawn = []
    for place, name in enumerate(target_names(found.model)):
        points = []
        if recent is not None:
            first = recent.next_step - len(recent.values)
            times = recent.times or [""] * len(recent.values)
            for row, (time, value) in enumerate(
                zip(times, recent.values[:, inputs[place]], strict=True)
            ):
                points.append(Point(first + row, time, float(value)))
        for row, step in enumerate(found.steps()):
            low, high = float(ahead.low[row, place]), float(ahead.high[row, place])
            value = float(ahead.values[row, place])
            points.append(Point(step, found.time(step), math.nan, value, low, high))
        drawn.append(Chart(name, points, ahead.first_step))
    return drawn
