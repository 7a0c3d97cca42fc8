"""Learned steps a second over loopback, compared with an echo server (benchmarks/echo.py).

The service and the echo run in separate processes and take turns, so that a change of load affects
both. Both receive the same bytes. Requests are encoded before the clock starts, and only the kind
of each answer is examined, so that the client is not what is measured. The clock runs from the
first chunk to `closed`, which the service sends once everything is learned and synced to disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import service_address, started
from bptt import v1 as pb
from bptt.client import Client
from bptt_core import Chunk, Learner, ModelSpec

INPUT_SIZE = 8
HIDDEN_SIZE = 64
K = 32
CHUNK_STEPS = (1, 64, 512)
ROUNDS = 5  # of each server, in turns; the median is taken over them
RUN_SECONDS = 1.0  # one run: long compared with a start; the whole takes a minute
TRIAL_CHUNKS = 512  # warms up, and shows how many chunks fill RUN_SECONDS
UNANSWERED_MAX = 256  # chunks in flight, as in the SDK
DISTINCT_CHUNKS = 64  # repeated in a cycle, to save memory

LEARN = "/bptt.v1.LearnerService/Learn"
LEARNED_TAG = b"\x12"  # LearnResponse.learned: field 2, length-delimited
CLOSED_TAG = b"\x22"  # .closed: field 4
ACKNOWLEDGED_TAG = b"\x2a"  # .acknowledged: field 5
MODEL = "benchmark"


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the table: steps a second of each run."""

    chunk_steps: int
    service: list[float]
    echo: list[float]
    core: float
    """The learner alone with the same chunks in one thread: an upper bound."""

    @property
    def ratio(self) -> float:
        """Median of the service relative to the median of the echo."""
        return statistics.median(self.service) / statistics.median(self.echo)


def walk(steps: int) -> list[NDArray[np.float32]]:
    """Return chunks of a random walk."""
    generator = np.random.default_rng(steps)
    values = generator.standard_normal((DISTINCT_CHUNKS * steps, INPUT_SIZE)).cumsum(axis=0)
    return np.split(values.astype(np.float32), DISTINCT_CHUNKS)


def encoded_chunks(steps: int, stream_id: str) -> list[bytes]:
    """Return the chunks of `walk` as encoded requests."""
    return [
        pb.LearnRequest(
            chunk=pb.Chunk(stream_id=stream_id, inputs=part.ravel())
        ).SerializeToString()
        for part in walk(steps)
    ]


def core_alone(steps: int, seconds: float) -> float:
    """Return steps a second of the learner alone, in this process and thread."""
    learner = Learner(ModelSpec(input_size=INPUT_SIZE, hidden_size=HIDDEN_SIZE, k1=K, k2=K))
    learner.warm_up()
    chunks = walk(steps)
    learned = 0
    started_at = time.perf_counter()
    while (taken := time.perf_counter() - started_at) < seconds:
        for part in chunks:
            learner.apply([Chunk("alone", learned, part, None)])
            learned += steps
    return learned / taken


async def stream(address: str, chunks: list[bytes], count: int, model_id: str = MODEL) -> float:
    """Send `count` chunks in one Learn call; return the seconds until all are durable."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(LEARN)()
        opened = pb.LearnRequest(open=pb.OpenLearn(model_id=model_id))
        await call.write(opened.SerializeToString())
        await call.read()
        room = asyncio.Semaphore(UNANSWERED_MAX)
        closing = pb.LearnRequest(close=pb.CloseLearn()).SerializeToString()

        async def send() -> None:
            for place in range(count):
                await room.acquire()
                await call.write(chunks[place % len(chunks)])
            await call.write(closing)
            await call.done_writing()

        started = time.perf_counter()
        sender = asyncio.create_task(send())
        answers = 0
        while not (answer := await call.read()).startswith(CLOSED_TAG):
            if answer.startswith(LEARNED_TAG):
                answers += 1
                room.release()
            elif not answer.startswith(ACKNOWLEDGED_TAG):
                raise RuntimeError(f"the server at {address} answered {answer!r}")
        seconds = time.perf_counter() - started
        await sender
        if answers != count:
            raise RuntimeError(f"the server at {address} answered {answers} of {count} chunks")
        return seconds


async def measure(service: str, echo: str, chunk_steps: int, seconds: float) -> Measured:
    """Measure both servers in turns."""
    rates: dict[str, list[float]] = {service: [], echo: []}
    counts: dict[str, int] = {}
    for place in range(-1, ROUNDS):
        for address, measured in rates.items():
            chunks = encoded_chunks(chunk_steps, f"{chunk_steps}-{place}")
            count = counts.get(address, TRIAL_CHUNKS)
            taken = await stream(address, chunks, count)
            if place < 0:
                counts[address] = max(DISTINCT_CHUNKS, int(count * seconds / taken))
            else:
                measured.append(count * chunk_steps / taken)
    alone = core_alone(chunk_steps, seconds)
    return Measured(chunk_steps, rates[service], rates[echo], alone)


async def probe(address: str) -> pb.ChunkLearned:
    """Return an answer of the model after some learning."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(LEARN)()
        opened = pb.LearnRequest(open=pb.OpenLearn(model_id=MODEL))
        await call.write(opened.SerializeToString())
        await call.read()
        learned = pb.ChunkLearned()
        for chunk in encoded_chunks(64, "probe")[:10]:
            await call.write(chunk)
            while not (answer := await call.read()).startswith(LEARNED_TAG):
                if not answer.startswith(ACKNOWLEDGED_TAG):
                    raise RuntimeError(f"the server at {address} answered {answer!r}")
            learned = pb.LearnResponse.FromString(answer).learned
        call.cancel()
        return learned


async def run(seconds: float = RUN_SECONDS) -> None:
    """Measure and print."""
    async with contextlib.AsyncExitStack() as stack:
        service = stack.enter_context(service_address())
        async with Client.connect(service) as client:
            spec = {"input_size": INPUT_SIZE, "hidden_size": HIDDEN_SIZE, "k1": K, "k2": K}
            await client.create_model(MODEL, spec)
        answer = await probe(service)
        like = ("bands",) if answer.anomaly_scores else ()
        echo = stack.enter_context(started("benchmarks.echo", str(K), str(INPUT_SIZE), *like))
        print(f"service over loopback: D={INPUT_SIZE}, H={HIDDEN_SIZE}, k1=k2={K}, one stream,")
        sizes = [each.ByteSize() for each in (answer, await probe(echo))]
        print("durability full; an answer of 64 steps has {} bytes, the echo's {};".format(*sizes))
        print(f"predictions in every answer; median (least to most) of {ROUNDS} runs in turns")
        print(
            f"{'chunk':>6} {'service, steps/s':>30} {'echo, steps/s':>33} "
            f"{'ratio':>7} {'core alone':>11}"
        )
        for chunk_steps in CHUNK_STEPS:
            row = await measure(service, echo, chunk_steps, seconds)
            print(
                f"{chunk_steps:>6} {_spread(row.service):>30} {_spread(row.echo):>33} "
                f"{row.ratio:>7.0%} {row.core:>11,.0f}",
                flush=True,
            )
        from benchmarks import latency  # imports its load from this module

        await latency.run(service, echo)


def _spread(rates: list[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
