"""`bptt replay`: learns a model's journal again under another spec, and compares."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click

from bptt.cli.console import json_option, number, output, print_json
from bptt.cli.folder import bar, chosen, data_argument, store_in
from bptt.cli.tables import ResultTable
from bptt.engine import replay as engine
from bptt.engine.replay import Compared, Trial

EXAMPLE = """\b
Examples:
  bptt replay ./models --model power --set learning_rate=0.003
  bptt replay ./models --model power --set cell=lstm --set hidden_size=32
"""


@click.command(epilog=EXAMPLE)
@data_argument
@click.option(
    "--model", "model_id", metavar="NAME", required=True, help="The model whose journal is learned."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Change a field of the spec; may be given more than once. Without it, only the model's "
    "own spec is tried.",
)
@json_option("one document with the figures of both")
def replay(folder: Path, model_id: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Learn a model's journal again under another spec, and compare.

    Both the model's own spec and the other start from fresh parameters and learn the same ticks in
    the same order, so that only the spec differs. Every figure is of predictions made before the
    step was learned. Changes nothing. While a server uses DIR, replay a backup instead: reading a
    journal for long keeps its write-ahead log from being emptied.
    """
    changes = dict(_setting(text) for text in settings)
    store = store_in(folder)
    chosen(store, model_id)
    spec = engine.model_spec(store, model_id)
    trials = [Trial("as it is", spec)]
    if changes:
        other = engine.changed_spec(spec, changes)
        trials.append(Trial(" ".join(settings), other, frozenset(changes)))
    with bar(model_id, quiet=as_json) as on_progress:
        found = engine.compare(store, model_id, trials, on_progress)
    if as_json:
        print_json(_document(found))
    else:
        _say(found)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} must be FIELD=VALUE", param_hint="'--set'")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value  # a text without quotes, such as lstm


def _document(found: Compared) -> dict[str, Any]:
    return {
        "model_id": found.model_id,
        "first_lsn": found.first,
        "last_lsn": found.last,
        "from_beginning": found.from_beginning,
        "steps": found.steps,
        "streams": found.streams,
        "left_out": found.left_out,
        "trials": [_figures(trial) for trial in found.trials],
    }


def _figures(trial: Trial) -> dict[str, Any]:
    figures = trial.learner.figures
    loss, naive = trial.mean_loss()
    late, late_naive = trial.mean_loss(0.5)
    return {
        "name": trial.name,
        "spec": trial.spec.to_dict(),
        "updates": figures.updates,
        "loss": loss,
        "loss_ratio": _ratio(loss, naive),
        "second_half_loss": late,
        "second_half_loss_ratio": _ratio(late, late_naive),
        "skill_ratio": figures.skill_ratio,
        "clipped_updates": trial.clipped,
        "skipped_updates": trial.skipped,
        "seconds": trial.seconds,
    }


def _ratio(value: float, other: float) -> float:
    return value / other if other > 0 else math.nan


def _say(found: Compared) -> None:
    since = "the model's beginning" if found.from_beginning else "the oldest record that is kept"
    click.echo(
        f"{found.model_id}: lsn {found.first:,} to {found.last:,}, from {since}; "
        f"{found.steps:,} steps of {found.streams:,} streams"
    )
    table = ResultTable().text("from fresh parameters")
    table.numbers(*(trial.name for trial in found.trials), folds=True)
    figures = [_figures(trial) for trial in found.trials]
    for title, key in _ROWS:
        table.row(title, *(number(each[key]) for each in figures))
    table.row("updates", *(f"{each['updates']:,}" for each in figures))
    table.row("  clipped", *(_share(each, "clipped_updates") for each in figures))
    table.row("  skipped", *(_share(each, "skipped_updates") for each in figures))
    rates = [found.steps / each["seconds"] if each["seconds"] else math.nan for each in figures]
    table.row("steps a second", *(f"{rate:,.0f}" for rate in rates))
    table.print(output())
    losses = {trial.spec.loss for trial in found.trials}
    if len(losses) > 1:
        click.echo(
            f"losses of different kinds cannot be compared: {', '.join(sorted(map(str, losses)))}"
        )
    if found.left_out:
        click.echo(
            f"{found.left_out} commands that go back to a checkpoint are left out: a fresh model "
            "has none"
        )


_ROWS = (
    ("loss", "loss"),
    ("  relative to the naive forecast", "loss_ratio"),
    ("loss, second half", "second_half_loss"),
    ("  relative to the naive forecast", "second_half_loss_ratio"),
    ("error relative to the naive forecast, at the end", "skill_ratio"),
)


def _share(figures: dict[str, Any], key: str) -> str:
    return f"{figures[key] / figures['updates']:.1%}" if figures["updates"] else "–"
