"""Terminal output: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import numpy as np
from rich.console import Console

WIDE = 200  # columns without a terminal, so that output to a file is neither cut nor wrapped

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(what: str) -> Callable[[Command], Command]:
    """Add the option `--json`; `what` describes the output for the help text."""

    def add(command: Command) -> Command:
        text = f"Write JSON to standard output, and nothing else: {what}."
        return click.option("--json", "as_json", is_flag=True, help=text)(command)

    return add


def output() -> Console:
    """Return a console on standard output; it writes plain text if that is no terminal."""
    wide = None if sys.stdout.isatty() else WIDE
    return Console(highlight=False, width=wide)


def progress_output(*, quiet: bool = False) -> Console:
    """Return a console on standard error; with `quiet` it prints nothing."""
    wide = None if sys.stderr.isatty() else WIDE
    return Console(stderr=True, highlight=False, quiet=quiet, width=wide)


def say_error(message: str) -> None:
    """Print an error as one line on standard error."""
    click.echo("bptt: " + " ".join(message.split()), err=True)


def print_json(document: Any) -> None:
    """Print one line of JSON; NaN and infinities become null, since JSON has no such numbers."""
    click.echo(json.dumps(_plain(document), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        # A float32 has 7 significant digits; printed as a double it would show 17.
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def number(value: float) -> str:
    """Format a figure with four significant digits; a dash if it is not finite."""
    return "–" if not math.isfinite(value) else f"{value:.4g}"


def percent(share: float) -> str:
    """Format a share as a percentage with one decimal; a dash if it is NaN."""
    return "–" if math.isnan(share) else f"{share:.1%}"


def plural(many: int, noun: str) -> str:
    """Format a count with its noun: `1 step`, `2 steps`."""
    return f"{many:,} {noun}" if many == 1 else f"{many:,} {noun}s"
