"""Batches survive their calls: broken connections, and servers that are killed."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from bptt.client import BatchResult, Client, LearnSession
from tests.client.test_resume import kill, SPEC, twin, until, walk
from tests.support.proxy import proxy
from tests.support.server import Served, serving

STREAMS = 40
NAMES = [f"s{number}" for number in range(STREAMS)]
STEPS = 300
MANY: Any = {**SPEC, "max_batch_streams": STREAMS}


def fleet() -> np.ndarray[Any, np.dtype[np.float32]]:
    generator = np.random.default_rng(3)
    return generator.normal(size=(STREAMS, STEPS, 2)).cumsum(axis=1).astype(np.float32)


def read_into(session: LearnSession, results: list[BatchResult]) -> asyncio.Task[None]:
    async def read() -> None:
        async for answer in session:
            assert isinstance(answer, BatchResult), answer
            results.append(answer)

    return asyncio.create_task(read())


async def check(client: Client, name: str, results: list[BatchResult]) -> None:
    """Assert that each step was learned once, and each batch answered once, in order."""
    assert len(results) == STEPS
    assert not any(each.refused for each in results), [each.refused for each in results]
    for step, each in enumerate(results):
        assert (each.next_steps > step).all()
        told = each.next_steps - each.first_steps
        assert ((told == 0) | (told == 1)).all()
        if each.predictions is not None:
            assert (np.isfinite(each.predictions).all(axis=(1, 2)) == (told == 1)).all()
    streams = await client.list_streams(name)
    assert [(each.next_step, each.durable_step) for each in streams] == [(STEPS, STEPS)] * STREAMS
    assert (await client.get_model(name)).steps == STEPS * STREAMS


async def test_broken_connections(shared: Served, name: str) -> None:
    values, results = fleet(), list[BatchResult]()
    async with proxy(shared.address) as line, Client.connect(line.address) as client:
        await client.create_model(name, MANY)
        async with client.learn(name) as session:
            reader = read_into(session, results)
            for step in range(STEPS):
                await session.send_many(NAMES, values[:, step])
                if step in (STEPS // 4, STEPS // 2):
                    before = session.reconnections
                    line.mute = True  # what is answered now is lost with the connection
                elif step in (STEPS // 4 + 5, STEPS // 2 + 5):
                    line.drop()
                    line.mute = False
                    await until(lambda: session.reconnections > before)  # noqa: B023
            await session.close()
            await reader
        assert session.reconnections == 2
        await check(client, name, results)


async def test_a_killed_server(tmp_path: Path, name: str) -> None:
    """Batches are in flight, answered and not durable, and unsent when the server is killed."""
    values, results = fleet(), list[BatchResult]()
    options = ("--data", str(tmp_path), "--durability", "full")
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(serving(*options))
        async with Client.connect(server.address) as client:
            await client.create_model(name, MANY)
            async with client.learn(name) as session:
                reader = read_into(session, results)
                for step in range(STEPS):
                    await session.send_many(NAMES, values[:, step])
                    if step in (STEPS // 4, STEPS // 2):
                        before = session.reconnections
                        await asyncio.to_thread(kill, server)
                        again = serving(*options, "--address", server.address)
                        server = await asyncio.to_thread(servers.enter_context, again)
                        await until(lambda: session.reconnections > before)  # noqa: B023
                await session.close()
                await reader
            await check(client, name, results)


async def test_a_killed_server_has_the_model_of_one_that_was_not(tmp_path: Path, name: str) -> None:
    """One stream, in batches of it alone: then no tick can mix streams another way."""
    values = walk(1000)
    options = ("--data", str(tmp_path))
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(serving(*options))
        async with Client.connect(server.address) as client:
            await client.create_model(name, SPEC)
            async with client.learn(name) as session:
                for first in range(0, 1000, 5):
                    await session.send_many(["s"], values[np.newaxis, first : first + 5])
                    if first == 500:
                        await asyncio.to_thread(kill, server)
                        again = serving(*options, "--address", server.address)
                        server = await asyncio.to_thread(servers.enter_context, again)
                await session.close()
                results = [answer async for answer in session]
                assert session.durable_step("s") == 1000
            model = await client.get_model(name)
    assert len(results) == 200
    assert model.steps == 1000
    assert model.loss == twin(values).figures.loss


async def test_a_stream_that_was_lost_with_its_server(tmp_path: Path, name: str) -> None:
    """Answered steps of new streams may not be durable when the server is killed."""
    values = fleet()
    options = ("--data", str(tmp_path), "--durability", "full")
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(serving(*options))
        async with Client.connect(server.address) as client:
            await client.create_model(name, MANY)
            async with client.learn(name) as session:
                for round_ in range(2):
                    names = [f"{round_}-{each}" for each in NAMES]
                    await session.send_many(names, values[:, round_])
                    answer = await anext(session)
                    assert isinstance(answer, BatchResult)
                    assert answer.next_steps.tolist() == [1] * STREAMS
                    await asyncio.to_thread(kill, server)  # before or after it was durable
                    again = serving(*options, "--address", server.address)
                    server = await asyncio.to_thread(servers.enter_context, again)
                    await session.send_many(names, values[:, round_ + 10])
                    answer = await anext(session)
                    assert isinstance(answer, BatchResult)
                    assert answer.next_steps.tolist() == [2] * STREAMS
                    for each in names[::7]:
                        assert await session.acknowledged(each) == 2
            streams = await client.list_streams(name)
            assert [each.durable_step for each in streams] == [2] * (2 * STREAMS)
            assert (await client.get_model(name)).steps == 4 * STREAMS
