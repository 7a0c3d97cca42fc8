"""`bptt predict`: prints, writes and draws what a model predicts next on a stream."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from bptt.cli.answers import predicted
from bptt.cli.answers.ahead import (
    Ahead,
    check_steps,
    continue_tokens,
    forecast,
    STEPS_MAX,
)
from bptt.cli.answers.clock import Clock
from bptt.cli.answers.files import check_path, table_of
from bptt.cli.answers.learned_file import read_recent
from bptt.cli.answers.options import check_plot, plot_option, PlotCommand
from bptt.cli.answers.recording import draw
from bptt.cli.connection import address_option, connect
from bptt.cli.console import (
    json_option,
    output,
    plural,
    print_json,
    progress_output,
)
from bptt.cli.data.options import ReadOptions
from bptt.cli.data.problem import InputError
from bptt.cli.data.textfile import VOCABULARY
from bptt.cli.plan import check_read
from bptt.cli.read_options import read_options, READING
from bptt.client import Client, Model, Prediction

EXAMPLE = """\b
Examples:
  bptt predict --model sea --stream buoy
  bptt predict --model sea --stream buoy --steps 24 --predictions forecast.csv
  bptt predict --model sea --stream buoy --steps 24 --after buoy.csv --plot sea.png
  bptt predict --model sea --stream buoy --input 4.9 --input 4.8
  bptt predict --model prose --stream notes --text "the " --steps 40
"""


@click.command(cls=PlotCommand, epilog=EXAMPLE)
@click.option("--model", required=True, metavar="NAME", help="The model.")
@click.option("--stream", required=True, metavar="ID", help="The stream to predict from.")
@click.option(
    "--steps",
    type=click.IntRange(1, STEPS_MAX),
    help="Steps to forecast. Beyond the model's horizon it reads its own forecasts, if it "
    "forecasts all that it reads. [default: the horizon]",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="A,B,…",
    help="A step to read before predicting; it is not learned. Repeat the option for several "
    "steps. Regression and classification need at least one. `nan` is a missing value.",
)
@click.option(
    "--text",
    metavar="TEXT",
    help="Next token: a text to read before predicting; it is not learned.",
)
@click.option(
    "--predictions",
    "path",
    callback=lambda context, option, path: path and check_path("--predictions", path),
    metavar="FILE",
    help="Write the predictions to FILE, a .csv, .jsonl or .parquet, and not to the terminal. An "
    "earlier forecast in FILE is replaced.",
)
@plot_option("the forecast and, with --after, recent values")
@click.option(
    "--after",
    metavar="FILE",
    help="The file that the stream learned: --plot draws its last values.",
)
@click.option(
    "--stream-column",
    metavar="COLUMN",
    help="With --after: the column whose cells name the stream of each row.",
)
@read_options
@address_option
@json_option("one document")
def predict(
    model: str,
    stream: str,
    steps: int | None,
    inputs: tuple[str, ...],
    text: str | None,
    path: str | None,
    plot: str | None,
    after: str | None,
    stream_column: str | None,
    address: str,
    as_json: bool,
    **reading: Any,
) -> None:
    """Predict what comes next on a stream. Neither the model nor the stream changes.

    The options that say how a file is written apply to --after.
    """
    check_plot(plot, as_json=as_json)
    series = (stream_column, stream) if stream_column is not None else None
    source = After(after, series, _reading(reading, after, stream_column)) if after else None
    run = PredictRun(
        address,
        model,
        stream,
        [_step(each) for each in inputs],
        text,
        steps,
        source,
        plot is not None,
    )
    found = asyncio.run(run.ask())
    console = progress_output(quiet=as_json)
    if path is not None:
        table = table_of(path, predicted.columns(found.model))
        rows = list(predicted.rows(found))
        table.create()
        table.write(rows)
        table.close()
        console.print(f"{plural(len(rows), 'row')} written to {path}", markup=False, soft_wrap=True)
    if plot is not None:
        draw(plot, predicted.charts(found), lambda line: console.print(line, markup=False))
    if as_json:
        print_json(predicted.document(found))
    elif path is None and plot is None:
        predicted.table(found).print(output(), predicted.notes(found, is_table=True))
    else:
        for note in predicted.notes(found, is_table=False):
            console.print(note, markup=False, soft_wrap=True)


def _reading(values: dict[str, Any], after: str | None, stream_column: str | None) -> ReadOptions:
    given = [name for name in READING if values[name]]
    if after is None and (given or stream_column is not None):
        name = given[0] if given else "stream_column"
        raise click.UsageError(
            f"--{name.replace('_', '-')} says how a file is written; add --after FILE"
        )
    return ReadOptions(**values)


def _step(text: str) -> list[float]:
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} must be numbers separated by commas, as in 4.9,0.2", param_hint="--input"
        ) from None


@dataclass(frozen=True, slots=True)
class After:
    """The file that the stream learned."""

    path: str
    series: tuple[str, str] | None
    """The column that names streams, and the stream; None: the file is one stream."""
    reading: ReadOptions


@dataclass(frozen=True, slots=True)
class PredictRun:
    """What is asked of a model."""

    address: str
    model_id: str
    stream: str
    inputs: list[list[float]]
    text: str | None
    steps: int | None
    after: After | None
    draws: bool

    async def ask(self) -> predicted.Predicted:
        """Ask the server, and read what came before from the file that was learned.

        Raises:
            InputError: the model cannot answer this, or the file is not the stream's.
        """
        async with connect(self.address) as client:
            model = check_read(await client.get_model(self.model_id))
            self._check(model)
            with progress_output().status("asking for the forecast"):
                stream = await client.get_stream(self.model_id, self.stream)
                answer, ahead = await self._ask(client, model)
        learned = answer.next_step - self._read_first()
        clock = Clock.of_stream(stream) if stream.next_step == learned else None
        recent = None
        if self.after is not None:
            recent = read_recent(
                self.after.path, self.after.reading, model, learned, self.after.series
            )
            clock = clock or recent.clock
        return predicted.Predicted(
            model,
            self.stream,
            answer,
            ahead,
            self._read_first(),
            self.steps is not None,
            recent,
            clock,
        )

    def _read_first(self) -> int:
        """Steps that are read before predicting, and not learned."""
        return len(self.inputs) + len((self.text or "").encode())

    def _check(self, model: Model) -> None:
        if self.steps is not None:
            check_steps(model, self.steps)
        if self.text is not None and model.spec.get("vocabulary_size") != VOCABULARY:
            raise click.BadParameter(
                f"model {self.model_id} does not predict text; use --input", param_hint="--text"
            )
        if self.after is not None and model.spec.get("vocabulary_size") == VOCABULARY:
            raise InputError("--after is a file of columns, but the model reads text")
        if self.draws and model.task != "forecast":
            raise InputError(
                f"--plot draws forecasts, but model {self.model_id} is of task {model.task}"
            )
        width = model.spec["input_size"]
        for step in self.inputs:
            if len(step) != width:
                raise click.BadParameter(
                    f"got {len(step)} values, but a step of model {self.model_id} has {width}",
                    param_hint="--input",
                )

    async def _ask(self, client: Client, model: Model) -> tuple[Prediction, Ahead]:
        if model.task == "next_token":
            tokens = [int(step[0]) for step in self.inputs] + list((self.text or "").encode())
            return await continue_tokens(client, model, self.stream, tokens, self.steps or 1)
        if model.task == "forecast":
            steps = self.steps or model.horizon
            return await forecast(client, model, self.stream, self.inputs, steps)
        answer = await client.predict(self.model_id, self.stream, self.inputs or None)
        values = answer.values[:, 0, :]
        low = high = np.full(values.shape, np.nan)
        if len(answer.error_low):
            exact = values.astype(np.float64)
            low, high = exact + answer.error_low[0], exact + answer.error_high[0]
        first = answer.next_step - len(values)
        return answer, Ahead(first, values, low, high, len(values))
