"""The messages between parts of the engine: chunks, commands, batches, outcomes.

These are values. This module imports no queue, future or event loop; where a task waits for an
answer, a protocol names the methods that are used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from bptt.domain import Answer, RunReport, TickReport
from bptt.durability import Command, Tick
from bptt.errors import ServiceError
from bptt_core import Chunk, ChunkResult, Snapshot, StreamView

ENTRY_BYTES = 64  # weight of a chunk beside its values, so that empty chunks are bounded too

Move = tuple[str, int, int]
"""A stream, and its next step before and after a record."""


class Response(Protocol):
    """The place of a chunk's answer in its call."""

    answer: Answer | None
    """None: not answered yet."""
    index: int
    """Counts the chunks of the call from 0."""

    @property
    def alone(self) -> bool:
        """Whether the client waits for each answer before it sends on, as far as can be seen."""

    def fill(self, answer: Answer) -> None:
        """Answer the chunk. At most once."""


class Completion(Protocol):
    """Where the result of a stream command goes; an `asyncio.Future` is one."""

    def done(self) -> bool:
        """Whether the result is set or no longer wanted."""

    def set_result(self, result: int, /) -> None:
        """The command was applied; the stream's next step."""

    def set_exception(self, exception: BaseException, /) -> None:
        """The command was refused."""


@dataclass(slots=True, eq=False)
class QueuedChunk:
    """A chunk that has its place in its stream.

    A chunk whose steps had all been accepted before is queued too: when its turn comes, the steps
    that it repeats are learned, and it is answered.
    """

    chunk: Chunk
    pending: Response

    @property
    def stream_id(self) -> str:
        """The stream it belongs to."""
        return self.chunk.stream_id

    @property
    def steps(self) -> int:
        """Steps to learn."""
        return len(self.chunk.inputs)

    @property
    def repeats(self) -> bool:
        """Whether it holds nothing to learn."""
        targets, ends = self.chunk.targets, self.chunk.end_of_sequence
        return not self.steps and (targets is None or not len(targets)) and not ends

    @property
    def weight(self) -> int:
        """Bytes it holds."""
        targets = self.chunk.targets
        held = self.chunk.inputs.nbytes + (0 if targets is None else targets.nbytes)
        return held + ENTRY_BYTES


@dataclass(slots=True, eq=False)
class StreamCommand:
    """A reset or deletion of a stream, after the chunks before it and before those after it."""

    stream_id: str
    action: Literal["reset", "delete"]
    done: Completion
    """Gets the stream's next step once the command is applied."""


Entry = QueuedChunk | StreamCommand


@dataclass(slots=True, eq=False)
class TickBatch:
    """At most one entry of each stream."""

    chunks: list[QueuedChunk] = field(default_factory=list)
    """The tick."""
    duplicates: list[QueuedChunk] = field(default_factory=list)
    commands: list[StreamCommand] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Outcome:
    """The results of a run, for the event loop to publish."""

    answers: list[tuple[QueuedChunk, ChunkResult | ServiceError]] = field(default_factory=list)
    commands: list[tuple[StreamCommand, int | ServiceError]] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    views: dict[str, StreamView | None] = field(default_factory=dict)
    """Of the streams that were touched. None: the stream is gone."""
    records: list[tuple[Tick | Command, list[Move]]] = field(default_factory=list)
    """What changed the learner, in order, and the streams that each moved."""
    ticks: list[TickReport] = field(default_factory=list)
    snapshot: Snapshot | None = None
    report: RunReport | None = None
    rest: list[TickBatch] = field(default_factory=list)
    """Batches that were not applied, because the model must go back to a checkpoint first."""
    diverged: bool = False
    """Whether the model must go back to a checkpoint now, as its spec says."""
    seconds: float = 0.0
    own_seconds: float = 0.0
    """`seconds` without the time in which other threads and programs had the processor."""
    failure: Exception | None = None
    """What ended the run; the learner is then in no known state."""
