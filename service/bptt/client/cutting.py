"""Cuts a chunk that is larger than its server takes, and joins the answers to its pieces.

Rules:
- Pieces are consecutive: each has its own first step, and the last one ends the sequence if the
  chunk does. The server learns from them what it would learn from the chunk.
- A target goes with its step. Late targets of earlier steps go with the first piece.
- A chunk is refused as a whole where that can be known before anything is sent: its values are
  checked here as the server checks them.
- A piece that is refused ends its chunk: no later piece is learned.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TYPE_CHECKING

import numpy as np

from bptt import v1 as pb
from bptt.client.convert import packed
from bptt.client.types import Answer, Learned, Model, Refused
from bptt.errors import InvalidRequest

if TYPE_CHECKING:
    from bptt.client.retransmit import Sent

UNTOLD = pb.ChunkLimits(message_bytes=4 << 20, steps=1 << 32, double_steps=1 << 32)
"""Of a server that tells no limits: gRPC's own default."""
FRAME_BYTES = 64  # of a LearnRequest beside its Chunk, and of fields that are set later
_STEP_FIELDS = ("inputs", "input_doubles", "input_tokens")
_TARGET_FIELDS = ("targets", "target_doubles", "target_classes")


@dataclass(slots=True, eq=False)
class Whole:
    """A chunk that is sent in pieces, and the answers to those so far, in order."""

    pieces: int
    begun: bool = False
    """True: a piece was learned."""
    answers: list[Answer] = field(default_factory=list)

    def take(self, answer: Answer) -> list[Answer]:
        """Add a piece's answer; returns the chunk's answer once it is complete."""
        self.answers.append(answer)
        return [joined(self.answers)] if len(self.answers) == self.pieces else []


def limits_of(opened: pb.LearnOpened) -> pb.ChunkLimits:
    """Return the limits of the server that opened a call."""
    return opened.limits if opened.HasField("limits") else UNTOLD


def is_too_large(chunk: pb.Chunk, steps: int, targets: int, limits: pb.ChunkLimits) -> bool:
    """Return whether a chunk has to be cut; `steps` and `targets` are its numbers of them."""
    long = max(steps, targets) > steps_max(chunk, limits)
    return long or chunk.ByteSize() + FRAME_BYTES > limits.message_bytes


def steps_max(chunk: pb.Chunk, limits: pb.ChunkLimits) -> int:
    """Return the most steps, or targets, in a message like this one."""
    doubles = chunk.input_doubles or chunk.target_doubles
    return limits.double_steps or limits.steps if doubles else limits.steps


# ---------------------------------------------------------------------- cutting


def cut(
    chunk: pb.Chunk, steps: int, targets: int, limits: pb.ChunkLimits
) -> list[tuple[pb.Chunk, int, int]]:
    """Cut a chunk that is too large.

    Args:
        chunk: has a first_step.
        steps: its number of steps.
        targets: its number of targets.
        limits: of the server.

    Returns:
        The pieces, with their numbers of steps and targets.

    Raises:
        InvalidRequest: a part that cannot be cut is larger than the server takes; the error names
            the server's limit.
    """
    if not steps:
        raise too_large(chunk, f"{targets} targets without steps", targets, limits)
    source = _Source(chunk, steps, targets)
    room = limits.message_bytes - FRAME_BYTES
    longest = steps_max(chunk, limits)
    most = max(1, min(longest, steps * room // chunk.ByteSize()))
    pieces: list[tuple[pb.Chunk, int, int]] = []
    first = 0
    while first < steps:
        count = min(most, steps - first)
        piece, labels = source.piece(first, count)
        while piece.ByteSize() > room or labels > longest:
            if count == 1:
                raise too_large(piece, f"step {first}", labels, limits)
            count = max(1, count * 3 // 4)
            piece, labels = source.piece(first, count)
        pieces.append((piece, count, labels))
        first += count
    return pieces


def too_large(chunk: pb.Chunk, what: str, rows: int, limits: pb.ChunkLimits) -> InvalidRequest:
    """Return the error for what cannot be cut; it names the server's limit.

    Args:
        chunk: the message.
        what: what it holds, for people.
        rows: its number of steps or targets, whichever is larger.
        limits: of the server.
    """
    longest = steps_max(chunk, limits)
    if rows > longest:
        bound = f"at most {longest} steps or targets: the server's limits.chunk_steps"
        return InvalidRequest.of("chunk", f"{rows} in {what}", bound, reason="too_long")
    value = f"{chunk.ByteSize() + FRAME_BYTES} bytes in {what}"
    bound = f"at most {limits.message_bytes} bytes: the server's limits.message_bytes"
    return InvalidRequest.of("chunk", value, bound, reason="too_long")


def check_again(again: Sequence[Sent], limits: pb.ChunkLimits) -> None:
    """Check that chunks which have to be sent again still fit.

    Raises:
        InvalidRequest: the server takes smaller messages than the one before.
    """
    for sent in again:
        chunk = sent.message.chunk
        if is_too_large(chunk, sent.steps, sent.labels, limits):
            what = f"a chunk of {sent.steps} steps that has to be sent again"
            raise too_large(chunk, what, max(sent.steps, sent.labels), limits)


class _Source:
    """The arrays of a chunk, of which pieces are made."""

    def __init__(self, chunk: pb.Chunk, steps: int, targets: int) -> None:
        self._chunk = chunk
        self._steps = steps
        self._targets = targets
        self._rows = {name: _array(chunk, name, steps) for name in _STEP_FIELDS}
        self._labels = {name: _array(chunk, name, targets) for name in _TARGET_FIELDS}
        self._is_late = chunk.HasField("first_target_step")
        # Of the first target, counted from the chunk's first step; below 0 for an earlier step.
        self._labelled = chunk.first_target_step - chunk.first_step if self._is_late else 0

    def piece(self, first: int, count: int) -> tuple[pb.Chunk, int]:
        """Return the message of `count` steps from `first` on, and its number of targets."""
        chunk, last = self._chunk, first + count == self._steps
        piece = pb.Chunk(
            stream_id=chunk.stream_id,
            first_step=chunk.first_step + first,
            end_of_sequence=chunk.end_of_sequence and last,
            incarnation=chunk.incarnation,
            source_position=chunk.source_position if last else b"",
        )
        for name, rows in self._rows.items():
            _add(piece, name, rows[first : first + count])
        low = 0 if first == 0 else min(max(0, first - self._labelled), self._targets)
        high = self._targets if last else min(max(0, first + count - self._labelled), self._targets)
        for name, rows in self._labels.items():
            _add(piece, name, rows[low:high])
        if self._is_late and high > low:
            piece.first_target_step = chunk.first_target_step + low
        return piece, high - low


def _array(chunk: pb.Chunk, name: str, rows: int) -> Any:
    """Return a repeated field as (rows, width)."""
    values = np.asarray(getattr(chunk, name))
    return values.reshape(rows, -1) if values.size else np.zeros((0, 0))


def _add(piece: pb.Chunk, name: str, rows: Any) -> None:
    if not rows.size:
        return
    kind = pb.Chunk.DESCRIPTOR.fields_by_name[name]
    if kind.cpp_type in (kind.CPPTYPE_FLOAT, kind.CPPTYPE_DOUBLE):
        what = "input" if name in _STEP_FIELDS else "target"
        piece.MergeFromString(packed(pb.Chunk, what, rows))
    else:
        getattr(piece, name).extend(rows.ravel().tolist())


# ---------------------------------------------------------------------- what is refused at once


def problem(model: Model, chunk: pb.Chunk, steps: int, targets: int) -> InvalidRequest | None:
    """Return why the server would refuse some piece of a chunk; None: nothing is wrong.

    Only what differs from piece to piece: what is wrong with all of them is found by the server in
    the first one, before anything is learned.
    """
    spec = model.spec
    late = spec.get("label_delay", 0)
    missing = spec.get("missing_targets", False) or late > 0
    inputs = chunk.input_doubles or chunk.inputs
    if targets and not late and targets != steps:
        bound = f"{steps}, one for each step"
        return InvalidRequest.of("targets", f"{targets} targets", bound, reason="targets")
    if targets and late and chunk.HasField("first_target_step"):
        first, labelled = chunk.first_step, chunk.first_target_step
        if not max(0, first - late) <= labelled <= first + steps - targets:
            bound = f"from {max(0, first - late)} to {first + steps - targets}"
            return InvalidRequest.of("first_target_step", labelled, bound, reason="targets")
    return (
        _not_finite("inputs", inputs, steps, nan=spec.get("missing_inputs", False))
        or _not_finite("targets", chunk.target_doubles or chunk.targets, targets, nan=missing)
        or _unknown_id("input_tokens", chunk.input_tokens, 0, spec.get("vocabulary_size", 0))
        or _unknown_id(
            "target_classes", chunk.target_classes, -1 if missing else 0, spec.get("output_size", 0)
        )
    )


def _not_finite(
    name: str, values: Sequence[float], rows: int, *, nan: bool
) -> InvalidRequest | None:
    array = np.asarray(values, dtype=np.float64)
    bad = np.isinf(array) if nan else ~np.isfinite(array)
    if not bad.any():
        return None
    step, column = divmod(int(np.argmax(bad)), len(array) // rows)
    bound = "finite numbers, or NaN for what is missing" if nan else "finite numbers"
    value = f"{array[np.argmax(bad)]} in step {step}, column {column}"
    return InvalidRequest.of(name, value, bound, reason="not_finite")


def _unknown_id(name: str, ids: Sequence[int], lowest: int, count: int) -> InvalidRequest | None:
    array = np.asarray(ids, dtype=np.int64)
    bad = (array < lowest) | (array >= count)
    if not bad.any():
        return None
    step = int(np.argmax(bad))
    bound = f"ids from {lowest} to {count - 1}"
    return InvalidRequest.of(name, f"{array[step]} in step {step}", bound, reason="unknown_id")


# ---------------------------------------------------------------------- joining


def joined(answers: Sequence[Answer]) -> Answer:
    """Return the answer to a chunk from the answers to its pieces, in order."""
    learned: list[Learned] = []
    for answer in answers:  # of chunks: a batch is never sent in pieces
        if isinstance(answer, Refused):
            return _refused(answer, learned)
        assert isinstance(answer, Learned)
        learned.append(answer)
    return _learned(learned)


def _refused(answer: Refused, learned: list[Learned]) -> Refused:
    if not learned:
        return answer
    error = copy.copy(answer.error)
    error.message += (
        f"; the chunk was sent in pieces, and its steps before {learned[-1].next_step} are learned"
    )
    error.args = (error.message,)
    return replace(answer, error=error)


def _learned(answers: list[Learned]) -> Learned:
    """Join answers. Figures of single steps begin where no later ones are missing.

    After a reconnection a piece's answer may be lost, and the answer to the piece sent again has
    none.
    """
    last = answers[-1]
    start = len(answers) - 1
    while start and answers[start - 1].next_step == answers[start].first_step:
        start -= 1
    rows = answers[start:]
    predictions = None
    if last.predictions is not None:
        predictions = _rows([each.predictions for each in rows if each.predictions is not None])
    return replace(
        last,
        first_step=rows[0].first_step,
        predictions=predictions,
        updates=tuple([update for each in answers for update in each.updates]),
        top_tokens=_rows([each.top_tokens for each in rows]),
        top_probabilities=_rows([each.top_probabilities for each in rows]),
        anomaly_scores=_rows([each.anomaly_scores for each in rows]),
    )


def _rows(arrays: list[Any]) -> Any:
    """Join arrays along their first axis; those without rows may have another width."""
    filled = [each for each in arrays if len(each)]
    return np.concatenate(filled) if filled else arrays[-1]
