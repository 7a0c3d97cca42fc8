"""What a run of `bptt learn` keeps of its predictions: a table in a file, and a chart."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bptt.cli.answers import chart
from bptt.cli.answers.files import table_of
from bptt.cli.answers.recorder import go_on, Place, Recorder, Sink
from bptt.cli.answers.rows import COLUMNS, PredictionRows
from bptt.cli.answers.taskrows import rows_of
from bptt.cli.console import output, plural
from bptt.cli.data.problem import InputError, join_names
from bptt.cli.data.steptimes import StepTimes
from bptt.cli.names import target_names
from bptt.client import Client, Model


@dataclass(frozen=True, slots=True)
class Recording:
    """The options `--predictions` and `--plot` of a run."""

    predictions: str | None = None
    """The file."""
    plot: str | None = None
    """The picture's file, or `chart.TERMINAL`."""

    @property
    def is_wanted(self) -> bool:
        """Whether anything is kept."""
        return self.predictions is not None or self.plot is not None

    def check(self, task: str) -> None:
        """Check that the predictions of a task can be kept, before a model is made.

        Raises:
            InputError: the file is there and is no table of such predictions, or there is nothing
                to draw.
        """
        if self.predictions is not None:
            next(table_of(self.predictions, COLUMNS[task]).records(), None)
        if self.plot is not None and task not in ("forecast", "regression"):
            raise InputError(
                f"--plot draws forecasts and regressions, but the model's task is {task}"
            )

    @asynccontextmanager
    async def of_stream(
        self,
        client: Client,
        model: Model,
        stream: str,
        next_step: int,
        times: StepTimes | None,
        notify: Callable[[str], None],
    ) -> AsyncIterator[Recorder | None]:
        """Record the predictions of one stream until the block ends, for whatever reason.

        Args:
            client: is asked what the stream's state predicts.
            model: the model that learns.
            stream: the stream's name.
            next_step: its next step.
            times: tells the times of steps that are yet to come; None: rows have no times.
            notify: prints a line for the user.

        Raises:
            InputError: a file cannot be written, or is of another model.
        """
        if not self.is_wanted:
            yield None
            return
        rows = _rows(model, stream)
        place = Place(next_step, next_step - rows.late_steps)
        sinks: list[Sink] = []
        if self.predictions is not None:
            table = table_of(self.predictions, rows.columns)
            place = go_on(table, rows, stream, next_step)
            sinks.append(table)
            _tell_place(self.predictions, place, notify)
        recent = chart.RecentRows(rows.columns)
        if self.plot is not None:
            sinks.append(recent)
        recorder = Recorder(rows, sinks, place, times)
        try:
            if next_step and not rows.predicts_own_step:
                recorder.begin(await client.predict(model.model_id, stream))
            yield recorder
        except BaseException:
            with contextlib.suppress(InputError):  # the first error is the one to be told
                recorder.finish()
            raise
        recorder.finish()
        if self.predictions is not None:
            notify(f"predictions: {plural(recorder.written, 'row')} written to {self.predictions}")
        if self.plot is not None:
            draw(self.plot, recent.charts(), notify)


def _rows(model: Model, stream: str) -> PredictionRows:
    names = list(model.spec.get("target_names", ()))
    if model.task == "classification":
        return rows_of(model, stream, names or [str(i) for i in range(model.targets)])
    return rows_of(model, stream, [] if model.task == "next_token" else target_names(model))


def _tell_place(path: str, place: Place, notify: Callable[[str], None]) -> None:
    if place.lost:
        steps = f"steps {place.first_step:,} to {place.next_step - 1:,}"
        notify(
            f"{path}: {steps} were learned while no predictions were written; those are lost, and "
            "the rows of these steps, if they are read again, have none"
        )
    elif place.first_step:
        notify(f"{path}: continuing with step {place.first_step:,}")


def draw(plot: str, charts: list[chart.Chart], notify: Callable[[str], None]) -> None:
    """Draw charts in the terminal or in a file, and say what is left out.

    Raises:
        InputError: the file cannot be written.
    """
    drawn = [each for each in charts if each][: chart.CHARTS_MAX]
    if not drawn:
        notify("nothing to draw yet: no prediction is known")
        return
    if len(charts) > len(drawn):
        notify(f"drawn: {join_names([each.title for each in drawn])}, of {len(charts)} targets")
    if plot == chart.TERMINAL:
        for each in drawn:
            output().print(chart.terminal_text(each))
        return
    chart.write_picture(plot, drawn)
    notify(f"chart written to {plot}")
