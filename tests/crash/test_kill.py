"""`kill -9` at random moments while clients stream, again and again.

BPTT_CRASH_ROUNDS sets the number of kills: 25 take a minute on two cores, 500 a night.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from bptt.client import Client
from bptt.engine.replay import different, State
from tests.crash.support import (
    check_fleet,
    check_walkers,
    FleetWalker,
    KEEP_ALL,
    newest,
    Restarted,
    restarted,
    SPEC,
    until,
    Walker,
)

ROUNDS = int(os.environ.get("BPTT_CRASH_ROUNDS", "25"))
SECONDS_A_ROUND = 20.0  # at most, on a machine that does much else


@pytest.mark.timeout(120 + ROUNDS * SECONDS_A_ROUND)
async def test_killed_at_random_moments_nothing_is_lost_and_nothing_learned_twice(
    tmp_path: Path,
) -> None:
    """Models with three clients, with a single stream, and with a fleet that is sent in batches."""
    moments = random.Random(5)
    async with restarted(tmp_path, *KEEP_ALL) as server:
        async with Client.connect(server.address) as client:
            await client.create_model("three", SPEC)
            await client.create_model("one", SPEC)
            await client.create_model("fleet", SPEC)
        walkers = [Walker(server.address, "three", f"s{place}", place) for place in range(3)]
        alone = Walker(server.address, "one", "s", 3)
        fleet = FleetWalker(server.address, "fleet", 30, 4)
        everybody = [*walkers, alone, fleet]
        for walker in everybody:
            walker.start()
        for _ in range(ROUNDS):
            await kill_at_a_random_moment(server, everybody, moments)
        await asyncio.gather(*(walker.finish() for walker in everybody))
        for walker in everybody:
            assert walker.session is not None
            assert walker.session.reconnections >= ROUNDS // 2  # fewer where two kills are one
        await server.stop()
        assert not server.lines("ERROR")
        assert not server.lines("Traceback")
        assert len(server.lines("replayed from its journal")) >= ROUNDS
    check_walkers(server.folder, "three", walkers)
    check_walkers(server.folder, "one", [alone])
    check_fleet(server.folder, fleet)
    assert fleet.refused == fleet.gaps > 0
    undisturbed = await learned_without_a_kill(tmp_path / "calm", chunks=len(alone.sent))
    assert not different(newest(server.folder, "one"), undisturbed)


async def kill_at_a_random_moment(
    server: Restarted, walkers: list[Walker], moments: random.Random
) -> None:
    """Kill the server after some more acknowledgements, and sometimes during its recovery."""
    goals = [walker.durable + moments.randrange(1, 300) for walker in walkers]

    def reached() -> bool:
        return all(one.durable >= goal for one, goal in zip(walkers, goals, strict=True))

    await until(reached, walkers)
    await asyncio.sleep(moments.uniform(0, 0.05))  # a moment independent of the client
    await server.kill()
    if moments.random() < 0.2:
        server.spawn()
        await asyncio.sleep(moments.uniform(0.2, 2.0))
        await server.kill()
    await server.start()


async def learned_without_a_kill(folder: Path, chunks: int) -> State:
    """The single stream's model after the same chunks on an undisturbed server."""
    async with restarted(folder, *KEEP_ALL) as server:
        async with Client.connect(server.address) as client:
            await client.create_model("one", SPEC)
        await Walker(server.address, "one", "s", 3).walk(chunks)
        await server.stop()
    return newest(server.folder, "one")


async def test_replayed_records_are_not_replayed_again(tmp_path: Path) -> None:
    """Repeated early kills do not make a restart take longer."""
    async with restarted(tmp_path, *KEEP_ALL) as server:
        async with Client.connect(server.address) as client:
            await client.create_model("m", SPEC)
        walker = Walker(server.address, "m", "s", 3)
        await walker.walk(20)
        await server.kill()
        await server.start()
        [recovered] = server.lines("recovered in")
        assert f"; {len(walker.values)} steps replayed from its journal" in recovered
        await until(lambda: server.lines("model m saved"))
        await server.kill()
        await server.start()
        [_, recovered] = server.lines("recovered in")
        assert recovered.endswith("1 stream")
        await server.stop()
    check_walkers(server.folder, "m", [walker])
