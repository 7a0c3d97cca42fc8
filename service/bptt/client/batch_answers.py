"""The answers to batches: from messages to columns, and from columns to one `BatchResult`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt import v1 as pb
from bptt.client import convert
from bptt.client.columns import BatchColumns
from bptt.client.errors import code_name
from bptt.client.types import (
    Answer,
    BatchResult,
    Float32Array,
    Int64Array,
    Learned,
    Model,
    ModelState,
    Refused,
    UpdateReport,
)
from bptt.errors import from_status, ServiceError, Violation

NO_PREDICTIONS: Float32Array = np.zeros((0, 1, 0), np.float32)  # of next_token


@dataclass(frozen=True, slots=True, eq=False)
class RefusedPlace:
    """One refused chunk of a message."""

    place: int
    """In the message that is answered, from 0."""
    error: ServiceError
    field: str
    """The field that is to blame; "" if none is."""
    expected_step: int
    """-1: not told, because the message was refused as a whole."""


@dataclass(frozen=True, slots=True, eq=False)
class AnswerColumns:
    """The answer to one message, as columns of its B chunks."""

    first_steps: Int64Array
    next_steps: Int64Array
    incarnations: Int64Array
    refused: list[RefusedPlace]
    rows: dict[str, NDArray[Any]]
    """By name of a field of `BatchResult`: arrays with a row for each new step."""
    error_low: Float32Array
    error_high: Float32Array
    updates: tuple[UpdateReport, ...]
    members: dict[int, list[UpdateReport]]
    """By place: the updates in which its stream took part; empty if they were not asked for."""
    model_state: ModelState

    @property
    def new_steps(self) -> Int64Array:
        """(B,) steps that were new."""
        return self.next_steps - self.first_steps


def answer_of(message: pb.BatchLearned, model: Model, *, predictions: bool) -> AnswerColumns:
    """Return the columns of an answer to a batch.

    Args:
        message: the answer.
        model: that learned the batch.
        predictions: whether the session asks for predictions.
    """
    first_steps = np.asarray(message.first_steps).astype(np.int64)
    next_steps = np.asarray(message.next_steps).astype(np.int64)
    steps = int((next_steps - first_steps).sum())
    tokens = model.task == "next_token"
    horizon, targets = model.horizon, 0 if tokens else model.targets
    extras = convert.extras(message, steps, horizon, targets)
    rows: dict[str, NDArray[Any]] = {}
    if predictions and tokens:
        rows = {name: extras[name] for name in ("top_tokens", "top_probabilities")}
    elif predictions:
        rows["predictions"] = convert.predictions_of(message, horizon, targets)
        if message.anomaly_scores:
            rows["anomaly_scores"] = np.asarray(message.anomaly_scores, dtype=np.float32)
    updates = tuple([convert.report_from_proto(each) for each in message.updates])
    members: dict[int, list[UpdateReport]] = {}
    for update, place in zip(message.member_updates, message.member_places, strict=True):
        members.setdefault(place, []).append(updates[update])
    return AnswerColumns(
        first_steps,
        next_steps,
        np.asarray(message.incarnations).astype(np.int64),
        [_refused(each, each.place) for each in message.refusals],
        rows,
        extras["error_low"],
        extras["error_high"],
        updates,
        members,
        convert.state_from_proto(message.model_state),
    )


def refused_whole(message: pb.ChunkRefused, count: int) -> AnswerColumns:
    """Return the columns for a message of `count` chunks that was refused as a whole."""
    none = np.zeros(count, np.int64)
    band = np.zeros((0, 0), np.float32)
    refused = [replace(_refused(message, place), expected_step=-1) for place in range(count)]
    return AnswerColumns(none, none, none, refused, {}, band, band, (), {}, "unspecified")


def _refused(message: pb.ChunkRefused, place: int) -> RefusedPlace:
    violations = [Violation(message.field, message.value, message.bound)] if message.field else []
    code, reason = code_name(message.code), message.reason.lower()
    error = from_status(code, message.message, violations, reason=reason)
    return RefusedPlace(place, error, message.field, message.expected_step)


def learned_of(answer: AnswerColumns, place: int, stream_id: str, start: int) -> Learned:
    """Return the answer to one chunk of a message.

    Args:
        answer: to the message.
        place: of the chunk.
        stream_id: its stream.
        start: the first of its rows.
    """
    end = start + int(answer.new_steps[place])
    rows = {name: array[start:end] for name, array in answer.rows.items()}
    predictions = rows.get("predictions", NO_PREDICTIONS if "top_tokens" in rows else None)
    return Learned(
        stream_id=stream_id,
        first_step=int(answer.first_steps[place]),
        next_step=int(answer.next_steps[place]),
        predictions=predictions,
        updates=tuple(answer.members.get(place, ())),
        durable_step=0,
        error_low=answer.error_low,
        error_high=answer.error_high,
        top_tokens=rows.get("top_tokens", convert.NO_TOKENS),
        top_probabilities=rows.get("top_probabilities", convert.NO_PROBABILITIES),
        anomaly_scores=rows.get("anomaly_scores", convert.NO_SCORES),
        model_state=answer.model_state,
    )


_MISSING = {"top_tokens": -1}
"""What stands for a row without an answer; NaN for other arrays."""


class ResultBuilder:
    """Collects the answers to one `send_many`, whose streams may be answered by several messages.

    Args:
        names: its streams.
        columns: what is sent.
        target_names: of the model.
        batches: number of batches that it is sent in.
    """

    def __init__(
        self,
        names: Sequence[str],
        columns: BatchColumns,
        target_names: tuple[str, ...],
        batches: int,
    ) -> None:
        self._names = names
        self._target_names = target_names
        self._steps = columns.steps
        self._shape = columns.shape
        self._order = columns.order
        self._starts = np.cumsum(columns.steps) - columns.steps
        self._open = batches
        count = len(columns.steps)
        self._first_steps = np.full(count, -1)
        self._next_steps = np.zeros(count, np.int64)
        self._rows: dict[str, NDArray[Any]] = {}
        self._refused: dict[str, Refused] = {}
        self._updates: list[UpdateReport] = []
        self._last: AnswerColumns | None = None

    def refuse(self, place: int, refused: Refused) -> None:
        """Note that the stream at a place was refused."""
        if self._first_steps[place] < 0:
            self._first_steps[place] = refused.expected_step
        self._next_steps[place] = max(self._next_steps[place], refused.expected_step)
        self._refused[refused.stream_id] = refused

    def taken(self, place: int, step: int) -> None:
        """Note that the labels of the stream at a place had been learned before."""
        self._first_steps[place] = self._next_steps[place] = step

    def learn(
        self,
        places: Int64Array,
        offset: int,
        lengths: Int64Array,
        learned: NDArray[np.bool_],
        answer: AnswerColumns,
    ) -> None:
        """Note an answer.

        Args:
            places: streams of the message's chunks.
            offset: number of steps of each of those streams that earlier batches hold.
            lengths: of the chunks, as they were sent.
            learned: which of the chunks this answer counts for.
            answer: to the message.
        """
        self._last = answer
        self._updates += answer.updates
        at = places[learned]
        firsts = self._first_steps[at]
        self._first_steps[at] = np.where(firsts < 0, answer.first_steps[learned], firsts)
        self._next_steps[at] = answer.next_steps[learned]
        is_whole = learned.all() and len(lengths) == len(self._steps)
        if is_whole and (answer.new_steps == self._steps).all():
            self._rows = {name: array for name, array in answer.rows.items() if len(array)}
            return
        new = np.where(learned, answer.new_steps, 0)
        sources = np.flatnonzero(np.repeat(learned, answer.new_steps))
        ends = self._starts[places] + offset + lengths
        into = np.repeat(ends - np.cumsum(new), new) + np.arange(int(new.sum()))
        for name, array in answer.rows.items():
            if not len(array):
                continue
            if name not in self._rows:
                shape = (int(self._steps.sum()), *array.shape[1:])
                self._rows[name] = np.full(shape, _MISSING.get(name, np.nan), array.dtype)
            if self._rows[name].dtype.itemsize < array.dtype.itemsize:
                self._rows[name] = self._rows[name].astype(array.dtype)
            self._rows[name][into] = array[sources]

    def take(self, answer: object) -> list[Answer]:
        """Note that a batch is answered; returns the result once all of them are."""
        self._open -= 1
        return [] if self._open else [self.result()]

    def result(self) -> BatchResult:
        """Return the result; every stream has been answered."""
        last, band = self._last, np.zeros((0, 0), np.float32)
        return BatchResult(
            stream_ids=self._names,
            first_steps=np.maximum(self._first_steps, 0),
            next_steps=self._next_steps,
            predictions=self._rows_of("predictions"),
            anomaly_scores=self._rows_of("anomaly_scores"),
            error_low=band if last is None else last.error_low,
            error_high=band if last is None else last.error_high,
            top_tokens=self._rows_of("top_tokens"),
            top_probabilities=self._rows_of("top_probabilities"),
            updates=tuple(self._updates),
            refused=self._refused,
            model_state="unspecified" if last is None else last.model_state,
            target_names=self._target_names,
            steps=self._steps,
            order=self._order,
        )

    def _rows_of(self, name: str) -> Any:
        array = self._rows.get(name)
        if array is None:
            return None
        return self._in_order(array).reshape(*self._shape, *array.shape[1:])

    def _in_order(self, array: NDArray[Any]) -> NDArray[Any]:
        if self._order is None:
            return array
        placed = np.empty_like(array)
        placed[self._order] = array
        return placed
