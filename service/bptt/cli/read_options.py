"""Options that say how a file of columns is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from bptt.cli.data.columns import split_names

Command = TypeVar("Command", bound=Callable[..., Any])
READING = (
    *("delimiter", "decimal", "thousands", "encoding", "skip_rows", "comment", "no_header"),
    *("not_missing", "time", "time_format", "time_zone", "no_time", "sort", "bad_rows"),
)
"""Names of the options, as of the fields of `ReadOptions`."""


def _markers(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Parse markers separated by commas."""
    return tuple(part for value in values for part in split_names(value))


def read_options(command: Command) -> Command:
    """Add the options to a command."""
    told = "[default: told from the file]"
    options: list[tuple[str, dict[str, Any]]] = [
        ("--delimiter", {"metavar": "SIGN", "help": f"Between columns: a sign, or tab, comma, "
                         f"semicolon, pipe, spaces, none. {told}"}),
        ("--decimal", {"metavar": "SIGN", "help": f"The decimal mark. {told}"}),
        ("--thousands", {"metavar": "SIGN", "help": f"The sign between thousands. {told}"}),
        ("--encoding", {"metavar": "NAME", "help": f"Such as utf-8, utf-16, cp1252. {told}"}),
        ("--skip-rows", {"metavar": "N", "type": click.IntRange(min=0), "default": 0,
                         "help": "Lines to skip before the titles."}),
        ("--comment", {"metavar": "TEXT", "help": "What lines begin with that are no data. "
                       "[default: #]"}),
        ("--no-header", {"is_flag": True, "help": "The first line holds data, not titles: columns "
                         "are called 'column 1', 'column 2' and so on."}),
        ("--not-missing", {"multiple": True, "callback": _markers, "metavar": "VALUES",
                           "help": "Values that are readings, although they look like markers of "
                           "missing ones, such as -9999."}),
        ("--time", {"metavar": "COLUMN[,COLUMN]", "help": "The column of times, or those of the "
                    f"date and of the time of day. {told}"}),
        ("--time-format", {"metavar": "FORMAT", "help": "How times are written: in strptime's "
                           "signs, such as '%d/%m/%Y %H:%M', or day-first, month-first, "
                           f"year-first, s, ms, us, ns, excel. {told}"}),
        ("--time-zone", {"metavar": "ZONE", "help": "The zone of times that name none, such as "
                         "Europe/Berlin or +01:00. [default: UTC]"}),
        ("--no-time", {"is_flag": True, "help": "Ignore times: rows are in the file's order."}),
        ("--sort", {"is_flag": True, "help": "Learn the rows in the order of their times; rows "
                    "that repeat another are left out."}),
        ("--bad-rows", {"metavar": "N", "type": click.IntRange(min=0),
                        "help": "Leave out up to N rows that cannot be read among any 10,000; each "
                        "is shown. [default: 100 for standard input, otherwise 0]"}),
    ]  # fmt: skip
    for flag, settings in reversed(options):
        command = click.option(flag, **settings)(command)
    return command
