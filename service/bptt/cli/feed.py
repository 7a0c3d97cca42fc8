"""Feeds batches of rows to a session, and scores the answers as they come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.cli.csvfile import Batch, InputError
from bptt.cli.report import Report
from bptt.client import Learned, LearnSession, Refused
from bptt.errors import ServerStopping, ServiceError


@dataclass(slots=True)
class Feed:
    """One stream's rows on their way to a model."""

    session: LearnSession
    stream_id: str
    inputs: int
    """The first so many columns of a batch are inputs, the others targets."""
    next_step: int
    """The stream's next step, as last acknowledged."""
    append: bool
    """The rows come at the stream's end; else they begin at step 0, and what the stream has is
    skipped."""
    report: Report
    delay: int = 0
    """The targets of a row are those of the row so many rows before it."""
    look_ahead: bool = False
    """Send a batch once the next is there, which tells whether its sequence has ended."""
    reset: Callable[[], Awaitable[Any]] | None = None
    """Ends a sequence that was sent by an earlier run."""
    on_progress: Callable[[int], None] = lambda position: None
    """Told after each answer how many bytes of the input are behind it."""
    missing: int = 0
    """Rows that were left out."""
    skipped: int = 0
    """Rows that the stream already had."""
    position: int = 0
    """The step that the next row will be."""
    sequence_start: int = 0
    """The step that the present sequence began with, as far as is known."""
    skip: int = 0
    """Rows that are still to be skipped."""

    def __post_init__(self) -> None:
        """Begin where the stream stands."""
        self.position = self.next_step
        self.skip = 0 if self.append else self.next_step

    async def run(self, batches: AsyncIterator[Batch], stop: asyncio.Event) -> None:
        """Send all rows, or those before `stop` is set, and wait until they are learned.

        Raises:
            InputError: the input is bad; the rows before are learned.
            ServiceError: a chunk was refused, or the server is gone.
        """
        pending: deque[Batch] = deque()
        reader = asyncio.ensure_future(self._read(pending))
        reader.add_done_callback(lambda _: stop.set())  # nothing more can be learned
        try:
            # The sender is never cancelled: a write that is cut short would end the whole call.
            problem = None
            try:
                await self._send(batches, pending, stop)
                await self.session.close()
            except InputError as error:
                problem = error
                await self.session.close()
            await reader
            if problem is not None:
                raise problem
        except ServiceError:
            if reader.done() and not reader.cancelled():
                reader.result()  # says more than the send that failed because of it
            raise
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _send(
        self, batches: AsyncIterator[Batch], pending: deque[Batch], stop: asyncio.Event
    ) -> None:
        held: Batch | None = None
        try:
            async for batch in _until(batches, stop):
                new = self._new_rows(batch)
                if new is None:
                    continue
                if held is not None:
                    await self._send_batch(held, pending, ends=new.begins)
                elif new.begins and self.position and not pending:
                    await self._end_earlier(new, pending)
                held = new
                if not self.look_ahead:
                    await self._send_batch(held, pending, ends=False)
                    held = None
        finally:
            if held is not None:  # what was read before an error or a stop is learned
                await self._send_batch(held, pending, ends=False)

    async def _end_earlier(self, batch: Batch, pending: deque[Batch]) -> None:
        """End the sequence of an earlier run, which `batch` does not go on with.

        Only a model with a label_delay takes an end by itself; of others the window that was not
        finished is forgotten, not learned.
        """
        if self.delay:
            none = Batch(batch.values[:0], batch.first_line, batch.first_line, 0, batch.position)
            await self._send_batch(none, pending, ends=True)
        elif self.reset is not None:
            await self.reset()

    def _new_rows(self, batch: Batch) -> Batch | None:
        """What of a batch the stream does not have yet."""
        self.missing += batch.missing
        if batch.begins and self.skip:
            self.sequence_start = self.skipped
        known = min(len(batch.values), self.skip)
        self.skip -= known
        self.skipped += known
        values = batch.values[known:]
        if not len(values):
            return None
        begins = batch.begins and not known
        return Batch(values, batch.first_line, batch.last_line, 0, batch.position, begins)

    async def _send_batch(self, batch: Batch, pending: deque[Batch], *, ends: bool) -> None:
        if batch.begins:
            self.sequence_start = self.position
        inputs, targets = self._split(batch.values) if len(batch.values) else (None, None)
        first_target = None
        if self.delay and targets is not None:
            early = max(0, self.sequence_start + self.delay - self.position)  # of another sequence
            targets = targets[early:] if early < len(targets) else None
            first_target = None if targets is None else self.position + early - self.delay
        pending.append(batch)
        await self.session.send(
            self.stream_id,
            inputs,
            targets,
            first_step=None if self.append else self.position,
            first_target_step=first_target,
            end_of_sequence=ends,
        )
        self.position += len(batch.values)

    def _split(self, values: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Inputs and targets of rows, in the form that the task takes."""
        task = self.session.model.task
        inputs, targets = values[:, : self.inputs], values[:, self.inputs :]
        if task == "next_token":
            return inputs[:, 0].astype(np.int64), None
        if task == "classification":
            return inputs, targets[:, 0].astype(np.int64)
        return inputs, targets if targets.shape[1] else None

    async def _read(self, pending: deque[Batch]) -> None:
        async for answer in self.session:
            batch = pending.popleft()
            if isinstance(answer, Refused):
                if answer.error.message == ServerStopping().message:
                    raise ServerStopping
                lines = f"rows from line {batch.first_line} to {batch.last_line} were refused"
                answer.error.args = (f"{lines}: {answer.error}",)
                raise answer.error
            self._score(answer, batch)
            self.on_progress(batch.position)

    def _score(self, answer: Learned, batch: Batch) -> None:
        self.report.add(answer)
        self.next_step = answer.next_step
        tokens = self.session.model.task == "next_token"
        predictions = answer.top_tokens if tokens else answer.predictions
        if predictions is None or not len(predictions):  # lost with a connection
            self.report.begin()
            return
        values = batch.values[len(batch.values) - len(predictions) :]
        self.report.learned(
            values[:, : self.inputs], values[:, self.inputs :], predictions, begins=batch.begins
        )


async def _until(batches: AsyncIterator[Batch], stop: asyncio.Event) -> AsyncIterator[Batch]:
    """The batches that come before `stop` is set."""
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


async def _next(batches: AsyncIterator[Batch]) -> Batch | None:
    return await anext(batches, None)
