"""A batch that a session has sent or is about to send, and the messages that it is written in."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bptt import v1 as pb
from bptt.client import columns as columns_of
from bptt.client.batch_answers import ResultBuilder
from bptt.client.columns import BatchColumns
from bptt.client.types import Int64Array

OPEN, LEARNED, REFUSED = range(3)
"""What is known of a stream of a batch."""


@dataclass(slots=True, eq=False)
class SentBatch:
    """One kept batch of B streams."""

    index: int
    """Number in the session among chunks, pieces and batches, from 0."""
    chunk_index: int
    """The same without pieces: a chunk counts once."""
    lanes: Int64Array
    columns: BatchColumns
    first_steps: Int64Array | None
    """(B,) None: the server appends, in a session without `resume`."""
    placed: bool
    """True: the session chose first_steps, because the caller gave none."""
    incarnations: Int64Array
    """(B,) as they are sent; 0: any."""
    size: int
    """Bytes, approximately."""
    whole: ResultBuilder
    """It joins the answers to the batches of one `send_many`."""
    streams: Int64Array
    """(B,) the place of each stream in that `send_many`."""
    offset: int
    """Steps of each stream that earlier batches of it hold."""
    gaps_after: Int64Array | None = None
    """(B,) the step that a stream expects whose chunk does not follow; -1 for the others."""
    states: NDArray[np.int8] = field(init=False)
    """(B,) OPEN, LEARNED or REFUSED."""
    flights: Int64Array = field(init=False)
    """(B,) the message whose answer counts for the stream; 0: it is not written."""
    moves: int = 0
    """How often streams of it were given another first step after a refusal."""
    next_steps: Int64Array = field(init=False)
    learned_by: Int64Array = field(init=False)
    """(B,) the incarnation that learned the stream's chunk."""
    undurable: int = 0
    """Written messages that are not answered and durable yet."""
    resent: bool = False
    """True: it was written in an earlier call."""
    answer: bool | None = None
    """True: every stream is answered."""

    def __post_init__(self) -> None:
        """Begin with nothing written."""
        count = len(self.lanes)
        self.states = np.zeros(count, np.int8)
        self.flights = np.zeros(count, np.int64)
        self.next_steps = np.zeros(count, np.int64)
        self.learned_by = np.zeros(count, np.int64)

    @property
    def moves_up(self) -> bool:
        """Whether its streams may be given other first steps."""
        return self.placed and self.columns.first_targets is None

    @property
    def is_answered(self) -> bool:
        """Whether every stream is answered."""
        return not (self.states == OPEN).any()

    def place(self, lane: int) -> int | None:
        """Return the place of a lane in the batch; None if it is not there."""
        found = np.flatnonzero(self.lanes == lane)
        return int(found[0]) if len(found) else None

    def message(self, places: Int64Array | None) -> pb.LearnRequest:
        """Return the message for the streams at these places; None: all."""
        if places is None:
            batch = columns_of.to_proto(
                self.columns, self.lanes, self.first_steps, self.incarnations
            )
        else:
            first_steps = None if self.first_steps is None else self.first_steps[places]
            batch = columns_of.to_proto(
                self.columns.only(places), self.lanes[places], first_steps,
                self.incarnations[places],
            )  # fmt: skip
        return pb.LearnRequest(batch=batch)


@dataclass(slots=True, eq=False)
class Part:
    """A batch, or some of its streams, to be written as one message."""

    sent: SentBatch
    places: Int64Array | None = None
    """Rising; None: all."""
    flight: int = 0
    """Number of the message, once it is written."""

    @property
    def index(self) -> int:
        """The batch's number."""
        return self.sent.index

    @property
    def all_places(self) -> Int64Array:
        """The places of its streams."""
        return np.arange(len(self.sent.lanes)) if self.places is None else self.places


def parts_of(sent: SentBatch, places: Int64Array | None, limits: pb.ChunkLimits) -> list[Part]:
    """Return the messages of a batch, or of some of its streams, each as long as allowed."""
    return [Part(sent, each) for each in sent.columns.pieces(places, limits)]
