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

from bptt.cli import plan as planning
from bptt.cli.console import plural, print_json, progress_output
from bptt.cli.create import create_model
from bptt.cli.data.csvfile import CsvTable, Sample
from bptt.cli.data.source import Batch, InputError, join_names
from bptt.cli.data.textfile import TextFile, VOCABULARY
from bptt.cli.progress import ProgressDisplay
from bptt.cli.run_statistics import RunStatistics, Summary
from bptt.cli.streaming import StreamingLoop
from bptt.cli.summary_text import summary_lines
from bptt.cli.threads import iterate_in_thread, run_in_thread
from bptt.client import Client, LearnSession, Model, ServerUnreachable
from bptt.errors import NotFound, ServerStopping

CHUNK_STEPS = 64  # 4 KB for 16 columns: little overhead on the wire, and smooth progress
CHUNK_TOKENS = 256  # the same for steps of one byte
CHUNK_VALUES = 250_000  # inputs or predictions in a chunk: 1 MB, a quarter of a message's limit
STREAM_ID_BYTES_MAX = 256  # the server's bound, checked here before a model is created

ReadBatches = Callable[[int, Callable[[Batch], None]], None]
"""Reads a source to its end: (most rows in a batch, callback for each batch)."""


@dataclass(slots=True)
class LearnRun:
    """One run of `bptt learn`; `run` executes it."""

    options: planning.LearnOptions
    stream_id: str
    text: bool
    append: bool
    reconnect_seconds: float
    address: str
    as_json: bool
    console: Console = field(init=False)

    async def run(self) -> bool:
        """Stream the file to the model.

        Returns:
            True if Ctrl-C ended the run.

        Raises:
            InputError: the file or the options are invalid.
            ServiceError: the server refused a request, or is gone.
            CancelledError: a second Ctrl-C ended the wait for what was sent.
        """
        self.console = progress_output(quiet=self.as_json)
        size = len(self.stream_id.encode())
        if not 1 <= size <= STREAM_ID_BYTES_MAX:
            raise InputError(
                f"--stream is {size} bytes long, but must be 1 to {STREAM_ID_BYTES_MAX} bytes"
            )
        with (TextFile if self.text else CsvTable)(self.options.file) as source:
            async with Client.connect(self.address) as client:
                if isinstance(source, CsvTable):
                    return await self._learn_table(client, source)
                return await self._learn_text(client, source)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    async def _get_model(self, client: Client) -> Model | None:
        try:
            return planning.check_read(await client.get_model(self.options.model_id))
        except NotFound:
            return None

    # ------------------------------------------------------------------ preparing the model

    async def _learn_table(self, client: Client, table: CsvTable) -> bool:
        model = await self._get_model(client)
        sample = await run_in_thread(table.sample)
        plan = planning.make_plan(self.options, sample, model, self._print)
        if not table.is_live:
            with self.console.status(f"reading {self.options.file}"):
                scan = partial(planning.scan_file, self.options.file, plan)
                plan.scan = await run_in_thread(scan)
        if model is None:
            model = await self._create_model(client, plan)
        else:
            planning.check_model(self.options, plan, model, self._print)
        self._print_scan(model, sample, plan)
        selection = planning.select_columns(self.options, plan, sample, model)
        return await self._learn(client, model, table, partial(table.read, selection))

    async def _learn_text(self, client: Client, text: TextFile) -> bool:
        model = await self._get_model(client)
        wanted = {"task": "next_token", "vocabulary_size": VOCABULARY, **self.options.settings}
        if model is None:
            model = await create_model(client, self.options.model_id, wanted, self.console)
            self._print_created(model, "predicts the next byte of a text")
        else:
            planning.check_settings(self.options.model_id, dict(model.spec), wanted, [])
        return await self._learn(client, model, text, text.read)

    async def _create_model(self, client: Client, plan: planning.Plan) -> Model:
        spec = planning.build_spec(self.options, plan)
        model = await create_model(client, self.options.model_id, spec, self.console)
        inputs = join_names(plan.inputs)
        if plan.targets:
            self._print_created(model, f"predicts {join_names(plan.targets)} from {inputs}")
        else:
            self._print_created(model, f"forecasts {join_names(plan.forecast or plan.inputs)}")
        return model

    def _print_created(self, model: Model, purpose: str) -> None:
        cell = model.spec["cell"]
        network = f"({cell}, {model.parameters:,} parameters)"
        self._print(f"created model {model.model_id}: {purpose} {network}")

    def _print_scan(self, model: Model, sample: Sample, plan: planning.Plan) -> None:
        """Report missing values and gaps in time."""
        scan = plan.scan
        if scan is None:
            return
        for name, missing in scan.missing.items():
            setting = "missing_inputs" if name in plan.inputs else "missing_targets"
            if model.spec.get(setting):
                self._print(
                    f"column {name!r} lacks {plural(missing, 'value')}: "
                    "the model treats them as missing"
                )
        if self.options.gap_seconds is None and scan.gaps:
            assert plan.time is not None
            self._print(
                f"note: {plural(scan.gaps, 'gap')} in column {sample.header[plan.time]!r} of at "
                f"least {planning.GAP_FACTOR} times the median interval of "
                f"{scan.median_seconds:g} s; --gap SECONDS begins a new sequence there"
            )

    # ------------------------------------------------------------------ learning

    async def _learn(
        self, client: Client, model: Model, source: CsvTable | TextFile, read: ReadBatches
    ) -> bool:
        next_step = await self._next_step(client)
        chunk_steps = CHUNK_TOKENS if self.text else CHUNK_STEPS
        width = max(model.spec["input_size"], model.horizon * model.targets)
        read_rows = partial(read, max(1, min(chunk_steps, CHUNK_VALUES // width)))
        statistics = RunStatistics(model)
        display = ProgressDisplay(self.console, total=source.size, as_json=self.as_json)
        stop = asyncio.Event()
        async with self._explain_server_stop(), self._session(client) as session:
            loop = StreamingLoop(
                session,
                self.stream_id,
                model.spec["input_size"],
                next_step=next_step,
                append=self.append,
                statistics=statistics,
                delay=model.spec.get("label_delay", 0),
                look_ahead=self.options.gap_seconds is not None,
                reset=partial(client.reset_stream, self.options.model_id, self.stream_id),
                on_progress=lambda position: display.update(statistics, position),
            )
            with display, _handle_interrupts(stop, self._print) as interrupted:
                try:
                    await loop.run(iterate_in_thread(read_rows), stop)
                except Exception as error:
                    await self._finish(client, statistics, loop, event="failed")
                    raise error
            stopped = session.server_stopping and not interrupted
            event = "failed" if stopped else "interrupted" if interrupted else "done"
            await self._finish(client, statistics, loop, event)
            if stopped:
                raise ServerStopping
        if loop.skip and not interrupted:
            raise InputError(
                f"{self.options.file} is shorter than its stream: "
                f"{plural(loop.skipped, 'row')}, but "
                f"stream {self.stream_id} of model {self.options.model_id} has "
                f"{plural(loop.skipped + loop.skip, 'step')}; name another --stream, or add "
                "--append"
            )
        return bool(interrupted)

    def _session(self, client: Client) -> LearnSession:
        seconds = self.reconnect_seconds
        return client.learn(
            self.options.model_id, resume=seconds > 0, reconnect_seconds=seconds or 1.0
        )

    @asynccontextmanager
    async def _explain_server_stop(self) -> AsyncIterator[None]:
        """Convert the errors of a server that stopped to one that says how to continue."""
        try:
            yield
        except (ServerStopping, ServerUnreachable):
            # Standard input cannot be read again from the stream's next step.
            advice = "" if self.append else "; run the same command again to continue"
            raise ServerUnreachable(f"the server at {self.address} stopped{advice}") from None

    async def _next_step(self, client: Client) -> int:
        try:
            stream = await client.get_stream(self.options.model_id, self.stream_id)
        except NotFound:
            return 0
        if stream.next_step and not self.append:
            steps = plural(stream.next_step, "step")
            self._print(f"stream {self.stream_id} has {steps}: continuing after them")
        return stream.next_step

    # ------------------------------------------------------------------ output

    async def _finish(
        self, client: Client, statistics: RunStatistics, loop: StreamingLoop, event: str
    ) -> None:
        summary = statistics.summary()
        bits = math.nan
        if loop.session.model.task == "next_token" and event != "failed":
            bits = (await client.get_model(self.options.model_id)).cross_entropy_bits
        if self.as_json:
            facts: dict[str, Any] = {
                "model": self.options.model_id,
                "stream": self.stream_id,
                "next_step": loop.next_step,
                "rows_left_out": loop.missing,
                "rows_skipped": loop.skipped,
            }
            if math.isfinite(bits):
                facts["cross_entropy_bits"] = bits
            print_json({"event": event, **facts, **summary.to_json()})
            return
        if loop.missing:
            self._print(f"{plural(loop.missing, 'row')} left out because a value is missing")
        if event == "interrupted":
            self._print("interrupted: all rows that were sent are learned")
        if statistics.steps:
            self._print_summary(summary, statistics.naive, loop, bits)
        elif event != "failed" and not loop.skip:  # otherwise an error message follows
            self._print(f"nothing new for stream {self.stream_id} of model {self.options.model_id}")

    def _print_summary(
        self, summary: Summary, naive: str, loop: StreamingLoop, bits: float
    ) -> None:
        model_id = self.options.model_id
        click.echo(
            f"{plural(summary.steps, 'step')} learned on stream {self.stream_id} of model "
            f"{model_id}, {summary.steps_per_second:,.0f} a second; "
            f"next step {loop.next_step:,}"
        )
        for line in summary_lines(summary, naive, loop.session.model, bits):
            click.echo(line)
        if summary.model_state in ("paused", "diverged"):
            is_diverged = summary.model_state == "diverged"
            reason = " (too many consecutive updates were not finite)" if is_diverged else ""
            self._print(
                f"model {model_id} is {summary.model_state}{reason} and does not learn; "
                f"type `bptt models update {model_id} --resume` to let it learn again"
            )


@contextmanager
def _handle_interrupts(stop: asyncio.Event, notify: Callable[[str], None]) -> Iterator[list[bool]]:
    """Set `stop` at the first Ctrl-C and cancel the task at the second.

    Yields:
        A list that is not empty once Ctrl-C was pressed.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    pressed: list[bool] = []

    def interrupt() -> None:
        if pressed:
            task.cancel()
        else:
            notify("waiting until all rows that were sent are learned; Ctrl-C again quits at once")
        pressed.append(True)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield pressed
    finally:
        loop.remove_signal_handler(signal.SIGINT)
