"""Asks a model for its forecast, and feeds it back for steps beyond the model's horizon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.cli.data.problem import InputError, join_names
from bptt.cli.names import target_names
from bptt.client import Client, Model, Prediction

STEPS_MAX = 10_000  # each block of forecasts reads all the earlier ones again
TRIES = 5  # a stream that learns meanwhile makes the blocks of a forecast disagree

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is forecast after the last step that was read."""

    first_step: int
    """Number of the first step that is forecast."""
    values: FloatArray
    """(steps, targets); for tokens (steps, 2): the likeliest token and its probability."""
    low: FloatArray
    """(steps, targets) ends of the bands; NaN where no band is known."""
    high: FloatArray
    direct: int
    """Steps that the model forecasts directly; after them it was fed its own forecasts."""


def check_steps(model: Model, steps: int) -> None:
    """Check that a model can forecast so many steps ahead.

    Raises:
        InputError: it cannot; says why, and how many it can.
    """
    if model.task not in ("forecast", "next_token"):
        raise InputError(
            f"--steps is {steps}, but model {model.model_id} is a {model.task}: it predicts the "
            "targets of the steps given with --input, and no later ones"
        )
    if model.task == "next_token" or steps <= model.horizon:
        return
    columns = set(model.spec["target_columns"]) or set(range(model.spec["input_size"]))
    others = [place for place in range(model.spec["input_size"]) if place not in columns]
    if others:
        names = model.spec["input_names"]
        read = join_names([names[place] if names else f"input {place}" for place in others])
        raise InputError(
            f"--steps is {steps}, but model {model.model_id} forecasts at most {model.horizon} "
            f"ahead, its horizon: it also reads {read}, which it does not forecast, so it cannot "
            f"be fed its own forecasts; type --steps {model.horizon}, or learn a model with "
            f"--horizon {steps}"
        )


async def forecast(
    client: Client, model: Model, stream: str, inputs: list[list[float]], steps: int
) -> tuple[Prediction, Ahead]:
    """Forecast `steps` steps after the stream's state.

    Args:
        client: of the server.
        model: a model that passed `check_steps`.
        stream: the stream's name.
        inputs: steps to read first.
        steps: how many to forecast.

    Returns:
        The first answer of the server, and the forecast.

    Raises:
        InputError: the stream learned on while the forecast was made.
    """
    for _ in range(TRIES):
        found = await _forecast(client, model, stream, inputs, steps)
        if found is not None:
            return found
    raise InputError(
        f"stream {stream} learns faster than a forecast of {steps} steps can be made; "
        f"--steps {model.horizon} needs one look only"
    )


async def _forecast(
    client: Client, model: Model, stream: str, inputs: list[list[float]], steps: int
) -> tuple[Prediction, Ahead] | None:
    """As `forecast`; None: the stream went on in between."""
    columns = list(model.spec["target_columns"]) or list(range(model.spec["input_size"]))
    order = np.argsort(columns)  # of the targets, as the model reads them
    fed = [list(each) for each in inputs]
    blocks: list[FloatArray] = []
    first: Prediction | None = None
    while sum(map(len, blocks)) < steps:
        answer = await client.predict(model.model_id, stream, fed or None)
        first = first or answer
        if answer.next_step - len(fed) != first.next_step - len(inputs):
            return None
        block = answer.values[-1]
        blocks.append(block)
        fed += block[:, order].tolist()
    assert first is not None
    values = np.concatenate(blocks)[:steps]
    low, high = bands(first, values)
    return first, Ahead(first.next_step, values, low, high, model.horizon)


def bands(first: Prediction, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the ends of the bands of forecasts; NaN beyond the horizon, where none is known."""
    low, high = (np.full(values.shape, np.nan) for _ in range(2))
    known = min(len(first.error_low), len(values))
    exact = values[:known].astype(np.float64)
    low[:known] = exact + first.error_low[:known]
    high[:known] = exact + first.error_high[:known]
    return low, high


async def continue_tokens(
    client: Client, model: Model, stream: str, tokens: list[int], steps: int
) -> tuple[Prediction, Ahead]:
    """Predict `steps` tokens: each time the likeliest, which is then read.

    Args:
        client: of the server.
        model: of next tokens.
        stream: the stream's name.
        tokens: to read first.
        steps: how many to predict.

    Raises:
        InputError: the stream learned on while the forecast was made.
    """
    for _ in range(TRIES):
        fed = list(tokens)
        found: list[tuple[int, float]] = []
        first = answer = await client.predict(model.model_id, stream, tokens=fed or None)
        while answer.next_step - len(fed) == first.next_step - len(tokens):
            found.append((int(answer.top_tokens[-1, 0]), float(answer.top_probabilities[-1, 0])))
            if len(found) == steps:
                none = np.full((steps, 0), np.nan)
                return first, Ahead(first.next_step, np.array(found), none, none, 1)
            fed.append(found[-1][0])
            answer = await client.predict(model.model_id, stream, tokens=fed)
    raise InputError(f"stream {stream} learns faster than {steps} tokens can be predicted")


def iterated_note(model: Model, ahead: Ahead) -> str | None:
    """Say which steps the model forecast from its own forecasts; None: none of them."""
    if len(ahead.values) <= ahead.direct:
        return None
    first = ahead.first_step + ahead.direct
    what = "token" if model.task == "next_token" else f"horizon {model.horizon}"
    if model.task == "next_token":
        return f"from step {first:,} on, the model read its own likeliest {what}s"
    names = target_names(model)
    fed = "its own forecasts" if len(names) > 1 else "its own forecast"
    return (
        f"from step {first:,} on, beyond its {what}, the model read {fed}; no band is known there"
    )
