"""`bptt learn`: streams a CSV or a text to a model. See `learn_run` for the run itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, get_args, get_type_hints, TypeVar

import click

from bptt.cli.console import address_option, json_option, say_error
from bptt.cli.learn_run import LearnRun
from bptt.cli.plan import LearnOptions
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
    """Parse names separated by commas, `a,b`."""
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if not name:
            raise click.BadParameter(
                f"{text!r} has an empty name; separate names with single commas"
            )
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
        ("divergence_patience", int, _DIVERGENCE_PATIENCE),
        ("on_divergence", None, _ON_DIVERGENCE),
        ("seed", int, "Seed of the initial parameters. [default: 0]"),
    ]
    for name, kind, text in reversed(options):
        kind = kind or click.Choice(get_args(_HINTS[name]))
        flag = "--" + name.replace("_", "-")
        command = click.option(flag, name, type=kind, help=text)(command)
    return command


@click.command(epilog=EXAMPLE)
@click.argument("file")
@click.option(
    "--model", required=True, metavar="NAME", help="The model; created if it does not exist."
)
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
    callback=_names,
    metavar="A,B",
    help="Classification: the class names. [default: those in the file]",
)
@click.option(
    "--missing",
    type=click.Choice(["take", "leave-out"]),
    default="take",
    show_default=True,
    help="For a new model: learn rows with missing values, or leave them out.",
)
@click.option(
    "--time",
    metavar="COLUMN",
    help="The column of times. [default: the first one that holds times]",
)
@click.option(
    "--gap",
    "gap_seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="A row at least this long after the previous one begins a new sequence.",
)
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
    help="Append all rows to the stream. [default for standard input; otherwise the rows that the "
    "stream already has are skipped]",
)
@_spec_options
@address_option
@json_option("progress lines, then the summary as the last line")
def learn(
    file: str,
    model: str,
    stream: str | None,
    append: bool,
    text: bool,
    reconnect_seconds: float,
    address: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Stream a CSV or a text to a model.

    The model predicts each row or byte before it learns it. A CSV needs a header. `-` reads
    standard input and learns each line as it arrives. A gzip file is unpacked.
    """
    column_options = {name: options.pop(name) for name in _COLUMN_OPTIONS}
    if text:
        for name, value in column_options.items():
            if value and value != "take":
                flag = "--gap" if name == "gap_seconds" else "--" + name.replace("_", "-")
                raise click.UsageError(
                    f"{flag} applies to columns, but --text reads a text without columns"
                )
    settings = {name: value for name, value in options.items() if value is not None}
    learn_options = LearnOptions(file=file, model_id=model, settings=settings, **column_options)
    stream = stream if stream is not None else _default_stream(file)
    append = append or file == "-"
    run = LearnRun(learn_options, stream, text, append, reconnect_seconds, address, as_json)
    try:
        interrupted = asyncio.run(run.run())
    except asyncio.CancelledError:
        say_error("quit at once; some rows that were sent may not be learned")
        interrupted = True
    if interrupted:
        raise click.exceptions.Exit(INTERRUPTED)


_COLUMN_OPTIONS = ("columns", "targets", "classes", "missing", "time", "gap_seconds", "other_names")


def _default_stream(file: str) -> str:
    if file == "-":
        return "stdin"
    return PurePath(file).name.removesuffix(".gz").removesuffix(".csv")
