"""One run of `bptt learn`, from an open file to the last acknowledgement."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import click
from rich.console import Console

from service.cli.console import number, print_json, progress_output
from service.cli.create import create_model
from service.cli.csvfile import CsvTable, InputError, Sample, some
from service.cli.feed import Feed
from service.cli.pump import emitted, in_thread
from service.cli.report import Display, Report
from service.cli.score import ForecastScore, RegressionScore
from service.client import Client, Model, ServerUnreachable
from service.errors import NotFound, ServerStopping

INTERRUPTED = 130  # what shells give for a program that Ctrl-C ended
CHUNK_STEPS = 64  # 4 KB for 16 columns: the wire costs little, and progress is still smooth
CHUNK_VALUES = 250_000  # inputs or predictions in a chunk: 1 MB, a quarter of a message's limit
STREAM_ID_BYTES_MAX = 256  # the server's bound, checked here before a model is made


@dataclass(slots=True)
class Job:
    """What was asked for; `run` does it."""

    file: str
    model_id: str
    stream_id: str
    columns: list[str]
    targets: list[str]
    append: bool
    address: str
    as_json: bool
    settings: dict[str, Any]
    console: Console = field(init=False)

    async def run(self) -> bool:
        """Do it; True if Ctrl-C ended it.

        Raises:
            CancelledError: a second Ctrl-C did not let it wait for what was sent.
        """
        self.console = progress_output(quiet=self.as_json)
        size = len(self.stream_id.encode())
        if not 1 <= size <= STREAM_ID_BYTES_MAX:
            raise InputError(
                f"--stream is {size} bytes long, but must be 1 to {STREAM_ID_BYTES_MAX} bytes"
            )
        with CsvTable(self.file) as table:
            async with Client.connect(self.address) as client:
                return await self._run(client, table)

    async def _run(self, client: Client, table: CsvTable) -> bool:
        model: Model | None
        try:
            model = await client.get_model(self.model_id)
        except NotFound:
            model = None
        sample = await in_thread(table.sample)
        inputs, targets = self._choose(sample, model)
        columns = [sample.index("--columns", name) for name in inputs + targets]
        if not table.is_live:
            with self.console.status(f"reading {self.file}"):
                await in_thread(partial(_check_values, self.file, columns))
        if model is None:
            model = await self._create(client, inputs, targets)
        else:
            self._check(model, inputs, targets)
        return await self._learn(client, table, model, columns)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _choose(self, sample: Sample, model: Model | None) -> tuple[list[str], list[str]]:
        """Input columns, and for a regression the target columns behind them."""
        task = self.settings.get("task") or (model.spec["task"] if model else "forecast")
        for name in self.columns:
            sample.index("--columns", name)
        for name in self.targets:
            sample.index("--target", name)
        columns = self.columns or self._columns_of(model, sample)
        if not columns:
            for name in (n for n in sample.header if n in sample.left_out):
                self._say(f"column {name!r} is left out: {sample.left_out[name]}")
            columns = sample.numeric
        if task == "regression":
            if not self.targets:
                raise InputError("--target is missing, but a regression must be told its columns")
            columns = [name for name in columns if name not in self.targets]
            targets = self.targets
        else:
            targets = []
        if not columns:
            raise InputError(f"{self.file} has no column of numbers to learn from")
        return columns, targets

    def _columns_of(self, model: Model | None, sample: Sample) -> list[str]:
        """The columns that the model was made with, if they are here."""
        names = list(model.spec["input_names"]) if model else []
        return names if all(name in sample.header for name in names) else []

    async def _create(self, client: Client, inputs: list[str], targets: list[str]) -> Model:
        spec: dict[str, Any] = {"input_size": len(inputs), "input_names": inputs, **self.settings}
        if targets:
            spec["output_size"] = len(targets)
        else:
            spec["target_columns"] = self._target_columns(inputs)
        model = await create_model(client, self.model_id, spec, self.console)
        what = f"predicts {some(targets)} from" if targets else "forecasts"
        shown = inputs if targets else [inputs[i] for i in spec["target_columns"]] or inputs
        self._say(
            f"made model {self.model_id}: {what} {some(shown)} "
            f"({model.spec['cell']}, {model.parameters:,} parameters)"
        )
        return model

    def _target_columns(self, inputs: list[str]) -> list[int]:
        for name in self.targets:
            if name not in inputs:
                raise InputError(
                    f"--target: {name!r} is not among the columns learned from, which are "
                    + some(inputs)
                )
        return [inputs.index(name) for name in self.targets]

    def _check(self, model: Model, inputs: list[str], targets: list[str]) -> None:
        """A model that exists must be the one that the options describe."""
        spec: dict[str, Any] = dict(model.spec)
        wanted = {"input_size": len(inputs), **self.settings}
        if targets:
            wanted["output_size"] = len(targets)
        elif self.targets:
            wanted["target_columns"] = self._target_columns(inputs)
        for name, value in wanted.items():
            if spec.get(name) != value:
                raise InputError(
                    f"model {self.model_id} exists with {name} {spec.get(name)}, but this asks for "
                    f"{value}; give another --model or leave the option out"
                    + (f" (columns: {some(inputs)})" if name == "input_size" else "")
                )
        names = list(spec["input_names"])
        if names and names != inputs:
            self._say(f"note: model {self.model_id} was made for columns {some(names)}")

    async def _learn(
        self, client: Client, table: CsvTable, model: Model, columns: list[int]
    ) -> bool:
        next_step = await self._next_step(client)
        width = max(model.spec["input_size"], model.horizon * model.targets)
        rows = max(1, min(CHUNK_STEPS, CHUNK_VALUES // width))
        report = Report(_score(model))
        display = Display(self.console, total=table.size, as_json=self.as_json)
        stop = asyncio.Event()
        async with self._told_if_it_stops(), client.learn(self.model_id, resume=False) as session:
            feed = Feed(
                session,
                self.stream_id,
                model.spec["input_size"],
                first_step=None if self.append else next_step,
                skip=0 if self.append else next_step,
                report=report,
                next_step=next_step,
                on_progress=lambda position: display.update(report, position),
            )
            rows_of = partial(table.read, columns, rows)
            with display, _interrupts(stop, self._say) as interrupted:
                try:
                    await feed.run(emitted(rows_of), stop)
                except Exception as error:
                    self._finish(report, feed, event="failed")
                    raise error
            stopped = session.server_stopping and not interrupted
            event = "failed" if stopped else "interrupted" if interrupted else "done"
            self._finish(report, feed, event)
            if stopped:
                raise ServerStopping
        return bool(interrupted)

    @asynccontextmanager
    async def _told_if_it_stops(self) -> AsyncIterator[None]:
        try:
            yield
        except (ServerStopping, ServerUnreachable):
            # Standard input cannot be read again from where the stream ended.
            advice = "" if self.append else "; run the same command again to go on"
            raise ServerUnreachable(f"the server at {self.address} stopped{advice}") from None

    async def _next_step(self, client: Client) -> int:
        try:
            next_step = (await client.get_stream(self.model_id, self.stream_id)).next_step
        except NotFound:
            return 0
        if next_step and not self.append:
            self._say(
                f"stream {self.stream_id} has {_count(next_step, 'step')}: going on after them"
            )
        return next_step

    def _finish(self, report: Report, feed: Feed, event: str) -> None:
        summary = report.summary()
        if self.as_json:
            facts = {
                "model": self.model_id,
                "stream": self.stream_id,
                "next_step": feed.next_step,
                "rows_left_out": feed.missing,
                "rows_skipped": feed.skipped,
            }
            print_json({"event": event, **facts, **summary.to_json()})
            return
        if feed.missing:
            self._say(f"{_count(feed.missing, 'row')} left out for a missing value")
        if event == "interrupted":
            self._say("interrupted: what was sent is learned")
        if not report.steps:
            if event == "failed":  # the error that follows says it all
                return
            self._say(f"nothing new for stream {self.stream_id} of model {self.model_id}")
            return
        steps = _count(summary.steps, "step")
        click.echo(
            f"{steps} learned on stream {self.stream_id} of model {self.model_id}, "
            f"{summary.steps_per_second:,.0f} a second; next step {feed.next_step:,}"
        )
        naive = "repeating the last value" if self._is_forecast(report) else "the mean so far"
        click.echo(
            f"error over that of {naive}: {number(summary.whole.ratio)}, "
            f"second half {number(summary.second_half.ratio)}"
        )
        click.echo(
            f"loss {number(summary.loss)}, "
            f"median gradient norm {number(summary.median_gradient_norm)}, "
            f"updates clipped {_percent(summary.clipped_share)}"
        )
        if summary.skipped_updates:
            click.echo(
                f"{summary.skipped_updates:,} of {_count(summary.updates, 'update')} skipped: "
                "not finite; try a lower --learning-rate"
            )

    def _is_forecast(self, report: Report) -> bool:
        return isinstance(report.score, ForecastScore)


def _score(model: Model) -> ForecastScore | RegressionScore:
    if model.spec["task"] == "regression":
        return RegressionScore(model.targets)
    columns = list(model.spec["target_columns"]) or list(range(model.spec["input_size"]))
    return ForecastScore(columns)


def _check_values(file: str, columns: list[int]) -> None:
    """Read a file to its end, so that a bad value is told before anything is learned from it."""
    with CsvTable(file) as table:
        table.sample()
        table.read(columns, CHUNK_STEPS, lambda batch: None)


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"


@contextmanager
def _interrupts(stop: asyncio.Event, say: Callable[[str], None]) -> Iterator[list[bool]]:
    """The first Ctrl-C sets `stop`, the second cancels; the list says if there was one."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    seen: list[bool] = []

    def interrupt() -> None:
        if seen:
            task.cancel()
        else:
            say("waiting until what was sent is learned; Ctrl-C again leaves at once")
        seen.append(True)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        loop.remove_signal_handler(signal.SIGINT)
