"""Settings and checkpoints through the client survive a killed server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt.client import Client
from bptt.errors import InvalidRequest, NotFound, Unavailable
from tests.support.server import serving

SPEC: Any = {"input_size": 1, "hidden_size": 4, "k1": 2, "k2": 4}
SINE = np.sin(np.arange(300) / 7).astype(np.float32)[:, None]


async def learn(client: Client, name: str, first: int, steps: int) -> None:
    async with client.learn(name) as session:
        await session.send("s", SINE[first : first + steps], first_step=first)


async def test_settings_and_checkpoints_outlive_a_server_that_is_killed(
    tmp_path: Path, name: str
) -> None:
    data = ("--data", str(tmp_path))
    with serving(*data) as server:
        async with Client.connect(server.address) as client:
            await client.create_model(name, SPEC)
            await learn(client, name, 0, 100)
            saved = await client.save_checkpoint(name)
            assert saved.steps == 100
            await client.update_model(name, learning_rate=0.02, clip="value", clip_threshold=0.5)
            await learn(client, name, 100, 100)
            changed = await client.update_model(name, paused=True)
            assert changed.state == "paused"
            await learn(client, name, 200, 50)
            before = await client.get_model(name)
        await asyncio.to_thread(server.process.kill)
        server.process.wait()
        server.process.returncode = 0  # as meant: `serving` takes any other end for a failure
    with serving(*data) as server:
        async with Client.connect(server.address, wait_seconds=5) as client:
            after = await client.get_model(name)
            assert str(after) == str(before)  # as text, NaN equals itself
            assert (after.state, after.learning_rate, after.clip) == ("paused", 0.02, "value")
            assert after.steps == 250
            kept = {each.lsn: each.steps for each in await client.list_checkpoints(name)}
            assert kept[saved.lsn] == saved.steps  # which of them is the best may have changed
            restored = await client.restore_checkpoint(name, saved.lsn)
            assert (restored.steps, restored.state) == (100, "running")
            assert restored.learning_rate == pytest.approx(0.001, rel=0.01)
            assert (await client.get_stream(name, "s")).next_step == 100
            await learn(client, name, 100, 100)
            assert (await client.get_model(name)).steps == 200


async def test_invalid_settings_and_checkpoints_are_refused(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    with pytest.raises(InvalidRequest, match="learning_rate"):
        await client.update_model(name, learning_rate=-1.0)
    with pytest.raises(InvalidRequest, match="clip"):
        await client.update_model(name, clip="hard")
    with pytest.raises(Unavailable, match="data folder"):
        await client.save_checkpoint(name)
    assert await client.list_checkpoints(name) == []
    with pytest.raises(NotFound):
        await client.update_model("nobody-made-this", paused=True)
