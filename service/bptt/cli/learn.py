"""`bptt learn`: streams a CSV or a text to a model. See `learn_run` for the run itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, get_args, get_type_hints, TypeVar

import click

from bptt.cli.answers.files import check_path
from bptt.cli.answers.options import check_plot, plot_option, PlotCommand
from bptt.cli.answers.recording import Recording
from bptt.cli.connection import address_option
from bptt.cli.console import json_option, plural, say_error
from bptt.cli.data.columns import split_names
from bptt.cli.data.options import ReadOptions
from bptt.cli.learn_run import LearnRun
from bptt.cli.plan import LearnOptions
from bptt.cli.read_options import read_options, READING
from bptt.client import ModelSpec
from bptt.exit_status import INTERRUPTED

Command = TypeVar("Command", bound=Callable[..., Any])
_HINTS = get_type_hints(ModelSpec)

_LABEL_DELAY = (
    "Regression, classification: a row's target belongs to the row this many rows earlier. "
    "[default: 0]"
)
_ON_DIVERGENCE = (
    "What a diverged model does: stop learning, or roll back to its last good checkpoint. "
    "[default: stop]"
)
_DIVERGENCE_PATIENCE = (
    "Consecutive updates with a non-finite loss or gradient after which the model counts as "
    "diverged. [default: 10]"
)

EXAMPLE = """\b
Examples:
  bptt learn temperature.csv --model sea
  bptt learn glucose.csv.gz --model glucose --columns isig,glucose --targets glucose --gap 3600
  bptt learn drive.csv --model fuel --task regression --targets consumption
  bptt learn machine.csv --model faults --task classification --targets fault --label-delay 10
  bptt learn notes.txt --model prose --text
  tail -n +1 -f sensor.csv | bptt learn - --model sensor
"""


def _names(context: click.Context, option: click.Parameter, text: str | None) -> list[str]:
    """Parse names separated by commas, `a,b`; quotes hold a name with commas together."""
    names = split_names(text) if text else []
    if not all(names):
        raise click.BadParameter(f"{text!r} has an empty name; separate names with single commas")
    return names


def _classes(context: click.Context, option: click.Parameter, text: str | None) -> list[str]:
    """Parse names of classes, which must differ."""
    names = _names(context, option, text)
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"{name!r} appears twice")
    return names


def _spec_options(command: Command) -> Command:
    """Add the options for the spec of a new model; each has the name of its field."""
    options: list[tuple[str, Any, str]] = [
        ("task", None, "What the model learns to predict. [default: forecast]"),
        ("horizon", int, "Forecast: number of steps ahead. [default: 1]"),
        (
            "vocabulary_size",
            int,
            "Next token: number of token ids, which start at 0; --text sets 256.",
        ),
        ("cell", None, "The recurrent cell. [default: rnn_tanh]"),
        ("hidden_size", int, "Hidden units. [default: 64]"),
        ("layers", int, "Stacked layers. [default: 1]"),
        ("k1", int, "Steps between two updates. [default: 4]"),
        ("k2", int, "Length of the window in steps, at least k1. [default: 32]"),
        (
            "loss",
            None,
            "Loss function. [default: huber for forecasts, squared_error for regression]",
        ),
        ("optimizer", None, "Optimizer. [default: adam]"),
        (
            "learning_rate",
            float,
            "Step size. [default: 0.001; for a forecast it decays to 0.0002]",
        ),
        ("weight_decay", float, "Weight decay. [default: 0; 0.01 for adamw]"),
        (
            "warmup_updates",
            int,
            "Updates over which the learning rate rises to its full value. [default: 0]",
        ),
        ("decay_updates", int, "Updates over which it then decays; 0: never. [default: 0]"),
        ("final_learning_rate", float, "Learning rate after the decay. [default: 0]"),
        (
            "clip",
            None,
            "Gradient clipping: by global norm, by value, by layer, or none. [default: norm]",
        ),
        ("clip_threshold", float, "Largest norm, or largest value. [default: 1]"),
        ("label_delay", int, _LABEL_DELAY),
        (
            "scaling_memory",
            int,
            "Steps over which the statistics that scale values fade; 0: never. [default: 2000]",
        ),
        (
            "combine",
            None,
            "Forecasts: mixed with those of simple rivals, or the network's. [default: mixture]",
        ),
        ("divergence_patience", int, _DIVERGENCE_PATIENCE),
        ("on_divergence", None, _ON_DIVERGENCE),
        ("seed", int, "Seed of the initial parameters. [default: 0]"),
    ]
    for name, kind, text in reversed(options):
        kind = kind or click.Choice(get_args(_HINTS[name]))
        flag = "--" + name.replace("_", "-")
        command = click.option(flag, name, type=kind, help=text)(command)
    return command


@click.command(cls=PlotCommand, epilog=EXAMPLE)
@click.argument("file")
@click.option("--model", metavar="NAME", help="The model; created if it does not exist.")
@click.option("--stream", metavar="ID", help="The stream. [default: the file's name without .csv]")
@click.option(
    "--columns",
    callback=_names,
    metavar="A,B",
    help="Columns to learn from. [default: all numeric columns]",
)
@click.option(
    "--targets",
    "--target",
    "targets",
    callback=_names,
    metavar="A,B",
    help="Forecast: the columns to forecast. [default: all] Regression: the columns to predict "
    "from the others. Classification: the column of class names.",
)
@click.option(
    "--classes",
    callback=_classes,
    metavar="A,B",
    help="Classification: the class names. [default: those in the file]",
)
@click.option(
    "--new-classes",
    is_flag=True,
    help="Classification: learn classes that the model does not have as its class 'other', which "
    "a new model gets.",
)
@click.option(
    "--missing",
    multiple=True,
    metavar="take|leave-out|MARKERS",
    help="`take` (default) or `leave-out`: learn rows with missing values, or leave them out. "
    "Anything else: markers of missing values beside the usual words, such as -9999,OVL.",
)
@click.option(
    "--gap",
    "gap_seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="A row at least this long after the previous one begins a new sequence.",
)
@click.option(
    "--stream-column",
    metavar="COLUMN",
    help="Rows are of several series: learn each as a stream, named by its cell in this column.",
)
@read_options
@click.option(
    "--other-names",
    is_flag=True,
    help="Allow columns whose names differ from those the model was made for.",
)
@click.option("--text", is_flag=True, help="Treat FILE as text and learn to predict its next byte.")
@click.option(
    "--reconnect",
    "reconnect_seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="How long to wait for a server that went away before giving up. [default: 0]",
)
@click.option(
    "--append",
    is_flag=True,
    help="Learn all rows after the stream's steps. [default: rows that the stream already has are "
    "skipped; a file that has other rows in their place is refused]",
)
@click.option(
    "--by-number",
    is_flag=True,
    help="Skip as many rows as the stream has steps, without comparing them: the file was edited.",
)
@click.option(
    "--predictions",
    callback=lambda context, option, path: path and check_path("--predictions", path),
    metavar="FILE",
    help="Write time, value, prediction, band and anomaly score of each step, target and number of "
    "steps ahead to FILE, a .csv, .jsonl or .parquet. An existing file is continued.",
)
@plot_option("recent values, their predictions, and what is forecast next")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print what is understood of the file, and stop; no server is needed.",
)
@_spec_options
@address_option
@json_option("progress lines, then the summary as the last line")
def learn(
    file: str,
    model: str | None,
    stream: str | None,
    append: bool,
    by_number: bool,
    text: bool,
    dry_run: bool,
    predictions: str | None,
    plot: str | None,
    reconnect_seconds: float,
    address: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Stream a CSV or a text to a model.

    The model predicts each row or byte before it learns it. How a table is written (delimiter,
    decimal mark, encoding, titles, times) is told from the file and printed; where it cannot be
    told, the command stops and names the option that says it. `-` reads standard input and learns
    each line as it arrives. gzip, zip, xz, bzip2 and Zstandard are unpacked.
    """
    column_options = {name: options.pop(name) for name in _COLUMN_OPTIONS}
    reading = {name: options.pop(name) for name in READING}
    if text:
        for name, value in (column_options | reading).items():
            if value:
                flag = "--gap" if name == "gap_seconds" else "--" + name.replace("_", "-")
                raise click.UsageError(
                    f"{flag} applies to columns, but --text reads a text without columns"
                )
    if model is None:
        if not dry_run:
            raise click.UsageError("Missing option '--model'.")
        model = ""
    if column_options["stream_column"] is not None and stream is not None:
        raise click.UsageError("--stream and --stream-column both name streams; leave one out")
    check_plot(plot, as_json=as_json)
    if plot is not None and column_options["stream_column"] is not None:
        raise click.UsageError(
            "--plot draws one stream, but --stream-column learns several; draw one afterwards with "
            "`bptt predict --stream ID --plot`"
        )
    mode, markers = _missing(column_options.pop("missing"))
    read = ReadOptions(missing=markers, **reading)
    settings = {name: value for name, value in options.items() if value is not None}
    learn_options = LearnOptions(
        file=file, model_id=model, settings=settings, missing=mode, reading=read, **column_options
    )
    stream = stream if stream is not None else _default_stream(file)
    if append and by_number:
        raise click.UsageError("--append learns all rows, --by-number skips some; leave one out")
    run = LearnRun(
        learn_options,
        stream,
        text,
        append,
        by_number,
        reconnect_seconds,
        address,
        as_json,
        dry_run,
        Recording(predictions, plot),
    )
    try:
        interrupted = asyncio.run(run.run())
    except asyncio.CancelledError:
        say_error("quit at once; some rows that were sent may not be learned")
        interrupted = True
    except KeyboardInterrupt:  # before the first row of a stream was sent
        done = plural(run.learned, "row") if run.learned else "nothing was"
        say_error(f"interrupted: {done} learned")
        interrupted = True
    if interrupted:
        raise click.exceptions.Exit(INTERRUPTED)


_COLUMN_OPTIONS = (
    *("columns", "targets", "classes", "missing", "gap_seconds", "other_names", "stream_column"),
    "new_classes",
)
_PACKED_SUFFIXES = (".gz", ".zip", ".xz", ".bz2", ".zst")


def _missing(values: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """What `--missing` says: what happens to missing values, and what marks them."""
    modes = [value for value in values if value in ("take", "leave-out")]
    markers = [part for value in values if value not in modes for part in split_names(value)]
    if len(set(modes)) > 1:
        raise click.UsageError("--missing is both take and leave-out; give one of them")
    return (modes[0] if modes else "take"), tuple(markers)


def _default_stream(file: str) -> str:
    if file == "-":
        return "stdin"
    name = PurePath(file).name
    for suffix in _PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.removesuffix(".csv")
