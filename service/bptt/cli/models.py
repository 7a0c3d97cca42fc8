"""`bptt models`: lists models, changes their settings, saves and restores checkpoints."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args, get_type_hints

import click

from bptt.cli import model_files
from bptt.cli.ask import request
from bptt.cli.connection import address_option
from bptt.cli.console import json_option, number, output, percent, print_json
from bptt.cli.tables import ResultTable
from bptt.client import Checkpoint, Model, ModelSpec

EXAMPLE = """\b
Examples:
  bptt models
  bptt models update sea --learning-rate 0.0005
  bptt models update sea --pause
  bptt models save sea
  bptt models checkpoints sea
  bptt models restore sea 1200
  bptt models export sea sea.safetensors
"""

_HINTS = get_type_hints(ModelSpec)
_NAME = click.argument("name")


@click.group(invoke_without_command=True, epilog=EXAMPLE)
@address_option
@json_option("one document, a list of models with all their settings")
@click.pass_context
def models(context: click.Context, address: str, as_json: bool) -> None:
    """List the models of a server, or change one of them."""
    if context.invoked_subcommand is not None:
        return
    found = request(address, lambda client: client.list_models())
    if as_json:
        print_json([dataclasses.asdict(model) for model in found])
    elif not found:
        click.echo(f"no models at {address}; `bptt learn FILE --model NAME` creates one")
    else:
        _table(found).print(output(), _notes(found))
        for reason in _reasons(found):
            output().print(reason, markup=False, highlight=False, soft_wrap=True)


def _has_classes(found: list[Model]) -> bool:
    """True: a model has an accuracy. Most servers have no such model, and width is scarce."""
    return any(not math.isnan(model.accuracy) for model in found)


def _table(found: list[Model]) -> ResultTable:
    table = ResultTable().text("model", folds=True).text("task").text("network").text("state")
    titles = ["streams", "steps", "clipped", "error", "loss", "gradient"]
    classes = _has_classes(found)
    if classes:
        titles[4:4] = ["accuracy", "bits"]
    table.numbers(*titles)
    for model in found:
        spec = model.spec
        if "task" not in spec:  # recovering or damaged: nothing has been read of it
            table.row(model.model_id, "–", "–", model.state, *("–" for _ in titles))
            continue
        clipped = model.clipped_updates / model.updates if model.updates else math.nan
        accuracy = percent(model.accuracy)
        table.row(
            model.model_id,
            f"{spec['task']} {model.horizon}" if spec["task"] == "forecast" else spec["task"],
            f"{spec['cell']} {_width(model)}→{spec['hidden_size']}",
            model.state,
            f"{model.streams:,}",
            f"{model.steps:,}",
            "–" if math.isnan(clipped) else f"{clipped:.0%}",
            _ratio(model.skill_ratio),
            *((accuracy, number(model.cross_entropy_bits)) if classes else ()),
            number(model.loss),
            number(model.gradient_norm),
        )
    return table


def _notes(found: list[Model]) -> list[str]:
    notes = ["error: of recent steps, relative to the naive forecast; below 1 is better"]
    if _has_classes(found):
        notes.append("accuracy, bits: of recent classes and tokens; bits: cross-entropy")
    return notes


def _reasons(found: list[Model]) -> list[str]:
    """Return one line for each model whose state needs an explanation."""
    return [
        f"{model.model_id}: {model.state}: {model.state_reason}"
        for model in found
        if model.state != "running" and model.state_reason
    ]


def _width(model: Model) -> int:
    """Return the number of inputs, or of token ids."""
    return model.spec.get("vocabulary_size") or model.spec["input_size"]


def _ratio(value: float) -> str:
    """Format a ratio with three decimals; a value of 1,000 or more like any other figure."""
    return f"{value:.3f}" if value < 1000 else number(value)


@models.command()
@_NAME
@click.option("--learning-rate", type=float, help="Step size of the optimizer.")
@click.option(
    "--clip",
    type=click.Choice(get_args(_HINTS["clip"])),
    help="Gradient clipping: by global norm, by value, by layer, or none.",
)
@click.option("--clip-threshold", type=float, help="Largest norm, or largest value.")
@click.option(
    "--pause",
    "paused",
    flag_value=True,
    default=None,
    help="Stop learning; reading and predicting continue.",
)
@click.option("--resume", "paused", flag_value=False, help="Learn again, also after a divergence.")
@address_option
@json_option("one document, the model after the change")
def update(name: str, address: str, as_json: bool, **changes: Any) -> None:
    """Change how a model learns. The change takes effect between two updates."""
    if all(value is None for value in changes.values()):
        raise click.UsageError(
            "nothing to change: add at least one option, as in --learning-rate 0.0005"
        )
    model = request(address, lambda client: client.update_model(name, **changes))
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
    """List the checkpoints of a model, oldest first."""
    found = request(address, lambda client: client.list_checkpoints(name))
    if as_json:
        print_json([dataclasses.asdict(each) for each in found])
    elif not found:
        click.echo(f"model {name} has no checkpoints")
    else:
        _checkpoint_table(found).print(output())


def _checkpoint_table(found: list[Checkpoint]) -> ResultTable:
    table = ResultTable().numbers("lsn", "steps", "updates", "error", "loss", "KB").text()
    for each in found:
        table.row(
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
    """Save a checkpoint of a model now."""
    saved = request(address, lambda client: client.save_checkpoint(name))
    if as_json:
        print_json(dataclasses.asdict(saved))
    else:
        click.echo(f"model {name}: saved checkpoint {saved.lsn} after {saved.steps:,} steps")


@models.command()
@_NAME
@click.argument("lsn", type=click.IntRange(min=0))
@address_option
@json_option("one document, the model after the change")
def restore(name: str, lsn: int, address: str, as_json: bool) -> None:
    """Restore a model and its streams from a checkpoint.

    LSN is the checkpoint's number, as shown by `bptt models checkpoints NAME`.
    """
    model = request(address, lambda client: client.restore_checkpoint(name, lsn))
    if as_json:
        print_json(dataclasses.asdict(model))
    else:
        click.echo(
            f"model {name}: restored checkpoint {lsn}, at {model.steps:,} steps and "
            f"{model.updates:,} updates"
        )


models.add_command(model_files.export_model)
models.add_command(model_files.import_model)
