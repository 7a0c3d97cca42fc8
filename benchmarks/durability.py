"""Cost of durability: commits, bytes on disk, recovery, checkpoints.

The store alone and recovery are measured in this process. Throughput, and the pauses caused by
checkpoints, are measured by clients over loopback on servers started with `bptt serve`. The servers
of each durability take turns, so that a change of load affects all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.processes import started
from benchmarks.service import encoded_chunks, HIDDEN_SIZE, INPUT_SIZE, K, LEARN, walk
from bptt import v1 as pb
from bptt.client import Client
from bptt.config import Durability
from bptt.domain import ModelDefinition
from bptt.durability import reading, Record, SqliteStore, Tick
from bptt.engine.records import apply_record, make_checkpoint
from bptt_core import Chunk, Learner, ModelSpec

CHUNK_STEPS = (1, 64, 512)
COMMITS = 2000  # of each kind
GROUPED = 16  # ticks in a commit, as when they arrive faster than the disk writes
RECOVERED_TICKS = 2000
ROUNDS = 5
RUN_SECONDS = 1.0
UNDURABLE_MAX = 256  # chunks sent and not yet acknowledged
PAUSED_SPEC = {"input_size": 64, "hidden_size": 512, "layers": 2, "k1": 4, "k2": 32}
PAUSED_CHUNK = 16
PAUSED_SECONDS = 4.0
SAVE_EVERY_SECONDS = 0.5
DURABILITIES: tuple[Durability, ...] = ("none", "process", "full")

SPEC = ModelSpec(input_size=INPUT_SIZE, hidden_size=HIDDEN_SIZE, k1=K, k2=K)
MODEL = "benchmark"
MICRO = 1e6


def run(seconds: float = RUN_SECONDS) -> None:
    """Measure and print."""
    print(f"durability: D={INPUT_SIZE}, H={HIDDEN_SIZE}, k1=k2={K}, float32, one stream")
    commits()
    print(flush=True)
    recovery()
    print(flush=True)
    asyncio.run(throughput(seconds))
    print(flush=True)
    asyncio.run(pauses())


# ---------------------------------------------------------------------- the store alone


def records(steps: int, count: int) -> list[Record]:
    """Create records of one chunk each."""
    parts = walk(steps)
    return [
        Record(number + 1, Tick.of([Chunk("sensor-1", number * steps, parts[number % len(parts)])]))
        for number in range(count)
    ]


@contextlib.contextmanager
def opened(durability: Durability) -> Iterator[tuple[SqliteStore, Path]]:
    """Open a store with one model in a temporary folder; yield it and the model's folder."""
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder), durability)
        store.open()
        learner = Learner(SPEC)
        store.save(make_checkpoint(ModelDefinition(MODEL, SPEC), learner, 0))
        try:
            yield store, Path(folder) / "models" / MODEL
        finally:
            store.close()


def commits() -> None:
    """Measure the time of a commit and its size on disk."""
    print(f"commit, µs: median (99 %), {COMMITS} commits of one tick, and of {GROUPED} at once")
    print(f"{'chunk':>6} {'':>10} {'one tick':>18} {f'{GROUPED} ticks':>18} {'bytes a step':>14}")
    for steps in CHUNK_STEPS:
        for durability in ("process", "full"):
            with opened(durability) as (store, folder):
                empty = (folder / reading.FILE).stat().st_size
                alone = timed_appends(store, records(steps, COMMITS), 1)
                store.close()  # moves the write-ahead log into the file
                size = (folder / reading.FILE).stat().st_size - empty
            with opened(durability) as (store, _):
                grouped = timed_appends(store, records(steps, COMMITS), GROUPED)
            print(
                f"{steps:>6} {durability:>10} {_latency(alone):>18} {_latency(grouped):>18} "
                f"{size / (COMMITS * steps):>14.1f}"
            )


def timed_appends(store: SqliteStore, all_of: Sequence[Record], group: int) -> list[float]:
    """Return the seconds of each append."""
    taken = []
    for first in range(0, len(all_of), group):
        start = time.perf_counter()
        store.append(MODEL, all_of[first : first + group])
        taken.append(time.perf_counter() - start)
    return taken


def _latency(seconds: Sequence[float]) -> str:
    middle, late = np.percentile(seconds, [50, 99]) * MICRO
    return f"{middle:,.0f} ({late:,.0f})"


# ---------------------------------------------------------------------- recovery


def recovery() -> None:
    """Compare replay of a journal with learning the same ticks live, commits included."""
    print(f"recovery of {RECOVERED_TICKS} ticks, thousand steps a second, median of {ROUNDS}")
    heads = ("core alone", "live, full", "replay", "replay / live")
    print(f"{'chunk':>6}" + "".join(f"{each:>16}" for each in heads))
    for steps in CHUNK_STEPS[:2]:
        ticks = records(steps, RECOVERED_TICKS)
        rates: list[list[float]] = [[], [], []]
        for _ in range(ROUNDS):
            with opened("full") as (store, _folder):
                for rate, work in zip(rates, (_learn, _learn_live, _replay), strict=True):
                    learner = Learner(SPEC)
                    learner.warm_up()
                    start = time.perf_counter()
                    work(learner, store, ticks)
                    rate.append(RECOVERED_TICKS * steps / (time.perf_counter() - start))
        core, live, replay = (statistics.median(each) / 1e3 for each in rates)
        print(f"{steps:>6}{core:>16,.0f}{live:>16,.0f}{replay:>16,.0f}{replay / live:>16.2f}")


def _learn(learner: Learner, _: SqliteStore, ticks: Sequence[Record]) -> None:
    for record in ticks:
        apply_record(learner, record)


def _learn_live(learner: Learner, store: SqliteStore, ticks: Sequence[Record]) -> None:
    """Learn as a server under load does: many ticks in a commit."""
    for first in range(0, len(ticks), GROUPED):
        group = ticks[first : first + GROUPED]
        _learn(learner, store, group)
        store.append(MODEL, group)


def _replay(learner: Learner, store: SqliteStore, _: Sequence[Record]) -> None:
    for record in store.tail(MODEL, 0):
        apply_record(learner, record)


# ---------------------------------------------------------------------- a server


@contextlib.contextmanager
def served(durability: Durability) -> Iterator[str]:
    """Run `bptt serve` on a temporary folder; yield its address."""
    free = ("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
    with tempfile.TemporaryDirectory() as folder:
        kept = ("--data", folder, "--durability", durability)
        options = ("serve", "--json", "--until-input-ends", *free, *kept)
        with started("bptt.cli", *options) as ready:
            yield str(json.loads(ready)["address"])


async def stream(address: str, stream_id: str, chunks: list[bytes], count: int, steps: int) -> None:
    """Send `count` chunks in one call; return when all are learned and durable."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(
            LEARN, response_deserializer=pb.LearnResponse.FromString
        )()
        opening = pb.LearnRequest(open=pb.OpenLearn(model_id=MODEL))
        await call.write(opening.SerializeToString())
        await call.read()
        room = asyncio.Semaphore(UNDURABLE_MAX)

        async def send() -> None:
            for place in range(count):
                await room.acquire()
                await call.write(chunks[place % len(chunks)])

        sender = asyncio.create_task(send())
        durable = 0
        while durable < count * steps:
            answer = await call.read()
            if answer is grpc.aio.EOF or answer.WhichOneof("message") == "refused":
                raise RuntimeError(f"the server at {address} answered {answer!r}")
            before = durable
            if answer.HasField("learned"):
                durable = max(durable, answer.learned.durable_step)
            for each in answer.acknowledged.streams:
                durable = max(durable, each.durable_step)
            for _ in range(durable // steps - before // steps):
                room.release()
        await sender
        await call.write(pb.LearnRequest(close=pb.CloseLearn()).SerializeToString())
        await call.done_writing()
        await call.read()


async def throughput(seconds: float) -> None:
    """Measure acknowledged steps a second for each durability."""
    print(
        f"service over loopback, steps/s acknowledged as durable, median (least to most) of "
        f"{ROUNDS} runs in turns"
    )
    heads = "".join(f"{each:>32}" for each in DURABILITIES)
    print(f"{'chunk':>6}{heads} {'full / none':>12}")
    with contextlib.ExitStack() as stack:
        addresses = {each: stack.enter_context(served(each)) for each in DURABILITIES}
        for address in addresses.values():
            async with Client.connect(address) as client:
                spec = {"input_size": INPUT_SIZE, "hidden_size": HIDDEN_SIZE, "k1": K, "k2": K}
                await client.create_model(MODEL, spec)
        for steps in CHUNK_STEPS:
            rates: dict[str, list[float]] = {each: [] for each in DURABILITIES}
            counts: dict[str, int] = {}
            for turn in range(-1, ROUNDS):
                for durability, address in addresses.items():
                    stream_id = f"{steps}-{turn}"
                    chunks = encoded_chunks(steps, stream_id)
                    count = counts.get(durability, UNDURABLE_MAX)
                    start = time.perf_counter()
                    await stream(address, stream_id, chunks, count, steps)
                    taken = time.perf_counter() - start
                    if turn < 0:
                        counts[durability] = max(len(chunks), int(count * seconds / taken))
                    else:
                        rates[durability].append(count * steps / taken)
            shown = "".join(f"{_spread(rates[each]):>32}" for each in DURABILITIES)
            ratio = statistics.median(rates["full"]) / statistics.median(rates["none"])
            print(f"{steps:>6}{shown} {ratio:>12.0%}", flush=True)


def _spread(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


# ---------------------------------------------------------------------- checkpoints


@dataclass(slots=True)
class Pauses:
    """Waiting times of clients, in seconds."""

    predictions: list[float]
    answers: list[float]
    saves: list[float]


async def pauses() -> None:
    """Measure round trips of predictions and chunks, with and without concurrent checkpoints."""
    with served("full") as address:
        async with Client.connect(address) as client:
            model = await client.create_model(MODEL, PAUSED_SPEC)
            await waited(client, saving=False, turn=0)  # warms up
            without = await waited(client, saving=False, turn=1)
            beside = await waited(client, saving=True, turn=2)
    size = model.parameters * 4 * 3 / 1e6  # parameters and Adam's two moments
    print(
        f"checkpoints of {model.parameters:,} parameters ({size:.0f} MB with their moments) every "
        f"{SAVE_EVERY_SECONDS} s; round trips in ms: median, 99 %, longest"
    )
    print(f"{'':>20} {'Predict':>26} {'chunk of ' + str(PAUSED_CHUNK):>26} {'checkpoint':>26}")
    for title, found in (("without checkpoints", without), ("with checkpoints", beside)):
        cells = (found.predictions, found.answers, found.saves)
        print(f"{title:>20} " + " ".join(f"{_waits(each):>26}" for each in cells))


def _waits(seconds: Sequence[float]) -> str:
    if not seconds:
        return "–"
    found = np.percentile(seconds, [50, 99, 100]) * 1e3
    return "  ".join(f"{each:.2f}" for each in found)


async def waited(client: Client, *, saving: bool, turn: int) -> Pauses:
    """Learn at full speed, predict continuously, and save checkpoints periodically."""
    found = Pauses([], [], [])
    random = np.random.default_rng(turn)
    shape = (PAUSED_CHUNK, PAUSED_SPEC["input_size"])
    end = time.perf_counter() + PAUSED_SECONDS
    stream_id = f"learned-{turn}"

    async def learn() -> None:
        async with client.learn(MODEL) as session:
            while (start := time.perf_counter()) < end:
                inputs = random.standard_normal(shape).astype(np.float32)
                await session.send(stream_id, inputs)
                await anext(session)
                found.answers.append(time.perf_counter() - start)
            await session.close()

    async def predict() -> None:
        inputs = random.standard_normal(shape).astype(np.float32)
        while (start := time.perf_counter()) < end:
            await client.predict(MODEL, inputs=inputs)
            found.predictions.append(time.perf_counter() - start)

    async def save() -> None:
        while saving and (start := time.perf_counter()) < end:
            await client.save_checkpoint(MODEL)
            found.saves.append(time.perf_counter() - start)
            await asyncio.sleep(SAVE_EVERY_SECONDS)

    await asyncio.gather(learn(), predict(), save())
    return found
