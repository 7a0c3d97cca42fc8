"""Converts the engine's answers and predictions to messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from bptt import v1 as pb
from bptt.config import Limits, TOP_TOKENS_DEFAULT, TOP_TOKENS_MAX
from bptt.domain import BatchAnswer, FloatArray, IntArray, LaneRefused, ModelState
from bptt.engine.trainer import Trainer
from bptt.errors import InvalidRequest, ServiceError
from bptt.rpc.convert_batch import ReadBatch
from bptt.rpc.convert_models import state_to_proto
from bptt_core import ModelSpec, Snapshot, UpdateReport

_LENGTH_DELIMITED = 2  # wire type of packed numbers

ErrorBand = tuple[FloatArray, FloatArray]
"""As `Snapshot.error_band` gives it."""


def top_tokens_of(
    message: pb.OpenLearn | pb.PredictRequest | pb.PredictBatchRequest, spec: ModelSpec
) -> int:
    """Return how many of the likeliest tokens an answer names; 0 for other tasks.

    Raises:
        InvalidRequest: `top_tokens` is out of its bounds, or given for another task.
    """
    given = message.top_tokens if message.HasField("top_tokens") else None
    if spec.task != "next_token":
        if given is not None:
            raise InvalidRequest.of("top_tokens", given, f"left out for task {spec.task}")
        return 0
    if given is not None and not 1 <= given <= TOP_TOKENS_MAX:
        raise InvalidRequest.of("top_tokens", given, f"a number from 1 to {TOP_TOKENS_MAX}")
    return min(given or TOP_TOKENS_DEFAULT, spec.vocabulary_size)


def likeliest(rows: npt.NDArray[Any], count: int) -> tuple[IntArray, FloatArray]:
    """Return the likeliest classes of each row and their probabilities, (T, count), descending."""
    split = rows.shape[1] - count
    found = np.argpartition(rows, split, axis=1)[:, split:] if split else None
    if found is None:
        found = np.broadcast_to(np.arange(count), rows.shape)
    chosen = np.take_along_axis(rows, found, axis=1)
    order = np.argsort(-chosen, axis=1, kind="stable")
    ids = np.take_along_axis(found, order, axis=1)
    return ids, np.take_along_axis(chosen, order, axis=1).astype(np.float32)


class AnswerWriter:
    """Converts the answers of one call to messages.

    Args:
        spec: the model's.
        predictions: True: answers have predictions, error bands and anomaly scores.
        top_tokens: number of tokens that an answer names for each step.
    """

    def __init__(self, spec: ModelSpec, *, predictions: bool, top_tokens: int) -> None:
        self._tokens = spec.task == "next_token"
        self._predictions = predictions
        self._top = top_tokens
        self._bands = {kind: Band(kind) for kind in (pb.ChunkLearned, pb.BatchLearned)}

    def learned(
        self,
        answer: BatchAnswer,
        durable_step: int,
        state: ModelState,
        band: ErrorBand,
        *,
        doubles: bool,
    ) -> pb.LearnResponse:
        """Return the answer to a learned chunk, with the newest error band.

        Args:
            answer: to a message of one chunk.
            durable_step: of its stream.
            state: of the model.
            band: the newest one.
            doubles: the predictions are sent as doubles.
        """
        response = pb.LearnResponse(
            learned=pb.ChunkLearned(
                stream_id=answer.stream_ids[0],
                first_step=int(answer.first_steps[0]),
                next_step=int(answer.next_steps[0]),
                updates=[_update_to_proto(each) for each in answer.updates],
                durable_step=durable_step,
                model_state=state_to_proto(state),
                incarnation=int(answer.incarnations[0]),
            )
        )
        self._add_predictions(response.learned, answer, band, doubles=doubles)
        return response

    def batch(
        self,
        answer: BatchAnswer,
        sent: ReadBatch,
        refused: list[LaneRefused],
        durable_answers: int,
        state: ModelState,
        band: ErrorBand,
    ) -> pb.LearnResponse:
        """Return the answer to a batch, with the newest error band.

        Args:
            answer: of its well-formed chunks.
            sent: the batch.
            refused: all refused chunks, by their place in the message.
            durable_answers: so many answers of the call are durable.
            state: of the model.
            band: the newest one.
        """
        first_steps, next_steps = answer.first_steps, answer.next_steps
        incarnations = answer.incarnations
        if refused:
            places = answer.lanes if sent.good is None else sent.good[answer.lanes]
            expected = np.zeros(sent.size, np.int64)
            expected[[each.lane for each in refused]] = [each.expected_step for each in refused]
            first_steps = _placed(expected, places, first_steps)
            next_steps = _placed(expected, places, next_steps)
            incarnations = _placed(np.zeros(sent.size, np.int64), places, incarnations)
        learned = pb.BatchLearned(
            first_steps=first_steps.tolist(),
            next_steps=next_steps.tolist(),
            incarnations=incarnations.tolist(),
            updates=[_update_to_proto(each) for each in answer.updates],
            model_state=state_to_proto(state),
            durable_answers=durable_answers,
        )
        for each in refused:
            message = _refused_to_proto(each, answer.index)
            message.place = each.lane
            if sent.lanes is not None:
                message.lane = int(sent.lanes[each.lane])
            learned.refusals.append(message)
        if sent.tell_members and len(answer.members):
            lanes = answer.lanes[answer.members[:, 1]]
            learned.member_updates.extend(answer.members[:, 0].tolist())
            places = lanes if sent.good is None else sent.good[lanes]
            learned.member_places.extend(places.tolist())
        self._add_predictions(learned, answer, band, doubles=sent.doubles)
        return pb.LearnResponse(batch=learned)

    def _add_predictions(
        self,
        message: pb.ChunkLearned | pb.BatchLearned,
        answer: BatchAnswer,
        band: ErrorBand,
        *,
        doubles: bool,
    ) -> None:
        rows = answer.predictions
        if rows is None or not self._predictions:
            return
        if self._tokens:
            _add_top_tokens(message, rows, self._top)
            return
        kind = type(message)
        data = _packed_predictions(kind, rows, doubles=doubles)
        data += self._bands[kind].packed(band)
        if answer.anomaly_scores is not None:
            data += packed(kind, "anomaly_scores", answer.anomaly_scores)
        message.MergeFromString(data)


def _placed(column: IntArray, places: IntArray, values: IntArray) -> IntArray:
    """Return a copy of a column with other values at some places."""
    column = column.copy()
    column[places] = values
    return column


class Band:
    """Encodes error bands for one kind of message, and keeps the encoding of the last one.

    Every answer carries the band, which changes about every 32 errors.
    """

    def __init__(self, kind: type[Message]) -> None:
        self._kind = kind
        self._seen: ErrorBand | None = None
        self._of = b""
        self._data = b""

    def packed(self, band: ErrorBand) -> bytes:
        """Return the encoded fields `error_low` and `error_high`; empty without a band."""
        if band is self._seen:
            return self._data
        self._seen = low, high = band
        of = low.tobytes() + high.tobytes()
        if of != self._of:
            self._data = b""
            if len(low):
                ends = (("error_low", low), ("error_high", high))
                self._data = b"".join(packed(self._kind, field, end) for field, end in ends)
            self._of = of
        return self._data


def _add_top_tokens(
    message: pb.ChunkLearned | pb.BatchLearned | pb.PredictResponse | pb.PredictBatchResponse,
    rows: npt.NDArray[Any],
    count: int,
) -> None:
    if len(rows):
        ids, probabilities = likeliest(rows, count)
        message.top_tokens.extend(ids.ravel().tolist())
        message.MergeFromString(packed(type(message), "top_probabilities", probabilities))


def _packed_predictions(kind: type[Message], rows: npt.NDArray[Any], *, doubles: bool) -> bytes:
    if doubles:
        return packed(kind, "prediction_doubles", rows, "<f8")
    return packed(kind, "predictions", rows)


def packed(
    kind: type[Message], field: str, values: npt.NDArray[Any], number_type: str = "<f4"
) -> bytes:
    """Return the encoding of a field of packed floats or doubles, to be merged into a message.

    For 512 floats that takes 2 µs; adding them as a list takes 12.
    """
    data = values.astype(number_type, copy=False).tobytes()
    return _tag(kind, field) + _varint(len(data)) + data


_TAGS: dict[tuple[type[Message], str], bytes] = {}


def _tag(kind: type[Message], field: str) -> bytes:
    tag = _TAGS.get((kind, field))
    if tag is None:
        number = kind.DESCRIPTOR.fields_by_name[field].number
        tag = _TAGS[kind, field] = _varint(number << 3 | _LENGTH_DELIMITED)
    return tag


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _update_to_proto(report: UpdateReport) -> pb.UpdateReport:
    return pb.UpdateReport(
        update=report.update,
        steps=report.steps,
        streams=report.streams,
        loss=report.loss,
        gradient_norm=report.gradient_norm,
        clipped_gradient_norm=report.clipped_gradient_norm,
        clipped=report.clipped,
        skipped=report.skipped,
    )


def refused_to_proto(refused: LaneRefused, chunk_index: int) -> pb.LearnResponse:
    """Return the answer to a refused chunk, or to a message that is refused as a whole."""
    return pb.LearnResponse(refused=_refused_to_proto(refused, chunk_index))


def _refused_to_proto(refused: LaneRefused, chunk_index: int) -> pb.ChunkRefused:
    return pb.ChunkRefused(
        stream_id=refused.stream_id,
        first_step=refused.first_step,
        expected_step=refused.expected_step,
        chunk_index=chunk_index,
        **_fault(refused.error),
    )


def _fault(error: ServiceError) -> dict[str, Any]:
    violation = error.violations[0] if error.violations else None
    return {
        "code": grpc.StatusCode[error.code].value[0],
        "message": error.message,
        "reason": error.reason.upper(),
        **({} if violation is None else dataclasses.asdict(violation)),
    }


def limits_to_proto(limits: Limits, spec: ModelSpec) -> pb.ChunkLimits:
    """Return what a chunk of a model may have at most."""
    outputs = spec.outputs
    return pb.ChunkLimits(
        message_bytes=limits.message_bytes,
        steps=limits.steps_of_chunk(outputs),
        double_steps=limits.steps_of_chunk(outputs, doubles=True),
    )


def stream_to_proto(trainer: Trainer, stream_id: str) -> pb.Stream:
    """Return where a stream that exists stands, as of the snapshot."""
    next_step = trainer.views.next_step(stream_id)
    source_position, source_step = trainer.views.source(stream_id)
    return pb.Stream(
        stream_id=stream_id,
        next_step=next_step,
        durable_step=min(next_step, trainer.durable_step(stream_id)),
        incarnation=trainer.incarnation(stream_id),
        source_position=source_position,
        source_step=source_step,
    )


def introduced_to_proto(
    trainer: Trainer, first_lane: int, stream_ids: Sequence[str]
) -> pb.LearnResponse:
    """Return the answer to new lanes: where their streams stand, as of the snapshot."""
    views = trainer.views
    next_steps = [views.next_step(each) for each in stream_ids]
    durable_steps = [
        min(next_step, trainer.durable_step(each)) if next_step else 0
        for each, next_step in zip(stream_ids, next_steps, strict=True)
    ]
    introduced = pb.LanesIntroduced(
        first_lane=first_lane,
        next_steps=next_steps,
        durable_steps=durable_steps,
        incarnations=[views.incarnation(each) for each in stream_ids],
        last_incarnation=trainer.last_incarnation,
    )
    return pb.LearnResponse(introduced=introduced)


def prediction_to_proto(
    rows: npt.NDArray[Any],
    snapshot: Snapshot,
    next_step: int,
    top_tokens: int,
    *,
    doubles: bool,
) -> pb.PredictResponse:
    """Return the answer to Predict, with the snapshot's error band."""
    spec = snapshot.spec
    response = pb.PredictResponse(
        next_step=next_step,
        update=snapshot.update,
        horizon=spec.horizon,
        targets=spec.target_count,
    )
    _add_rows(response, rows, snapshot, top_tokens, doubles=doubles)
    return response


def predictions_to_proto(
    rows: npt.NDArray[Any],
    snapshot: Snapshot,
    next_steps: list[int],
    refused: Sequence[LaneRefused],
    top_tokens: int,
    *,
    doubles: bool,
) -> pb.PredictBatchResponse:
    """Return the answer to PredictBatch, with the snapshot's error band."""
    spec = snapshot.spec
    response = pb.PredictBatchResponse(
        next_steps=next_steps,
        update=snapshot.update,
        horizon=spec.horizon,
        targets=spec.target_count,
    )
    for each in refused:
        message = _refused_to_proto(each, 0)
        message.place = each.lane
        response.refusals.append(message)
    _add_rows(response, rows, snapshot, top_tokens, doubles=doubles)
    return response


def _add_rows(
    response: pb.PredictResponse | pb.PredictBatchResponse,
    rows: npt.NDArray[Any],
    snapshot: Snapshot,
    top_tokens: int,
    *,
    doubles: bool,
) -> None:
    if snapshot.spec.task == "next_token":
        _add_top_tokens(response, rows, top_tokens)
        return
    kind = type(response)
    data = _packed_predictions(kind, rows, doubles=doubles)
    response.MergeFromString(data + Band(kind).packed(snapshot.error_band()))
