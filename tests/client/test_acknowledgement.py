"""`acknowledged` returns even if something is lost or deleted before the acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt.client import Client, Learned, LearnSession
from tests.support.proxy import Proxy, proxy
from tests.support.server import Served, serving

SPEC: Any = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}
ROUNDS = 20
STEPS = 5
BOUND_SECONDS = 60.0  # an acknowledgement takes milliseconds; a missing one would hang


def steps(count: int = STEPS) -> np.ndarray[Any, np.dtype[np.float32]]:
    generator = np.random.default_rng(count)
    return generator.normal(size=(count, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that syncs every commit, so that answers come before their acknowledgement."""
    with serving("--data", str(tmp_path_factory.mktemp("data")), "--durability", "full") as server:
        yield server


@contextlib.asynccontextmanager
async def two_clients(server: Served) -> AsyncIterator[tuple[Proxy, Client, Client]]:
    """A client behind a proxy, and one with a direct connection."""
    async with (
        proxy(server.address) as line,
        Client.connect(line.address) as client,
        Client.connect(server.address) as other,
    ):
        yield line, client, other


async def acknowledged(session: LearnSession, stream_id: str) -> int:
    async with asyncio.timeout(BOUND_SECONDS):
        return await session.acknowledged(stream_id)


async def answer(session: LearnSession) -> Learned:
    found = await anext(session)
    assert isinstance(found, Learned), found
    return found


async def test_a_connection_lost_before_the_acknowledgement(durable: Served, name: str) -> None:
    early = 0
    async with two_clients(durable) as (line, client, other):
        await other.create_model(name, SPEC)
        async with client.learn(name) as session:
            for end in range(STEPS, (ROUNDS + 1) * STEPS, STEPS):
                await session.send("s", steps())
                assert (await answer(session)).next_step == end
                early += session.durable_step("s") < end
                line.drop()
                assert await acknowledged(session, "s") == end
        assert early >= ROUNDS // 2, "the line broke before the acknowledgement"
        assert (await other.get_model(name)).steps == ROUNDS * STEPS


async def test_a_server_killed_before_the_acknowledgement(tmp_path: Path, name: str) -> None:
    options = ("--data", str(tmp_path), "--durability", "full")
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(serving(*options))
        async with Client.connect(server.address) as client:
            await client.create_model(name, SPEC)
            async with client.learn(name) as session:
                for end in range(STEPS, 6 * STEPS, STEPS):
                    await session.send("s", steps())
                    assert (await answer(session)).next_step == end
                    server.process.kill()
                    await asyncio.to_thread(server.process.wait, 30)
                    server.process.returncode = 0  # as meant: any other end is a failure
                    again = serving(*options, "--address", server.address)
                    server = await asyncio.to_thread(servers.enter_context, again)
                    assert await acknowledged(session, "s") == end
            stream = await client.get_stream(name, "s")
            assert stream.next_step == stream.durable_step == 5 * STEPS
            assert (await client.get_model(name)).steps == 5 * STEPS


async def test_a_stream_deleted_before_the_acknowledgement(durable: Served, name: str) -> None:
    async with Client.connect(durable.address) as client:
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            for _ in range(ROUNDS):
                await session.send("s", steps())
                assert (await answer(session)).next_step == STEPS
                await client.delete_stream(name, "s")
                assert await acknowledged(session, "s") == STEPS
        assert (await client.get_model(name)).steps == ROUNDS * STEPS


async def test_deleted_steps_are_not_taught_again_after_a_reconnection(
    durable: Served, name: str
) -> None:
    async with two_clients(durable) as (line, client, other):
        await other.create_model(name, SPEC)
        async with client.learn(name) as session:
            for _ in range(ROUNDS):
                await session.send("s", steps())
                assert (await answer(session)).next_step == STEPS
                deleting = asyncio.create_task(other.delete_stream(name, "s"))
                line.drop()
                await deleting
                assert await acknowledged(session, "s") <= STEPS
        assert (await other.get_model(name)).steps == ROUNDS * STEPS


async def test_a_stream_opened_again_has_another_incarnation(durable: Served, name: str) -> None:
    async with Client.connect(durable.address) as client:
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            await session.send("s", steps())
            await session.send("t", steps())
            await acknowledged(session, "t")
            found = await client.list_streams(name)
            assert [(each.stream_id, each.incarnation) for each in found] == [("s", 1), ("t", 2)]
            checkpoint = await client.save_checkpoint(name)
            await acknowledged(session, "s")
            await client.delete_stream(name, "s")
            await session.send("s", steps())
            await acknowledged(session, "s")
            assert (await client.get_stream(name, "s")).incarnation == 3
        await client.restore_checkpoint(name, checkpoint.lsn)
        assert (await client.get_stream(name, "s")).incarnation == 1
        async with client.learn(name) as session:
            await session.send("u", steps())
        found = await client.list_streams(name)
        assert [each.incarnation for each in found] == [1, 2, 4], "3 was given to the second `s`"
