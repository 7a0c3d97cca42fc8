"""The option `--plot`, which may stand alone or name a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from bptt.cli.answers.chart import check_picture, TERMINAL

Command = TypeVar("Command", bound=Callable[..., Any])
_PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".gif", ".webp")
"""Suffixes of what is taken for the option's file, and not for the command's argument."""


class PlotCommand(click.Command):
    """A command with `--plot`, whose value may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give `--plot` its value if the next word is none."""
        given = list(args)
        for place in range(len(given) - 1, -1, -1):
            following = given[place + 1] if place + 1 < len(given) else ""
            if given[place] == "--plot" and not following.lower().endswith(_PICTURES):
                given[place] = f"--plot={TERMINAL}"
        return super().parse_args(ctx, given)


def plot_option(what: str) -> Callable[[Command], Command]:
    """Add the option `--plot`; `what` tells what is drawn, for the help text."""

    def add(command: Command) -> Command:
        text = f"Draw {what}: in the terminal, or in FILE, a .png or .svg."
        return click.option("--plot", metavar="[FILE]", callback=_plot, help=text)(command)

    return add


def _plot(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    return None if text is None else check_picture("--plot", text)


def check_plot(plot: str | None, *, as_json: bool) -> None:
    """Refuse a drawing between lines of JSON."""
    if as_json and plot == TERMINAL:
        raise click.UsageError(
            "--plot draws in the terminal, but with --json nothing but JSON is written; name a "
            "file, as in --plot chart.png"
        )
