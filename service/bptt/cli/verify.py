"""`bptt verify`: checks that a data folder is whole and that its journals give its models again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from bptt.cli.console import json_option, print_json
from bptt.cli.folder import bar, chosen, data_argument, store_in
from bptt.engine import replay
from bptt.engine.replay import Verified

EXAMPLE = """\b
Example:
  bptt verify ./models
"""


@click.command(epilog=EXAMPLE)
@data_argument
@click.option("--model", "model_id", metavar="NAME", help="Check only this model.")
@json_option("one document with the findings of each model")
@click.pass_context
def verify(context: click.Context, folder: Path, model_id: str | None, as_json: bool) -> None:
    """Check the data folder DIR while no server uses it.

    It reads every checkpoint and every record and checks their checksums and order. Then it replays
    the journal from the oldest checkpoint that is kept: every later checkpoint must come out bit
    for bit. Changes nothing. The exit status is 1 if anything is wrong.
    """
    store = store_in(folder)
    with store.offline():
        results = []
        for each in chosen(store, model_id):
            with bar(each, quiet=as_json) as on_progress:
                found = replay.verify(store, each, on_progress)
            results.append(found)
            if not as_json:
                _say(found)
    if as_json:
        print_json([dataclasses.asdict(found) for found in results])
    elif not results:
        click.echo(f"no models in {folder}")
    if any(found.problems for found in results):
        context.exit(1)


def _say(found: Verified) -> None:
    if found.problems:
        click.echo(f"{found.model_id}: NOT WHOLE")
        for problem in found.problems:
            click.echo(f"  {problem}")
    else:
        click.echo(f"{found.model_id}: whole")
    count = found.last - found.first + 1
    records = f"lsn {found.first:,} to {found.last:,}" if count > 0 else "no records"
    click.echo(f"  checkpoints that are whole: {found.checkpoints}; in the journal: {records}")
    if found.replayed_from is not None:
        same = ", ".join(f"{lsn:,}" for lsn in found.compared) or "none to compare"
        click.echo(
            f"  replayed from {found.replayed_from:,} in {found.seconds:.1f} s; "
            f"bit for bit the checkpoints after: {same}"
        )
    for note in found.notes:
        click.echo(f"  {note}")
