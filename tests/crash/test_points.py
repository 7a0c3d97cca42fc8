"""A server that dies at each named point of a commit, a checkpoint, a trim, a restore, a deletion.

It kills itself there (BPTT_FAILPOINT); after a restart its client continues automatically.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest

from bptt.client import Client, ServerUnreachable
from bptt.durability import SqliteStore
from bptt.durability.sqlite import POINTS
from bptt.engine import replay
from bptt.engine.replay import different
from bptt.errors import AlreadyExists, NotFound
from bptt_core import Chunk, Learner, ModelSpec
from tests.crash.support import (
    check_walkers,
    KEEP_ALL,
    newest,
    Restarted,
    restarted,
    SPEC,
    Walker,
)

TRIMS = ("--kept-history-bytes", "0", "--kept-checkpoints", "1")
SAVES = [point for point in POINTS if point.startswith("save.")]
KILLED = -signal.SIGKILL


async def save_until_it_dies(server: Restarted, client: Client) -> None:
    """Request checkpoints until the server dies at one, or at a commit meanwhile."""
    process = server.process
    assert process is not None
    while process.poll() is None:
        with contextlib.suppress(ServerUnreachable):
            await client.save_checkpoint("m")
    assert await server.wait() == KILLED


def check_twin(folder: Path, walker: Walker) -> None:
    """Check that the model equals one that learned all in one call; its folder is intact."""
    found = replay.verify(SqliteStore(folder), "m")
    assert not found.problems
    twin = Learner(ModelSpec(**SPEC))
    position = str(len(walker.values)).encode()
    twin.apply([Chunk("s", 0, walker.values, source_position=position)])
    assert not different(newest(folder, "m"), twin.state())
    assert walker.durable == len(walker.values)


@pytest.mark.parametrize("point", [each for each in POINTS if each != "delete.renamed"])
async def test_a_session_continues_after_a_server_dies_at_a_failpoint(
    tmp_path: Path, point: str
) -> None:
    """It dies at the third visit of the point; the first checkpoint creates the model."""
    trims = point.startswith(("trim.", "prune."))
    options = TRIMS if trims else KEEP_ALL
    async with restarted(tmp_path, *options, failpoint=f"{point}:3") as server:
        async with Client.connect(server.address) as client:
            await client.create_model("m", SPEC)
            walker = Walker(server.address, "m", "s", 3)
            walker.start()
            await save_until_it_dies(server, client)
            await server.start()
            assert walker.session is not None
            await walker.finish(len(walker.sent) + 50)
            assert walker.session.reconnections >= 1
        await server.stop()
        assert not server.lines("ERROR")
        assert not server.lines("Traceback")
    check_twin(server.folder, walker)
    if not trims:
        check_walkers(server.folder, "m", [walker])


@pytest.mark.parametrize("point", SAVES)
async def test_a_model_whose_creation_crashed_exists_completely_or_not_at_all(
    tmp_path: Path, point: str
) -> None:
    async with restarted(tmp_path, *KEEP_ALL, failpoint=point) as server:
        async with Client.connect(server.address) as client:
            with pytest.raises(ServerUnreachable):
                await client.create_model("m", SPEC)
            assert await server.wait() == KILLED
            await server.start()
        async with Client.connect(server.address) as client:
            is_there = [model.model_id for model in await client.list_models()]
            assert is_there == (["m"] if point in ("save.renamed", "save.committed") else [])
            with contextlib.suppress(AlreadyExists):
                await client.create_model("m", SPEC)
        walker = Walker(server.address, "m", "s", 3)
        await walker.walk(20)
        await server.stop()
    check_walkers(server.folder, "m", [walker])


@pytest.mark.parametrize("point", ["append.inserted", "append.committed"])
async def test_a_restore_that_crashed_is_done_completely_or_not_at_all(
    tmp_path: Path, point: str
) -> None:
    async with restarted(tmp_path, *KEEP_ALL) as server:
        async with Client.connect(server.address) as client:
            await client.create_model("m", SPEC)
        first = Walker(server.address, "m", "s", 3)
        await first.walk(20)
        async with Client.connect(server.address) as client:
            saved = await client.save_checkpoint("m")
        before = Walker(server.address, "m", "later", 4)
        await before.walk(20)
        await server.stop()
        await server.start(point)
        async with Client.connect(server.address) as client:
            with pytest.raises(ServerUnreachable):
                await client.restore_checkpoint("m", saved.lsn)
            assert await server.wait() == KILLED
            await server.start()
        async with Client.connect(server.address) as client:
            streams = [stream.stream_id for stream in await client.list_streams("m")]
            assert sorted(streams) == (["s"] if point == "append.committed" else ["later", "s"])
        after = Walker(server.address, "m", "last", 5)
        await after.walk(20)
        await server.stop()
    assert not replay.verify(SqliteStore(server.folder), "m").problems


async def test_a_deletion_that_crashed_is_completed(tmp_path: Path) -> None:
    async with restarted(tmp_path, *KEEP_ALL, failpoint="delete.renamed") as server:
        async with Client.connect(server.address) as client:
            await client.create_model("m", SPEC)
            with pytest.raises(ServerUnreachable):
                await client.delete_model("m")
            assert await server.wait() == KILLED
            await server.start()
        async with Client.connect(server.address) as client:
            with pytest.raises(NotFound):
                await client.get_model("m")
            await client.create_model("m", SPEC)
        walker = Walker(server.address, "m", "s", 3)
        await walker.walk(20)
        await server.stop()
    left = await asyncio.to_thread(lambda: sorted((server.folder / "models").iterdir()))
    assert [each.name for each in left] == ["m"]
    check_walkers(server.folder, "m", [walker])
