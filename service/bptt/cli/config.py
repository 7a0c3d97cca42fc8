"""`bptt config`: shows the server's settings and where each comes from."""

from __future__ import annotations

import click
from rich.table import Table

from bptt.cli.console import json_option, output, print_json
from bptt.cli.settings import NONE, server_options, Settings

EXAMPLE = """\b
Examples:
  bptt config
  bptt config --config deploy/bptt.toml --json

Takes the options of `bptt serve`. Each is also a variable (--kept-checkpoints is
BPTT_KEPT_CHECKPOINTS) and a key of bptt.toml (checkpoints in the table [kept]). A flag is stronger
than a variable, a variable than the file.
"""


@click.command(epilog=EXAMPLE)
@server_options
@json_option("one document with the value and the source of each setting")
def config(settings: Settings, as_json: bool) -> None:
    """Show every setting that `bptt serve` would have here, and where it comes from.

    Invalid settings are an error, as they are for `bptt serve`.
    """
    if as_json:
        print_json(
            {
                "file": str(settings.file) if settings.file else None,
                "settings": {
                    each.field.key: {
                        "value": _plain(each.value),
                        "source": each.source,
                        "where": each.where,
                        "flag": each.field.flag,
                        "variable": each.field.variable,
                        "default": _plain(each.field.default),
                    }
                    for each in settings.values
                },
            }
        )
        return
    table = Table(box=None, pad_edge=False)
    for title in ("setting", "value", "from"):
        table.add_column(title, overflow="fold")
    for each in settings.values:
        value = NONE if each.value is None else str(each.value)
        table.add_row(each.field.key, value, each.where)
    output().print(table)


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, (int, float)) else str(value)
