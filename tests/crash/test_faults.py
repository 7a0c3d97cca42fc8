"""Stops under load, full disks, two servers on one folder, damaged files: with real servers."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

import bptt
from bptt.client import Client, Refused
from bptt.errors import LimitReached
from tests.crash.support import (
    check_walkers,
    KEEP_ALL,
    Restarted,
    restarted,
    SPEC,
    until,
    Walker,
)
from tests.support.data import checkpoint_of, flip, journal_of
from tests.support.disk import fill, mounted

PACKAGE = Path(bptt.__file__).parent
REPOSITORY = PACKAGE.parents[1]


async def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `bptt` with these arguments to its end."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "bptt.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


async def test_a_stop_under_load_is_clean_and_sessions_continue(tmp_path: Path) -> None:
    async with restarted(tmp_path, *KEEP_ALL) as server:
        async with Client.connect(server.address) as client:
            await client.create_model("m", SPEC)
        walkers = [Walker(server.address, "m", f"s{place}", place) for place in range(3)]
        for walker in walkers:
            walker.start()
        for _ in range(2):
            goals = [walker.durable + 50 for walker in walkers]
            await until(
                lambda: all(
                    one.durable >= goal
                    for one, goal in zip(walkers, goals, strict=True)  # noqa: B023
                ),
                walkers,
            )
            await server.stop()
            await server.start()
        await asyncio.gather(*(walker.finish() for walker in walkers))
        await server.stop()
        assert len(server.lines("stopped after")) == 3
        assert not server.lines("replayed from its journal"), "a clean stop saves all"
        assert not server.lines("ERROR")
    check_walkers(server.folder, "m", walkers)


async def test_a_disk_that_fills_up_stops_learning_until_there_is_room(tmp_path: Path) -> None:
    disk = tmp_path / "data"
    with mounted(disk, "4m"):
        async with restarted(tmp_path) as server:
            async with Client.connect(server.address) as client:
                await client.create_model("m", SPEC)
                walker = Walker(server.address, "m", "s", 3)
                walker.start()
                await until(lambda: walker.durable >= 50, [walker])
                filler = await asyncio.to_thread(fill, disk)
                said = "nothing is learned or acknowledged until this passes"
                await until(lambda: server.lines(said), [walker])
                assert len(server.lines(said)) == 1
                assert "No space left on device" in server.lines(said)[0]
                await client.predict("m", "s")  # goes on
                stood = walker.durable
                filler.unlink()
                await until(lambda: walker.durable > stood, [walker])
                assert len(server.lines("its journal is written again")) == 1
                await walker.finish()
            await server.stop()
        check_walkers(server.folder, "m", [walker])


async def test_a_checkpoint_without_room_is_logged_and_learning_continues(tmp_path: Path) -> None:
    disk = tmp_path / "data"
    with mounted(disk, "8m"):
        async with restarted(tmp_path) as server:
            async with Client.connect(server.address) as client:
                await client.create_model("m", SPEC | {"hidden_size": 160})
                filler = await asyncio.to_thread(fill, disk)
                with filler.open("r+b") as file:
                    file.truncate(filler.stat().st_size - 200_000)  # enough for a few records only
                with pytest.raises(LimitReached, match=r"checkpoint.*No space left on device"):
                    await client.save_checkpoint("m")
                walker = Walker(server.address, "m", "s", 3)
                await walker.walk(3)
                filler.unlink()
                await walker.more(20)
                assert (await client.save_checkpoint("m")).steps == len(walker.values)
            await server.stop()
        check_walkers(server.folder, "m", [walker])


async def test_a_second_server_on_a_folder_is_refused_and_the_first_goes_on(
    tmp_path: Path,
) -> None:
    async with restarted(tmp_path, *KEEP_ALL) as server:
        async with Client.connect(server.address) as client:
            await client.create_model("m", SPEC)
        walker = Walker(server.address, "m", "s", 3)
        walker.start()
        await until(lambda: walker.durable >= 50, [walker])
        free = ("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
        second = await command("serve", "--data", str(server.folder), *free)
        assert second.returncode != 0
        said = f"data is {server.folder}, which another server uses"
        assert len([line for line in second.stderr.splitlines() if said in line]) == 1
        assert "Traceback" not in second.stderr
        stood = walker.durable
        await until(lambda: walker.durable > stood, [walker])
        await walker.finish()
        assert walker.session is not None
        assert walker.session.reconnections == 0
        await server.stop()
        assert not server.lines("ERROR")
    check_walkers(server.folder, "m", [walker])


async def killed_after(server: Restarted, chunks: int) -> Walker:
    """A model of a killed server, with two checkpoints and a journal after the newer one."""
    async with Client.connect(server.address) as client:
        await client.create_model("m", SPEC)
        walker = Walker(server.address, "m", "s", 3)
        await walker.walk(chunks)
        await client.save_checkpoint("m")
        await walker.more(2 * chunks)
    await server.kill()
    return walker


async def test_a_damaged_journal_makes_a_model_read_only_until_it_is_repaired(
    tmp_path: Path,
) -> None:
    async with restarted(tmp_path, *KEEP_ALL) as server:
        walker = await killed_after(server, 30)
        await asyncio.to_thread(damage_last_record, server.folder, walker)
        await server.start()
        async with Client.connect(server.address) as client:
            [line] = server.lines("model m: opened read-only")
            assert str(journal_of(server.folder)) in line
            assert (await client.get_model("m")).state == "read_only"
            at = (await client.get_stream("m", "s")).next_step
            assert 0 < at < len(walker.values)
            assert len((await client.predict("m", "s")).values)
            async with client.learn("m") as session:
                await session.send("s", walker.values[at : at + 5], first_step=at)
                refused = await anext(session)
                assert isinstance(refused, Refused)
                assert refused.error.code == "FAILED_PRECONDITION"
                assert "bptt repair" in refused.error.message
        await server.stop()
        shown = await command("repair", str(server.folder))
        assert shown.returncode == 1
        assert "repaired" not in shown.stdout
        done = await command("repair", str(server.folder), "--yes")
        assert done.returncode == 0, done.stdout
        await server.start()
        async with Client.connect(server.address) as client:
            assert (await client.get_stream("m", "s")).next_step == at
            async with client.learn("m") as session:
                await session.send("s", walker.values[at:], first_step=at)
                assert await session.acknowledged("s") == len(walker.values)
        await server.stop()
    check_walkers(server.folder, "m", [walker])


def damage_last_record(folder: Path, walker: Walker) -> None:
    """Flip a bit of the last chunk's last value in the journal's files."""
    wanted = walker.sent[-1].tobytes()
    found = False
    journal = journal_of(folder)
    for path in (journal, journal.with_name(f"{journal.name}-wal")):
        if path.exists() and (place := path.read_bytes().find(wanted)) >= 0:
            flip(path, place)
            found = True
    assert found


async def test_a_damaged_newest_checkpoint_falls_back_and_loses_nothing(tmp_path: Path) -> None:
    async with restarted(tmp_path, *KEEP_ALL) as server:
        walker = await killed_after(server, 30)
        models = server.folder / "models" / "m"
        newest = await asyncio.to_thread(lambda: max(models.glob("checkpoint-*")))
        await asyncio.to_thread(flip, newest, -9)
        await server.start()
        [line] = server.lines("model m: going back one checkpoint")
        assert str(newest) in line
        await walker.more(100)
        await server.stop()
        # Its own count says which one it was: the file is still there, and is still damaged.
        lsn = int(newest.stem.removeprefix("checkpoint-"))
        assert newest == checkpoint_of(server.folder, lsn)
        repaired = await command("repair", str(server.folder), "--yes")
        assert repaired.returncode == 0, repaired.stdout
    check_walkers(server.folder, "m", [walker])


def test_durable_state_does_not_depend_on_the_wall_clock() -> None:
    """A jump of the wall clock changes nothing, because no durable state depends on it."""
    durable = [
        *(PACKAGE / "durability").glob("*.py"),
        *(PACKAGE / "engine").glob("*.py"),
        *(REPOSITORY / "bptt_core").rglob("*.py"),
    ]
    durable.remove(KERNEL_CACHE)
    assert len(durable) > 30
    for path in durable:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                asked = (getattr(node.value, "id", ""), node.attr)
                assert asked not in WALL, f"{path}:{node.lineno}"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = {each.name for each in node.names}
                assert "datetime" not in names | {getattr(node, "module", "")}, path
                assert getattr(node, "module", "") != "time", f"{path}: import the module"


KERNEL_CACHE = REPOSITORY / "bptt_core" / "kernels" / "cache.py"
"""Removes folders of compiled code that were not used for a month; no state is in them."""

WALL = {("time", name) for name in ("time", "time_ns", "localtime", "gmtime", "ctime", "strftime")}
