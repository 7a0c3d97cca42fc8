"""`bptt models`, and what it does to one of them."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Awaitable, Callable
from typing import Any, get_args, get_type_hints, TypeVar

import click
from rich.table import Table

from bptt.cli.console import address_option, json_option, number, output, print_json
from bptt.client import Checkpoint, Client, Model, ModelSpec

EXAMPLE = """\b
Examples:
  bptt models
  bptt models update sea --learning-rate 0.0005
  bptt models update sea --pause
  bptt models save sea
  bptt models checkpoints sea
  bptt models restore sea 1200
"""

Answer = TypeVar("Answer")
_HINTS = get_type_hints(ModelSpec)
_NAME = click.argument("name")


@click.group(invoke_without_command=True, epilog=EXAMPLE)
@address_option
@json_option("one document, a list of models with all their settings")
@click.pass_context
def models(context: click.Context, address: str, as_json: bool) -> None:
    """Show the models of a server, or steer one of them."""
    if context.invoked_subcommand is not None:
        return
    found = _ask(address, lambda client: client.list_models())
    if as_json:
        print_json([dataclasses.asdict(model) for model in found])
    elif not found:
        click.echo(f"no models yet at {address}; `bptt learn` makes one")
    else:
        output().print(_table(found))


def _ask(address: str, question: Callable[[Client], Awaitable[Answer]]) -> Answer:
    async def ask() -> Answer:
        async with Client.connect(address) as client:
            return await question(client)

    return asyncio.run(ask())


def _table(found: list[Model]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    for title in ("task", "network", "state"):
        table.add_column(title, no_wrap=True)
    titles = ["streams", "steps", "clipped", "error", "loss", "gradient"]
    classes = any(not math.isnan(model.accuracy) for model in found)
    if classes:  # which most servers have none of, and a table has no room to waste
        titles[4:4] = ["right", "bits"]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for model in found:
        spec = model.spec
        if "task" not in spec:  # it is being recovered, and no more is known of it yet
            table.add_row(model.model_id, "–", "–", model.state, *("–" for _ in titles))
            continue
        clipped = model.clipped_updates / model.updates if model.updates else math.nan
        right = "–" if math.isnan(model.accuracy) else f"{model.accuracy:.1%}"
        table.add_row(
            model.model_id,
            f"{spec['task']} {model.horizon}" if spec["task"] == "forecast" else spec["task"],
            f"{spec['cell']} {_width(model)}→{spec['hidden_size']}",
            model.state,
            f"{model.streams:,}",
            f"{model.steps:,}",
            "–" if math.isnan(clipped) else f"{clipped:.0%}",
            _ratio(model.skill_ratio),
            *((right, number(model.cross_entropy_bits)) if classes else ()),
            number(model.loss),
            number(model.gradient_norm),
        )
    table.caption = "error: over that of the naive forecast, recent steps; below 1 is better"
    if classes:
        table.caption += "\nright, bits: recent classes and tokens; share right, and cross-entropy"
    table.caption_justify = "left"
    return table


def _width(model: Model) -> int:
    """Of what goes into the network."""
    return model.spec.get("vocabulary_size") or model.spec["input_size"]


def _ratio(value: float) -> str:
    """Three decimals, so that models compare; an exponent where that would widen the table."""
    return f"{value:.3f}" if value < 1000 else number(value)


@models.command()
@_NAME
@click.option("--learning-rate", type=float, help="Step size of the optimizer.")
@click.option("--clip", type=click.Choice(get_args(_HINTS["clip"])), help="How to clip.")
@click.option("--clip-threshold", type=float, help="The bound of the clip.")
@click.option("--pause", "paused", flag_value=True, default=None, help="Learn nothing from now on.")
@click.option("--resume", "paused", flag_value=False, help="Learn again, after a divergence too.")
@address_option
@json_option("one document, the model as it is then")
def update(name: str, address: str, as_json: bool, **changes: Any) -> None:
    """Change how a model learns from now on, between two updates."""
    if all(value is None for value in changes.values()):
        raise click.UsageError("nothing to change: give at least one option")
    model = _ask(address, lambda client: client.update_model(name, **changes))
    if as_json:
        print_json(dataclasses.asdict(model))
        return
    click.echo(
        f"model {name}: {model.state}, learning rate {number(model.learning_rate)}, "
        f"clip {model.clip} at {number(model.clip_threshold)}"
    )


@models.command()
@_NAME
@address_option
@json_option("one document, a list of checkpoints")
def checkpoints(name: str, address: str, as_json: bool) -> None:
    """Show the checkpoints of a model, oldest first."""
    found = _ask(address, lambda client: client.list_checkpoints(name))
    if as_json:
        print_json([dataclasses.asdict(each) for each in found])
    elif not found:
        click.echo(f"model {name} has no checkpoints")
    else:
        output().print(_checkpoint_table(found))


def _checkpoint_table(found: list[Checkpoint]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title in ("lsn", "steps", "updates", "error", "loss", "KB"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for each in found:
        table.add_row(
            f"{each.lsn}",
            f"{each.steps:,}",
            f"{each.updates:,}",
            _ratio(each.skill_ratio),
            number(each.loss),
            f"{each.size_bytes / 1000:,.0f}",
            "best" if each.best else "",
        )
    return table


@models.command()
@_NAME
@address_option
@json_option("one document, the checkpoint")
def save(name: str, address: str, as_json: bool) -> None:
    """Write a checkpoint of a model now."""
    saved = _ask(address, lambda client: client.save_checkpoint(name))
    if as_json:
        print_json(dataclasses.asdict(saved))
    else:
        click.echo(f"model {name} saved after {saved.steps:,} steps: checkpoint {saved.lsn}")


@models.command()
@_NAME
@click.argument("lsn", type=click.IntRange(min=0))
@address_option
@json_option("one document, the model as it is then")
def restore(name: str, lsn: int, address: str, as_json: bool) -> None:
    """Take a model back to a checkpoint, which TICKS names, and its streams with it."""
    model = _ask(address, lambda client: client.restore_checkpoint(name, lsn))
    if as_json:
        print_json(dataclasses.asdict(model))
    else:
        click.echo(f"model {name} is back at {model.steps:,} steps, {model.updates:,} updates")
