"""The answers of one Learn call, in the order of its chunks.

Rules:
- A chunk gets a pending response when it is read; its answer fills the pending response later.
- Answers are returned in the order of the chunks, whatever order they were filled in.
- Pending responses are bounded in number and weight: while the queue is full, the call is not read.
- A waiting task is woken once for all answers that are ready at the same time.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque

from bptt.domain import Answer

CROWD_MEMORY = 64
"""Chunks for which the queue remembers that a client sends without waiting. If answers are fast,
two chunks may never be pending at once although the client does not wait."""


class News(enum.Enum):
    """Wakes the reader for a message that is not an answer."""

    DURABLE_ADVANCED = enum.auto()


DURABLE_ADVANCED = News.DURABLE_ADVANCED


class PendingResponse:
    """The pending answer of one chunk; `index` counts a call's chunks from 0."""

    __slots__ = ("_responses", "answer", "index", "weight")

    def __init__(self, responses: ResponseQueue, index: int, weight: int) -> None:
        self._responses = responses
        self.index = index
        self.weight = weight
        self.answer: Answer | None = None

    @property
    def alone(self) -> bool:
        """True if the client appears to wait for each answer before it sends the next chunk."""
        responses = self._responses
        return len(responses) == 1 and self.index > responses.crowded_at + CROWD_MEMORY

    def fill(self, answer: Answer) -> None:
        """Answer the chunk. Call it at most once."""
        assert self.answer is None
        self.answer = answer
        self._responses._filled(self)


class ResponseQueue:
    """The answers of one call. Lives on the event loop, with one reading and one writing task.

    Attributes:
        crowded_at: index of the last chunk that arrived while another one was pending.

    Args:
        answers_max: maximum number of pending responses.
        weight_max: maximum weight in bytes; a single response of any weight has room.
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
        """Add a pending response with a weight in bytes."""
        pending = PendingResponse(self, self._taken, weight)
        if self._pending:
            self.crowded_at = self._taken
        self._taken += 1
        self._pending.append(pending)
        self._weight += weight
        return pending

    def end(self, error: Exception | None = None) -> None:
        """Note that no chunk follows. After the last answer the call fails with `error`, if given.

        An error replaces an end without error; nothing replaces an error.
        """
        if self._end is None or self._end[0] is None:
            self._end = (error,)
        _wake(self._reader)

    @property
    def ended(self) -> bool:
        """True if no chunk follows."""
        return self._end is not None

    @property
    def full(self) -> bool:
        """True if the next chunk must wait."""
        return len(self._pending) >= self._answers_max or self._weight >= self._weight_max

    async def room(self) -> None:
        """Wait until there is room for a pending response."""
        while self.full:
            self._filler = asyncio.get_running_loop().create_future()
            await self._filler

    def notify(self) -> None:
        """Make `next` return `DURABLE_ADVANCED` if no answer is ready."""
        self._news = True
        _wake(self._reader)

    async def next(self) -> Answer | News | None:
        """The next answer in order; `DURABLE_ADVANCED` after a `notify`, None at the end.

        Raises:
            Exception: the error given to `end`, after the last answer.
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
