"""`bptt learn`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, get_args, get_type_hints, TypeVar

import click

from bptt.cli import INTERRUPTED
from bptt.cli.choose import Wish
from bptt.cli.console import (
    address_option,
    json_option,
    say_error,
)
from bptt.cli.job import Job
from bptt.client import ModelSpec

Command = TypeVar("Command", bound=Callable[..., Any])
_HINTS = get_type_hints(ModelSpec)

_LABEL_DELAY = (
    "Regression, classification: the target in a row is that of the row so many rows before it. "
    "[default: 0]"
)
_ON_DIVERGENCE = (
    "... after which it learns nothing more, or goes back to its last good checkpoint. "
    "[default: stop]"
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
    """A list with commas, `a,b`."""
    names = [name.strip() for name in text.split(",")] if text else []
    for name in names:
        if not name:
            raise click.BadParameter("a name between two commas is empty")
        if names.count(name) > 1:
            raise click.BadParameter(f"{name!r} is named twice")
    return names


def _spec_options(command: Command) -> Command:
    """Options of a model that is made; their names are those of the API."""
    options: list[tuple[str, Any, str]] = [
        ("task", None, "What is learned. [default: forecast]"),
        ("horizon", int, "Forecast: steps ahead. [default: 1]"),
        ("vocabulary_size", int, "Next token: ids are 0 to this minus 1; --text has 256."),
        ("cell", None, "The recurrent cell. [default: rnn_tanh]"),
        ("hidden_size", int, "Hidden units. [default: 64]"),
        ("layers", int, "Stacked layers. [default: 1]"),
        ("k1", int, "New steps between two updates. [default: 4]"),
        ("k2", int, "Steps over which the gradient reaches back. [default: 32]"),
        ("loss", None, "[default: huber for forecasts, squared_error for regression]"),
        ("optimizer", None, "[default: adam]"),
        (
            "learning_rate",
            float,
            "[default: 0.001; a forecast's then falls to 0.0002]",
        ),
        ("weight_decay", float, "[default: 0; 0.01 for adamw]"),
        ("warmup_updates", int, "Updates over which the learning rate grows. [default: 0]"),
        ("decay_updates", int, "Updates over which it then falls. [default: 0: never]"),
        ("final_learning_rate", float, "Where its fall ends. [default: 0]"),
        ("clip", None, "How the gradient is clipped. [default: norm]"),
        ("clip_threshold", float, "The bound of the clip. [default: 1]"),
        ("label_delay", int, _LABEL_DELAY),
        ("divergence_patience", int, "Updates in a row that are not finite ... [default: 10]"),
        ("on_divergence", None, _ON_DIVERGENCE),
        ("seed", int, "Where the first parameters come from. [default: 0]"),
    ]
    for name, kind, text in reversed(options):
        kind = kind or click.Choice(get_args(_HINTS[name]))
        flag = "--" + name.replace("_", "-")
        command = click.option(flag, name, type=kind, help=text)(command)
    return command


@click.command(epilog=EXAMPLE)
@click.argument("file")
@click.option("--model", required=True, metavar="NAME", help="The model; made if it is not there.")
@click.option("--stream", metavar="ID", help="The stream. [default: the file's name]")
@click.option(
    "--columns",
    callback=_names,
    metavar="A,B",
    help="Columns to learn from. [default: all that are numbers]",
)
@click.option(
    "--targets",
    "--target",
    "targets",
    callback=_names,
    metavar="A,B",
    help="Forecast: the columns to forecast. [default: all] Regression: the columns to predict "
    "from the others. Classification: the column of the classes' names.",
)
@click.option(
    "--classes",
    callback=_names,
    metavar="A,B",
    help="Classification: the classes. [default: those in the file]",
)
@click.option(
    "--missing",
    type=click.Choice(["take", "leave-out"]),
    default="take",
    show_default=True,
    help="Of a model that is made: take missing values as such, or leave their rows out.",
)
@click.option("--time", metavar="COLUMN", help="The rows' times. [default: the first there is]")
@click.option(
    "--gap",
    "gap_seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="A row that comes so long after the one before it begins a new sequence.",
)
@click.option(
    "--other-names",
    is_flag=True,
    help="Learn columns of other names than those that the model was made for.",
)
@click.option("--text", is_flag=True, help="FILE is a text: learn to predict its next byte.")
@click.option(
    "--reconnect",
    "reconnect_seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="How long to wait for a server that went away, and then go on. [default: 0]",
)
@click.option(
    "--append",
    is_flag=True,
    help="The rows come after those that the stream has. [default for standard input; a file goes "
    "on where the stream ended]",
)
@_spec_options
@address_option
@json_option("lines of progress and, as the last line, the summary")
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
    """Stream a CSV or a text to a model, which predicts each row or byte before it learns it.

    A CSV needs a header; `-` is standard input, learned line by line as it comes; gzip is read as
    it is.
    """
    for_rows = {name: options.pop(name) for name in _FOR_ROWS}
    if text:
        for name, value in for_rows.items():
            if value and value != "take":
                flag = "--gap" if name == "gap_seconds" else "--" + name.replace("_", "-")
                raise click.UsageError(f"{flag} is for columns, and --text has none")
    settings = {name: value for name, value in options.items() if value is not None}
    wish = Wish(file=file, model_id=model, settings=settings, **for_rows)
    stream = stream if stream is not None else _stream_of(file)
    append = append or file == "-"
    job = Job(wish, stream, text, append, reconnect_seconds, address, as_json)
    try:
        interrupted = asyncio.run(job.run())
    except asyncio.CancelledError:
        say_error("left at once; some of what was sent may not be learned")
        interrupted = True
    if interrupted:
        raise click.exceptions.Exit(INTERRUPTED)


_FOR_ROWS = ("columns", "targets", "classes", "missing", "time", "gap_seconds", "other_names")


def _stream_of(file: str) -> str:
    if file == "-":
        return "stdin"
    return PurePath(file).name.removesuffix(".gz").removesuffix(".csv")
