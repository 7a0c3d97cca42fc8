"""Data folders of real servers: copied while they learn, and verified after a kill -9."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from bptt.client import Client
from tests.cli.conftest import run
from tests.support.server import serving

CHUNK = 8


async def learn(address: str, model_id: str, stop: asyncio.Event, least: int) -> int:
    """Stream at least `least` chunks and until `stop` is set; return the durable step."""
    random = np.random.default_rng(0)
    sent = 0
    async with Client.connect(address) as client, client.learn(model_id) as session:
        while sent < least or not stop.is_set():
            await session.send("s", random.standard_normal((CHUNK, 2)).astype(np.float32))
            await anext(session)
            sent += 1
        durable = await session.acknowledged("s")
        await session.close()
    return durable


def stopped() -> asyncio.Event:
    """Return an event that is already set: stop after the least number of chunks."""
    stop = asyncio.Event()
    stop.set()
    return stop


async def test_a_backup_of_a_learning_server_can_be_served(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    with serving("--data", str(data)) as server:
        async with Client.connect(server.address) as client:
            await client.create_model("m", {"input_size": 2, "hidden_size": 8})
            await client.save_checkpoint("m")
        before = await learn(server.address, "m", stopped(), least=20)
        stop = asyncio.Event()
        learning = asyncio.create_task(learn(server.address, "m", stop, least=20))
        done = await asyncio.to_thread(run, "backup", str(data), str(copy))
        stop.set()
        after = await learning
        assert done.status == 0, done.err
        refused = await asyncio.to_thread(run, "verify", str(data))
        assert "which another server uses" in refused.err
    checked = await asyncio.to_thread(run, "verify", str(copy))
    assert checked.status == 0, checked.out
    with serving("--data", str(copy)) as server:
        async with Client.connect(server.address) as client:
            found = await client.get_stream("m", "s")
        assert before <= found.next_step <= after
        assert await learn(server.address, "m", stop, least=5) == found.next_step + 5 * CHUNK
    for folder in (data, copy):
        checked = await asyncio.to_thread(run, "verify", str(folder))
        assert checked.status == 0, checked.out


async def test_the_folder_of_a_killed_server_is_intact_and_can_be_replayed(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    with serving("--data", str(data)) as server:
        async with Client.connect(server.address) as client:
            await client.create_model("m", {"input_size": 2, "hidden_size": 8})
            await learn(server.address, "m", stopped(), least=40)
            await client.save_checkpoint("m")
            await client.reset_stream("m", "s")
            durable = await learn(server.address, "m", stopped(), least=40)
        server.process.kill()
        server.process.wait()
        server.process.returncode = 0  # intended
    checked = await asyncio.to_thread(run, "verify", str(data), "--json")
    assert checked.status == 0, checked.out
    (found,) = checked.document
    assert found["last"] >= 81
    assert found["compared"], "a checkpoint was compared"
    again = await asyncio.to_thread(run, "replay", str(data), "--model", "m", "--json")
    assert again.status == 0, again.err
    assert again.document["steps"] == durable
    assert (await asyncio.to_thread(run, "repair", str(data))).out == "m: whole\n"


def test_a_model_of_which_nothing_can_be_read_is_named_by_each_command(tmp_path: Path) -> None:
    (tmp_path / "models" / "m").mkdir(parents=True)
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n2,3\n3,4\n")
    with serving("--data", str(tmp_path)) as server:
        at = ("--address", server.address)
        listed = run("models", *at)
        assert "failed" in listed.out
        for command in (
            ("predict", "--stream", "s"),
            ("predict", "--stream", "s", "--input", "1,2"),
            ("predict", "--stream", "s", "--text", "a"),
            ("learn", str(table)),
            ("learn", str(table), "--text"),
        ):
            refused = run(*command, "--model", "m", *at)
            assert (refused.status, refused.out) == (1, "")
            assert refused.err == "bptt: model m: it has no checkpoint\n"
        assert run("models", "--json", *at).document[0]["state"] == "failed"
