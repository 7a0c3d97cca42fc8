"""One run of `bptt learn`, from an open file to the last acknowledgement."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import click
from rich.console import Console

from bptt.cli import plan as planning
from bptt.cli.answers.recording import Recording
from bptt.cli.begin import Begin, Beginning
from bptt.cli.connection import connect
from bptt.cli.console import plural, print_json, progress_output
from bptt.cli.create import create_model
from bptt.cli.data.columns import OTHER_CLASS
from bptt.cli.data.known_rows import ReadBatches
from bptt.cli.data.order import JUMP
from bptt.cli.data.problem import InputError, join_names
from bptt.cli.data.source import Batch
from bptt.cli.data.steptimes import StepTimes
from bptt.cli.data.survey import skipped_lines, Survey, Wanted
from bptt.cli.data.survey import summary as understood_lines
from bptt.cli.data.table import DataTable
from bptt.cli.data.textfile import TextFile, VOCABULARY
from bptt.cli.data.trail import Trail
from bptt.cli.data.understood import Choice, Understood
from bptt.cli.interrupts import handle_interrupts
from bptt.cli.learn_fleet import FleetRun
from bptt.cli.progress import ProgressDisplay, tell_reading
from bptt.cli.run_statistics import RunStatistics, Summary
from bptt.cli.streaming import StreamingLoop
from bptt.cli.summary_text import summary_lines
from bptt.cli.threads import iterate_in_thread, run_in_thread
from bptt.client import Client, LearnSession, Model, ServerUnreachable
from bptt.errors import NotFound, ServerStopping

CHUNK_STEPS = 64  # 4 KB for 16 columns: little overhead on the wire, and smooth progress
CHUNK_TOKENS = 256  # the same for steps of one byte
CHUNK_VALUES = 250_000  # inputs or predictions in a chunk: 1 MB, a quarter of a message's limit
RECOVERING_SECONDS = 0.5  # between two looks at a model that is being recovered
STREAM_ID_BYTES_MAX = 256  # the server's bound, checked here before a model is created


@dataclass(slots=True)
class LearnRun:
    """One run of `bptt learn`; `run` executes it."""

    options: planning.LearnOptions
    stream_id: str
    text: bool
    append: bool
    by_number: bool
    reconnect_seconds: float
    address: str
    as_json: bool
    dry_run: bool = False
    """Stop after telling what was understood of the file; no server is asked."""
    recording: Recording = field(default_factory=Recording)
    """What is kept of the predictions."""
    console: Console = field(init=False)
    learned: int = field(init=False, default=0)
    """Steps learned so far, of streams that are done."""
    _source: DataTable | TextFile | None = field(init=False, default=None)

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
        if self.text:
            with TextFile(self.options.file) as text:
                async with connect(self.address) as client:
                    return await self._learn_text(client, text)
        with DataTable(self.options.file, self.options.reading) as table:
            if self.dry_run:
                await self._dry_run(table)
                return False
            async with connect(self.address) as client:
                return await self._learn_table(client, table)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _show_bad_row(self, problem: str) -> None:
        if self.as_json:
            print_json({"event": "bad_row", "problem": problem})
        self._print(f"left out: {problem}")

    async def _get_model(self, client: Client) -> Model | None:
        """The model, once it can learn; None: there is none of that name."""
        told = ""
        try:
            while True:
                model = await client.get_model(self.options.model_id)
                if model.state not in ("recovering", "restoring"):
                    return planning.check_read(model)
                reason = f" ({model.state_reason})" if model.state_reason else ""
                state = f"model {model.model_id} is {model.state}{reason}"
                if state != told:
                    self._print(f"{state}: waiting until it can learn; Ctrl-C ends the wait")
                    told = state
                await asyncio.sleep(RECOVERING_SECONDS)
        except NotFound:
            return None

    # ------------------------------------------------------------------ preparing the model

    async def _learn_table(self, client: Client, table: DataTable) -> bool:
        model = await self._get_model(client)
        understood, plan, wanted, found = await self._look(table, model)
        self.recording.check(plan.task)
        is_new = model is None
        if model is None:
            spec = planning.build_spec(self.options, plan)
            model = await create_model(client, self.options.model_id, spec, self.console)
        else:
            planning.check_model(self.options, plan, model, self._print)
        self._tell(understood, found, wanted, is_live=table.is_live)
        if is_new:
            self._print_purpose(model, plan)
        if not table.is_live:
            self._print_scan(model, understood, plan, found)
        choice = planning.select_columns(self.options, plan, understood, model)
        if plan.stream_column is not None:
            place = understood.header.index(plan.stream_column)
            choice = replace(choice, series=place)
            if self.recording.is_wanted:
                return await self._learn_series(client, model, choice, found)
            fleet = FleetRun(
                client=client,
                model=model,
                table=table,
                choice=choice,
                found=found,
                options=self.options,
                session=self._session(client),
                say=self._print,
                display=ProgressDisplay(self.console, total=table.size, as_json=self.as_json),
                append=self.append,
                by_number=self.by_number,
                as_json=self.as_json,
            )
            async with self._explain_server_stop():
                interrupted = await fleet.run()
            self._print_left_out(table, choice)
            return interrupted
        interrupted = await self._learn(client, model, table, choice, found.step_times)
        self._print_left_out(table, choice)
        return interrupted

    async def _learn_series(
        self, client: Client, model: Model, choice: Choice, found: Survey
    ) -> bool:
        """Learn the rows of each series as a stream of its own, one after another.

        The rows of a table of predictions stand stream after stream.
        """
        self._print("predictions are kept: the series are learned one after another")
        for series in found.series:
            self.stream_id = series
            with DataTable(self.options.file, self.options.reading) as table:
                await run_in_thread(table.understand)
                if await self._learn(client, model, table, choice, found.step_times):
                    return True
        return False

    def _print_left_out(self, table: DataTable, choice: Choice) -> None:
        """Print what was not known before the rows were read."""
        if table.is_live or choice.sort:
            for line in skipped_lines(table.skipped):
                self._print(line)
        if table.other_classes:
            names = [f"{name!r} ({count:,})" for name, count in table.other_classes.items()]
            self._print(f"learned as class {OTHER_CLASS!r}: {join_names(names)}")

    async def _dry_run(self, table: DataTable) -> None:
        """Tell what is understood of the file."""
        understood, _, wanted, found = await self._look(table, None)
        self._tell(understood, found, wanted, is_live=table.is_live)

    async def _look(
        self, table: DataTable, model: Model | None
    ) -> tuple[Understood, planning.Plan, Wanted, Survey]:
        """Read the first rows, then all rows of a file, before anything is learned."""
        understood = await run_in_thread(table.understand)
        plan = planning.make_plan(self.options, understood, model)
        wanted = planning.wanted_of(self.options, plan, model)
        scan = partial(planning.scan, self.options, understood, wanted, is_live=table.is_live)
        async with self._tell_reading(table.size):
            found = await run_in_thread(scan)
        plan.scan = None if table.is_live else found
        return understood, plan, wanted, found

    def _tell_reading(self, size: int | None) -> AbstractAsyncContextManager[None]:
        return tell_reading(self.console, self.options.file, size, as_json=self.as_json)

    def _tell(
        self, understood: Understood, found: Survey, wanted: Wanted, *, is_live: bool
    ) -> None:
        """Print what was understood of the file."""
        lines = list(understood_lines(understood, found, wanted, is_live=is_live))
        if self.as_json:
            print_json(
                {
                    "event": "understood",
                    "columns": list(wanted.columns),
                    "left_out": understood.left_out,
                    "rows": None if is_live else found.rows,
                    "summary": lines,
                }
            )
        for line in lines:
            self._print(line)

    async def _learn_text(self, client: Client, text: TextFile) -> bool:
        model = await self._get_model(client)
        self.recording.check("next_token")
        wanted = {"task": "next_token", "vocabulary_size": VOCABULARY, **self.options.settings}
        if model is None:
            model = await create_model(client, self.options.model_id, wanted, self.console)
            self._print_created(model, "predicts the next byte of a text")
        else:
            planning.check_settings(self.options.model_id, dict(model.spec), wanted, [])
        return await self._learn(client, model, text)

    def _print_purpose(self, model: Model, plan: planning.Plan) -> None:
        inputs = join_names(plan.inputs)
        if plan.targets:
            self._print_created(model, f"predicts {join_names(plan.targets)} from {inputs}")
        else:
            self._print_created(model, f"forecasts {join_names(plan.forecast or plan.inputs)}")

    def _print_created(self, model: Model, purpose: str) -> None:
        cell = model.spec["cell"]
        network = f"({cell}, {model.parameters:,} parameters)"
        self._print(f"created model {model.model_id}: {purpose} {network}")

    def _print_scan(
        self, model: Model, understood: Understood, plan: planning.Plan, found: Survey
    ) -> None:
        """Report missing values and gaps in time."""
        for name, missing in found.lacking.items():
            setting = "missing_inputs" if name in plan.inputs else "missing_targets"
            if model.spec.get(setting):
                self._print(
                    f"column {name!r} lacks {plural(missing, 'value')}: "
                    "the model treats them as missing"
                )
        order = found.order
        if self.options.gap_seconds is None and order is not None and order.gaps:
            assert understood.time is not None
            self._print(
                f"note: {plural(order.gaps, 'gap')} in column {understood.time.name} of at "
                f"least {JUMP} times the median interval of {order.steps.quantile(0.5):g} s; "
                "--gap SECONDS begins a new sequence there"
            )

    # ------------------------------------------------------------------ learning

    async def _learn(
        self,
        client: Client,
        model: Model,
        source: DataTable | TextFile,
        choice: Choice | None = None,
        times: StepTimes | None = None,
    ) -> bool:
        """Learn the rows that the stream does not have yet.

        Args:
            client: of the server.
            model: the model.
            source: a table, of which the first rows were looked at, or a text.
            choice: what of each row of a table is read.
            times: how a table's times are written.

        Returns:
            True if Ctrl-C ended the run.
        """
        self._source = source
        if source.is_live and isinstance(source, DataTable):
            source.bad.on_bad = self._show_bad_row
        async with self._tell_reading(source.size):
            begin = await self._begin(client, choice, times)
        read = _reader(source, choice, self.stream_id)
        chunk_steps = CHUNK_TOKENS if self.text else CHUNK_STEPS
        width = max(model.spec["input_size"], model.horizon * model.targets)
        read_rows = partial(read, max(1, min(chunk_steps, CHUNK_VALUES // width)))
        statistics = RunStatistics(model)
        noun = "byte" if self.text else "row"
        display = ProgressDisplay(self.console, total=source.size, as_json=self.as_json, noun=noun)
        stop = asyncio.Event()
        recording = self.recording.of_stream(
            client, model, self.stream_id, begin.next_step, times, self._print
        )
        async with (
            self._explain_server_stop(), recording as recorder, self._session(client) as session
        ):  # fmt: skip
            loop = StreamingLoop(
                session,
                self.stream_id,
                model.spec["input_size"],
                next_step=begin.next_step,
                append=begin.append,
                statistics=statistics,
                delay=model.spec.get("label_delay", 0),
                look_ahead=self.options.gap_seconds is not None,
                reset=partial(client.reset_stream, self.options.model_id, self.stream_id),
                on_progress=lambda position: display.update(statistics, position),
                recorder=recorder,
                skip=begin.skip,
                first_row_step=begin.first_row_step,
                trail=Trail(times),
                live=begin.live,
            )
            with display, handle_interrupts(stop, self._print) as interrupted:
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
            is_live = self.options.file == "-"  # which cannot be read from its beginning again
            advice = "" if self.append or is_live else "; run the same command again to continue"
            raise ServerUnreachable(f"the server at {self.address} stopped{advice}") from None

    async def _begin(self, client: Client, choice: Choice | None, times: StepTimes | None) -> Begin:
        def read_anew(rows_max: int, emit: Callable[[Batch], None]) -> None:
            if choice is None:
                with TextFile(self.options.file) as text:
                    text.read(rows_max, emit)
                return
            with DataTable(self.options.file, self.options.reading) as table:
                table.understand()
                _reader(table, choice, self.stream_id)(rows_max, emit)

        return await Beginning(
            client=client,
            model_id=self.options.model_id,
            stream_id=self.stream_id,
            source=self.options.file,
            read=read_anew,
            times=times,
            say=self._print,
            append=self.append,
            by_number=self.by_number,
        ).find()

    # ------------------------------------------------------------------ output

    def _bad_rows(self) -> int:
        """Rows left out so far because they cannot be read."""
        return self._source.bad.count if isinstance(self._source, DataTable) else 0

    async def _finish(
        self, client: Client, statistics: RunStatistics, loop: StreamingLoop, event: str
    ) -> None:
        summary = statistics.summary()
        self.learned += statistics.steps
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
                "rows_unreadable": self._bad_rows(),
            }
            if math.isfinite(bits):
                facts["cross_entropy_bits"] = bits
            print_json({"event": event, **facts, **summary.to_json()})
            return
        if loop.missing:
            self._print(f"{plural(loop.missing, 'row')} left out because a value is missing")
        if bad := self._bad_rows():
            self._print(f"{plural(bad, 'row')} left out because they cannot be read")
        if loop.live is not None and loop.skipped:
            self._print(f"{plural(loop.skipped, 'row')} skipped: the stream has them already")
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


def _reader(source: DataTable | TextFile, choice: Choice | None, stream_id: str) -> ReadBatches:
    """Reads the rest of an open source; of a file with several series, those of the stream."""
    if isinstance(source, TextFile):
        return source.read
    assert choice is not None
    if choice.series is not None:
        return partial(source.read_one, choice, stream_id)
    return partial(source.read, choice)
