"""Learns the rows of many streams together: one batch for a block of rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.cli.data.problem import InputError
from bptt.cli.data.table import SeriesBatch
from bptt.cli.prequential import Errors
from bptt.cli.run_statistics import RunStatistics, Summary
from bptt.cli.streaming import StreamFeed, until
from bptt.client import BatchResult, Learned, LearnSession, Model
from bptt.errors import ServerStopping, ServiceError


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """What is sent of one stream in one batch."""

    inputs: NDArray[Any] | None
    targets: NDArray[Any] | None
    first_step: int | None
    first_target_step: int | None
    end_of_sequence: bool
    source_position: bytes


class Collector:
    """Collects the chunks of streams, and sends them as batches.

    Args:
        session: that sends them.
    """

    def __init__(self, session: LearnSession) -> None:
        self._session = session
        self.model: Model = session.model
        self._chunks: dict[str, list[_Chunk]] = {}

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
        """Take a chunk; `flush` sends it."""
        chunk = _Chunk(
            inputs, targets, first_step, first_target_step, end_of_sequence, source_position
        )
        self._chunks.setdefault(stream_id, []).append(chunk)

    async def flush(self) -> None:
        """Send what was collected: the first chunk of each stream, then the second ones."""
        chunks, self._chunks = self._chunks, {}
        place = 0
        while chunks:
            for placed in (False, True):
                batch = {
                    name: each[place]
                    for name, each in chunks.items()
                    if (each[place].first_step is not None) == placed
                }
                if batch:
                    await self._send(batch)
            place += 1
            chunks = {name: each for name, each in chunks.items() if len(each) > place}

    async def _send(self, batch: dict[str, _Chunk]) -> None:
        chunks = list(batch.values())
        inputs = [each.inputs for each in chunks if each.inputs is not None]
        targets = [each.targets for each in chunks if each.targets is not None]
        firsts = [each.first_step for each in chunks if each.first_step is not None]
        late = [each.first_target_step or 0 for each in chunks]
        await self._session.send_many(
            list(batch),
            np.concatenate(inputs) if inputs else None,
            np.concatenate(targets) if targets else None,
            steps=[0 if each.inputs is None else len(each.inputs) for each in chunks],
            first_steps=firsts or None,
            target_steps=[0 if each.targets is None else len(each.targets) for each in chunks]
            if targets
            else None,
            first_target_steps=late
            if any(each.first_target_step is not None for each in chunks)
            else None,
            ends_of_sequence=[each.end_of_sequence for each in chunks],
            source_positions=[each.source_position for each in chunks],
        )


class FleetStatistics:
    """The figures of a run over many streams.

    Args:
        model: that learns.
        streams: the figures of each stream.
    """

    def __init__(self, model: Model, streams: dict[str, RunStatistics]) -> None:
        self._streams = streams
        self._total = RunStatistics(model)
        self.naive = self._total.naive

    @property
    def steps(self) -> int:
        """Steps that were learned."""
        return sum(each.steps for each in self._streams.values())

    def add(self, result: BatchResult) -> None:
        """Add what is told of the whole batch: its updates."""
        self._total.add_updates(result.updates)

    def summary(self) -> Summary:
        """Return the figures of all streams together."""
        found = [each.summary() for each in self._streams.values() if each.steps]
        total = replace(self._total.summary(), steps=self.steps)
        if not found:
            return total
        accuracies = [(each.accuracy, each.steps) for each in found if each.accuracy is not None]
        farthest = [each.farthest for each in found if each.farthest is not None]
        return replace(
            total,
            whole=_together([each.whole for each in found]),
            second_half=_together([each.second_half for each in found]),
            farthest=(
                _together([whole for whole, _ in farthest]),
                _together([half for _, half in farthest]),
            )
            if farthest
            else None,
            accuracy=sum(share * steps for share, steps in accuracies)
            / sum(steps for _, steps in accuracies)
            if accuracies
            else None,
            band=found[-1].band,
            anomalies=None,  # steps are numbered within each stream
            model_state=found[-1].model_state,
        )

    def figures(self) -> list[str]:
        """Return the figures of the run so far, each as a few words."""
        return [f"{len(self._streams):,} streams"]


def _together(errors: list[Errors]) -> Errors:
    """Return the mean errors over the steps of all streams."""
    counts = np.array([each.steps for each in errors], np.float64)
    if not counts.any():
        return errors[0]
    known = [place for place, count in enumerate(counts) if count]
    weights = counts[known] / counts.sum()
    return Errors(
        int(counts.sum()),
        weights @ np.stack([errors[place].error for place in known]),
        weights @ np.stack([errors[place].naive_error for place in known]),
    )


@dataclass(slots=True)
class FleetLoop:
    """Sends the rows of many streams through a session, and reads the answers."""

    session: LearnSession
    collector: Collector
    streams: dict[str, StreamFeed]
    statistics: FleetStatistics
    on_progress: Callable[[int], None]
    """Called after each answer with the bytes of the input that are done."""

    async def run(self, blocks: AsyncIterator[list[SeriesBatch]], stop: asyncio.Event) -> None:
        """Send the rows until they end or `stop` is set, then wait until they are learned.

        Args:
            blocks: rows of several streams each.
            stop: set by the caller to end early; also set here once no more rows can be learned.

        Raises:
            InputError: the input is invalid; the rows before it were learned.
            ServiceError: a chunk was refused, or the server is gone.
        """
        reader = asyncio.ensure_future(self._read_answers())
        reader.add_done_callback(lambda _: stop.set())  # nothing more can be learned
        try:
            problem = None
            try:
                await self._send(blocks, stop)
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

    async def _send(self, blocks: AsyncIterator[list[SeriesBatch]], stop: asyncio.Event) -> None:
        try:
            async for block in until(blocks, stop):
                for name, batch in block:
                    await self.streams[name].feed(batch)
                await self.collector.flush()
        finally:
            for stream in self.streams.values():  # rows read before an error or a stop are learned
                await stream.flush()
            await self.collector.flush()

    async def _read_answers(self) -> None:
        async for answer in self.session:
            assert isinstance(answer, BatchResult)  # this loop sends batches only
            self._take(answer)

    def _take(self, result: BatchResult) -> None:
        self.statistics.add(result)
        position = 0
        ends = np.cumsum(result.steps).tolist()
        for place, name in enumerate(result.stream_ids):
            stream = self.streams[name]
            batch = stream.pending.popleft()
            if (refused := result.refused.get(name)) is not None:
                error = refused.error
                if not isinstance(error, ServerStopping):
                    lines = f"lines {batch.first_line} to {batch.last_line}"
                    error.args = (f"rows of stream {name} in {lines} were refused: {error}",)
                raise error
            stream.evaluate(learned_of(result, place, ends[place]), batch)
            position = max(position, batch.position)
        self.on_progress(position)


def learned_of(result: BatchResult, place: int, end: int) -> Learned:
    """Return what a result tells of one stream; its updates are told of the whole only.

    Args:
        result: whose steps have one axis.
        place: of the stream.
        end: of its rows.
    """
    first_step, next_step = int(result.first_steps[place]), int(result.next_steps[place])
    rows = slice(end - (next_step - first_step), end)

    def of(array: Any, missing: Any) -> Any:
        return missing if array is None else array[rows]

    none = np.zeros((0, 0), np.float32)
    return Learned(
        stream_id=result.stream_ids[place],
        first_step=first_step,
        next_step=next_step,
        predictions=of(result.predictions, None),
        updates=(),
        durable_step=0,
        error_low=result.error_low,
        error_high=result.error_high,
        top_tokens=of(result.top_tokens, none.astype(np.int64)),
        top_probabilities=of(result.top_probabilities, none),
        anomaly_scores=of(result.anomaly_scores, none.ravel()),
        model_state=result.model_state,
    )
