"""More models than fit in memory, and `kill -9` while they leave memory and come back."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from bptt.client import Client
from bptt.engine.replay import different, State
from tests.crash.support import (
    check_walkers,
    KEEP_ALL,
    newest,
    Restarted,
    restarted,
    SPEC,
    until,
    Walker,
)

MODELS = 6
TURNS = 4
CHUNKS = 15  # of each model in a turn
IN_MEMORY = ("--models-in-memory", "2")


def walkers(server: Restarted) -> list[Walker]:
    return [Walker(server.address, f"m{place}", "s", place) for place in range(MODELS)]


async def create(server: Restarted) -> None:
    async with Client.connect(server.address) as client:
        for place in range(MODELS):
            await client.create_model(f"m{place}", SPEC)


@pytest.mark.timeout(240)
async def test_models_that_take_turns_equal_those_of_a_server_that_holds_them_all(
    tmp_path: Path,
) -> None:
    moments = random.Random(7)
    async with restarted(tmp_path, *KEEP_ALL, *IN_MEMORY) as server:
        await create(server)
        everybody = walkers(server)
        for turn in range(1, TURNS + 1):
            killed = moments.randrange(MODELS)
            for place, walker in enumerate(everybody):
                walking = asyncio.create_task(walker.more(turn * CHUNKS))
                if place == killed:
                    goal = walker.durable + moments.randrange(1, 4 * CHUNKS)
                    await until(lambda walker=walker, goal=goal: walker.durable >= goal)
                    await server.kill()
                    await server.start()
                await walking
        async with Client.connect(server.address) as client:
            listed = {model.model_id: model for model in await client.list_models()}
            assert sorted(listed) == [walker.model_id for walker in everybody]
            for walker in everybody:
                model = listed[walker.model_id]
                assert (model.steps, model.state) == (len(walker.values), "running")
        await server.stop()
        assert not server.lines("ERROR")
        assert not server.lines("Traceback")
    calm = await learned_without_kills_by_a_server_that_holds_all(tmp_path / "calm")
    for place, walker in enumerate(everybody):
        check_walkers(server.folder, walker.model_id, [walker])
        assert not different(newest(server.folder, walker.model_id), calm[place])


async def learned_without_kills_by_a_server_that_holds_all(folder: Path) -> list[State]:
    async with restarted(folder, *KEEP_ALL) as server:
        await create(server)
        everybody = walkers(server)
        for walker in everybody:
            await walker.walk(TURNS * CHUNKS)
        await server.stop()
    return [newest(server.folder, walker.model_id) for walker in everybody]
