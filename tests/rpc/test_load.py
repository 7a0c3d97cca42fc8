"""Full queues, clients that do not read, and the memory they take on the server."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import psutil
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from bptt import v1 as pb
from bptt.client import Client, Learned
from bptt.config import Limits
from bptt.v1 import learner_pb2_grpc
from tests.rpc.harness import Call, details, error_info, Harness, harness, until, wave
from tests.support.metrics import above_zero
from tests.support.server import serving

MEGABYTE = 1 << 20


def rejected(server: Harness) -> dict[str, float]:
    """Number of refused chunks by reason."""
    return above_zero(server.metrics, "bptt_rejected_chunks", "reason")


async def test_a_queue_that_stays_full_ends_the_call_and_says_when_to_come_back() -> None:
    async with harness(Limits(queue_chunks=2, queue_seconds=0.05)) as server:
        await server.create()
        call = await server.learn()
        server.gate.close()
        for _ in range(8):
            await call.send("s", wave(2))
        await until(lambda: rejected(server).get("queue_full") == 1)
        accepted = server.registry.get("m").expected_step("s")
        server.gate.open()
        for step in range(2, accepted + 2, 2):  # all that was accepted is answered first
            assert (await call.learned()).next_step == step
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            ended = error
        assert ended.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "was full for 0.05 s" in str(ended.details())
        assert error_info(ended).reason == "QUEUE_FULL"
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in details(ended))
        assert retry.retry_delay.ToTimedelta().total_seconds() == 1.0


async def test_the_client_comes_back_to_a_queue_that_was_full() -> None:
    async with harness(Limits(queue_chunks=2, queue_seconds=0.05)) as server:
        await server.create()
        server.gate.close()
        async with Client.connect(server.rpc.address) as client, client.learn("m") as session:

            async def send() -> None:
                for first in range(0, 40, 2):
                    await session.send("s", wave(2, first))

            sending = asyncio.create_task(send())
            await until(lambda: rejected(server).get("queue_full") == 1)
            server.gate.open()
            await sending
            await session.close()
            answers = [answer async for answer in session]
            assert session.reconnections >= 1
        ends = [answer.next_step for answer in answers if isinstance(answer, Learned)]
        assert len(ends) == 20
        assert ends[-1] == 40
        assert (await server.model()).steps == 40


async def test_a_client_that_never_reads_its_answers_costs_a_bounded_memory() -> None:
    """Answers are 64 times as large as chunks; the client sends until the server stops reading."""
    with serving() as server:
        async with Client.connect(server.address) as client:
            await client.create_model("m", {"input_size": 1, "horizon": 64, "hidden_size": 4})
            async with client.learn("m") as session:  # the memory of learning itself
                await session.send("warm", np.zeros((4096, 1), np.float32))
            process = psutil.Process(server.process.pid)
            before = process.memory_info().rss
            async with grpc.aio.insecure_channel(server.address) as channel:
                call = Call(learner_pb2_grpc.LearnerServiceStub(channel).Learn())
                await call.raw.write(pb.LearnRequest(open=pb.OpenLearn(model_id="m")))
                sent = await _send_until_it_waits(call, np.zeros(4096, np.float32))
                asked = sent * 4096 * 64 * 4
                grown = process.memory_info().rss - before
                call.raw.cancel()
            assert (await client.get_model("m")).steps > 4096
    # 16 MB of predictions in the queue, held as float64 and sent as float32, and 4 MB in gRPC.
    assert grown < 120 * MEGABYTE, f"{grown / MEGABYTE:.0f} MB for {sent} chunks"
    assert asked > 20 * MEGABYTE, "too little was asked for to tell"


async def _send_until_it_waits(call: Call, inputs: Any) -> int:
    """Send until the server stops reading; return the number of accepted chunks."""
    sent = 0
    while sent < 10_000:
        writing = asyncio.ensure_future(call.send("s", inputs))
        done, _ = await asyncio.wait([writing], timeout=3.0)
        if not done:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            return sent
        sent += 1
    raise AssertionError("the server never stopped reading")
