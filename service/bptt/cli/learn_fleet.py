"""One run of `bptt learn --stream-column`: the rows of each series are a stream of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import click

from bptt.cli import plan as planning
from bptt.cli.begin import Begin, Beginning
from bptt.cli.console import number, plural, print_json
from bptt.cli.data.known_rows import ROWS_MAX
from bptt.cli.data.problem import InputError
from bptt.cli.data.source import Batch
from bptt.cli.data.survey import Survey
from bptt.cli.data.table import DataTable, SeriesBatch
from bptt.cli.data.trail import Trail
from bptt.cli.data.understood import Choice
from bptt.cli.fleet import Collector, FleetLoop, FleetStatistics
from bptt.cli.interrupts import handle_interrupts
from bptt.cli.progress import ProgressDisplay
from bptt.cli.run_statistics import RunStatistics
from bptt.cli.streaming import StreamFeed
from bptt.cli.summary_text import summary_lines
from bptt.cli.threads import iterate_in_thread
from bptt.client import Client, LearnSession, Model
from bptt.errors import ServerStopping

ROWS_OF_STREAM = 64  # in a block: as many as a stream alone sends in a chunk
STREAM_ID_BYTES_MAX = 256  # the server's bound
TOLD_MAX = 20  # streams that are told one by one; of more, the best and the worst


@dataclass(slots=True, kw_only=True)
class FleetRun:
    """One run; `run` executes it."""

    client: Client
    model: Model
    table: DataTable
    """Of which the first rows were looked at."""
    choice: Choice
    """What of each row is read, with the column of the series."""
    found: Survey
    options: planning.LearnOptions
    session: LearnSession
    say: Callable[[str], None]
    """Prints a line for the user."""
    display: ProgressDisplay
    append: bool
    by_number: bool
    as_json: bool
    _notes: list[str] = field(init=False, default_factory=list)
    """What would be printed of each stream."""
    _rows: dict[str, list[Batch]] | None = field(init=False, default=None)
    """Of each series, once a stream has to be compared with them."""

    async def run(self) -> bool:
        """Learn the rows that the streams do not have yet.

        Returns:
            True if Ctrl-C ended the run.

        Raises:
            InputError: a series has no valid name, or the file is not what its stream was fed.
            ServiceError: the server refused a request, or is gone.
        """
        self._check_names()
        begins = {name: await self._begin(name) for name in self.found.series}
        self._say_begins()
        self._rows = None
        stop = asyncio.Event()
        read = partial(self.table.read_series, self.choice, ROWS_OF_STREAM)
        async with self.session as session:
            collector = Collector(session)
            figures = {name: RunStatistics(self.model) for name in begins}
            statistics = FleetStatistics(self.model, figures)
            streams = {
                name: self._feed(name, begin, collector, figures[name])
                for name, begin in begins.items()
            }
            loop = FleetLoop(
                session,
                collector,
                streams,
                statistics,
                lambda position: self.display.update(statistics, position),
            )
            with self.display, handle_interrupts(stop, self.say) as interrupted:
                try:
                    await loop.run(iterate_in_thread(read), stop)
                except Exception as error:
                    self._finish(loop, "failed")
                    raise error
            stopped = session.server_stopping and not interrupted
            self._finish(loop, "failed" if stopped else "interrupted" if interrupted else "done")
            if stopped:
                raise ServerStopping
        if not interrupted:
            self._check_length(loop)
        return bool(interrupted)

    def _check_names(self) -> None:
        for name in self.found.series:
            size = len(name.encode())
            if not 1 <= size <= STREAM_ID_BYTES_MAX:
                value = f"is {size} bytes long" if size else "is empty"
                raise InputError(
                    f"the cell of --stream-column {value} in some row, but must name a stream in 1 "
                    f"to {STREAM_ID_BYTES_MAX} bytes"
                )

    async def _begin(self, name: str) -> Begin:
        return await Beginning(
            client=self.client,
            model_id=self.model.model_id,
            stream_id=name,
            source=self.options.file,
            read=partial(self._read_anew, name),
            times=self.found.step_times,
            say=self.say if len(self.found.series) <= TOLD_MAX else self._notes.append,
            append=self.append,
            by_number=self.by_number,
        ).find()

    def _say_begins(self) -> None:
        """Print where many streams begin: how many simply go on, and the first of the others."""
        others = [line for line in self._notes if not line.endswith("continuing after them")]
        if going_on := len(self._notes) - len(others):
            self.say(f"{plural(going_on, 'stream')} have steps already: continuing after them")
        for line in others[:TOLD_MAX]:
            self.say(line)
        if len(others) > TOLD_MAX:
            self.say(f"and {plural(len(others) - TOLD_MAX, 'more line')} like these")

    def _read_anew(self, name: str, rows_max: int, emit: Callable[[Batch], None]) -> None:
        """Hand the rows of one series to `emit`. The file is read once for all of them."""
        if self._rows is None:
            rows: dict[str, list[Batch]] = {}

            def take(block: list[SeriesBatch]) -> None:
                for series, batch in block:
                    rows.setdefault(series, []).append(batch)

            with DataTable(self.options.file, self.options.reading) as table:
                table.understand()
                table.read_series(self.choice, ROWS_MAX, take)
            self._rows = rows
        for batch in self._rows.get(name, ()):
            for first in range(0, len(batch.values), rows_max):
                emit(batch.after(first).before(rows_max) if len(batch.values) > rows_max else batch)

    def _feed(
        self, name: str, begin: Begin, collector: Collector, statistics: RunStatistics
    ) -> StreamFeed:
        return StreamFeed(
            collector,
            name,
            self.model.spec["input_size"],
            next_step=begin.next_step,
            append=begin.append,
            statistics=statistics,
            delay=self.model.spec.get("label_delay", 0),
            look_ahead=self.options.gap_seconds is not None,
            reset=partial(self.client.reset_stream, self.model.model_id, name),
            skip=begin.skip,
            trail=Trail(self.found.step_times),
        )

    def _check_length(self, loop: FleetLoop) -> None:
        for name, stream in loop.streams.items():
            if stream.skip:
                raise InputError(
                    f"{self.options.file} is shorter than its stream: "
                    f"{plural(stream.skipped, 'row')} of series {name}, but stream {name} of model "
                    f"{self.model.model_id} has {plural(stream.skipped + stream.skip, 'step')}; "
                    "add --append"
                )

    # ------------------------------------------------------------------ output

    def _finish(self, loop: FleetLoop, event: str) -> None:
        if self.as_json:
            self._print_json(loop, event)
            return
        if missing := sum(stream.missing for stream in loop.streams.values()):
            self.say(f"{plural(missing, 'row')} left out because a value is missing")
        if bad := self.table.bad.count:
            self.say(f"{plural(bad, 'row')} left out because they cannot be read")
        if event == "interrupted":
            self.say("interrupted: all rows that were sent are learned")
        if loop.statistics.steps:
            self._print_summary(loop)
        elif event != "failed" and not any(stream.skip for stream in loop.streams.values()):
            names = list(loop.streams)
            which = f"stream {names[0]}" if len(names) == 1 else f"{len(names):,} streams"
            self.say(f"nothing new for {which} of model {self._model_id}")

    @property
    def _model_id(self) -> str:
        return self.model.model_id

    def _print_json(self, loop: FleetLoop, event: str) -> None:
        for name, stream in loop.streams.items():
            facts = {
                "model": self._model_id,
                "stream": name,
                "next_step": stream.next_step,
                "rows_left_out": stream.missing,
                "rows_skipped": stream.skipped,
            }
            figures = stream.statistics.summary().to_json()
            told = ["steps", "whole", "second_half", "accuracy", "anomalies"]
            told.append("lowest_anomaly_scores")
            facts |= {key: figures[key] for key in told if key in figures}
            print_json({"event": "stream", **facts})
        summary = loop.statistics.summary()
        print_json(
            {
                "event": event,
                "model": self._model_id,
                "streams": len(loop.streams),
                "rows_left_out": sum(each.missing for each in loop.streams.values()),
                "rows_skipped": sum(each.skipped for each in loop.streams.values()),
                "rows_unreadable": self.table.bad.count,
                **summary.to_json(),
            }
        )

    def _print_summary(self, loop: FleetLoop) -> None:
        streams, naive = loop.streams, loop.statistics.naive
        told = {name: each for name, each in streams.items() if each.statistics.steps}
        ratios = {name: each.statistics.summary().whole.ratio for name, each in told.items()}
        if len(streams) <= TOLD_MAX:
            for name, each in streams.items():
                if name not in told:
                    self.say(f"nothing new for stream {name} of model {self._model_id}")
                    continue
                click.echo(
                    f"{plural(each.statistics.steps, 'step')} learned on stream {name} of model "
                    f"{self._model_id}; next step {each.next_step:,}; error relative to {naive}: "
                    f"{number(ratios[name])}"
                )
        summary = loop.statistics.summary()
        click.echo(
            f"{plural(summary.steps, 'step')} learned on {plural(len(told), 'stream')} of model "
            f"{self._model_id}, {summary.steps_per_second:,.0f} a second"
        )
        if len(told) > TOLD_MAX:
            ordered = sorted((ratio, name) for name, ratio in ratios.items() if ratio == ratio)
            if ordered:
                (best, first), (worst, last) = ordered[0], ordered[-1]
                click.echo(
                    f"error relative to {naive}, by stream: median "
                    f"{number(ordered[len(ordered) // 2][0])}, best {number(best)} ({first}), "
                    f"worst {number(worst)} ({last})"
                )
        for line in summary_lines(summary, naive, self.model, float("nan")):
            click.echo(line)
