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

from bptt.cli import choose
from bptt.cli.console import print_json, progress_output
from bptt.cli.create import create_model
from bptt.cli.csvfile import Batch, CsvTable, InputError, Sample, some
from bptt.cli.feed import Feed
from bptt.cli.pump import emitted, in_thread
from bptt.cli.report import Display, Report, Summary
from bptt.cli.telling import count, figures
from bptt.cli.textfile import TextFile, VOCABULARY
from bptt.client import Client, LearnSession, Model, ServerUnreachable
from bptt.errors import NotFound, ServerStopping

CHUNK_STEPS = 64  # 4 KB for 16 columns: the wire costs little, and progress is still smooth
CHUNK_TOKENS = 256  # the same, of steps of one byte
CHUNK_VALUES = 250_000  # inputs or predictions in a chunk: 1 MB, a quarter of a message's limit
STREAM_ID_BYTES_MAX = 256  # the server's bound, checked here before a model is made

Source = Callable[[int, Callable[[Batch], None]], None]
"""Hands out batches of at most so many rows."""


@dataclass(slots=True)
class Job:
    """What was asked for; `run` does it."""

    wish: choose.Wish
    stream_id: str
    text: bool
    append: bool
    reconnect_seconds: float
    address: str
    as_json: bool
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
        with (TextFile if self.text else CsvTable)(self.wish.file) as source:
            async with Client.connect(self.address) as client:
                if isinstance(source, CsvTable):
                    return await self._learn_table(client, source)
                return await self._learn_text(client, source)

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False)

    async def _model(self, client: Client) -> Model | None:
        try:
            return await client.get_model(self.wish.model_id)
        except NotFound:
            return None

    # ------------------------------------------------------------------ what is learned

    async def _learn_table(self, client: Client, table: CsvTable) -> bool:
        model = await self._model(client)
        sample = await in_thread(table.sample)
        plan = choose.choose(self.wish, sample, model, self._say)
        if not table.is_live:
            with self.console.status(f"reading {self.wish.file}"):
                plan.found = await in_thread(partial(choose.look_through, self.wish.file, plan))
        if model is None:
            model = await self._create(client, plan)
        else:
            choose.check_model(self.wish, plan, model, self._say)
        self._tell_findings(model, sample, plan)
        choice = choose.choice_of(self.wish, plan, sample, model)
        return await self._learn(client, model, table, partial(table.read, choice))

    async def _learn_text(self, client: Client, text: TextFile) -> bool:
        model = await self._model(client)
        wanted = {"task": "next_token", "vocabulary_size": VOCABULARY, **self.wish.settings}
        if model is None:
            model = await create_model(client, self.wish.model_id, wanted, self.console)
            self._say_made(model, "predicts the next byte of a text")
        else:
            choose.check_settings(self.wish.model_id, dict(model.spec), wanted, [])
        return await self._learn(client, model, text, text.read)

    async def _create(self, client: Client, plan: choose.Plan) -> Model:
        spec = choose.spec_of(self.wish, plan)
        model = await create_model(client, self.wish.model_id, spec, self.console)
        if plan.targets:
            self._say_made(model, f"predicts {some(plan.targets)} from {some(plan.inputs)}")
        else:
            self._say_made(model, f"forecasts {some(plan.forecast or plan.inputs)}")
        return model

    def _say_made(self, model: Model, what: str) -> None:
        cell = model.spec["cell"]
        network = f"({cell}, {model.parameters:,} parameters)"
        self._say(f"made model {model.model_id}: {what} {network}")

    def _tell_findings(self, model: Model, sample: Sample, plan: choose.Plan) -> None:
        """What is special about a file that can be read twice."""
        found = plan.found
        if found is None:
            return
        for name, missing in found.missing.items():
            field = "missing_inputs" if name in plan.inputs else "missing_targets"
            if model.spec.get(field):
                what = "the model takes them as missing"
                self._say(f"column {name!r} lacks {count(missing, 'value')}: {what}")
        if self.wish.gap_seconds is None and found.gaps:
            assert plan.time is not None
            self._say(
                f"note: {found.gaps:,} rows come {choose.JUMP} times later than usual or more "
                f"(column {sample.header[plan.time]!r}, usually {found.usual_seconds:g} s apart); "
                "--gap SECONDS begins a new sequence there"
            )

    # ------------------------------------------------------------------ learning

    async def _learn(
        self, client: Client, model: Model, source: CsvTable | TextFile, read: Source
    ) -> bool:
        next_step = await self._next_step(client)
        feed_steps = CHUNK_TOKENS if self.text else CHUNK_STEPS
        width = max(model.spec["input_size"], model.horizon * model.targets)
        rows = max(1, min(feed_steps, CHUNK_VALUES // width))
        report = Report(model)
        display = Display(self.console, total=source.size, as_json=self.as_json)
        stop = asyncio.Event()
        async with self._told_if_it_stops(), self._session(client) as session:
            feed = Feed(
                session,
                self.stream_id,
                model.spec["input_size"],
                next_step=next_step,
                append=self.append,
                report=report,
                delay=model.spec.get("label_delay", 0),
                look_ahead=self.wish.gap_seconds is not None,
                reset=partial(client.reset_stream, self.wish.model_id, self.stream_id),
                on_progress=lambda position: display.update(report, position),
            )
            rows_of = partial(read, rows)
            with display, _interrupts(stop, self._say) as interrupted:
                try:
                    await feed.run(emitted(rows_of), stop)
                except Exception as error:
                    await self._finish(client, report, feed, event="failed")
                    raise error
            stopped = session.server_stopping and not interrupted
            event = "failed" if stopped else "interrupted" if interrupted else "done"
            await self._finish(client, report, feed, event)
            if stopped:
                raise ServerStopping
        if feed.skip and not interrupted:
            raise InputError(
                f"{self.wish.file} is shorter than its stream: {count(feed.skipped, 'row')}, but "
                f"stream {self.stream_id} of model {self.wish.model_id} has "
                f"{count(feed.skipped + feed.skip, 'step')}; give another --stream, or --append"
            )
        return bool(interrupted)

    def _session(self, client: Client) -> LearnSession:
        seconds = self.reconnect_seconds
        return client.learn(
            self.wish.model_id, resume=seconds > 0, reconnect_seconds=seconds or 1.0
        )

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
            next_step = (await client.get_stream(self.wish.model_id, self.stream_id)).next_step
        except NotFound:
            return 0
        if next_step and not self.append:
            self._say(
                f"stream {self.stream_id} has {count(next_step, 'step')}: going on after them"
            )
        return next_step

    # ------------------------------------------------------------------ telling

    async def _finish(self, client: Client, report: Report, feed: Feed, event: str) -> None:
        summary = report.summary()
        bits = math.nan
        if feed.session.model.task == "next_token" and event != "failed":
            bits = (await client.get_model(self.wish.model_id)).cross_entropy_bits
        if self.as_json:
            facts: dict[str, Any] = {
                "model": self.wish.model_id,
                "stream": self.stream_id,
                "next_step": feed.next_step,
                "rows_left_out": feed.missing,
                "rows_skipped": feed.skipped,
            }
            if math.isfinite(bits):
                facts["cross_entropy_bits"] = bits
            print_json({"event": event, **facts, **summary.to_json()})
            return
        if feed.missing:
            self._say(f"{count(feed.missing, 'row')} left out for a missing value")
        if event == "interrupted":
            self._say("interrupted: what was sent is learned")
        if report.steps:
            self._tell(summary, report.naive, feed, bits)
        elif event != "failed" and not feed.skip:  # else the error that follows says it all
            self._say(f"nothing new for stream {self.stream_id} of model {self.wish.model_id}")

    def _tell(self, summary: Summary, naive: str, feed: Feed, bits: float) -> None:
        steps = count(summary.steps, "step")
        click.echo(
            f"{steps} learned on stream {self.stream_id} of model {self.wish.model_id}, "
            f"{summary.steps_per_second:,.0f} a second; next step {feed.next_step:,}"
        )
        for line in figures(summary, naive, feed.session.model, bits):
            click.echo(line)
        if summary.model_state in ("paused", "diverged"):
            why = ": too many updates in a row were not finite" * (
                summary.model_state == "diverged"
            )
            self._say(
                f"model {self.wish.model_id} is {summary.model_state}{why}; it learns again after "
                f"`bptt models update {self.wish.model_id} --resume`"
            )


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
