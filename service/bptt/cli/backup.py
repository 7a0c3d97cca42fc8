"""`bptt backup`: a consistent copy of a data folder, while its server runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from bptt.cli.console import json_option, print_json
from bptt.cli.folder import data_argument, store_in
from bptt.durability.backup import back_up, Copied

EXAMPLE = """\b
Example:
  bptt backup ./models ./models-copy
"""


@click.command(epilog=EXAMPLE)
@data_argument
@click.argument("target", metavar="TARGET", type=click.Path(path_type=Path))
@json_option("one document with the copied parts of each model")
def backup(folder: Path, target: Path, as_json: bool) -> None:
    """Copy the data folder DIR to TARGET, which must not exist.

    A server may run on DIR and learn during this. Each model is copied as it is at one moment, with
    all that was acknowledged before the copy began. A server started on the copy continues from
    there. `bptt verify` checks the copy.
    """

    def say(copied: Copied) -> None:
        if not as_json:
            click.echo(
                f"{copied.model_id}: {len(copied.checkpoints)} checkpoints and the journal up to "
                f"lsn {copied.last:,}, {copied.size_bytes / 1e6:,.1f} MB"
            )

    copied = back_up(store_in(folder), store_in(target), say)
    if as_json:
        print_json([dataclasses.asdict(each) for each in copied])
    elif not copied:
        click.echo(f"no models in {folder}")
