"""Small chunks of a client that does not wait share a message; each is answered by itself."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from bptt import v1 as pb
from bptt.client import Client, Learned, LearnSession, outbox, Refused
from bptt.client.batch_buffer import BatchBuffer
from bptt.client.lanes import LaneBook
from bptt.client.outbox import Outbox
from bptt.client.retransmit import RetransmitBuffer
from bptt.errors import InvalidRequest
from bptt_core import Chunk, Learner, ModelSpec
from tests.client.test_resume import until
from tests.support.proxy import proxy
from tests.support.server import Served

SPEC: Any = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}
STREAMS = 50


def walk(*shape: int) -> Any:
    return np.random.default_rng(5).normal(size=shape).cumsum(axis=-2).astype(np.float32)


def count_messages(session: LearnSession) -> list[pb.LearnRequest]:
    """The messages that a session writes from now on."""
    written: list[pb.LearnRequest] = []
    call = session._connection.call

    class Counted:
        def __getattr__(self, name: str) -> Any:
            return getattr(call, name)

        async def write(self, message: pb.LearnRequest) -> None:
            written.append(message)
            await call.write(message)

    session._connection.call = Counted()
    return written


async def test_many_streams_share_messages(client: Client, name: str) -> None:
    values = walk(STREAMS, 40, 2)
    await client.create_model(name, {**SPEC, "max_batch_streams": STREAMS})
    async with client.learn(name) as session:
        written = count_messages(session)
        for step in range(40):
            for stream in range(STREAMS):
                await session.send(f"s{stream}", values[stream, step])
        await session.close()
        answers = [answer async for answer in session]
        assert all(session.durable_step(f"s{stream}") == 40 for stream in range(STREAMS))
    assert len(written) < 40 * STREAMS / 4, "a message held fewer than four chunks"
    assert len(answers) == 40 * STREAMS
    updates = set[int]()
    alone = Learner(ModelSpec(**SPEC))
    own = [len(alone.apply([Chunk("s", at, values[0, at : at + 1])]).updates) for at in range(40)]
    for place, answer in enumerate(answers):
        step, stream = divmod(place, STREAMS)
        assert isinstance(answer, Learned)
        assert (answer.stream_id, answer.next_step) == (f"s{stream}", step + 1)
        assert answer.predictions is not None
        assert answer.predictions.shape == (1, 1, 2)
        assert len(answer.updates) == own[step], "the updates of its own stream"
        updates |= {each.update for each in answer.updates}
    model = await client.get_model(name)
    assert model.steps == 40 * STREAMS
    assert len(updates) == model.updates


async def test_each_chunk_of_a_group_hears_its_own_refusal(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    async with client.learn(name) as session:
        written = count_messages(session)
        for stream in range(20):
            bad = stream in (7, 13)
            await session.send(f"s{stream}", [[1.0, np.nan if bad else 2.0]], first_step=0)
        await session.close()
        answers = [answer async for answer in session]
    assert len(written) < 20
    refused = {each.stream_id: each for each in answers if isinstance(each, Refused)}
    assert sorted(refused) == ["s13", "s7"]
    assert isinstance(refused["s7"].error, InvalidRequest)
    assert refused["s7"].chunk_index == 7
    assert [each.stream_id for each in answers] == [f"s{stream}" for stream in range(20)]  # type: ignore[union-attr]


async def test_chunks_alone_and_in_groups_have_the_band_of_errors(
    client: Client, name: str
) -> None:
    """The band is encoded once for several answers, which are messages of different types."""
    await client.create_model(name, SPEC)
    async with client.learn(name) as session:
        for stream in range(3):
            await session.send(f"s{stream}", walk(200, 2))
        for round_ in range(6):
            for stream in range(3):
                await session.send(f"s{stream}", walk(200, 2)[round_])
        await session.close()
        bands = [answer.error_low async for answer in session if isinstance(answer, Learned)]
    assert [band.shape for band in bands] == [(1, 2)] * 21


async def test_a_group_survives_a_broken_connection(shared: Served, name: str) -> None:
    values = walk(10, 20, 2)
    async with proxy(shared.address) as line, Client.connect(line.address) as client:
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            for step in range(20):
                for stream in range(10):
                    if (step, stream) == (8, 2):
                        line.mute = True
                    if (step, stream) == (12, 1):
                        line.drop()
                        line.mute = False
                    await session.send(f"s{stream}", values[stream, step])
            await session.close()
            answers = [answer async for answer in session]
        assert session.reconnections == 1
        model = await client.get_model(name)
    assert model.steps == 20 * 10
    ends = [each.next_step for each in answers if isinstance(each, Learned)]
    assert len(ends) == 200
    for place, end in enumerate(ends):  # of an answer that was lost, the stream's step is later
        assert end > place // 10
    assert ends[-10:] == [20] * 10


async def test_a_client_that_waits_for_each_answer_is_never_delayed(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bound of an hour, a chunk that was held would never be answered."""
    monkeypatch.setattr("bptt.client.writing.HOLD_SECONDS", 3600.0)
    await client.create_model(name, SPEC)
    async with client.learn(name) as session, asyncio.timeout(60):
        for step in range(50):
            await session.send(f"s{step % 5}", [[1.0, 2.0]])
            await anext(session)


async def test_chunks_of_one_stream_are_never_held(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bptt.client.writing.HOLD_SECONDS", 3600.0)
    await client.create_model(name, SPEC)
    async with client.learn(name) as session, asyncio.timeout(60):
        written = count_messages(session)
        for _ in range(50):
            await session.send("s", [[1.0, 2.0]])
        await until(lambda: len(written) == 50)


# ---------------------------------------------------------------------- the queue alone


class Queue:
    """An outbox, and chunks for it."""

    def __init__(self) -> None:
        self.buffer = RetransmitBuffer()
        book = LaneBook()
        self.outbox = Outbox(BatchBuffer(book, self.buffer), book)

    def put(self, stream_id: str, *, steps: int = 1, labels: int = 0, size: int = 2) -> None:
        chunk = pb.Chunk(stream_id=stream_id, first_step=0, inputs=[0.0] * size * steps)
        chunk.targets.extend([1.0] * labels)
        request = pb.LearnRequest(chunk=chunk)
        self.outbox.put(self.buffer.add(request, steps, labels, placed=True))

    def take(self, *, held_long: bool = False) -> list[str] | None:
        """Streams of the next message."""
        message = self.outbox.take(held_long=held_long)
        if message is None:
            return None
        if message.HasField("chunk"):
            return [message.chunk.stream_id]
        return list(message.batch.stream_ids)


def test_the_first_chunk_goes_at_once_and_later_ones_wait_for_its_answer() -> None:
    queue = Queue()
    queue.put("a")
    assert queue.take() == ["a"]
    queue.put("b")
    queue.put("c")
    assert queue.take() is None
    assert queue.outbox.holds
    queue.outbox.answered()
    assert queue.take() == ["b", "c"]


def test_what_has_waited_for_the_bound_goes() -> None:
    queue = Queue()
    for stream_id in "abc":
        queue.put(stream_id)
        if stream_id == "a":
            assert queue.take() == ["a"]
    assert queue.take() is None
    assert queue.take(held_long=True) == ["b", "c"]
    assert queue.take(held_long=True) is None


@pytest.mark.parametrize(
    "last",
    [
        {"stream_id": "b"},  # a stream that the group has already
        {"stream_id": "c", "labels": 1},  # another kind
        {"stream_id": "c", "steps": 0, "labels": 1},  # labels alone
        {"stream_id": "c", "steps": 3000},  # large
    ],
)
def test_a_chunk_that_does_not_fit_ends_the_group(last: Any) -> None:
    queue = Queue()
    queue.put("a")
    assert queue.take() == ["a"]
    queue.put("b")
    queue.put(**last)
    assert queue.take() == ["b"], "the group is complete, so it waits no longer"


def test_a_group_is_bounded_by_what_the_server_takes() -> None:
    queue = Queue()
    queue.outbox.limits = pb.ChunkLimits(message_bytes=1 << 20, steps=5, double_steps=5)
    queue.put("a")
    assert queue.take() == ["a"]
    for number in range(8):
        queue.put(f"s{number}", steps=2)
    assert queue.take() == ["s0", "s1"]
    assert queue.take() == ["s2", "s3"]
    assert outbox.HOLD_SECONDS <= 0.01
