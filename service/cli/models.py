"""`bptt models`."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import click
from rich.table import Table

from service.cli.console import address_option, json_option, number, output, print_json
from service.client import Client, Model

EXAMPLE = """\b
Example:
  bptt models
"""


@click.command(epilog=EXAMPLE)
@address_option
@json_option("one document, a list of models with all their settings")
def models(address: str, as_json: bool) -> None:
    """Show the models of a server."""
    found = asyncio.run(_list(address))
    if as_json:
        print_json([dataclasses.asdict(model) for model in found])
    elif not found:
        click.echo(f"no models yet at {address}; `bptt learn` makes one")
    else:
        output().print(_table(found))


async def _list(address: str) -> list[Model]:
    async with Client.connect(address) as client:
        return await client.list_models()


def _table(found: list[Model]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    table.add_column("task", no_wrap=True)
    table.add_column("network", no_wrap=True)
    for title in ("streams", "steps", "clipped", "error", "loss", "gradient"):
        table.add_column(title, justify="right", no_wrap=True)
    for model in found:
        spec = model.spec
        clipped = model.clipped_updates / model.updates if model.updates else math.nan
        table.add_row(
            model.model_id,
            f"{spec['task']} {model.horizon}" if spec["task"] == "forecast" else spec["task"],
            f"{spec['cell']} {spec['input_size']}→{spec['hidden_size']}",
            f"{model.streams:,}",
            f"{model.steps:,}",
            "–" if math.isnan(clipped) else f"{clipped:.0%}",
            _ratio(model.skill_ratio),
            number(model.loss),
            number(model.gradient_norm),
        )
    table.caption = "error: over that of the naive forecast, recent steps; below 1 is better"
    table.caption_justify = "left"
    return table


def _ratio(value: float) -> str:
    """Three decimals, so that models compare; an exponent where that would widen the table."""
    return f"{value:.3f}" if value < 1000 else number(value)
