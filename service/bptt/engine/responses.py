"""The answers of one Learn call, in the order of its messages.

Rules:
- Reading a message creates a `PendingResponse`; its answer fills it later, in any order.
- Answers leave in the order in which the messages were read.
- The number and the weight of pending responses are bounded: when the queue is full, the call
  reads no more messages.
- The reader is woken once for several answers that arrive at the same time.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque

from bptt.domain import BatchAnswer

CROWD_MEMORY = 64
"""Responses after which a client that once sent ahead counts as waiting again. A client that sends
ahead may look like one that waits, because answers that are ready at once leave no backlog."""


class News(enum.Enum):
    """A message for the reader of a queue that is not an answer to a message."""

    DURABLE_ADVANCED = enum.auto()
    """Wakes the reader: durability advanced."""


DURABLE_ADVANCED = News.DURABLE_ADVANCED


class PendingResponse:
    """The response to one message, filled later; `index` counts those of the call from 0."""

    __slots__ = ("_responses", "answer", "index", "weight")

    def __init__(self, responses: ResponseQueue, index: int, weight: int) -> None:
        self._responses = responses
        self.index = index
        self.weight = weight
        self.answer: BatchAnswer | None = None

    @property
    def alone(self) -> bool:
        """Whether the client seems to wait for each answer before it sends the next one."""
        responses = self._responses
        return len(responses) == 1 and self.index > responses.crowded_at + CROWD_MEMORY

    def fill(self, answer: BatchAnswer) -> None:
        """Set the answer; call this at most once."""
        assert self.answer is None
        self.answer = answer
        self._responses._filled(self)


class ResponseQueue:
    """The answers of one call. Lives on the event loop; one task reads, one task adds.

    Attributes:
        crowded_at: index of the last response that was added while another one was pending.

    Args:
        answers_max: bound of the number of pending responses.
        weight_max: bound of their weight, in bytes; one response of any weight always has room.
    """

    def __init__(self, answers_max: int, weight_max: int) -> None:
        self._answers_max = answers_max
        self._weight_max = weight_max
        self.crowded_at = -CROWD_MEMORY - 1
        self._pending: deque[PendingResponse] = deque()
        self._taken = 0
        self._weight = 0
        self._end: tuple[Exception | None] | None = None
        self._news = False
        self._reader: asyncio.Future[None] | None = None
        self._filler: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def pending(self, weight: int) -> PendingResponse:
        """Add a place for the next answer, which will weigh `weight` bytes."""
        pending = PendingResponse(self, self._taken, weight)
        if self._pending:
            self.crowded_at = self._taken
        self._taken += 1
        self._pending.append(pending)
        self._weight += weight
        return pending

    def end(self, error: Exception | None = None) -> None:
        """Accept no more responses; after the last answer the call fails with `error`, or ends.

        An error replaces an end without error; nothing replaces an error.
        """
        if self._end is None or self._end[0] is None:
            self._end = (error,)
        _wake(self._reader)

    @property
    def ended(self) -> bool:
        """Whether no more responses are added."""
        return self._end is not None

    @property
    def taken(self) -> int:
        """The number of responses so far, which is the index of the next one."""
        return self._taken

    @property
    def full(self) -> bool:
        """Whether the next response must wait for room."""
        return len(self._pending) >= self._answers_max or self._weight >= self._weight_max

    async def room(self) -> None:
        """Wait until there is room for one more response."""
        while self.full:
            self._filler = asyncio.get_running_loop().create_future()
            await self._filler

    def notify(self) -> None:
        """Have `next` return `DURABLE_ADVANCED` before it waits for an answer that is not ready."""
        self._news = True
        _wake(self._reader)

    async def next(self) -> BatchAnswer | News | None:
        """The next answer in order; `DURABLE_ADVANCED` after a `notify`, None at the end.

        Raises:
            Exception: the error that `end` was given, after the last answer.
        """
        while not self._pending or self._pending[0].answer is None:
            if self._news:
                self._news = False
                return DURABLE_ADVANCED
            if self._end is not None and not self._pending:
                if self._end[0] is not None:
                    raise self._end[0]
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        pending = self._pending.popleft()
        self._weight -= pending.weight
        if self._filler is not None and not self.full:
            _wake(self._filler)
        return pending.answer

    def _filled(self, pending: PendingResponse) -> None:
        if self._pending and self._pending[0] is pending:
            _wake(self._reader)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
