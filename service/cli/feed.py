"""Feeds batches of rows to a session, and scores the answers as they come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from service.cli.csvfile import Batch, InputError
from service.cli.report import Report
from service.client import Learned, LearnSession, Refused
from service.errors import ServerStopping, ServiceError


@dataclass(slots=True)
class Feed:
    """One stream's rows on their way to a model."""

    session: LearnSession
    stream_id: str
    inputs: int
    """The first so many columns of a batch are inputs, the others targets."""
    first_step: int | None
    """Where the rows belong; None: at the stream's end, wherever that is."""
    skip: int
    """Rows that the stream already has."""
    report: Report
    on_progress: Callable[[int], None] = lambda position: None
    """Told after each answer how many bytes of the input are behind it."""
    missing: int = 0
    """Rows that were left out."""
    skipped: int = 0
    """Rows that the stream already had."""
    next_step: int = 0
    """The stream's next step, as last acknowledged."""

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
        next_step = self.first_step
        async for batch in _until(batches, stop):
            self.missing += batch.missing
            known = min(len(batch.values), self.skip)
            self.skip -= known
            self.skipped += known
            values = batch.values[known:]
            if not len(values):
                continue
            rest = Batch(values, batch.first_line, batch.last_line, 0, batch.position)
            pending.append(rest)
            targets = values[:, self.inputs :] if values.shape[1] > self.inputs else None
            await self.session.send(
                self.stream_id, values[:, : self.inputs], targets, first_step=next_step
            )
            if next_step is not None:
                next_step += len(values)

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
        learned = answer.next_step - answer.first_step
        if not learned or answer.predictions is None:
            return
        values = batch.values[len(batch.values) - learned :]
        self.report.score.learned(
            values[:, : self.inputs], values[:, self.inputs :], answer.predictions
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
