"""Chunks as messages of one lane, and their answers, for tests that send single chunks."""

from __future__ import annotations

from typing import Any

import numpy as np

from bptt.domain import BatchAnswer, IncomingBatch, IncomingChunk, LaneRefused
from bptt.engine.fair_queue import Entry, FairQueue
from bptt.engine.messages import QueuedBatch, Round, weight
from bptt.engine.replies import MessageReplies
from bptt.engine.responses import News, PendingResponse, ResponseQueue
from bptt_core import Batch, Chunk, ChunkResult

Answer = ChunkResult | LaneRefused


def message(*given: Any, **named: Any) -> IncomingBatch:
    """A message of one chunk; the arguments are `IncomingChunk`'s."""
    return IncomingBatch.of(IncomingChunk(*given, **named))


def of_one_lane(answer: BatchAnswer | News | None) -> Answer:
    """The answer to a message of one chunk."""
    assert isinstance(answer, BatchAnswer)
    if answer.refused:
        [refused] = answer.refused
        assert not len(answer.lanes)
        return refused
    assert answer.lanes.tolist() == [0]
    assert answer.members.tolist() == [[place, 0] for place in range(len(answer.updates))]
    steps = int(answer.next_steps[0] - answer.first_steps[0])
    assert answer.offsets.tolist() == [0, steps]
    for rows in (answer.predictions, answer.anomaly_scores):
        assert rows is None or len(rows) == steps
    return ChunkResult(
        answer.stream_ids[0],
        int(answer.first_steps[0]),
        int(answer.next_steps[0]),
        answer.predictions,
        answer.updates,
        answer.anomaly_scores,
        int(answer.incarnations[0]),
    )


def queued(chunk: Chunk, slot: int = 0, pending: PendingResponse | None = None) -> QueuedBatch:
    """A chunk as it waits in the queue."""
    batch = Batch.of([chunk])
    if not chunk.end_of_sequence:
        batch = Batch(*(getattr(batch, name) for name in Batch.__slots__[:-1]))
    pending = ResponseQueue(1, 1).pending(0) if pending is None else pending
    incoming = message(chunk.stream_id, chunk.first_step, chunk.inputs, chunk.targets, False)
    replies = MessageReplies(incoming, pending)
    repeats = not (len(chunk.inputs) or chunk.targets is not None or chunk.end_of_sequence)
    steps = len(chunk.inputs)
    lane = np.zeros(1, np.int64)
    return QueuedBatch(batch, lane + slot, lane, replies, steps, weight(batch), repeats)


class Rounds:
    """Puts entries into a queue as admission does: by the rounds of their streams."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.last: dict[str, int] = {}

    def put(self, stream_id: str, entry: Entry) -> None:
        """Queue an entry of this stream."""
        number = max(self.last.get(stream_id, 0) + 1, self.queue.head)
        self.last[stream_id] = number
        self.queue.put(entry, number)

    def chunk(self, chunk: Chunk) -> QueuedBatch:
        """Queue a chunk."""
        entry = queued(chunk)
        self.put(chunk.stream_id, entry)
        return entry


def rounds(*chunks: Chunk) -> list[Round]:
    """Chunks of one stream, each in a round of its own."""
    return [Round(number, [queued(each)]) for number, each in enumerate(chunks, 1)]
