"""`bptt demo`: starts a server, streams a bundled series to it and shows the result."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from bptt.cli.console import json_option, number, output, percent, print_json, progress_output
from bptt.cli.create import create_model
from bptt.cli.data.source import Batch
from bptt.cli.data.table import DataTable
from bptt.cli.data.understood import Choice
from bptt.cli.progress import ProgressDisplay
from bptt.cli.run_statistics import RunStatistics, Summary
from bptt.cli.server_process import ServerProcess, ServerProcessFailed
from bptt.cli.streaming import StreamingLoop
from bptt.cli.tables import ResultTable
from bptt.client import Access, Client, Model

SERIES = "sea_surface_temperature.csv.gz"
COLUMN = "temperature (celsius)"
MODEL, STREAM = "sea", "buoy"
HORIZON = 12  # half hours: the next six hours
SHOWN = 48  # values drawn before the forecast: the last day
CHUNK_STEPS = 64
SIGNAL_STATUS = 128  # shells report a program ended by a signal as this plus its number
CHART_WIDTH, CHART_HEIGHT = 78, 17

EXAMPLE = """\b
Examples:
  bptt demo
  bptt demo --keep
"""


@click.command(epilog=EXAMPLE)
@click.option("--keep", is_flag=True, help="Keep the server running and print its addresses.")
@json_option("one document with the figures and the forecast")
def demo(keep: bool, as_json: bool) -> None:
    """Start a server, stream a year of sea temperatures to it, and show what it learned.

    The series is bundled. The server runs in its own process on free loopback ports with a
    temporary data folder. Both are removed when the demo ends.
    """
    run = _Demo(keep, as_json)
    try:
        asyncio.run(run.run())
    except ServerProcessFailed as error:
        raise click.ClickException(str(error)) from None
    except asyncio.CancelledError:
        raise click.exceptions.Exit(SIGNAL_STATUS + run.ended_by) from None


class _Demo:
    def __init__(self, keep: bool, as_json: bool) -> None:
        self._keep = keep
        self._as_json = as_json
        self._console = progress_output(quiet=as_json)
        self._out = Console(quiet=True) if as_json else output()
        self.ended_by = signal.SIGTERM
        """The signal that cancelled `run`."""

    async def run(self) -> None:
        self._handle_signals()
        values = _series()
        async with contextlib.AsyncExitStack() as stack:
            with self._console.status("starting a server"):
                server = await stack.enter_async_context(ServerProcess())
            await self._show(server, values)
            if self._keep:
                await self._wait(server)

    def _handle_signals(self) -> None:
        """Let SIGTERM and SIGHUP cancel the current task, so that the server is stopped."""
        task = asyncio.current_task()
        assert task is not None

        def end(received: signal.Signals) -> None:
            self.ended_by = received
            task.cancel()

        for each in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(each) != signal.SIG_IGN:  # nohup ignores SIGHUP
                asyncio.get_running_loop().add_signal_handler(each, end, each)

    async def _show(self, server: ServerProcess, values: NDArray[np.float32]) -> None:
        self._out.print(f"server: gRPC {server.address}, http://{server.metrics_address}/metrics")
        async with Client.connect(server.address, access=Access()) as client:
            spec = {"input_size": 1, "input_names": [COLUMN], "horizon": HORIZON}
            model = await create_model(client, MODEL, spec, self._console)
            summary = await self._learn(client, model, values)
            prediction = await client.predict(MODEL, STREAM)
        forecast = prediction.values[-1, :, 0]
        if self._as_json:
            print_json(
                {
                    "address": server.address,
                    "metrics_address": server.metrics_address,
                    "model": MODEL,
                    "stream": STREAM,
                    "horizon": HORIZON,
                    **summary.to_json(),
                    "last_values": values[-SHOWN:, 0],
                    "forecast": forecast,
                }
            )
            return
        _table(model, summary).print(self._out)
        self._out.print(_chart(values[-SHOWN:, 0], forecast))
        if not self._keep:
            self._out.print(
                "\nNext: `bptt serve` in one terminal, "
                "`bptt learn YOUR.csv --model NAME` in another.",
                markup=False,
            )

    async def _learn(self, client: Client, model: Model, values: NDArray[np.float32]) -> Summary:
        statistics = RunStatistics(model)
        display = ProgressDisplay(self._console, total=len(values), as_json=False)
        async with client.learn(model.model_id) as session:
            loop = StreamingLoop(
                session,
                STREAM,
                inputs=1,
                next_step=0,
                append=False,
                statistics=statistics,
                on_progress=lambda position: display.update(statistics, position),
            )
            with display:
                await loop.run(_batches(values), asyncio.Event())
        return statistics.summary()

    async def _wait(self, server: ServerProcess) -> None:
        self._out.print(
            "\nThe server runs until Ctrl-C. Try in another terminal:\n"
            f"  bptt predict --address {server.address} --model {MODEL} --stream {STREAM}\n"
            f"  curl http://{server.metrics_address}/metrics",
            markup=False,
        )
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
        waiting = [
            asyncio.ensure_future(stop.wait()),
            asyncio.ensure_future(server.wait_for_exit()),
        ]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            # Also when SIGTERM cancels this task: an unretrieved exception prints a traceback.
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        self._console.print("stopping the server")


def _series() -> NDArray[np.float32]:
    with resources.as_file(resources.files("bptt") / "data" / SERIES) as path:
        found: list[Batch] = []
        with DataTable(str(path)) as table:
            column = table.understand().index("column", COLUMN)
            table.read(Choice(columns=[column]), CHUNK_STEPS, found.append)
    return np.concatenate([batch.values for batch in found]).astype(np.float32)


async def _batches(values: NDArray[np.float32]) -> AsyncIterator[Batch]:
    for first in range(0, len(values), CHUNK_STEPS):
        chunk = values[first : first + CHUNK_STEPS]
        yield Batch(chunk, first, first + len(chunk), 0, first + len(chunk))


def _table(model: Model, summary: Summary) -> ResultTable:
    spec = model.spec
    table = ResultTable().text().numbers("").text(style="dim")
    whole, half = summary.whole, summary.second_half
    network = f"{spec['cell']}, {spec['hidden_size']} units, k1 {spec['k1']}, k2 {spec['k2']}"
    table.row("model", f"{model.parameters:,}", f"parameters; {network}")
    table.row("steps", f"{summary.steps:,}", "each predicted before it was learned")
    table.row("steps a second", f"{summary.steps_per_second:,.0f}", "sent and answered over gRPC")
    for name, errors in (("error, whole series", whole), ("error, second half", half)):
        table.row(
            name,
            f"{float(errors.error[0]):.4f} °C",
            f"{errors.ratio:.3f} relative to the last-value forecast",
        )
    table.row("updates clipped", percent(summary.clipped_share), f"of {summary.updates:,}")
    table.row("median gradient norm", number(summary.median_gradient_norm), "before clipping")
    return table


def _chart(past: NDArray[np.float32], forecast: NDArray[np.floating[Any]]) -> Text:
    """Draw the last values and the forecast in characters."""
    import plotext  # imported only where it draws

    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(CHART_WIDTH, CHART_HEIGHT)
    figure.title("last day (line) and forecast for the next six hours (*), °C")
    line = figure.signal(list(range(1 - len(past), 1)), past.tolist(), marker="braille")
    line.lines(True)
    figure.draw(line)
    figure.draw(figure.signal(list(range(1, len(forecast) + 1)), forecast.tolist(), marker="*"))
    figure.label("half hours from now")
    ticks = list(range(-len(past), len(forecast) + 1, len(forecast)))
    figure.ruler("x").ticks(ticks, [str(tick) for tick in ticks])
    plain = Text.from_ansi(str(figure.build())).plain
    text = Text("\n".join(row.rstrip() for row in plain.splitlines()))
    text.highlight_regex("[\u2800-\u28ff]+", "cyan")  # the line consists of braille characters
    text.highlight_regex(r"\*+", "bold green")
    return text
