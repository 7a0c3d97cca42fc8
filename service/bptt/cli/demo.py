"""`bptt demo`: a real server, a real series, and what was learned from it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
from collections.abc import AsyncIterator
from importlib import resources

import click
import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bptt.cli.child import ChildFailed, ServerChild
from bptt.cli.console import json_option, number, output, print_json, progress_output
from bptt.cli.create import create_model
from bptt.cli.csvfile import Batch, Choice, CsvTable
from bptt.cli.feed import Feed
from bptt.cli.report import Display, Report, Summary
from bptt.client import Client, Model

SERIES = "sea_surface_temperature.csv.gz"
COLUMN = "temperature (celsius)"
MODEL, STREAM = "sea", "buoy"
HORIZON = 12  # half hours: the next six hours
SHOWN = 48  # last values drawn before the forecast: a day
CHUNK_STEPS = 64
TERMINATED = 143  # what shells give for a program that SIGTERM ended
CHART_WIDTH, CHART_HEIGHT = 78, 17

EXAMPLE = """\b
Examples:
  bptt demo
  bptt demo --keep
"""


@click.command(epilog=EXAMPLE)
@click.option("--keep", is_flag=True, help="Leave the server up and print where it is.")
@json_option("one document with the figures and the forecast")
def demo(keep: bool, as_json: bool) -> None:
    """Start a server, stream a year of sea temperatures to it, and show what it learned.

    The series is bundled. The server runs in a process of its own on free loopback ports, with a
    temporary data folder; both are gone when the demo ends.
    """
    try:
        asyncio.run(_Demo(keep, as_json).run())
    except ChildFailed as error:
        raise click.ClickException(str(error)) from None
    except asyncio.CancelledError:
        raise click.exceptions.Exit(TERMINATED) from None


class _Demo:
    def __init__(self, keep: bool, as_json: bool) -> None:
        self._keep = keep
        self._as_json = as_json
        self._console = progress_output(quiet=as_json)
        self._out = Console(quiet=True) if as_json else output()

    async def run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        values = _series()
        async with contextlib.AsyncExitStack() as stack:
            with self._console.status("starting a server"):
                child = await stack.enter_async_context(ServerChild())
            await self._show(child, values)
            if self._keep:
                await self._wait(child)

    async def _show(self, child: ServerChild, values: NDArray[np.float32]) -> None:
        self._out.print(f"server: gRPC {child.address}, http://{child.metrics_address}/metrics")
        async with Client.connect(child.address) as client:
            spec = {"input_size": 1, "input_names": [COLUMN], "horizon": HORIZON}
            model = await create_model(client, MODEL, spec, self._console)
            summary = await self._learn(client, model, values)
            prediction = await client.predict(MODEL, STREAM)
        forecast = prediction.values[-1, :, 0]
        if self._as_json:
            print_json(
                {
                    "address": child.address,
                    "metrics_address": child.metrics_address,
                    "model": MODEL,
                    "stream": STREAM,
                    "horizon": HORIZON,
                    **summary.to_json(),
                    "last_values": values[-SHOWN:, 0],
                    "forecast": forecast,
                }
            )
            return
        self._out.print(_table(model, summary))
        self._out.print(_chart(values[-SHOWN:, 0], forecast))
        if not self._keep:
            self._out.print(
                "\nNext: `bptt serve` in one terminal, "
                "`bptt learn YOUR.csv --model NAME` in another.",
                markup=False,
            )

    async def _learn(self, client: Client, model: Model, values: NDArray[np.float32]) -> Summary:
        report = Report(model)
        display = Display(self._console, total=len(values), as_json=False)
        async with client.learn(model.model_id) as session:
            feed = Feed(
                session,
                STREAM,
                inputs=1,
                next_step=0,
                append=False,
                report=report,
                on_progress=lambda position: display.update(report, position),
            )
            with display:
                await feed.run(_batches(values), asyncio.Event())
        return report.summary()

    async def _wait(self, child: ServerChild) -> None:
        self._out.print(
            "\nThe server stays up until Ctrl-C. Try, in another terminal:\n"
            f"  bptt predict --address {child.address} --model {MODEL} --stream {STREAM}\n"
            f"  curl http://{child.metrics_address}/metrics",
            markup=False,
        )
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        stopped = asyncio.ensure_future(stop.wait())
        ended = asyncio.ensure_future(child.ended())
        try:
            await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
        finally:  # SIGTERM cancels the wait: nobody else would look at the server's end
            stopped.cancel()
            ended.cancel()
            await asyncio.gather(stopped, ended, return_exceptions=True)
        self._console.print("stopping the server")


def _series() -> NDArray[np.float32]:
    with resources.as_file(resources.files("bptt") / "data" / SERIES) as path:
        found: list[Batch] = []
        with CsvTable(str(path)) as table:
            column = table.sample().index("column", COLUMN)
            table.read(Choice(columns=[column]), CHUNK_STEPS, found.append)
    return np.concatenate([batch.values for batch in found])


async def _batches(values: NDArray[np.float32]) -> AsyncIterator[Batch]:
    for first in range(0, len(values), CHUNK_STEPS):
        chunk = values[first : first + CHUNK_STEPS]
        yield Batch(chunk, first, first + len(chunk), 0, first + len(chunk))


def _table(model: Model, summary: Summary) -> Table:
    spec = model.spec
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    whole, half = summary.whole, summary.second_half
    network = f"{spec['cell']}, {spec['hidden_size']} units, k1 {spec['k1']}, k2 {spec['k2']}"
    table.add_row("model", f"{model.parameters:,}", f"parameters; {network}")
    table.add_row("steps", f"{summary.steps:,}", "each predicted before it was learned")
    table.add_row("steps a second", f"{summary.steps_per_second:,.0f}", "over gRPC, answered")
    for name, errors in (("error, whole series", whole), ("error, second half", half)):
        table.add_row(
            name,
            f"{float(errors.error[0]):.4f} °C",
            f"{errors.ratio:.3f} × that of repeating the last value",
        )
    table.add_row("updates clipped", _percent(summary.clipped_share), f"of {summary.updates:,}")
    table.add_row("median gradient norm", number(summary.median_gradient_norm), "before clipping")
    return table


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"


def _chart(past: NDArray[np.float32], forecast: NDArray[np.float32]) -> Text:
    """The last values and the forecast, drawn in characters."""
    import plotext  # only the demo draws

    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(CHART_WIDTH, CHART_HEIGHT)
    figure.title("the last day (line) and the forecast for the next six hours (*), °C")
    line = figure.signal(list(range(1 - len(past), 1)), past.tolist(), marker="braille")
    line.lines(True)
    figure.draw(line)
    figure.draw(figure.signal(list(range(1, len(forecast) + 1)), forecast.tolist(), marker="*"))
    figure.label("half hours from now")
    ticks = list(range(-len(past), len(forecast) + 1, len(forecast)))
    figure.ruler("x").ticks(ticks, [str(tick) for tick in ticks])
    plain = Text.from_ansi(str(figure.build())).plain
    text = Text("\n".join(row.rstrip() for row in plain.splitlines()))
    text.highlight_regex("[\u2800-\u28ff]+", "cyan")  # the line is drawn in braille
    text.highlight_regex(r"\*+", "bold green")
    return text
