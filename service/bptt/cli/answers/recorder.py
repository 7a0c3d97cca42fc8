"""Records the predictions of a run: in a table, for a chart, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bptt.cli.answers.files import Row, TableFile
from bptt.cli.answers.rows import Answers, Arrived, FloatArray, Made, PredictionRows, short
from bptt.cli.data.problem import InputError
from bptt.cli.data.source import Batch
from bptt.cli.data.steptimes import StepTimes
from bptt.client import Learned
from bptt.client import Prediction as Answered


class Sink(Protocol):
    """Takes the rows of a run."""

    def write(self, rows: Sequence[Row]) -> None:
        """Take rows."""

    def close(self) -> None:
        """The run has ended."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the table of an earlier run of a stream ends."""

    first_step: int
    """The first step whose rows are to be written."""
    next_step: int
    """The stream's next step."""

    @property
    def lost(self) -> int:
        """Steps that were learned while their predictions were not written."""
        return max(0, self.next_step - self.first_step)


def go_on(table: TableFile, rows: PredictionRows, stream: str, next_step: int) -> Place:
    """Open a table for the next rows of a stream, and take back what ended without a value.

    Args:
        table: the file; it need not be there.
        rows: takes back the predictions whose values have not come.
        stream: the stream's name.
        next_step: the stream's next step.

    Raises:
        InputError: the file is no such table, or of another model; it is unchanged.
    """
    ends = _ends_of(table, rows, stream)
    if ends is None:
        table.resume(stream, next_step)
        return Place(next_step, next_step)
    if not next_step:
        raise InputError(
            f"{table.path} has predictions of stream {stream}, but the stream is new; name another "
            "file"
        )
    first = max(0, min(next_step - rows.late_steps, ends))
    for record in table.records():
        if record["stream"] == stream and int(record["step"]) >= first:
            rows.restore(record, next_step)
    table.resume(stream, first)
    return Place(first, next_step - rows.late_steps)


def _ends_of(table: TableFile, rows: PredictionRows, stream: str) -> int | None:
    """Return the step after the last one whose rows are all there; None: it has no row at all.

    The last rows of a run have no values, since these had not come. They are not counted, but the
    rows of a step whose values are missing are.
    """
    last = valued = -1
    count = 0
    for record in table.records():
        if record["stream"] != stream:
            continue
        _check(table, record, rows)
        step = int(record["step"])
        count = count + 1 if step == last else 1
        last = step
        if any(record.get(name) not in (None, "") for name in ("value", "score")):
            valued = step
    if last < 0:
        return None
    if last == valued or not rows.kept_steps:
        return last + 1 if count >= rows.rows_of_step else last
    return max(valued + 1, last - rows.kept_steps + 1)


def _check(table: TableFile, record: dict[str, Any], rows: PredictionRows) -> None:
    """Refuse a table of another model."""
    if not rows.knows(record):
        raise InputError(
            f"{table.path} was written for a model with other targets or another horizon; "
            "name another file"
        )


class Recorder:
    """Turns the answers of a run into rows."""

    def __init__(
        self, rows: PredictionRows, sinks: Sequence[Sink], place: Place, times: StepTimes | None
    ) -> None:
        """Record what comes after the earlier runs.

        Args:
            rows: makes the rows.
            sinks: take them.
            place: where the table of earlier runs ends.
            times: tells the times of steps that are yet to come; None: rows have no times.
        """
        self._rows = rows
        self._sinks = sinks
        self._first = place.first_step
        self._times = times
        self._last_step = place.next_step + rows.late_steps - 1
        self._last_seconds = float("nan")
        self._band: tuple[FloatArray, FloatArray] | None = None
        self._has_failed = False
        self.written = 0
        """Rows so far."""

    def begin(self, answer: Answered) -> None:
        """Take the prediction that the stream's state holds before the first new step.

        Args:
            answer: of `Client.predict` without inputs.
        """
        if answer.next_step != self._last_step + 1:
            return
        made = self._made(answer.values[-1:], answer, after_all=True)
        if made:
            self._rows.predicted(self._last_step, made[-1])

    def _made(
        self, predictions: FloatArray | None, answer: Answered | Learned, *, after_all: bool
    ) -> list[Made]:
        """Return the predictions of an answer, each with the band that was known when it was made.

        The band of an answer includes the errors of its own steps: it is that of a prediction made
        after the last of them, and of those that the next answer brings.
        """
        before = self._band
        if len(answer.error_low):
            self._band = answer.error_low, answer.error_high
        if len(answer.top_tokens):
            best = np.column_stack([answer.top_tokens[:, 0], answer.top_probabilities[:, 0]])
            return self._rows.made(Answers(best))
        if predictions is None or not len(predictions):
            return []
        bands = []
        for place in (0, 1):
            offsets = np.full(predictions.shape, np.nan, np.float32)
            if before is not None:
                offsets[:] = before[place]
            if self._band is not None and after_all:
                offsets[-1] = self._band[place]
            bands.append(offsets)
        return self._rows.made(Answers(predictions, *bands))

    def skip(self, batch: Batch, count: int, first_step: int, inputs: int) -> None:
        """Take rows that the stream has already; those that the table lacks get no prediction.

        Args:
            batch: the rows.
            count: how many of them the stream has.
            first_step: the step of the first.
            inputs: number of input columns.
        """
        made: list[Row] = []
        if batch.begins and first_step >= self._first:
            made.extend(self._rows.begin_sequence())
        for place in range(max(0, self._first - first_step), count):
            made.extend(self._rows.add(_arrived(batch, place, first_step + place, inputs)))
        if batch.seconds is not None and count:
            self._last_seconds = float(batch.seconds[count - 1])
        self._write(made)

    def add(self, answer: Learned, batch: Batch, inputs: int) -> None:
        """Take learned rows.

        Args:
            answer: to a batch; its predictions may be lost.
            batch: the rows that were sent.
            inputs: number of input columns.
        """
        if not len(batch.values):
            return
        made: list[Row] = []
        if batch.begins:
            made.extend(self._rows.begin_sequence())
        after_all = not self._rows.predicts_own_step
        found = self._made(answer.predictions, answer, after_all=after_all)
        scores = short(answer.anomaly_scores)
        lost = len(batch.values) - len(found)
        first = answer.next_step - len(batch.values) if found else self._last_step + 1
        for place in range(len(batch.values)):
            prediction = found[place - lost] if place >= lost else None
            score = float("nan")
            if prediction is not None and len(scores):
                score = float(scores[place - lost])
            arrived = _arrived(batch, place, first + place, inputs, prediction, score)
            made.extend(self._rows.add(arrived))
        self._last_step = first + len(batch.values) - 1
        if batch.seconds is not None:
            self._last_seconds = float(batch.seconds[-1])
        self._write(made)

    def finish(self) -> None:
        """Write the predictions whose values have not come, and close the sinks.

        Raises:
            InputError: a file cannot be written.
        """
        self._write(list(self._rows.rest(self._time_of)))
        for sink in self._sinks:
            sink.close()

    def _time_of(self, step: int) -> str:
        ahead = step - self._last_step
        if self._times is None or ahead < 1:
            return ""
        return self._times.forecast(self._last_seconds, ahead)

    def _write(self, rows: list[Row]) -> None:
        if not rows or self._has_failed:
            return
        try:
            for sink in self._sinks:
                sink.write(rows)
            self.written += len(rows)
        except InputError:
            self._has_failed = True  # a second failure would hide the first
            raise


def _arrived(
    batch: Batch,
    place: int,
    step: int,
    inputs: int,
    prediction: Made | None = None,
    score: float = float("nan"),
) -> Arrived:
    row = batch.values[place]
    time = batch.times[place] if len(batch.times) else ""
    return Arrived(step, time, row[:inputs], row[inputs:], prediction, score)
