"""Fleets: many streams with few steps each, against PyTorch loops with the fleet in one tensor.

The core and the service take turns with their rivals. The service is `bptt serve` with durability
full and answers with predictions, anomaly scores and bands. Its rival is a grpc.aio server around
the PyTorch loop (benchmarks/fleet_torch.py) that takes the same messages, answers with predictions
and keeps nothing on the disk. Requests are encoded before the clock starts; it stops at `closed`,
which the service sends once everything is durable. The client runs in this process, on the same
cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.core import in_turns, ONE_THREAD, rivals_python, ROUNDS, Side
from benchmarks.fleet_cases import FleetCase
from benchmarks.fleet_core import Fleet, fleet_walk, spec_of
from benchmarks.processes import started
from benchmarks.scale import Server, serving
from benchmarks.service import ACKNOWLEDGED_TAG, CLOSED_TAG, LEARN, LEARNED_TAG
from bptt import v1 as pb
from bptt.client import Client

CORE_CASES = (FleetCase(64, 64), FleetCase(1000, 1000), FleetCase(10_000, 1000))
THOUSAND = FleetCase(1000, 1000)
CHUNKS = FleetCase(64, 64, hidden_size=128, steps=32)
ONE = FleetCase(1, 1)
SERVICE_CASES = (
    ("1,000 streams, one step a message", "thousand", THOUSAND),
    ("64 streams, chunks of 32, H=128", "chunks", CHUNKS),
    ("one stream, one step, pipelined", "one", ONE),
)

OPERATIONS_A_STEP = 270_000  # of matrix products, forward and backward: k2 steps for each k1
IDLE_STREAMS = 20_000
UNANSWERED_STEPS_MAX = 16_384
UNANSWERED_MAX = 256  # messages, as in the SDK
BATCH_TAG = b"\x3a"  # LearnResponse.batch: field 7, length-delimited
ANSWER_TAGS = (LEARNED_TAG, BATCH_TAG)


class Busy:
    """Measures the share of the time in which a process had a processor.

    Attributes:
        share: seconds of processor time a second, once the block has ended.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.share = 0.0

    def _seconds(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Busy:
        self._before, self._start = self._seconds(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.share = (self._seconds() - self._before) / (time.perf_counter() - self._start)


@dataclass(slots=True)
class Call:
    """An open Learn call without the SDK."""

    raw: Any

    async def read(self) -> bytes:
        """Read the next message that is not an acknowledgement."""
        while (answer := await self.raw.read()).startswith(ACKNOWLEDGED_TAG):
            pass
        return bytes(answer)


def message(case: FleetCase, values: Any) -> bytes:
    """Encode a tick: a batch by lanes, or a chunk if there is one stream."""
    if case.streams == 1:
        chunk = pb.Chunk(stream_id="sensor-0", inputs=values.ravel())
        return pb.LearnRequest(chunk=chunk).SerializeToString()
    batch = pb.ChunkBatch(lanes=range(case.streams), inputs=values.ravel())
    if case.steps > 1:
        batch.steps.append(case.steps)
    return pb.LearnRequest(batch=batch).SerializeToString()


async def opened(channel: grpc.aio.Channel, case: FleetCase, model_id: str) -> Call:
    """Open a call and introduce the streams."""
    call = Call(channel.stream_stream(LEARN)())
    opening = pb.LearnRequest(open=pb.OpenLearn(model_id=model_id))
    await call.raw.write(opening.SerializeToString())
    await call.read()
    lanes = pb.Lanes(stream_ids=[f"sensor-{place}" for place in range(case.streams)])
    await call.raw.write(pb.LearnRequest(lanes=lanes).SerializeToString())
    await call.read()
    return call


async def rate(address: str, case: FleetCase, model_id: str, seconds: float) -> float:
    """Send ticks for some seconds; return the learned steps a second, of all streams."""
    messages = [message(case, values) for values in fleet_walk(case)]
    steps = case.streams * case.steps
    ahead = max(2, min(UNANSWERED_MAX, UNANSWERED_STEPS_MAX // steps))
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        call = await opened(channel, case, model_id)
        room, ended, sent = asyncio.Semaphore(ahead), time.perf_counter() + seconds, 0

        async def send() -> None:
            nonlocal sent
            while time.perf_counter() < ended:
                await room.acquire()
                await call.raw.write(messages[sent % len(messages)])
                sent += 1
            await call.raw.write(pb.LearnRequest(close=pb.CloseLearn()).SerializeToString())
            await call.raw.done_writing()

        start = time.perf_counter()
        sender, answers = asyncio.create_task(send()), 0
        while not (answer := await call.read()).startswith(CLOSED_TAG):
            if not answer.startswith(ANSWER_TAGS):
                raise RuntimeError(f"the server answered {pb.LearnResponse.FromString(answer)}")
            answers += 1
            room.release()
        taken = time.perf_counter() - start
        await sender
        if answers != sent:
            raise RuntimeError(f"the server answered {answers} of {sent} messages")
        return sent * steps / taken


@contextlib.contextmanager
def torch_server(case: FleetCase) -> Iterator[Server]:
    """Run the PyTorch server; yield it."""
    arguments = (str(case.streams), str(case.steps), str(case.hidden_size))
    variables = ONE_THREAD | {"PYTHONPATH": "service"}
    python = rivals_python()
    with started("benchmarks.fleet_torch", *arguments, python=python, **variables) as ready:
        address, pid = ready.split()
        yield Server(address, int(pid))


# ---------------------------------------------------------------------- parts


def core() -> None:
    """Compare the core with the PyTorch loop, one thread each."""
    print("core, one step of each stream a tick, with predictions, one thread:")
    print("µs of processor time a step and stream")
    print(f"{'streams':>8} {'batch':>6} {'PyTorch':>8} {'core':>7} {'ratio':>6}")
    sides = [
        Side("PyTorch", rivals_python(), "benchmarks.fleet_torch"),
        Side("core", sys.executable, "benchmarks.fleet_core"),
    ]
    try:
        for case in CORE_CASES:
            torch, mine = in_turns(sides, case)
            shape = f"{case.streams:>8,} {case.batch:>6,}"
            print(f"{shape} {torch:>8.2f} {mine:>7.2f} {torch / mine:>5.1f}x", flush=True)
    finally:
        for side in sides:
            side.close()


def profile(seconds: float) -> None:
    """Print where a step's time goes in the core."""
    print("where a step's time goes in the core, µs of processor time a step and stream")
    print(f"{'streams':>8} {'apply':>7} {'kernels':>8} {'outside':>8} {'share':>6} {'GFLOP/s':>8}")
    for case in CORE_CASES:
        fleet = Fleet(case)
        fleet.learn(2 * case.k2)
        fleet.seconds = fleet.kernel_seconds = 0.0
        ticks = 0
        while fleet.seconds < seconds:
            fleet.learn(case.k1)
            ticks += case.k1
        each = 1e6 / (ticks * case.streams)
        whole, kernels = each * fleet.seconds, each * fleet.kernel_seconds
        operations = OPERATIONS_A_STEP / (1e3 * kernels)
        print(
            f"{case.streams:>8,} {whole:>7.2f} {kernels:>8.2f} {whole - kernels:>8.2f} "
            f"{kernels / whole:>6.0%} {operations:>8.0f}",
            flush=True,
        )


async def service(server: Server, folder: Path, seconds: float) -> None:
    """Compare the service with the PyTorch server and with the core alone."""
    print("service over loopback, durable, predictions in every answer: steps a second, and the")
    print("processor time of the server's process in µs a step (core: of the core alone)")
    print(
        f"{'':<34} {'service':>9} {'PyTorch':>9} {'ratio':>6}   {'service':>8} {'PyTorch':>8}"
        f" {'ratio':>6} {'core':>7} {'share':>6}"
    )
    for title, model_id, case in SERVICE_CASES:
        async with Client.connect(server.address) as client:
            await client.create_model(model_id, spec_of(case))
        alone = Side("core", sys.executable, "benchmarks.fleet_core", pinned=False)
        with contextlib.closing(alone), torch_server(case) as rival:
            for each in (server, rival):
                await rate(each.address, case, model_id, seconds)
            rows = []
            for _ in range(ROUNDS):
                row = [await measured(each, case, model_id, seconds) for each in (server, rival)]
                rows.append((*sum(row, ()), await asyncio.to_thread(alone.time, case)))
        a, a_cost, b, b_cost, core_cost = map(statistics.median, zip(*rows, strict=True))
        print(
            f"{title:<34} {a:>9,.0f} {b:>9,.0f} {a / b:>5.1f}x   {a_cost:>8.2f} {b_cost:>8.2f}"
            f" {b_cost / a_cost:>5.1f}x {core_cost:>7.2f} {core_cost / a_cost:>6.0%}",
            flush=True,
        )
    print(f"journal of the first: {journal_bytes(folder / 'models' / 'thousand'):.1f} bytes a step")


async def measured(
    server: Server, case: FleetCase, model_id: str, seconds: float
) -> tuple[float, float]:
    """Return steps a second, and microseconds of the server's processor time a step."""
    with Busy(server.pid) as busy:
        steps = await rate(server.address, case, model_id, seconds)
    return steps, 1e6 * busy.share / steps


def journal_bytes(folder: Path) -> float:
    """Return the bytes of the kept ticks of one step a stream, for each step."""
    place = f"file:{folder / 'journal.sqlite3'}?mode=ro"
    with contextlib.closing(sqlite3.connect(place, uri=True)) as connection:
        query = "SELECT sum(length(body)), count(*) FROM journal"
        size, records = connection.execute(query).fetchone()
    return int(size) / (int(records) * THOUSAND.streams)


async def idle(server: Server) -> None:
    """Measure the resident memory of idle streams that were opened by batches."""
    case = FleetCase(1000, 1000)
    async with Client.connect(server.address) as client, client.learn("thousand") as session:
        values = fleet_walk(case)[0]

        async def fill(first: int) -> None:
            names = [f"idle-{place}" for place in range(first, first + case.streams)]
            await session.send_many(names, values)
            await session.acknowledged(names[-1])

        for place in range(4):
            await fill(place * case.streams)
        before = server.resident_bytes
        for place in range(4, 4 + IDLE_STREAMS // case.streams):
            await fill(place * case.streams)
        grown = server.resident_bytes - before
    print(f"resident memory of one more idle stream: {grown / IDLE_STREAMS:,.0f} bytes")


def run(seconds: float) -> None:
    """Measure and print."""
    print("fleets: forecast, D=8, H=64 unless it says otherwise, k1=4, k2=32, Adam, clip by norm")
    core()
    print(flush=True)
    profile(seconds)
    print(flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="bptt-benchmark-") as folder,
        serving(Path(folder)) as server,
    ):
        asyncio.run(service(server, Path(folder), seconds))
        asyncio.run(idle(server))
