"""verify, replay, repair and backup on every store: none of them knows what is behind it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from bptt.config import Durability, Kept
from bptt.domain import ModelDefinition
from bptt.durability import Command, inspection, Record, repair, SqliteStore, Store, Tick
from bptt.durability.backup import back_up
from bptt.engine import replay
from bptt.engine.records import apply_record, make_checkpoint
from bptt.engine.recovery import recover
from bptt.errors import StaleWriter, StorageFailed
from bptt_core import Learner
from tests.support.data import checkpoint_of, flip, journal_of, SPEC, tick_records
from tests.support.memory import memory_at, MemoryStore


@dataclass(frozen=True)
class Kind:
    """A kind of store, and how its data are damaged."""

    make: Callable[[Path], Store]
    damage_record: Callable[[Path, int], None]
    damage_checkpoint: Callable[[Path, int], None]
    lose_record: Callable[[Path, int], None]


def _sqlite(durability: Durability) -> Kind:
    def change(place: Path, statement: str) -> None:
        with closing(sqlite3.connect(journal_of(place))) as connection:
            connection.execute(statement)
            connection.commit()

    return Kind(
        lambda place: SqliteStore(place, durability, Kept()),
        lambda place, lsn: change(place, f"UPDATE journal SET body = x'00' WHERE lsn = {lsn}"),
        lambda place, lsn: flip(checkpoint_of(place, lsn), -5),
        lambda place, lsn: change(place, f"DELETE FROM journal WHERE lsn = {lsn}"),
    )


def _flip_in_memory(found: dict[int, bytes], lsn: int) -> None:
    found[lsn] = found[lsn][:-5] + bytes((found[lsn][-5] ^ 1,)) + found[lsn][-4:]


KINDS = {
    "sqlite, full": _sqlite("full"),
    "sqlite, process": _sqlite("process"),
    "in memory": Kind(
        lambda place: MemoryStore(memory_at(place)),
        lambda place, lsn: _flip_in_memory(memory_at(place).models["m"].journal, lsn),
        lambda place, lsn: _flip_in_memory(memory_at(place).models["m"].checkpoints, lsn),
        lambda place, lsn: memory_at(place).models["m"].journal.__delitem__(lsn),
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def learned(kind: Kind, tmp_path: Path) -> tuple[Path, Learner]:
    """A model that learned 35 ticks and went back once, saved after every tenth record."""
    place = tmp_path / "data"
    store = kind.make(place)
    store.open()
    definition, learner = ModelDefinition("m", SPEC), Learner(SPEC)
    store.save(make_checkpoint(definition, learner, 0))
    ticks = tick_records(40)
    bodies: list[Tick | Command] = [*ticks[:24], Command("restore", {"lsn": 20}), *ticks[20:30]]
    for lsn, body in enumerate(bodies, 1):
        record = Record(lsn, body)
        learner = apply_record(learner, record, lambda lsn: store.load("m", lsn)).learner
        store.append("m", [record])
        if lsn % 10 == 0:
            store.save(make_checkpoint(definition, learner, lsn))
    store.close()
    return place, learner


def test_verify_replays_bit_for_bit(kind: Kind, learned: tuple[Path, Learner]) -> None:
    store = kind.make(learned[0])
    with store.offline():
        found = replay.verify(store, "m")
    assert (found.problems, found.notes) == ([], [])
    assert (found.last, found.compared[-2:]) == (35, [20, 30])


def test_verify_names_damage(kind: Kind, learned: tuple[Path, Learner]) -> None:
    kind.damage_checkpoint(learned[0], 30)
    kind.damage_record(learned[0], 33)
    found = replay.verify(kind.make(learned[0]), "m")
    assert len(found.problems) == 2
    assert "its checksum does not fit" in found.problems[0]
    assert "is damaged at lsn 33" in found.problems[1]


def test_replay_learns_the_journal_again(kind: Kind, learned: tuple[Path, Learner]) -> None:
    store = kind.make(learned[0])
    assert replay.model_spec(store, "m") == SPEC
    trial = replay.Trial("same", SPEC)
    found = replay.compare(store, "m", [trial])
    assert (found.last, found.left_out) == (35, 1)
    assert trial.mean_loss()[0] > 0


@pytest.mark.parametrize("harm", ["damage_record", "lose_record"])
def test_repair_cuts_behind_the_last_good_record(
    kind: Kind, learned: tuple[Path, Learner], harm: str
) -> None:
    getattr(kind, harm)(learned[0], 33)
    kind.damage_checkpoint(learned[0], 10)
    store = kind.make(learned[0])
    with store.offline():
        plan = repair.plan(store, inspection.survey(store, "m"))
        assert plan.needed
        assert (plan.keep_to, plan.lost) == (32, 3)
        assert repair.carry_out(store, plan)
        assert not replay.verify(store, "m").problems
        assert not repair.plan(store, inspection.survey(store, "m")).needed
    store.open()
    found = recover(store, "m")
    assert (found.lsn, found.damage) == (32, None)
    store.append("m", [Record(33, Command("reset", {"stream_id": "s0"}))])
    assert [each.lsn for each in store.tail("m", 32)] == [33]
    store.close()


@pytest.mark.parametrize("target_kind", KINDS)
def test_a_backup_goes_from_any_store_to_any(
    kind: Kind, learned: tuple[Path, Learner], target_kind: str, tmp_path: Path
) -> None:
    source = kind.make(learned[0])
    source.open()  # a server uses it meanwhile
    place = tmp_path / "copy"
    (copied,) = back_up(source, KINDS[target_kind].make(place))
    assert (copied.model_id, copied.last) == ("m", 35)
    with pytest.raises(StorageFailed, match="it exists already"):
        back_up(source, KINDS[target_kind].make(place))
    source.close()
    copy = KINDS[target_kind].make(place)
    assert not replay.verify(copy, "m").problems
    assert copy.open() == 3, "its epochs continue"
    found = recover(copy, "m")
    assert (found.lsn, found.damage) == (35, None)
    assert replay.different(found.learner.state(), learned[1].state()) == []
    copy.append("m", [Record(36, Command("reset", {"stream_id": "s0"}))])
    copy.close()


def test_tools_keep_off_a_store_in_use(kind: Kind, learned: tuple[Path, Learner]) -> None:
    writer, other = kind.make(learned[0]), kind.make(learned[0])
    writer.open()
    with pytest.raises(StaleWriter), other.offline():
        pass
    writer.close()
    with other.offline(), pytest.raises(StaleWriter):
        kind.make(learned[0]).open()
