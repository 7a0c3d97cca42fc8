"""A data folder of format 1, without lsn, opens, and its model continues.

`data/format_1.zip` was made by that version: ten ticks, a checkpoint, five ticks, a restore, three
ticks, a change of the learning rate, a roll-back, two ticks. `closed` is as a clean stop left it,
`killed` as a killed process did, with all records in the write-ahead log.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from bptt.durability import Command, inspection, reading, Record, repair, SqliteStore
from bptt.durability.backup import back_up
from bptt.engine import replay
from bptt.engine.records import make_checkpoint
from bptt.engine.recovery import recover
from bptt.errors import DataDamaged
from bptt_core import Chunk, Learner

ARCHIVE = Path(__file__).parent / "data" / "format_1.zip"


@pytest.fixture(params=["closed", "killed"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.unpack_archive(ARCHIVE, tmp_path)
    return tmp_path / str(request.param)


def ticks() -> Iterator[Sequence[Chunk]]:
    """The ticks in the folder."""
    random, step = np.random.default_rng(0), 0
    for number in range(20):
        if number == 15:
            step = 40  # the restore
        yield [Chunk("north", step, random.standard_normal((4, 2)).astype(np.float32))]
        step += 4


def checkpointed(folder: Path) -> Learner:
    """The model after ten records, read without the store."""
    path = folder / "models" / "buoy" / "checkpoint-000000000010.safetensors"
    data = path.read_bytes()
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = json.loads(head["__metadata__"]["bptt"])["metadata"]["learner"]
    return Learner.from_state(safetensors.numpy.load(data), metadata)


def expected(folder: Path) -> Learner:
    """The model after all records, learned here without the store."""
    learner = checkpointed(folder)  # what the restore brings back
    bodies = list(ticks())
    for tick in bodies[15:18]:
        learner.apply(tick)
    learner.configure(learning_rate=0.002)
    arrays, metadata = checkpointed(folder).state()
    learner.roll_back(arrays, metadata, learning_rate=0.001)
    for tick in bodies[18:]:
        learner.apply(tick)
    return learner


def test_an_old_folder_opens_with_the_same_model_bit_for_bit(old: Path) -> None:
    store = SqliteStore(old)
    assert store.open() == 2
    found = recover(store, "buoy")
    assert (found.lsn, found.saved_lsn, found.damage) == (23, 10, None)
    assert replay.different(found.learner.state(), expected(old).state()) == []
    commands = [each for each in store.tail("buoy", 0) if isinstance(each.body, Command)]
    assert [each.lsn for each in commands] == [16, 20, 21]
    assert isinstance(commands[0].body, Command)
    assert commands[0].body.arguments == {"lsn": 10}
    store.append("buoy", [Record(24, Command("reset", {"stream_id": "north"}))])
    found.learner.reset_stream("north")
    store.save(make_checkpoint(found.definition, found.learner, 24))
    store.close()

    again = SqliteStore(old)  # in the formats of today
    again.open()
    later = recover(again, "buoy")
    assert (later.lsn, later.is_settled) == (24, True)
    assert [each.lsn for each in again.checkpoints("buoy")] == [0, 10, 24]
    again.close()
    with closing(sqlite3.connect(old / "models" / "buoy" / "journal.sqlite3")) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(journal)")]
        assert columns == ["lsn", "body"]
        assert connection.execute("PRAGMA user_version").fetchone() == (reading.SCHEMA_VERSION,)
        assert connection.execute("SELECT lsn, checkpoint FROM needs").fetchall() == [
            (16, 10),
            (21, 10),
        ]


def test_the_tools_read_an_old_folder_and_keep_its_format(old: Path, tmp_path: Path) -> None:
    store = SqliteStore(old)
    with store.offline():
        found = replay.verify(store, "buoy")
        assert not [each for each in found.problems if "differ" not in each], found.problems
        assert not repair.plan(store, inspection.survey(store, "buoy")).needed
    with closing(sqlite3.connect(old / "models" / "buoy" / "journal.sqlite3")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    copy = SqliteStore(tmp_path / "copy")
    back_up(store, copy)
    copy.open()
    assert recover(copy, "buoy").lsn == 23
    copy.close()


def test_a_repair_writes_todays_format(old: Path) -> None:
    with closing(sqlite3.connect(old / "models" / "buoy" / "journal.sqlite3")) as connection:
        connection.execute("UPDATE journal SET body = x'00' WHERE tick = 20")
        connection.commit()
    store = SqliteStore(old)
    with store.offline():
        repair.carry_out(store, repair.plan(store, inspection.survey(store, "buoy")))
    store.open()
    found = recover(store, "buoy")
    assert (found.lsn, found.damage) == (19, None)
    store.close()


def test_a_format_of_a_later_version_is_refused_with_what_to_do(old: Path) -> None:
    path = old / "models" / "buoy" / "journal.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9")
    store = SqliteStore(old)
    store.open()
    with pytest.raises(DataDamaged) as raised:
        store.tail("buoy", 10)
    store.close()
    assert raised.value.message == (
        f"{path} has format 9, but this version of bptt reads 1 and 2; use the version of bptt "
        "that wrote it, or a later one"
    )
