"""Converts predictions for many streams between messages and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bptt import v1 as pb
from bptt.client import convert
from bptt.client.digits import number_array
from bptt.client.types import BatchPrediction, Int64Array
from bptt.errors import InvalidRequest


def request_of(
    stream_ids: list[str],
    inputs: ArrayLike | None,
    tokens: ArrayLike | None,
    steps: ArrayLike | None,
) -> tuple[pb.PredictBatchRequest, tuple[int, ...], Int64Array]:
    """Return a request, the axes of its predictions, and how many each stream has.

    Raises:
        InvalidRequest: an array has another shape.
    """
    request = pb.PredictBatchRequest(stream_ids=stream_ids)
    count = len(stream_ids)
    if inputs is None and tokens is None:
        return request, (count,), np.ones(count, np.int64)
    if tokens is not None:
        array: NDArray[Any] = np.asarray(tokens)
        if array.dtype.kind not in "iu":
            raise InvalidRequest.of("tokens", f"of dtype {array.dtype}", "whole numbers")
        field, axes = "tokens", array.shape
    else:
        assert inputs is not None
        array = number_array("inputs", inputs)
        field, axes = "inputs", array.shape[:-1]
    lengths = _lengths(field, axes, count, steps)
    if len(axes) == 2 or steps is not None:
        request.steps.extend(lengths.tolist())
    if tokens is not None:
        request.input_tokens.extend(convert.ids("tokens", array.ravel(), 0, 2**32 - 1))
    else:
        request.MergeFromString(convert.packed(pb.PredictBatchRequest, "input", array))
    return request, axes, lengths


def _lengths(field: str, axes: tuple[int, ...], count: int, steps: ArrayLike | None) -> Int64Array:
    """Return the number of steps of each stream."""
    if steps is None:
        if len(axes) not in (1, 2) or axes[0] != count:
            width = "" if field == "tokens" else ", input_size"
            bound = f"of shape ({count}{width}) or ({count}, T{width})"
            raise InvalidRequest.of(field, f"with the axes {axes}", bound)
        return np.full(count, 1 if len(axes) == 1 else axes[1])
    lengths = np.asarray(steps)
    if lengths.shape != (count,) or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        bound = f"whole numbers, 0 or more, of shape ({count},)"
        raise InvalidRequest.of("steps", f"of shape {lengths.shape}", bound)
    if axes != (int(lengths.sum()),):
        bound = f"{int(lengths.sum())} steps, as the argument steps says"
        raise InvalidRequest.of(field, f"with the axes {axes}", bound)
    return lengths.astype(np.int64)


def prediction_of(
    message: pb.PredictBatchResponse,
    stream_ids: list[str],
    lengths: Int64Array,
    shape: tuple[int, ...],
) -> BatchPrediction:
    """Return the predictions of an answer.

    Args:
        message: the answer.
        stream_ids: that were asked for.
        lengths: of each stream, its number of predictions.
        shape: the axes of a prediction in the result.
    """
    horizon, targets = message.horizon or 1, message.targets or 1
    refused = {
        stream_ids[each.place]: convert.refused_from_proto(each, 0).error
        for each in message.refusals
    }
    good = np.ones(len(stream_ids), bool)
    good[[each.place for each in message.refusals]] = False
    rows = np.repeat(good, lengths)
    if message.top_tokens:
        targets = 0
    values = convert.predictions_of(message, horizon, targets)
    found = convert.extras(message, int(rows.sum()), horizon, targets)
    if message.refusals:
        if len(values):
            values = _spread(values, rows, np.nan)
        for name, missing in (("top_tokens", -1), ("top_probabilities", np.nan)):
            if len(found[name]):
                found[name] = _spread(found[name], rows, missing)
    for name in ("top_tokens", "top_probabilities"):
        if len(found[name]):
            found[name] = found[name].reshape(*shape, -1)
    return BatchPrediction(
        stream_ids=stream_ids,
        values=values.reshape(*shape, horizon, targets) if len(values) else values,
        next_steps=np.asarray(message.next_steps).astype(np.int64),
        update=message.update,
        refused=refused,
        **found,
    )


def _spread(values: NDArray[Any], rows: NDArray[np.bool_], missing: float) -> Any:
    """Return an array in which only the given rows have values."""
    spread = np.full((len(rows), *values.shape[1:]), missing, values.dtype)
    spread[rows] = values
    return spread
