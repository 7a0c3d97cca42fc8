"""Roll-backs of a diverged model on a server that is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bptt.client import Client, LearnSession
from bptt.durability import Command, SqliteStore
from bptt.engine.recovery import recover
from bptt.engine.replay import different
from tests.crash.support import check_whole, KEEP_ALL, newest, restarted, SPEC, until

LARGE = 3e38  # from here to its negative is more than float32 holds
FIELDS: dict[str, Any] = {
    "scaling": False,
    "learning_rate": 0.01,
    "divergence_patience": 3,
    "on_divergence": "roll_back",
}


def steps(count: int, first: int) -> NDArray[np.float32]:
    t = np.arange(first, first + count)[:, None]
    return np.asarray(np.sin(t / np.array([5.0, 9.0])), np.float32)


def too_large(count: int) -> NDArray[np.float32]:
    signs = np.where(np.arange(count) % 2, 1.0, -1.0)[:, None]
    return np.asarray(signs * np.full((1, 2), LARGE), np.float32)


async def learned(session: LearnSession, values: NDArray[np.float32]) -> None:
    await session.send("s", values)
    await anext(session)


async def test_a_roll_back_survives_a_kill_and_every_replay_agrees(tmp_path: Path) -> None:
    """The server is killed three times, each time after the chunk behind the divergence."""
    at = 0
    async with restarted(tmp_path, *KEEP_ALL) as server:
        async with Client.connect(server.address) as client:
            await client.create_model("m", SPEC | FIELDS)
            async with client.learn("m") as session:
                for turn in range(1, 4):
                    await learned(session, steps(40, at))
                    saved = await client.save_checkpoint("m")
                    await learned(session, steps(20, at + 40))
                    await learned(session, too_large(12))
                    await learned(session, steps(10, at + 60))
                    at += 82
                    await until(lambda: session.durable_step("s") == at)  # noqa: B023
                    before = await client.get_model("m")
                    assert before.state == "running"
                    assert before.learning_rate == pytest.approx(0.01 / 2**turn)
                    [*_, line] = server.lines("rolled back")
                    assert f"its state after {saved.steps} steps" in line
                    await server.kill()
                    await server.start()
                    after = await client.get_model("m")
                    assert str(after) == str(before)  # NaN is not equal to NaN
                await learned(session, steps(10, at))
                await session.close()
        await server.stop()
        assert not server.lines("ERROR")
        assert len(server.lines("rolled back")) == 3
    check_whole(server.folder, "m")
    store = SqliteStore(server.folder)
    store.open()
    try:
        commands = [record.body for record in store.tail("m", 0)]
        names = [body.name for body in commands if isinstance(body, Command)]
        assert names == ["roll_back"] * 3
        recovered = recover(store, "m").learner.state()
    finally:
        store.close()
    assert not different(newest(server.folder, "m"), recovered)


async def test_a_diverged_model_stays_stopped_after_a_kill_until_it_is_resumed(
    tmp_path: Path,
) -> None:
    async with restarted(tmp_path, *KEEP_ALL) as server:
        async with Client.connect(server.address) as client:
            await client.create_model("m", SPEC | FIELDS | {"on_divergence": "stop"})
            async with client.learn("m") as session:
                await learned(session, steps(20, 0))
                await learned(session, too_large(12))
                await learned(session, steps(10, 20))
                await session.close()
            before = await client.get_model("m")
            assert before.state == "diverged"
            assert before.skipped_updates == 3
            assert len(server.lines("has diverged and learns nothing")) == 1
            await server.kill()
            await server.start()
            assert str(await client.get_model("m")) == str(before)
            assert (await client.update_model("m", paused=False)).state == "running"
            async with client.learn("m") as session:
                await session.send("s", steps(4, 30), end_of_sequence=True)
                await anext(session)
                await learned(session, steps(20, 0))
                await session.close()
            after = await client.get_model("m")
            assert after.updates > before.updates
        await server.stop()
    check_whole(server.folder, "m")
