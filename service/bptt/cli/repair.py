"""`bptt repair`: shows what a repair of a damaged model would lose, and repairs the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bptt.cli.console import json_option, print_json
from bptt.cli.folder import chosen, data_argument, store_in
from bptt.durability import inspection
from bptt.durability import repair as durability
from bptt.errors import DataDamaged

EXAMPLE = """\b
Examples:
  bptt repair ./models          shows what would be lost, and changes nothing
  bptt repair ./models --yes
"""

STREAMS_SHOWN = 10


@click.command(epilog=EXAMPLE)
@data_argument
@click.option("--model", "model_id", metavar="NAME", help="Repair only this model.")
@click.option("--yes", is_flag=True, help="Repair. Without it, only show what a repair would do.")
@json_option("one document with the findings and the repair of each model")
@click.pass_context
def repair(
    context: click.Context, folder: Path, model_id: str | None, yes: bool, as_json: bool
) -> None:
    """Repair the data folder DIR while no server uses it.

    It cuts a damaged journal behind the last record that can be replayed, and takes damaged
    checkpoints out. Both are moved to the folder 'damaged' of the model, not deleted. The server
    tells clients whose steps are lost which step it expects, and they may send them again.

    The exit status is 0 if all is whole or has been repaired, and 1 if not.
    """
    documents: list[dict[str, Any]] = []
    left = False
    store = store_in(folder)
    with store.offline():
        for each in chosen(store, model_id):
            try:
                plan = durability.plan(store, inspection.survey(store, each))
            except DataDamaged as error:
                left = True
                documents.append({"model_id": each, "problem": error.message})
                if not as_json:
                    click.echo(f"{each}: {error.message}")
                continue
            if not as_json:
                _say(plan)
            moved = durability.carry_out(store, plan) if yes and plan.needed else []
            left = left or (plan.needed and not yes)
            if yes and plan.needed and not as_json:
                click.echo("  repaired" + (f"; taken out: {', '.join(moved)}" if moved else ""))
            documents.append(_document(plan, moved))
    if as_json:
        print_json(documents)
    elif left and not yes:
        click.echo("nothing was changed; --yes repairs")
    if left:
        context.exit(1)


def _say(plan: durability.Plan) -> None:
    found = plan.survey
    if not plan.needed:
        click.echo(f"{found.model_id}: whole")
        return
    click.echo(f"{found.model_id}: damaged")
    for reason in filter(None, (plan.reason, *found.damaged.values())):
        click.echo(f"  {reason}")
    click.echo(
        f"  goes back to lsn {plan.keep_to:,}: the checkpoint after {found.whole[-1]:,} records"
        f" and {plan.keep_to - found.whole[-1]:,} records of the journal"
    )
    if not plan.lost:
        click.echo("  nothing that was learned is lost")
        return
    click.echo(
        f"  lost: {plan.lost:,} records, {plan.lost_steps:,} steps or more"
        + (f" of {_streams(plan.lost_streams)}" if plan.lost_streams else "")
    )


def _streams(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:STREAMS_SHOWN])
    more = len(names) - STREAMS_SHOWN
    return f"streams {shown}" + (f" and {more:,} more" if more > 0 else "")


def _document(plan: durability.Plan, moved: list[str]) -> dict[str, Any]:
    found = plan.survey
    return {
        "model_id": found.model_id,
        "needed": plan.needed,
        "journal": plan.reason or None,
        "damaged_checkpoints": {str(lsn): why for lsn, why in found.damaged.items()},
        "whole_checkpoints": list(found.whole),
        "goes_back_to": plan.keep_to,
        "lost_records": plan.lost,
        "lost_steps": plan.lost_steps,
        "lost_streams": list(plan.lost_streams),
        "moved": moved,
    }
