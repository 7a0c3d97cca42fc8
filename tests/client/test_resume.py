"""Sessions survive their calls: broken connections and restarted servers."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt.client import Client, Learned, LearnSession, Refused, ServerUnreachable, StepsLost
from bptt.errors import InvalidRequest, NotFound, StreamDeleted
from bptt_core import Chunk, Learner, ModelSpec
from tests.support.proxy import Proxy, proxy
from tests.support.server import Served, serving

SPEC: Any = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}
CHUNK = 5


def walk(steps: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    generator = np.random.default_rng(7)
    return generator.normal(size=(steps, 2)).cumsum(axis=0).astype(np.float32)


def twin(values: np.ndarray[Any, np.dtype[np.float32]]) -> Learner:
    """A learner fed in one call; cutting a sequence into chunks changes nothing."""
    learner = Learner(ModelSpec(**SPEC))
    learner.apply([Chunk("s", 0, values)])
    return learner


async def feed(
    session: LearnSession, values: np.ndarray[Any, np.dtype[np.float32]]
) -> list[Learned]:
    """Send values in chunks and read the answers meanwhile."""
    answers: list[Learned] = []

    async def read() -> None:
        async for answer in session:
            assert isinstance(answer, Learned), answer
            answers.append(answer)

    reader = asyncio.create_task(read())
    for first in range(0, len(values), CHUNK):
        await session.send("s", values[first : first + CHUNK])
    await session.close()
    await reader
    return answers


def check(answers: list[Learned], steps: int) -> None:
    """Assert one answer for each chunk, in order."""
    assert [answer.next_step >= (i + 1) * CHUNK for i, answer in enumerate(answers)] == [True] * (
        steps // CHUNK
    )
    ends = [answer.next_step for answer in answers]
    assert ends == sorted(ends)
    assert ends[-1] == steps


async def until(condition: Any) -> None:
    """Let the event loop turn until something holds; the test's time-out is the bound."""
    while not condition():  # noqa: ASYNC110 - the condition has no event to wait for
        await asyncio.sleep(0)


async def test_broken_connections_lose_and_repeat_nothing(shared: Served, name: str) -> None:
    values = walk(2000)
    async with proxy(shared.address) as line, Client.connect(line.address) as client:
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            dropping = asyncio.create_task(drop_again_and_again(line, session))
            answers = await feed(session, values)
            dropping.cancel()
        assert session.reconnections >= 3
        check(answers, 2000)
        model = await client.get_model(name)
    assert model.steps == 2000
    assert model.loss == twin(values).figures.loss


async def drop_again_and_again(line: Proxy, session: LearnSession) -> None:
    """Break the connection three times, each time after an answer."""
    for place in range(3):
        seen = session.durable_step("s")
        await until(lambda: session.durable_step("s") > seen)  # noqa: B023 - awaited here
        line.drop()
        await until(lambda: session.reconnections > place)  # noqa: B023


async def test_predictions_after_reconnections_equal_those_without(
    shared: Served, name: str
) -> None:
    values = walk(600)
    async with proxy(shared.address) as line, Client.connect(line.address) as client:
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            dropping = asyncio.create_task(drop_again_and_again(line, session))
            answers = await feed(session, values)
            dropping.cancel()
    learner = Learner(ModelSpec(**SPEC))
    [truth] = learner.apply([Chunk("s", 0, values)]).chunks
    assert truth.predictions is not None
    told = 0
    for place, answer in enumerate(answers):
        assert answer.predictions is not None
        first = place * CHUNK
        expected = truth.predictions[first : first + CHUNK].astype(np.float32)
        rows = answer.predictions.reshape(-1, 2)
        if len(rows):  # empty if the answer was lost with its connection
            np.testing.assert_array_equal(rows, expected[CHUNK - len(rows) :])
            told += len(rows)
    # The line is dropped once steps are durable, and those were answered before. How many of the
    # later answers a dropped line loses depends on the machine's speed: up to all that are sent.
    assert told >= CHUNK


async def test_a_session_continues_after_a_server_restart(tmp_path: Path, name: str) -> None:
    values = walk(1500)
    data = ("--data", str(tmp_path))
    with serving(*data) as first:
        address = first.address
        async with Client.connect(address) as client:
            await client.create_model(name, SPEC)
            async with client.learn(name) as session:
                for start in range(0, 500, CHUNK):
                    await session.send("s", values[start : start + CHUNK])
                await session.acknowledged("s")
                await asyncio.to_thread(stop, first)
                with serving(*data, "--address", address):
                    for start in range(500, 1500, CHUNK):
                        await session.send("s", values[start : start + CHUNK])
                    await session.close()
                    answers = [answer async for answer in session]
                    assert session.reconnections >= 1
                    assert session.durable_step("s") == 1500
                    model = await client.get_model(name)
    check([answer for answer in answers if isinstance(answer, Learned)], 1500)
    assert model.steps == 1500
    assert model.loss == twin(values).figures.loss


def stop(server: Served) -> None:
    server.process.terminate()
    server.process.wait(30)


async def test_a_server_that_does_not_come_back_is_an_error_in_the_end(
    served: Served, name: str
) -> None:
    async with Client.connect(served.address) as client:
        await client.create_model(name, SPEC)

        async def go_on() -> None:
            async with client.learn(name, reconnect_seconds=1.0) as session:
                await session.send("s", walk(10))
                await session.acknowledged("s")
                await asyncio.to_thread(stop, served)
                async for _ in session:
                    pass

        with pytest.raises(ServerUnreachable, match=served.address):
            await go_on()


async def test_a_server_that_forgot_its_models_is_an_error_at_once(name: str) -> None:
    with serving() as first:
        address = first.address
        async with Client.connect(address) as client:
            await client.create_model(name, SPEC)

            async def go_on() -> None:
                async with client.learn(name) as session:
                    await session.send("s", walk(10))
                    await session.acknowledged("s")
                    await asyncio.to_thread(stop, first)
                    with serving("--address", address):
                        await session.send("s", walk(10))
                        await session.acknowledged("s")

            with pytest.raises(NotFound, match=name):
                await go_on()


async def test_chunks_of_a_stream_that_is_deleted_while_the_line_is_broken_are_not_taught_again(
    shared: Served, name: str
) -> None:
    async with (
        proxy(shared.address) as line,
        Client.connect(line.address) as client,
        Client.connect(shared.address) as other,
    ):
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            await session.send("s", walk(10))
            await session.acknowledged("s")
            line.mute = True
            await session.send("s", walk(5))  # learned, and its answer is lost
            while (await other.get_stream(name, "s")).next_step < 15:  # noqa: ASYNC110
                await asyncio.sleep(0)
            line.target = "127.0.0.1:1"  # no server is there
            line.drop()
            await other.delete_stream(name, "s")
            line.mute = False
            line.target = shared.address
            await session.acknowledged("s")
            await session.send("s", walk(7))
            await session.close()
            answers = [answer async for answer in session]
        assert len(answers) == 3
        _, lost, anew = answers
        assert isinstance(lost, Refused)
        assert isinstance(lost.error, StreamDeleted)
        assert isinstance(anew, Learned)
        assert anew.next_step == 7
        assert (await other.get_model(name)).steps == 10 + 5 + 7


async def test_steps_that_a_server_acknowledged_and_forgot_are_an_error(
    tmp_path: Path, name: str
) -> None:
    """A folder restored from an older copy has lost steps."""
    data, older = tmp_path / "data", tmp_path / "older"
    with serving("--data", str(data)) as first:
        address = first.address
        async with Client.connect(address) as client:
            await client.create_model(name, SPEC)
            async with client.learn(name) as session:
                await session.send("s", walk(4))
            await asyncio.to_thread(stop, first)
            shutil.copytree(data, older)
            with serving("--data", str(data), "--address", address) as second:

                async def go_on() -> None:
                    async with client.learn(name) as session:
                        await session.send("s", walk(10))
                        await session.acknowledged("s")
                        await asyncio.to_thread(stop, second)
                        with serving("--data", str(older), "--address", address):
                            await session.send("s", walk(5))
                            await session.acknowledged("s")

                with pytest.raises(StepsLost, match="up to step 14, but expects step 4"):
                    await go_on()


async def test_a_reconnection_waits_for_a_stream_that_another_call_still_holds(
    shared: Served, name: str
) -> None:
    """Like the session's own broken call, whose end the server has not noticed."""
    values = walk(20)
    async with (
        proxy(shared.address) as line,
        Client.connect(line.address) as client,
        Client.connect(shared.address) as other,
    ):
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            await session.send("s", values[:10])
            await session.acknowledged("s")
            line.drop()
            await until(lambda: session.reconnections == 1)
            async with other.learn(name) as holder:
                await holder.send("s", values[:10], first_step=0)
                while isinstance(await anext(holder), Refused):  # the broken call still holds it
                    await holder.send("s", values[:10], first_step=0)
                await session.send("s", values[10:])  # for the first time
                await until(lambda: session.reconnections >= 2)
            assert await session.acknowledged("s") == 20
        model = await client.get_model(name)
    assert model.loss == twin(values).figures.loss


async def test_chunks_behind_one_that_is_refused_move_up(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    values = walk(40)
    async with client.learn(name) as session:
        await session.send("s", values[:10])
        await session.send("s", [[np.nan, 1.0]] * 4)
        for first in range(10, 40, 10):
            await session.send("s", values[first : first + 10])
        await session.close()
        answers = [answer async for answer in session]
    assert isinstance(answers[1], Refused)
    assert isinstance(answers[1].error, InvalidRequest)
    assert answers[1].chunk_index == 1
    learned = [answer for answer in answers if isinstance(answer, Learned)]
    assert [(each.first_step, each.next_step) for each in learned] == [
        (first, first + 10) for first in range(0, 40, 10)
    ]
    assert (await client.get_model(name)).loss == twin(values).figures.loss


async def test_a_stream_deleted_by_another_begins_anew(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    async with client.learn(name) as session:
        await session.send("s", walk(10))
        await session.acknowledged("s")
        await client.delete_stream(name, "s")
        await session.send("s", walk(7))
        await session.close()
        answers = [answer async for answer in session]
    ends = [answer.next_step for answer in answers if isinstance(answer, Learned)]
    assert ends == [10, 7]


async def test_a_chunk_without_a_step_follows_one_with_a_step(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    async with client.learn(name) as session:
        await session.send("s", walk(50))
    async with client.learn(name) as session:
        await session.send("s", walk(10), first_step=0)  # sent before, and trimmed
        await session.send("s", walk(6))
        await session.close()
        answers = [answer async for answer in session]
    ends = [answer.next_step for answer in answers if isinstance(answer, Learned)]
    assert ends == [50, 56]


async def test_a_session_that_should_not_resume_fails_when_its_line_breaks(
    shared: Served, name: str
) -> None:
    async with proxy(shared.address) as line, Client.connect(line.address) as client:
        await client.create_model(name, SPEC)

        async def go_on() -> None:
            async with client.learn(name, resume=False) as session:
                await session.send("s", walk(5))
                await anext(session)
                line.drop()
                async for _ in session:
                    pass

        with pytest.raises(ServerUnreachable):
            await go_on()
        assert line.accepted == 1


@pytest.mark.same_bits
@pytest.mark.parametrize("durability", ["full", "process"])
async def test_a_session_continues_after_a_kill_and_loses_nothing(
    tmp_path: Path, name: str, durability: str
) -> None:
    """The server is killed repeatedly during the stream: each step is learned once, in order."""
    values = walk(3000)
    options = ("--data", str(tmp_path), "--durability", durability)
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(serving(*options))
        async with Client.connect(server.address) as client:
            await client.create_model(name, SPEC)
            async with client.learn(name) as session:
                for first in range(0, 3000, CHUNK):
                    await session.send("s", values[first : first + CHUNK])
                    if first in (600, 1200, 2400):  # with many chunks on their way
                        await asyncio.to_thread(kill, server)
                        again = serving(*options, "--address", server.address)
                        server = servers.enter_context(again)
                        before = session.reconnections
                        await until(lambda: session.reconnections > before)  # noqa: B023
                await session.close()
                answers = [answer async for answer in session if isinstance(answer, Learned)]
                assert session.durable_step("s") == 3000
            assert session.reconnections >= 3
            model = await client.get_model(name)
    check(answers, 3000)
    assert model.steps == 3000
    assert model.loss == twin(values).figures.loss


def kill(server: Served) -> None:
    server.process.kill()
    server.process.wait(30)
    server.process.returncode = 0  # as meant: `serving` takes any other end for a failure


async def test_new_chunks_follow_retransmitted_ones_during_a_reconnection(
    shared: Served, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a new call opens and its streams' positions are unknown, nothing is written."""
    values = walk(200)
    async with proxy(shared.address) as line, Client.connect(line.address) as client:
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            looking, go_on = asyncio.Event(), asyncio.Event()
            call = session._connection.open

            async def slowly(streams: list[str], lanes: list[str]) -> Any:
                looking.set()
                await go_on.wait()
                return await call(streams, lanes)

            monkeypatch.setattr(session._connection, "open", slowly)
            await session.send("s", values[:CHUNK])
            answers = [await anext(session)]
            line.mute = True
            for first in range(CHUNK, 100, CHUNK):
                await session.send("s", values[first : first + CHUNK])
            line.drop()
            line.mute = False
            await looking.wait()
            for first in range(100, 200, CHUNK):
                await session.send("s", values[first : first + CHUNK])
            opening = asyncio.create_task(session.send("new", values[:CHUNK]))
            for _ in range(100):  # a writer would have written within these turns
                await asyncio.sleep(0)
            go_on.set()
            await opening
            answers += [await anext(session) for _ in range(200 // CHUNK)]
            await session.acknowledged("s")
        assert session.reconnections == 1
    assert all(isinstance(answer, Learned) for answer in answers)
    learned = [each for each in answers if isinstance(each, Learned)]
    assert [answer.stream_id for answer in learned] == ["s"] * (200 // CHUNK) + ["new"]
    check(learned[:-1], 200)
    assert session.durable_step("s") == 200


async def test_a_write_to_a_call_that_is_given_up_does_not_cancel_the_writer(
    shared: Served, name: str
) -> None:
    """gRPC raises CancelledError from a write to a call that another task cancels."""
    values = walk(200)
    async with Client.connect(shared.address) as client:
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            broken = _CancelledByWriting(session._connection.call)
            session._connection.call = broken
            await session.send("s", values[:CHUNK])
            assert broken.writes == 1
            await session.send("s", values[CHUNK : 2 * CHUNK])
            assert await asyncio.wait_for(session.acknowledged("s"), 30) == 2 * CHUNK
            assert session.reconnections == 1


class _CancelledByWriting:
    """A call that is cancelled while a message is being written to it."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.writes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def write(self, message: Any) -> None:
        self.writes += 1
        self._call.cancel()
        raise asyncio.CancelledError  # what grpc.aio raises if the write is waiting at that moment
