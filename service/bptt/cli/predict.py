"""`bptt predict`: prints what a model predicts next on a stream."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import numpy as np
from rich import box
from rich.table import Table

from bptt.cli.connection import address_option, connect
from bptt.cli.console import json_option, number, output, print_json
from bptt.cli.data.textfile import VOCABULARY
from bptt.cli.plan import check_read
from bptt.client import Model, Prediction

EXAMPLE = """\b
Examples:
  bptt predict --model sea --stream buoy
  bptt predict --model sea --stream buoy --input 4.9 --input 4.8
  bptt predict --model prose --stream notes --text "the "
"""


@click.command(epilog=EXAMPLE)
@click.option("--model", required=True, metavar="NAME", help="The model.")
@click.option("--stream", required=True, metavar="ID", help="The stream to predict from.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="A,B,…",
    help="A step to read before predicting; it is not learned. Repeat the option for several "
    "steps. Regression and classification need at least one. `nan` is a missing value.",
)
@click.option(
    "--text",
    metavar="TEXT",
    help="Next token: a text to read before predicting; it is not learned.",
)
@address_option
@json_option("one document")
def predict(
    model: str, stream: str, inputs: tuple[str, ...], text: str | None, address: str, as_json: bool
) -> None:
    """Predict what comes next on a stream. Neither the model nor the stream changes."""
    steps = [_step(each) for each in inputs]
    found, prediction = asyncio.run(_ask(address, model, stream, steps, text))
    names = target_names(found)
    if as_json:
        document: dict[str, Any] = {
            "model": model,
            "stream": stream,
            "next_step": prediction.next_step,
            "update": prediction.update,
        }
        if found.task == "next_token":
            document["top_tokens"] = prediction.top_tokens
            document["top_probabilities"] = prediction.top_probabilities
        else:
            document |= {"targets": names, "predictions": prediction.values}
        if len(prediction.error_low):
            document["error_low"] = prediction.error_low
            document["error_high"] = prediction.error_high
        print_json(document)
    elif found.task == "next_token":
        output().print(_token_table(found, prediction))
    else:
        output().print(_table(found, prediction, names))


def _step(text: str) -> list[float]:
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} must be numbers separated by commas, as in 4.9,0.2", param_hint="--input"
        ) from None


async def _ask(
    address: str, model: str, stream: str, steps: list[list[float]], text: str | None
) -> tuple[Model, Prediction]:
    async with connect(address) as client:
        found = check_read(await client.get_model(model))
        if text is not None and found.spec.get("vocabulary_size") != VOCABULARY:
            raise click.BadParameter(
                f"model {model} does not predict text; use --input", param_hint="--text"
            )
        width = found.spec["input_size"]
        for step in steps:
            if len(step) != width:
                raise click.BadParameter(
                    f"got {len(step)} values, but a step of model {model} has {width}",
                    param_hint="--input",
                )
        if found.task == "next_token":
            tokens = [int(step[0]) for step in steps] + list((text or "").encode())
            return found, await client.predict(model, stream, tokens=tokens or None)
        return found, await client.predict(model, stream, steps or None)


def target_names(model: Model) -> list[str]:
    """Return the names of a prediction's values: columns, targets or classes."""
    spec = model.spec
    if spec["task"] != "forecast":
        noun = "class" if spec["task"] == "classification" else "target"
        return list(spec["target_names"]) or [f"{noun} {place}" for place in range(model.targets)]
    columns = spec["target_columns"] or range(spec["input_size"])
    names = spec["input_names"]
    return [names[column] if names else f"input {column}" for column in columns]


def _table(model: Model, prediction: Prediction, names: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    is_forecast = model.task == "forecast"
    table.add_column("step", justify="right")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    rows = len(prediction.values)
    first = prediction.next_step
    notes = []
    if is_forecast:
        # Only the last row forecasts steps after everything that was read.
        for ahead, values in enumerate(prediction.values[-1]):
            band = _bands(prediction, ahead, values)
            texts = (number(float(value)) + b for value, b in zip(values, band, strict=True))
            table.add_row(f"{first + ahead:,}", *texts)
        if rows > 1:
            notes.append(f"forecast after reading {rows} more steps")
    else:
        for row, values in enumerate(prediction.values[:, 0, :]):
            band = _bands(prediction, 0, values)
            texts = (number(float(value)) + b for value, b in zip(values, band, strict=True))
            table.add_row(f"{first - rows + row:,}", *texts)
    if len(prediction.error_low):
        notes.append("in brackets: the band that held 90 % of recent targets")
    table.caption = "; ".join(notes) or None
    return table


def _bands(prediction: Prediction, ahead: int, values: Any) -> list[str]:
    if not len(prediction.error_low):
        return [""] * len(values)
    low = values + prediction.error_low[ahead]
    high = values + prediction.error_high[ahead]
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return [f" ({number(a)} to {number(b)})" for a, b in pairs]


def _token_table(model: Model, prediction: Prediction) -> Table:
    """Show the likeliest tokens after everything that was read."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    is_text = model.spec.get("vocabulary_size") == VOCABULARY
    table.add_column("next byte" if is_text else "next token", justify="right")
    table.add_column("probability", justify="right")
    last = zip(prediction.top_tokens[-1], prediction.top_probabilities[-1], strict=True)
    for token, probability in last:
        name = repr(bytes([int(token)]))[1:] if is_text else str(np.int64(token))
        table.add_row(name, f"{probability:.1%}")
    return table
