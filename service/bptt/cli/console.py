"""Where output goes: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import numpy as np
from rich.console import Console

DEFAULT_ADDRESS = "127.0.0.1:50051"
WIDE = 200  # columns where there is no terminal: nothing is cut or wrapped for a file

Command = TypeVar("Command", bound=Callable[..., Any])


def address_option(command: Command) -> Command:
    """`--address`, of the server."""
    return click.option(
        "--address",
        callback=_address,
        default=DEFAULT_ADDRESS,
        show_default=True,
        metavar="HOST:PORT",
        help="Where the server listens.",
    )(command)


def _address(context: click.Context, option: click.Parameter, text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 1 << 16:
        raise click.BadParameter(f"{text!r} must be host:port, with a port from 1 to 65535")
    return text


def json_option(what: str) -> Callable[[Command], Command]:
    """`--json`, which gives `what`."""

    def add(command: Command) -> Command:
        text = f"For machines: {what} on standard output, and nothing else there."
        return click.option("--json", "as_json", is_flag=True, help=text)(command)

    return add


def output() -> Console:
    """The console on standard output; plain text where that is not a terminal."""
    wide = None if sys.stdout.isatty() else WIDE
    return Console(highlight=False, width=wide)


def progress_output(*, quiet: bool = False) -> Console:
    """The console on standard error; `quiet`: one that prints nothing."""
    wide = None if sys.stderr.isatty() else WIDE
    return Console(stderr=True, highlight=False, quiet=quiet, width=wide)


def say_error(message: str) -> None:
    """One line on standard error."""
    click.echo("bptt: " + " ".join(message.split()), err=True)


def print_json(document: Any) -> None:
    """One line of JSON; numbers that are not finite become null, which JSON has and NaN is not."""
    click.echo(json.dumps(_plain(document), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        # float32 as text has 7 digits; the double it became would show 17.
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def number(value: float) -> str:
    """A figure for people: four digits, or a dash where there is none yet."""
    return "–" if not math.isfinite(value) else f"{value:.4g}"
