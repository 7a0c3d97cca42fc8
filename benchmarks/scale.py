"""Capacity of one server: streams, models, and calls.

Servers are started with `bptt serve` on a temporary folder, with default durability. Memory is the
resident memory of the server's process; a figure for one stream or model is the growth divided by
their number. The clients run in this process, on the same cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.processes import started
from benchmarks.service import LEARN, walk
from bptt import v1 as pb
from bptt.client import Client
from bptt.v1 import learner_pb2_grpc
from bptt_core import bytes_of_stream, ModelSpec

STREAMS = 100_000
STREAM_STEPS = 36  # a whole window and one more update
SPEC = {"input_size": 8, "hidden_size": 64, "k2": 32}
FEW = 64  # streams of the small model used for comparison
TICKS = 200
UNANSWERED_MAX = 512

MODELS = 1000
RELOADED = 200
IN_MEMORY = 128

CALLS = 200
CALL_SECONDS = 2.0
ROUNDS = 3
K1 = 4  # the default

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Server:
    """A server's address and process."""

    address: str
    pid: int

    @property
    def resident_bytes(self) -> int:
        """Current resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return 1024 * int(line.split()[1])
        raise RuntimeError(f"process {self.pid} has ended")


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """Run `bptt serve` on a folder; yield it, then stop it."""
    free = ("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
    command = ("bptt.cli", "serve", "--json", "--until-input-ends", "--data", str(folder))
    with started(*command, *free, *options) as ready:
        facts = json.loads(ready)
        yield Server(facts["address"], facts["pid"])


class Call:
    """A Learn call without the SDK."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    async def write(self, message: bytes) -> None:
        """Send a message."""
        await self._raw.write(message)

    async def learned(self) -> None:
        """Read until the next answer that is not an acknowledgement."""
        while True:
            answer = await self._raw.read()
            if answer is grpc.aio.EOF:
                raise RuntimeError(await self._raw.details())
            kind = pb.LearnResponse.FromString(answer).WhichOneof("message")
            if kind == "learned":
                return
            if kind != "acknowledged":
                raise RuntimeError(f"the server answered {kind}")

    async def trip(self, message: bytes) -> float:
        """Send a chunk; return the seconds until its answer."""
        start = time.perf_counter()
        await self.write(message)
        await self.learned()
        return time.perf_counter() - start


@contextlib.asynccontextmanager
async def learning(channel: grpc.aio.Channel, model_id: str) -> AsyncIterator[Call]:
    """Open a Learn call; yield it, then close it."""
    raw: Any = channel.stream_stream(LEARN)()
    opening = pb.OpenLearn(model_id=model_id, omit_predictions=True)
    await raw.write(pb.LearnRequest(open=opening).SerializeToString())
    await raw.read()
    yield Call(raw)
    await raw.write(pb.LearnRequest(close=pb.CloseLearn()).SerializeToString())
    await raw.done_writing()
    while await raw.read() is not grpc.aio.EOF:
        pass


def chunk(stream_id: str, steps: int) -> bytes:
    """Return an encoded chunk of a random walk."""
    values = np.concatenate(walk(1))[:steps].ravel()
    return pb.LearnRequest(chunk=pb.Chunk(stream_id=stream_id, inputs=values)).SerializeToString()


# ---------------------------------------------------------------------- streams


async def streams() -> None:
    """Measure many streams in one model."""
    spec = ModelSpec(**SPEC)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        async with (
            Client.connect(server.address) as client,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            for model_id in ("few", "many"):
                await client.create_model(model_id, SPEC)
                await fill(channel, model_id, FEW)
            before = server.resident_bytes
            first, last = await fill(channel, "many", STREAMS)
            print(
                f"{STREAMS:,} streams in one model, D=8, H=64, k2=32, {STREAM_STEPS} steps each: "
                f"first answer after {first * 1e3:.1f} ms, last after {last:.0f} s "
                f"({STREAMS * STREAM_STEPS / last:,.0f} steps/s)"
            )
            saved, seconds, trips = await save(client, channel)
            grown = (server.resident_bytes - before) / (STREAMS - FEW)
            print(
                f"  resident memory an idle stream: {grown:,.0f} bytes "
                f"({bytes_of_stream(spec):,} of them its arrays)"
            )
            print(
                f"  checkpoint: {saved / MIB:,.0f} MiB, {saved / STREAMS:,.0f} bytes a stream, "
                f"{seconds:.1f} s; round trips of one step meanwhile: {_latency(trips)}"
            )
            for model_id, count in (("few", FEW), ("many", STREAMS)):
                alone, together = await ticks(channel, model_id)
                print(
                    f"  a model of {count:>7,} streams: one step of one stream {_latency(alone)}; "
                    f"one step of each of {FEW} {_latency(together)}"
                )


async def fill(channel: grpc.aio.Channel, model_id: str, count: int) -> tuple[float, float]:
    """Send STREAM_STEPS steps of each stream; return the seconds to the first and last answer."""
    room = asyncio.Semaphore(UNANSWERED_MAX)
    start, first = time.perf_counter(), 0.0
    async with learning(channel, model_id) as call:

        async def send() -> None:
            for place in range(count):
                await room.acquire()
                await call.write(chunk(f"stream-{place:06}", STREAM_STEPS))

        sender = asyncio.create_task(send())
        for place in range(count):
            await call.learned()
            room.release()
            if not place:
                first = time.perf_counter() - start
        await sender
        return first, time.perf_counter() - start


async def ticks(channel: grpc.aio.Channel, model_id: str) -> tuple[list[float], list[float]]:
    """Measure seconds from a step to its answer: of one stream, and of FEW streams at once."""
    alone, together = [], []
    one = chunk("stream-000000", 1)
    each = [chunk(f"stream-{place:06}", 1) for place in range(FEW)]
    async with learning(channel, model_id) as call:
        for _ in range(TICKS):
            alone.append(await call.trip(one))
        for _ in range(TICKS):
            start = time.perf_counter()
            for message in each:
                await call.write(message)
            for _ in each:
                await call.learned()
            together.append(time.perf_counter() - start)
    return alone, together


async def save(client: Client, channel: grpc.aio.Channel) -> tuple[int, float, list[float]]:
    """Save a checkpoint of the large model; return its bytes, seconds, and concurrent trips."""
    trips: list[float] = []
    one = chunk("stream-000001", 1)
    async with learning(channel, "many") as call:
        await call.trip(one)
        start = time.perf_counter()
        saving = asyncio.create_task(client.save_checkpoint("many"))
        while not saving.done():
            trips.append(await call.trip(one))
        info = await saving
    return info.size_bytes, time.perf_counter() - start, trips


def _latency(seconds: Sequence[float]) -> str:
    middle, late = np.percentile(seconds, [50, 99]) * 1e3
    return f"p50 {middle:.2f}, p99 {late:.2f}, most {max(seconds) * 1e3:.1f} ms"


# ---------------------------------------------------------------------- models


async def models() -> None:
    """Measure models that are all in memory, and more models than fit the memory limit."""
    held = {}
    for limit in (MODELS, IN_MEMORY):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with serving(folder, "--models-in-memory", str(limit)) as server:
                async with (
                    Client.connect(server.address) as client,
                    grpc.aio.insecure_channel(server.address) as channel,
                ):
                    await client.create_model("first", SPEC)
                    await fill(channel, "first", 1)
                    before = server.resident_bytes
                    start = time.perf_counter()
                    for place in range(MODELS - 1):
                        await client.create_model(f"model-{place}", SPEC)
                        await fill(channel, f"model-{place}", 1)
                    seconds = (time.perf_counter() - start) / MODELS
                    held[limit] = server.resident_bytes - before
                    print(
                        f"{MODELS} models, {limit} in memory: {seconds * 1e3:.1f} ms to create "
                        f"one and learn {STREAM_STEPS} steps; {held[limit] / MIB:.0f} MiB more"
                    )
                    if limit == IN_MEMORY:
                        await reload(channel)
            if limit == IN_MEMORY:
                start = time.perf_counter()
                with serving(folder, "--models-in-memory", str(limit)) as server:
                    seconds = time.perf_counter() - start
                    print(f"  start with {MODELS} models: {seconds:.1f} s until all are served")


async def reload(channel: grpc.aio.Channel) -> None:
    """Measure predictions of models that are not in memory, then of the same models again."""
    stub: Any = learner_pb2_grpc.LearnerServiceStub(channel)
    cold: list[float] = []
    warm: list[float] = []
    for place in range(RELOADED):
        request = pb.PredictRequest(model_id=f"model-{place}", stream_id="stream-000000")
        for seconds in (cold, warm):
            start = time.perf_counter()
            await stub.Predict(request)
            seconds.append(time.perf_counter() - start)
    print(f"  Predict of a model that is not in memory: {_latency(cold)}")
    print(f"  of the same model again: {_latency(warm)}")


# ---------------------------------------------------------------------- calls


async def calls(seconds: float) -> None:
    """Measure concurrent Learn calls: each sends a step, waits for its answer, sends the next.

    The service and an echo server take turns.
    """
    echoing = started("benchmarks.echo", str(K1), str(SPEC["input_size"]))
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server, echoing as echo:
        async with Client.connect(server.address) as client:
            await client.create_model("many", SPEC)
        for count in (1, CALLS):
            print(f"{count} concurrent Learn calls, one step a message:")
            for name, address in (("service", server.address), ("echo", echo)):
                trips: list[float] = []
                for _ in range(ROUNDS):
                    async with grpc.aio.insecure_channel(address) as channel:
                        trips += await together(channel, count, seconds)
                a_second = len(trips) / (ROUNDS * seconds)
                print(f"  {name:>7}: {a_second:,.0f} messages/s; {_latency(trips)}")


async def together(channel: grpc.aio.Channel, count: int, seconds: float) -> list[float]:
    """Return the seconds of all round trips of `count` concurrent calls."""
    trips: list[float] = []
    opened, all_open = 0, asyncio.Event()

    async def one(place: int) -> None:
        nonlocal opened
        message = chunk(f"call-{place}", 1)
        async with learning(channel, "many") as call:
            await call.trip(message)
            opened += 1
            if opened == count:
                all_open.set()
            await all_open.wait()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                trips.append(await call.trip(message))

    await asyncio.gather(*map(one, range(count)))
    return trips


def run(seconds: float = CALL_SECONDS) -> None:
    """Measure and print."""
    asyncio.run(streams())
    print(flush=True)
    asyncio.run(models())
    print(flush=True)
    asyncio.run(calls(max(seconds, CALL_SECONDS)))


if __name__ == "__main__":
    run()
