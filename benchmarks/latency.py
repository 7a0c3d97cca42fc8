"""Latency of one message: round trips, predictions during training, many streams at once."""

from __future__ import annotations

import statistics
import time
from typing import Any

import grpc
import numpy as np

from benchmarks.processes import started
from benchmarks.service import ACKNOWLEDGED_TAG, INPUT_SIZE, LEARN, LEARNED_TAG, MODEL, stream, walk
from bptt import v1 as pb
from bptt.client import Client
from bptt.v1 import learner_pb2_grpc
from bptt_core import Chunk, Learner, ModelSpec

ROUNDS = 5  # of each server, in turns
TRIPS = 500  # in a round; the 99th percentile rests on five of them
PREDICTIONS = 500
STREAMS, WIDE, WIDE_K = 64, 128, 32
TICKS = 40  # of STREAMS streams each: about a second


async def trip_seconds(address: str, stream_id: str) -> float:
    """Measure round trips of one step; return the median."""
    step = pb.Chunk(stream_id=stream_id, inputs=walk(1)[0].ravel())
    message = pb.LearnRequest(chunk=step).SerializeToString()
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(LEARN)()
        opening = pb.LearnRequest(open=pb.OpenLearn(model_id=MODEL))
        await call.write(opening.SerializeToString())
        await call.read()
        seconds = []
        for _ in range(TRIPS):
            start = time.perf_counter()
            await call.write(message)
            while not (answer := await call.read()).startswith(LEARNED_TAG):
                if not answer.startswith(ACKNOWLEDGED_TAG):  # of an earlier step
                    raise RuntimeError(f"the server at {address} answered {answer!r}")
            seconds.append(time.perf_counter() - start)
        call.cancel()
    return statistics.median(seconds)


async def predict_seconds(address: str) -> list[float]:
    """Measure single predictions from a stream's current state, one after another."""
    seconds = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = learner_pb2_grpc.LearnerServiceStub(channel)
        request = pb.PredictRequest(model_id=MODEL, stream_id="predicted")
        for _ in range(PREDICTIONS):
            start = time.perf_counter()
            await stub.Predict(request)
            seconds.append(time.perf_counter() - start)
    return seconds


def together_alone() -> float:
    """Return steps a second of the core with 64 streams in each tick."""
    learner = Learner(ModelSpec(input_size=INPUT_SIZE, hidden_size=WIDE, k1=WIDE_K, k2=WIDE_K))
    learner.warm_up()
    rows = np.concatenate(walk(WIDE_K))[:WIDE_K]
    begin = time.perf_counter()
    for tick in range(TICKS):
        learner.apply([Chunk(str(s), tick * WIDE_K, rows, None) for s in range(STREAMS)])
    return TICKS * STREAMS * WIDE_K / (time.perf_counter() - begin)


async def streams_together(address: str) -> tuple[float, float]:
    """Return steps a second of 64 streams in one call, and of the core with the same batches.

    Both are medians of runs in turns.
    """
    spec = {"input_size": INPUT_SIZE, "hidden_size": WIDE, "k1": WIDE_K, "k2": WIDE_K}
    rows = np.concatenate(walk(WIDE_K))[:WIDE_K].ravel()
    chunks = [
        pb.LearnRequest(chunk=pb.Chunk(stream_id=str(s), inputs=rows)).SerializeToString()
        for s in range(STREAMS)
    ]
    async with Client.connect(address) as client:
        await client.create_model("wide", spec)
    together, alone = [], []
    for place in range(-1, ROUNDS):
        seconds = await stream(address, chunks, TICKS * STREAMS, "wide")
        if place >= 0:
            together.append(TICKS * STREAMS * WIDE_K / seconds)
            alone.append(together_alone())
    return statistics.median(together), statistics.median(alone)


async def run(service: str, echo: str) -> None:
    """Measure and print."""
    trips: dict[str, list[float]] = {service: [], echo: []}
    for place in range(ROUNDS):
        for address, found in trips.items():
            found.append(await trip_seconds(address, f"trip-{place}"))
    mine, its = (statistics.median(found) * 1e6 for found in trips.values())
    print(f"round trip of one step, p50: {mine:.0f} µs; echo {its:.0f} µs: {mine / its:.2f}x")
    async with Client.connect(service) as client, client.learn(MODEL) as session:
        await session.send("predicted", walk(64)[0])
    for what, address in (("Predict", service), ("an echo's", echo)):
        idle, busy = [], []
        for _ in range(ROUNDS):
            idle += await predict_seconds(address)
            with started("benchmarks.load", service):
                busy += await predict_seconds(address)
        for percent in (50, 99):
            a, b = (float(np.percentile(each, percent)) * 1e6 for each in (idle, busy))
            print(
                f"{what} p{percent}: idle {a:.0f} µs; while the service trains a model {b:.0f} µs: "
                f"{b / a:.1f}x"
            )
    together, alone = await streams_together(service)
    print(
        f"{STREAMS} streams in one model, H={WIDE}, chunks of {WIDE_K}: {together:,.0f} steps/s; "
        f"core alone {alone:,.0f}: {together / alone:.0%}",
        flush=True,
    )
