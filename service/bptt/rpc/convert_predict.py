"""Converts requests of predictions for many streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bptt import v1 as pb
from bptt.config import BATCH_CHUNKS_MAX, Limits
from bptt.domain import (
    check_stream_id,
    FloatArray,
    IntArray,
    LaneRefused,
    ModelDefinition,
)
from bptt.errors import from_core, InvalidRequest, ServiceError, UnknownStream
from bptt.rpc import convert
from bptt_core import Snapshot, StreamView
from bptt_core.errors import BpttError

INLINE_STREAMS = 64
"""Most streams that are predicted on the event loop, without further steps: about 0.2 ms."""


@dataclass(slots=True, eq=False)
class AskedStreams:
    """The streams of a request that exist, and the steps to read before predicting."""

    views: list[StreamView]
    inputs: FloatArray | IntArray | None
    """(N, D) or (N,), stream after stream."""
    steps: list[int]
    """Of each view: how many of `inputs` are its own."""
    next_steps: list[int]
    """Of each stream of the request: the step after the state that is used; 0 if it is refused."""
    refused: list[LaneRefused]
    doubles: bool
    """The answer has doubles."""

    @property
    def is_short(self) -> bool:
        """Whether this takes less time than handing it to a thread."""
        return self.inputs is None and len(self.views) <= INLINE_STREAMS

    def predict(self, snapshot: Snapshot) -> npt.NDArray[Any]:
        """Predict, stream after stream.

        Raises:
            ServiceError: a stream gives no value to predict from.
        """
        try:
            return snapshot.predict_many(self.views, self.inputs, self.steps)
        except BpttError as error:
            raise from_core(error) from error


class PredictReader:
    """Converts requests to predict from many streams of one model."""

    def __init__(self, definition: ModelDefinition, limits: Limits) -> None:
        self._reader = convert.ChunkReader(definition, limits)
        self._limits = limits
        self._spec = definition.spec

    def streams(
        self, message: pb.PredictBatchRequest, views: Mapping[str, StreamView]
    ) -> AskedStreams:
        """Return the streams that a request names.

        Raises:
            InvalidRequest: a fault of the whole request.
        """
        count = len(message.stream_ids)
        most = min(BATCH_CHUNKS_MAX, self._limits.steps_of_chunk(self._spec.outputs, doubles=True))
        if not 1 <= count <= most:
            raise InvalidRequest.of("stream_ids", f"{count} names", f"1 to {most} names")
        if len(set(message.stream_ids)) < count:
            raise InvalidRequest.of("stream_ids", "a name twice", "each name at most once")
        rows = self._reader.rows_of_inputs(message)
        inputs = rows if len(rows) else None
        steps = self._steps(message, count, len(rows))
        errors: dict[int, ServiceError] = {}
        convert.blame(self._reader.wrong_inputs(rows), np.array(steps), errors)
        asked = AskedStreams([], inputs, [], [], [], bool(message.input_doubles))
        good = np.ones(count, bool)
        for place, (stream_id, length) in enumerate(zip(message.stream_ids, steps, strict=True)):
            view = errors.get(place) or self._view(stream_id, length, views)
            if isinstance(view, StreamView):
                asked.views.append(view)
                asked.steps.append(length)
                asked.next_steps.append(view.next_step + length)
            else:
                good[place] = False
                asked.next_steps.append(0)
                asked.refused.append(LaneRefused(place, stream_id, None, 0, view))
        if inputs is None:
            asked.doubles = any(loses_digits(each.last_input) for each in asked.views)
        elif asked.refused:
            asked.inputs = inputs[np.repeat(good, steps)]
        return asked

    def _view(
        self, stream_id: str, length: int, views: Mapping[str, StreamView]
    ) -> StreamView | ServiceError:
        try:
            check_stream_id(stream_id)
        except ServiceError as error:
            return error
        view = views.get(stream_id)
        if view is None:
            return UnknownStream.of(stream_id)
        if not length and self._spec.task == "forecast" and not view.sequence_step:
            bound = "given for a stream whose sequence has no step yet"
            return InvalidRequest.of("inputs", "left out", bound)
        return view

    def _steps(self, message: pb.PredictBatchRequest, count: int, given: int) -> list[int]:
        """Return the number of steps of each stream."""
        steps = list(message.steps)
        if not steps:
            steps = [1 if given else 0] * count
        elif len(steps) == 1:
            steps *= count
        if len(steps) != count:
            bound = f"{count}, one for each stream, or one for all, or none"
            raise InvalidRequest.of("steps", f"{len(steps)} entries", bound)
        if sum(steps) != given:
            bound = f"{sum(steps)}, as stream_ids and steps say"
            raise InvalidRequest.of("inputs", f"{given} steps", bound, reason="wrong_size")
        return steps


def loses_digits(values: FloatArray) -> bool:
    """Return whether float32 would change one of these values; NaN is none."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    return bool(((rounded != values) & ~np.isnan(values)).any())
