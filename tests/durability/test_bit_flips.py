"""Flips single bits of a small data folder: the result is never a crash or another model.

Flips every seventh used bit of every file, so that each byte and each bit position is covered.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bptt.domain import ModelDefinition
from bptt.durability import codec, inspection, Record, repair, SqliteStore
from bptt.durability.files import Disk
from bptt.engine import replay
from bptt.engine.records import apply_record, make_checkpoint
from bptt.engine.recovery import recover
from bptt.errors import DataDamaged, ServiceError
from bptt_core import Learner, ModelSpec
from tests.durability.support import checkpoint, command, tick_records
from tests.support.data import tick_records as learnable

STEP = 7
"""Between two bits: no divisor of 8."""
ZEROS_STEP = 7919
"""Of the zeros that fill SQLite's pages, likewise: they hold nothing."""
LOG_STEP = 509
"""Of the write-ahead log behind its first heads: most of its pages are copies of each other."""


class Unsynced(Disk):
    """A disk without syncs: the process is not killed here."""

    def sync_file(self, path: Path) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


Contents = dict[str, bytes]


def contents_of(folder: Path) -> Contents:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


def lay_out(contents: Contents, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture(scope="module", params=["closed", "killed"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """Two checkpoints and a journal of ticks and commands, after a clean stop or a kill."""
    folder = tmp_path_factory.mktemp("flips") / "data"
    store = SqliteStore(folder, "full")
    store.open()
    store.save(checkpoint(0, loss=0.5))
    store.append("m", tick_records(1, 3))
    store.save(checkpoint(3, loss=0.25, skill_ratio=0.75))
    store.append("m", [command(4, "restore", lsn=3), *tick_records(5, 6)])
    store.append("m", [command(7, "reset", stream_id="s")])
    if request.param == "killed":
        found = contents_of(folder)
        store.close()
        return found
    store.close()
    return contents_of(folder)


def flips(contents: Contents) -> Iterator[tuple[str, int]]:
    """Files and bits."""
    for name, data in contents.items():
        in_log = name.endswith("-wal")
        for bit in range(8 * len(data)):
            if in_log:
                if bit < 8 * 56 or bit % LOG_STEP == 0:
                    yield name, bit
            elif data[bit // 8] or len(data) < 100 or name.endswith(".safetensors"):
                if bit % STEP == 0 or len(data) < 100:
                    yield name, bit
            elif bit % ZEROS_STEP == 0:
                yield name, bit


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


Model = tuple[int, dict[int, bytes]]


def read_back(store: SqliteStore) -> tuple[dict[int, object], dict[int, bytes]]:
    """Load the newest intact checkpoint and the records after it, as a server does at its start."""
    for info in reversed(store.checkpoints("m")):
        try:
            found = store.load("m", info.lsn)
        except DataDamaged:
            continue
        arrays = {name: each.tobytes() for name, each in found.arrays.items()}
        records = {each.lsn: codec.encode(each) for each in store.tail("m", info.lsn)}
        return {info.lsn: (arrays, found.metadata, found.steps, found.loss)}, records
    raise DataDamaged("no checkpoint is whole")


def test_no_flipped_bit_ends_the_start_or_gives_another_model(
    whole: Contents, tmp_path: Path
) -> None:
    lay_out(whole, tmp_path / "whole")
    store = SqliteStore(tmp_path / "whole", disk=Unsynced())
    store.open()
    checkpoints = {
        lsn: (
            {name: each.tobytes() for name, each in found.arrays.items()},
            found.metadata,
            found.steps,
            found.loss,
        )
        for lsn in (0, 3)
        for found in [store.load("m", lsn)]
    }
    records = {each.lsn: codec.encode(each) for each in store.tail("m", 0)}
    assert sorted(records) == [1, 2, 3, 4, 5, 6, 7]
    store.close()
    told = same = 0
    for name, bit in flips(whole):
        folder = tmp_path / "flipped"
        lay_out({**whole, name: flipped(whole[name], bit)}, folder)
        store = SqliteStore(folder, disk=Unsynced())
        place = f"{name}, bit {bit}"
        try:
            store.open()  # must not raise for any flipped bit
        except Exception as error:
            raise AssertionError(f"{place}: the store does not open: {error!r}") from error
        try:
            found, tail = read_back(store)
            ((lsn, state),) = found.items()
            assert state == checkpoints[lsn], f"{place}: another checkpoint"
            assert tail == {each: records[each] for each in range(lsn + 1, 8)}, f"{place}: others"
            same += 1
        except ServiceError as error:
            told += bool(error.message)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{place}: {error!r}") from error
        finally:
            store.close()
    assert told > 100, "many bits count"
    assert same > 100, "and many do not, or have a second place"


def test_no_flipped_bit_breaks_verify_or_repair(whole: Contents, tmp_path: Path) -> None:
    """A repaired folder opens and accepts records."""
    repaired = 0
    journal = "models/m/journal.sqlite3"
    header = [(journal, bit) for bit in range(8 * 100)]  # SQLite's own
    for name, bit in [*header, *list(flips(whole))[::11]]:
        folder = tmp_path / "flipped"
        lay_out({**whole, name: flipped(whole[name], bit)}, folder)
        store = SqliteStore(folder, disk=Unsynced())
        place = f"{name}, bit {bit}"
        try:
            with store.offline():
                replay.verify(store, "m")  # its checkpoints are no learner's, of which it says so
                plan = repair.plan(store, inspection.survey(store, "m"))
                if plan.needed:
                    repair.carry_out(store, plan)
                    repaired += 1
                assert not repair.plan(store, inspection.survey(store, "m")).needed, place
            store.open()
            last = store.last("m")
            store.append("m", tick_records(last + 1, last + 1))
            _, tail = read_back(store)
            assert max(tail) == last + 1, place
        except ServiceError as error:
            raise AssertionError(f"{place}: {error.message}") from error
        finally:
            store.close()
    assert repaired > 20


def test_no_flipped_bit_gives_another_learner(tmp_path: Path) -> None:
    """A real model, recovered as a server does."""
    folder = tmp_path / "data"
    spec = ModelSpec(input_size=2, hidden_size=2, k1=2, k2=2)
    definition, learner = ModelDefinition("m", spec), Learner(spec)
    store = SqliteStore(folder, "full")
    store.open()
    store.save(make_checkpoint(definition, learner, 0))
    for lsn, body in enumerate(learnable(6), 1):
        record = Record(lsn, body)
        learner = apply_record(learner, record).learner
        store.append("m", [record])
        if lsn == 3:
            store.save(make_checkpoint(definition, learner, lsn))
    store.close()
    whole = contents_of(folder)
    right, outcomes = learner.state(), {"same": 0, "told": 0}
    for name, bit in list(flips(whole))[::71]:
        lay_out({**whole, name: flipped(whole[name], bit)}, folder)
        store = SqliteStore(folder, disk=Unsynced())
        store.open()
        try:
            found = recover(store, "m")
            if found.damage is None:
                assert found.lsn == 6, (name, bit)
                assert replay.different(found.learner.state(), right) == [], (name, bit)
                outcomes["same"] += 1
            else:
                outcomes["told"] += 1
        except ServiceError:
            outcomes["told"] += 1
        finally:
            store.close()
    assert min(outcomes.values()) > 3, outcomes
