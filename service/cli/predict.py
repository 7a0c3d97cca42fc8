"""`bptt predict`."""

from __future__ import annotations

import asyncio

import click
from rich import box
from rich.table import Table

from service.cli.console import address_option, json_option, number, output, print_json
from service.client import Client, Model, Prediction

EXAMPLE = """\b
Examples:
  bptt predict --model sea --stream buoy
  bptt predict --model sea --stream buoy --input 4.9 --input 4.8
"""


@click.command(epilog=EXAMPLE)
@click.option("--model", required=True, metavar="NAME", help="The model.")
@click.option("--stream", required=True, metavar="ID", help="The stream to predict from.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="A,B,…",
    help="A step to read first, without learning it; repeat it for more. A regression needs one.",
)
@address_option
@json_option("one document")
def predict(model: str, stream: str, inputs: tuple[str, ...], address: str, as_json: bool) -> None:
    """Predict what comes next on a stream. Changes nothing."""
    steps = [_step(text) for text in inputs]
    found, prediction = asyncio.run(_ask(address, model, stream, steps))
    names = target_names(found)
    if as_json:
        print_json(
            {
                "model": model,
                "stream": stream,
                "next_step": prediction.next_step,
                "update": prediction.update,
                "targets": names,
                "predictions": prediction.values,
            }
        )
    else:
        output().print(_table(found, prediction, names))


def _step(text: str) -> list[float]:
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not numbers with commas between them", param_hint="--input"
        ) from None


async def _ask(
    address: str, model: str, stream: str, steps: list[list[float]]
) -> tuple[Model, Prediction]:
    async with Client.connect(address) as client:
        found = await client.get_model(model)
        width = found.spec["input_size"]
        for step in steps:
            if len(step) != width:
                raise click.BadParameter(
                    f"{len(step)} values, but {width} are a step of model {model}",
                    param_hint="--input",
                )
        return found, await client.predict(model, stream, steps or None)


def target_names(model: Model) -> list[str]:
    """What a prediction's values are called."""
    spec = model.spec
    if spec["task"] != "forecast":
        return [f"target {place}" for place in range(model.targets)]
    columns = spec["target_columns"] or range(spec["input_size"])
    names = spec["input_names"]
    return [names[column] if names else f"input {column}" for column in columns]


def _table(model: Model, prediction: Prediction, names: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    is_forecast = model.spec["task"] == "forecast"
    table.add_column("step", justify="right")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    rows = len(prediction.values)
    first = prediction.next_step
    if is_forecast:
        # Only the last row looks ahead of all that was read.
        for ahead, values in enumerate(prediction.values[-1]):
            table.add_row(f"{first + ahead:,}", *(number(float(value)) for value in values))
    else:
        for row, values in enumerate(prediction.values[:, 0, :]):
            table.add_row(f"{first - rows + row:,}", *(number(float(value)) for value in values))
    table.caption = f"after {rows} more step(s) read" if is_forecast and rows > 1 else None
    return table
