"""The streaming loop: sends batches of rows through a session and evaluates the answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from bptt.cli.answers.recorder import Recorder
from bptt.cli.data.known_rows import LiveRows
from bptt.cli.data.problem import InputError
from bptt.cli.data.source import Batch
from bptt.cli.data.trail import Trail
from bptt.cli.run_statistics import RunStatistics
from bptt.client import Learned, LearnSession, Model, Refused
from bptt.errors import ServerStopping, ServiceError

Item = TypeVar("Item")


class Sender(Protocol):
    """Takes the chunks of streams: a session, or what collects them for one."""

    model: Model

    async def send(
        self,
        stream_id: str,
        inputs: NDArray[Any] | None = None,
        targets: NDArray[Any] | None = None,
        *,
        first_step: int | None = None,
        first_target_step: int | None = None,
        end_of_sequence: bool = False,
        source_position: bytes = b"",
    ) -> None:
        """As `LearnSession.send`."""


@dataclass(slots=True)
class StreamFeed:
    """Sends one stream's rows to a model, and evaluates the answers."""

    session: Sender
    stream_id: str
    inputs: int
    """Number of input columns; the columns after them are targets."""
    next_step: int
    """The stream's next step in the last answer."""
    append: bool
    """True: the rows follow whatever the stream's last step is when they arrive. False: they have
    step numbers, so that a row that arrives twice is learned once."""
    statistics: RunStatistics
    delay: int = 0
    """A row's target belongs to the row this many rows earlier."""
    look_ahead: bool = False
    """Hold each batch until the next one shows whether its sequence has ended."""
    reset: Callable[[], Awaitable[Any]] | None = None
    """Ends a sequence that an earlier run sent."""
    recorder: Recorder | None = None
    """Writes the predictions down."""
    missing: int = 0
    """Rows left out because a value is missing."""
    skipped: int = 0
    """Rows skipped because the stream already has them."""
    position: int = 0
    """Step number of the next row that is new."""
    sequence_start: int = 0
    """First step of the current sequence, as far as this run knows."""
    skip: int = 0
    """Rows still to skip: the stream has them."""
    first_row_step: int = 0
    """Step number of the source's first row, where rows are skipped."""
    trail: Trail = field(default_factory=Trail)
    """Of the source's rows, which is stored with the steps."""
    live: LiveRows | None = None
    """Leaves out rows of a live source that the stream has."""
    pending: deque[Batch] = field(default_factory=deque)
    """What was sent and is not answered."""
    _held: Batch | None = None

    def __post_init__(self) -> None:
        """Start at the stream's next step."""
        self.position = self.next_step

    async def feed(self, batch: Batch) -> None:
        """Send the rows of a batch that the stream does not have yet."""
        for new in self._new_rows(batch):
            if self._held is not None:
                await self._send_batch(self._held, ends=new.begins)
            elif new.begins and self.position and not self.pending:
                await self._end_earlier_sequence(new)
            self._held = new
            if not self.look_ahead:
                await self.flush()

    async def flush(self) -> None:
        """Send rows that are held until the next ones come."""
        held, self._held = self._held, None
        if held is not None:
            await self._send_batch(held, ends=False)

    async def _end_earlier_sequence(self, batch: Batch) -> None:
        """End the sequence of an earlier run, which `batch` does not continue.

        Only a model with a label_delay accepts an end without steps. Other streams are reset, so
        their unfinished window is discarded and not learned.
        """
        if self.delay:
            none = Batch(batch.values[:0], batch.first_line, batch.first_line, 0, batch.position)
            await self._send_batch(none, ends=True)
        elif self.reset is not None:
            await self.reset()

    def _new_rows(self, batch: Batch) -> list[Batch]:
        """Return the rows that the stream does not have yet, with the source's position."""
        self.missing += batch.missing
        if batch.begins and self.skip:
            self.sequence_start = self.first_row_step + self.skipped
        self.trail.add(batch)
        batch = replace(batch, source_position=self.trail.position())
        if self.live is not None:
            new = self.live.take(batch)
            self.skipped = self.live.skipped
        else:
            known = min(len(batch.values), self.skip)
            if known and self.recorder is not None:
                step = self.first_row_step + self.skipped
                self.recorder.skip(batch, known, step, self.inputs)
            self.skip -= known
            self.skipped += known
            new = [batch.after(known)]
        return [each for each in new if len(each.values)]

    async def _send_batch(self, batch: Batch, *, ends: bool) -> None:
        if batch.begins:
            self.sequence_start = self.position
        inputs, targets = self._split(batch.values) if len(batch.values) else (None, None)
        first_target = None
        if self.delay and targets is not None:
            # The first targets of a sequence belong to steps of the sequence before it.
            early = max(0, self.sequence_start + self.delay - self.position)
            targets = targets[early:] if early < len(targets) else None
            first_target = None if targets is None else self.position + early - self.delay
        self.pending.append(batch)
        await self.session.send(
            self.stream_id,
            inputs,
            targets,
            first_step=None if self.append else self.position,
            first_target_step=first_target,
            end_of_sequence=ends,
            source_position=batch.source_position,
        )
        self.position += len(batch.values)

    def _split(self, values: NDArray[np.floating[Any]]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Split rows into inputs and targets, in the form that the task expects."""
        task = self.session.model.task
        inputs, targets = values[:, : self.inputs], values[:, self.inputs :]
        if task == "next_token":
            return inputs[:, 0].astype(np.int64), None
        if task == "classification":
            return inputs, targets[:, 0].astype(np.int64)
        return inputs, targets if targets.shape[1] else None

    def evaluate(self, answer: Learned, batch: Batch) -> None:
        """Take the answer to a batch."""
        self.statistics.add_answer(answer)
        self.next_step = answer.next_step
        tokens = self.session.model.task == "next_token"
        predictions = answer.top_tokens if tokens else answer.predictions
        if predictions is None or not len(predictions):  # lost with a broken connection
            self.statistics.begin_sequence()
            return
        values = batch.values[len(batch.values) - len(predictions) :]
        self.statistics.add_predictions(
            values[:, : self.inputs], values[:, self.inputs :], predictions, begins=batch.begins
        )


@dataclass(slots=True)
class StreamingLoop(StreamFeed):
    """Sends the rows of one stream through a session, and reads the answers."""

    session: LearnSession
    on_progress: Callable[[int], None] = lambda position: None
    """Called after each answer with the bytes of the input that are done."""

    async def run(self, batches: AsyncIterator[Batch], stop: asyncio.Event) -> None:
        """Send the rows until they end or `stop` is set, then wait until they are learned.

        Args:
            batches: the rows.
            stop: set by the caller to end early; also set here once no more rows can be learned.

        Raises:
            InputError: the input is invalid; the rows before it were learned.
            ServiceError: a chunk was refused, or the server is gone.
        """
        reader = asyncio.ensure_future(self._read_answers())
        reader.add_done_callback(lambda _: stop.set())  # nothing more can be learned
        try:
            # The sender is never cancelled: an interrupted write would end the whole call.
            problem = None
            try:
                await self._send(batches, stop)
                await self.session.close()
            except InputError as error:
                problem = error
                await self.session.close()
            await reader
            if problem is not None:
                raise problem
        except ServiceError:
            if reader.done() and not reader.cancelled():
                reader.result()  # the reader's error is the cause of the failed send
            raise
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _send(self, batches: AsyncIterator[Batch], stop: asyncio.Event) -> None:
        try:
            async for batch in until(batches, stop):
                await self.feed(batch)
        finally:
            await self.flush()  # rows read before an error or a stop are learned

    async def _read_answers(self) -> None:
        async for answer in self.session:
            batch = self.pending.popleft()
            if isinstance(answer, Refused):
                if isinstance(answer.error, ServerStopping):
                    raise answer.error
                lines = f"rows from line {batch.first_line} to {batch.last_line} were refused"
                answer.error.args = (f"{lines}: {answer.error}",)
                raise answer.error
            assert isinstance(answer, Learned)  # this loop sends chunks only
            self.evaluate(answer, batch)
            if self.recorder is not None:
                self.recorder.add(answer, batch, self.inputs)
            self.on_progress(batch.position)


async def until(batches: AsyncIterator[Item], stop: asyncio.Event) -> AsyncIterator[Item]:
    """Yield the items that arrive before `stop` is set."""
    stopper = asyncio.ensure_future(stop.wait())
    try:
        while not stop.is_set():
            getter = asyncio.ensure_future(_next(batches))
            await asyncio.wait((getter, stopper), return_when=asyncio.FIRST_COMPLETED)
            if not getter.done():
                getter.cancel()
                await asyncio.gather(getter, return_exceptions=True)
                return
            batch = getter.result()
            if batch is None:
                return
            yield batch
    finally:
        stopper.cancel()


async def _next(batches: AsyncIterator[Item]) -> Item | None:
    return await anext(batches, None)
