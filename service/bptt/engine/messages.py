"""The messages between parts of the engine: batches, commands, rounds, outcomes.

These are values. This module imports no queue, future or event loop; where a task waits for an
answer, a protocol names the methods that are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bptt.domain import BatchAnswer, RunReport, TickReport
from bptt.durability import Command, Tick
from bptt.errors import ServiceError
from bptt_core import Batch, Snapshot, StreamColumns

IntArray = NDArray[np.int64]

LANE_BYTES = 64  # weight of a lane beside its values, so that empty lanes are bounded too


class Response(Protocol):
    """The place of a message's answer in its call."""

    answer: BatchAnswer | None
    """None: not answered yet."""
    index: int
    """Counts the messages of the call from 0."""

    @property
    def alone(self) -> bool:
        """Whether the client waits for each answer before it sends on, as far as can be seen."""

    def fill(self, answer: BatchAnswer) -> None:
        """Answer the message. At most once."""


class Replies(Protocol):
    """Collects the answers to the lanes of one message; `engine/replies.py` has the class."""

    @property
    def alone(self) -> bool:
        """As `Response.alone`."""

    @property
    def index(self) -> int:
        """As `Response.index`."""

    @property
    def answered(self) -> bool:
        """True once all lanes are answered."""

    def learned(self, part: BatchAnswer, lsn: int) -> None:
        """Some lanes were learned; record `lsn` or an earlier one holds them."""

    def refused(self, lane: int, error: ServiceError, expected_step: int) -> None:
        """A lane was refused."""


class Completion(Protocol):
    """Where the result of a stream command goes; an `asyncio.Future` is one."""

    def done(self) -> bool:
        """Whether the result is set or no longer wanted."""

    def set_result(self, result: int, /) -> None:
        """The command was applied; the stream's next step."""

    def set_exception(self, exception: BaseException, /) -> None:
        """The command was refused."""


@dataclass(slots=True, eq=False)
class QueuedBatch:
    """Lanes of one message that have their places in their streams and belong to one round.

    Lanes whose steps had all been accepted before are queued too: when their turn comes, the steps
    that they repeat are learned, and they are answered.
    """

    batch: Batch
    slots: IntArray
    """(B,) of the lanes' streams."""
    lanes: IntArray
    """(B,) int64, rising: positions in the message."""
    replies: Replies
    steps: int
    """Of all lanes."""
    weight: int
    """Bytes it holds."""
    repeats: bool = False
    """True: no lane has anything to learn."""

    def select(self, lanes: IntArray) -> QueuedBatch:
        """Some of the lanes as a batch of their own."""
        batch = self.batch.select(lanes)
        return QueuedBatch(
            batch,
            self.slots[lanes],
            self.lanes[lanes],
            self.replies,
            len(batch.inputs),
            weight(batch),
            self.repeats,
        )


def weight(batch: Batch) -> int:
    """Bytes that a batch holds."""
    targets = batch.targets
    held = batch.inputs.nbytes + (0 if targets is None else targets.nbytes)
    return int(held + LANE_BYTES * len(batch))


@dataclass(slots=True, eq=False)
class StreamCommand:
    """A reset or deletion of a stream, after the chunks before it and before those after it."""

    stream_id: str
    action: Literal["reset", "delete"]
    done: Completion
    """Gets the stream's next step once the command is applied."""


@dataclass(slots=True, eq=False)
class Round:
    """At most one entry of each stream. Its chunks, as they stand here, are one tick."""

    number: int
    chunks: list[QueuedBatch] = field(default_factory=list)
    """The tick."""
    duplicates: list[QueuedBatch] = field(default_factory=list)
    commands: list[StreamCommand] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.chunks or self.duplicates or self.commands)


@dataclass(slots=True, eq=False)
class Moves:
    """How a record moved streams: columns over its lanes."""

    slots: IntArray
    before: IntArray
    """Next step before the record."""
    after: IntArray


@dataclass(slots=True, eq=False)
class Answered:
    """What a run answers to the lanes of a queued batch."""

    queued: QueuedBatch
    parts: Sequence[BatchAnswer]
    """Of the lanes that were learned, or had nothing to learn."""
    errors: Sequence[tuple[int, ServiceError]] = ()
    """Of the others, by their place in `queued`."""


@dataclass(slots=True, eq=False)
class Outcome:
    """The results of a run, for the event loop to publish."""

    answers: list[Answered] = field(default_factory=list)
    commands: list[tuple[StreamCommand, int | ServiceError]] = field(default_factory=list)
    touched: dict[str, None] = field(default_factory=dict)
    """The streams that may have changed, in order."""
    views: tuple[Sequence[str], StreamColumns] | None = None
    """Of the streams that were touched and exist."""
    gone: Sequence[str] = ()
    """Streams that were touched and do not exist any more."""
    records: list[tuple[Tick | Command, Moves | None]] = field(default_factory=list)
    """What changed the learner, in order, and the streams that each moved."""
    ticks: list[TickReport] = field(default_factory=list)
    snapshot: Snapshot | None = None
    report: RunReport | None = None
    rest: list[Round] = field(default_factory=list)
    """Rounds that were not applied, because the model must go back to a checkpoint first."""
    diverged: bool = False
    """Whether the model must go back to a checkpoint now, as its spec says."""
    seconds: float = 0.0
    own_seconds: float = 0.0
    """`seconds` without the time in which other threads and programs had the processor."""
    failure: Exception | None = None
    """What ended the run; the learner is then in no known state."""
