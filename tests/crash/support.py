"""A server that is killed and restarted, and clients that continue automatically."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.client import BatchResult, Client, Learned, LearnSession
from bptt.durability import SqliteStore, Tick
from bptt.engine import replay
from bptt.engine.records import StreamNames
from bptt.engine.replay import State

SPEC: dict[str, Any] = {"input_size": 2, "hidden_size": 8, "k1": 2, "k2": 4}
STOP_SECONDS = 30.0
KEEP_ALL = ("--kept-history-bytes", "1GiB", "--kept-checkpoints", "10000")
"""The whole journal stays, so that every step can be looked for in it and replayed from the first;
and every checkpoint, so that each can be compared with that."""
BURST_CHUNKS_MAX = 60
BETWEEN_BURSTS_SECONDS = 0.05  # bounds the amount sent, so that the kills dominate the test's time


class Restarted:
    """`bptt serve` on one folder and, from its first start on, one address.

    Args:
        folder: of the data.
        log: file for the output of all its processes.
        options: of `bptt serve`.
    """

    def __init__(self, folder: Path, log: Path, *options: str) -> None:
        self.folder = folder
        self.log = log
        self.options: tuple[str, ...] = options
        self.address = "127.0.0.1:0"
        self.process: subprocess.Popen[str] | None = None

    def spawn(self, failpoint: str = "") -> subprocess.Popen[str]:
        """Start a process, which need not be ready when this returns.

        Args:
            failpoint: POINT or POINT:N of the store, at which it is to kill itself.
        """
        command = [sys.executable, "-m", "bptt.cli", "serve", "--json", "--until-input-ends"]
        command += ["--metrics-address", "127.0.0.1:0", "--address", self.address]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--data", str(self.folder), *self.options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"BPTT_FAILPOINT": failpoint},
            )
        return self.process

    async def start(self, failpoint: str = "") -> None:
        """Start a process and wait until it serves.

        Raises:
            AssertionError: it ended before it did.
        """
        process = self.spawn(failpoint)
        assert process.stdout is not None
        ready = await asyncio.to_thread(process.stdout.readline)
        assert ready, f"no server, status {process.wait(STOP_SECONDS)}\n{self.said()}"
        self.address = json.loads(ready)["address"]

    async def wait(self) -> int:
        """Wait until the process has ended; its status."""
        process = self.process
        assert process is not None
        status = await asyncio.to_thread(process.wait, STOP_SECONDS)
        self._close()
        return status

    async def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.kill()
        await self.wait()

    async def stop(self) -> None:
        """Send SIGTERM; the server must stop cleanly."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = await self.wait()
        assert status == 0, f"status {status}\n{self.said()}"

    def said(self) -> str:
        """The log of all its processes."""
        return self.log.read_text()

    def lines(self, part: str) -> list[str]:
        """Log lines that contain `part`."""
        return [line for line in self.said().splitlines() if part in line]

    def _close(self) -> None:
        assert self.process is not None
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process = None

    def abandon(self) -> None:
        """End remaining processes after a failed test."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
            self._close()


@contextlib.asynccontextmanager
async def restarted(
    folder: Path, *options: str, failpoint: str = "", name: str = "log"
) -> AsyncIterator[Restarted]:
    """Run a server on `folder / "data"`; all its processes end with the block."""
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    server = Restarted(folder / "data", folder / name, *options)
    try:
        await server.start(failpoint)
        yield server
    finally:
        server.abandon()


class Walker:
    """A client that sends bursts of chunks of a random walk, of 1 to 12 steps each.

    The source position of a chunk is the number of steps up to its end.

    What it sends depends on its seed only. Answers are read meanwhile and must be in order.

    Attributes:
        sent: every chunk, in order.
        answered: chunks with an answer.
        durable: the step before which all was acknowledged, as last told.
    """

    def __init__(self, address: str, model_id: str, stream_id: str, seed: int) -> None:
        self.model_id = model_id
        self.stream_id = stream_id
        self.sent: list[NDArray[np.float32]] = []
        self.answered = 0
        self.session: LearnSession | None = None
        self._address = address
        self._random = np.random.default_rng(seed)
        self._pause_seconds = BETWEEN_BURSTS_SECONDS
        self._rhythm = np.random.default_rng(seed + 1000)
        self._at = np.zeros(2, np.float32)
        self._end = 0
        self._stop = asyncio.Event()
        self._chunks_max = 1 << 30
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start a task that sends."""
        self._task = asyncio.create_task(self._walk(), name=f"walker {self.stream_id}")

    async def finish(self, chunks: int | None = None) -> None:
        """Stop, or send up to a total number of chunks, and wait until all are acknowledged."""
        if chunks is None:
            self._stop.set()
        else:
            self._chunks_max = chunks
        assert self._task is not None
        await self._task
        assert self.answered == len(self.sent)

    def check_running(self) -> None:
        """Raise the task's exception if it has ended."""
        if self._task is not None and self._task.done():
            self._task.result()

    @property
    def durable(self) -> int:
        """The step before which all steps are acknowledged."""
        return 0 if self.session is None else self.session.durable_step(self.stream_id)

    @property
    def values(self) -> NDArray[np.float32]:
        """All sent values, (steps, 2)."""
        return np.concatenate(self.sent)

    async def walk(self, chunks: int) -> None:
        """Send up to a total number of chunks, and wait until all are acknowledged."""
        self._chunks_max, self._pause_seconds = chunks, 0.0
        await self._walk()
        assert self.answered == len(self.sent) == chunks

    async def more(self, chunks: int) -> None:
        """Continue in a new session up to a total number of chunks."""
        await self.walk(chunks)

    def _chunk(self) -> NDArray[np.float32]:
        steps = int(self._random.integers(1, 13))
        moves = self._random.normal(size=(steps, 2)).astype(np.float32)
        chunk: NDArray[np.float32] = self._at + moves.cumsum(axis=0, dtype=np.float32)
        self._at = chunk[-1]
        return chunk

    async def _walk(self) -> None:
        async with (
            Client.connect(self._address) as client,
            client.learn(self.model_id) as self.session,
        ):
            reader = asyncio.create_task(self._read(self.session))
            left = 1
            try:
                while not self._stop.is_set() and len(self.sent) < self._chunks_max:
                    chunk = self._chunk()
                    self.sent.append(chunk)
                    self._end += len(chunk)
                    position = str(self._end).encode()
                    await self.session.send(self.stream_id, chunk, source_position=position)
                    left -= 1
                    if not left:
                        left = int(self._rhythm.integers(1, BURST_CHUNKS_MAX))
                        await asyncio.sleep(self._pause_seconds)
                await self.session.close()
                await reader
            finally:
                reader.cancel()

    async def _read(self, session: LearnSession) -> None:
        ends = sum(len(chunk) for chunk in self.sent[: self.answered])
        async for answer in session:
            assert isinstance(answer, Learned), answer
            ends += len(self.sent[self.answered])
            assert answer.next_step >= ends
            self.answered += 1


class FleetWalker(Walker):
    """A client that sends steps of a fleet, batch after batch.

    In each batch it leaves streams out, and a stream has 1 to 3 steps. Sometimes a batch is sent
    that the server refuses in part: a stream with a step that does not follow.

    Attributes:
        walks: all values of each stream that were sent and not refused.
        gaps: streams that must be refused, over all batches.
        refused: those that were.
    """

    def __init__(self, address: str, model_id: str, streams: int, seed: int) -> None:
        super().__init__(address, model_id, "fleet", seed)
        self.walks: dict[str, list[NDArray[np.float32]]] = {
            f"f{place}": [] for place in range(streams)
        }
        self.refused = self.gaps = 0

    @property
    def durable(self) -> int:
        """The steps of all streams that are acknowledged."""
        session = self.session
        return 0 if session is None else sum(map(session.durable_step, self.walks))

    def _batch(self) -> tuple[list[str], NDArray[np.float32], list[int], list[int]]:
        names = [name for name in self.walks if self._random.random() < 0.8] or ["f0"]
        steps = self._random.integers(1, 4, len(names)).tolist()
        values = self._random.normal(size=(sum(steps), 2)).astype(np.float32)
        firsts, at = [], 0
        gap = int(self._random.integers(len(names))) if self._random.random() < 0.1 else -1
        for place, (name, count) in enumerate(zip(names, steps, strict=True)):
            known = sum(map(len, self.walks[name]))
            firsts.append(known + 5 if place == gap else known)
            if place != gap:
                self.walks[name].append(values[at : at + count])
            at += count
        self.gaps += gap >= 0
        return names, values, steps, firsts

    async def _walk(self) -> None:
        async with (
            Client.connect(self._address) as client,
            client.learn(self.model_id) as self.session,
        ):
            reader = asyncio.create_task(self._read(self.session))
            try:
                while not self._stop.is_set() and len(self.sent) < self._chunks_max:
                    names, values, steps, firsts = self._batch()
                    self.sent.append(values)
                    await self.session.send_many(names, values, steps=steps, first_steps=firsts)
                    if len(self.sent) % 20 == 0:
                        await asyncio.sleep(self._pause_seconds)
                await self.session.close()
                await reader
            finally:
                reader.cancel()

    async def _read(self, session: LearnSession) -> None:
        async for answer in session:
            assert isinstance(answer, BatchResult), answer
            self.refused += len(answer.refused)
            self.answered += 1


def check_fleet(folder: Path, walker: FleetWalker) -> None:
    """Check that exactly the fleet's steps were learned once, in order; the model is intact."""
    learned = journaled(folder, walker.model_id)
    sent = {name: np.concatenate(parts) for name, parts in walker.walks.items()}
    assert sorted(learned) == sorted(sent)
    for name, values in sent.items():
        np.testing.assert_array_equal(learned[name], values)
        assert walker.session is not None
        assert walker.session.durable_step(name) == len(values)
    check_whole(folder, walker.model_id)


async def until(condition: Any, walkers: Sequence[Walker] = ()) -> None:
    """Let the event loop turn until something holds; the test's time-out is the bound."""
    while not condition():
        for walker in walkers:
            walker.check_running()
        await asyncio.sleep(0.001)


# ---------------------------------------------------------------------- looking at what is left


def journaled(folder: Path, model_id: str) -> dict[str, NDArray[np.float32]]:
    """Steps of each stream in a model's journal; asserts each step once and in order."""
    found: dict[str, list[NDArray[np.float32]]] = {}
    ends: dict[str, int] = {}
    store = SqliteStore(folder)
    store.open()
    try:
        assert store.checkpoints(model_id)
        names = StreamNames({})
        for record in store.tail(model_id, 0):
            assert isinstance(record.body, Tick), record.body
            batch = names.batch(record.body)
            sources = batch.source_positions or (b"",) * len(batch)
            rows = np.split(batch.inputs, np.cumsum(batch.lengths)[:-1])
            lanes = zip(batch.stream_ids, batch.first_steps.tolist(), sources, rows, strict=True)
            for stream_id, first_step, source, inputs in lanes:
                assert first_step == ends.get(stream_id, 0), "a step twice, or a gap"
                ends[stream_id] = first_step + len(inputs)
                if source:
                    assert int(source) == ends[stream_id]
                found.setdefault(stream_id, []).append(inputs)
    finally:
        store.close()
    return {stream_id: np.concatenate(parts) for stream_id, parts in found.items()}


def newest(folder: Path, model_id: str) -> State:
    """The state in a model's newest checkpoint."""
    store = SqliteStore(folder)
    store.open()
    try:
        checkpoint = store.load(model_id, store.checkpoints(model_id)[-1].lsn)
    finally:
        store.close()
    return checkpoint.arrays, checkpoint.metadata["learner"]


def check_whole(folder: Path, model_id: str) -> None:
    """Check checksums and order, and that replaying the journal gives the newest checkpoint."""
    found = replay.verify(SqliteStore(folder), model_id)
    assert not found.problems
    assert found.replayed_from == 0
    store = SqliteStore(folder)
    store.open()
    try:
        last = store.checkpoints(model_id)[-1].lsn
    finally:
        store.close()
    assert found.last == last, "the journal ends before, or behind, the last checkpoint"
    assert last in found.compared


def check_walkers(folder: Path, model_id: str, walkers: Sequence[Walker]) -> None:
    """Check that exactly the walkers' steps were learned once, in order; the model is intact."""
    learned = journaled(folder, model_id)
    assert sorted(learned) == sorted(walker.stream_id for walker in walkers)
    for walker in walkers:
        np.testing.assert_array_equal(learned[walker.stream_id], walker.values)
        assert walker.durable == len(walker.values)
    check_whole(folder, model_id)
