"""`bptt repair`: shows what would be lost, changes only when told to, and what is left is whole."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bptt.durability import Command, Record, SqliteStore
from bptt.engine.records import apply_record, learner_from
from bptt.engine.replay import different
from tests.cli.conftest import run
from tests.support.data import checkpoint_of, flip, journal_of, learn, tick_records


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repair") / "data"
    bodies = tick_records(45)
    learn(folder, [*bodies[:34], Command("restore", {"lsn": 30}), *bodies[30:40]])
    return folder


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def change(data: Path, statement: str) -> None:
    with closing(sqlite3.connect(journal_of(data))) as connection:
        connection.execute(statement)
        connection.commit()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


DAMAGE: dict[str, tuple[str, int, int]] = {
    # statement, lsn it goes back to, records lost
    "a record behind the newest checkpoint": (
        "UPDATE journal SET body = x'00' WHERE lsn = 43",
        42,
        3,
    ),
    "a record that is gone": ("DELETE FROM journal WHERE lsn = 41", 40, 5),
    "the end": ("DELETE FROM journal WHERE lsn > 44", 44, 1),
    "a record before the newest checkpoint": ("DELETE FROM journal WHERE lsn = 17", 45, 0),
    "all of it": ("DROP TABLE journal", 40, 5),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_journal_is_cut_behind_the_last_good_record(data: Path, damage: str) -> None:
    statement, goes_back_to, lost = DAMAGE[damage]
    change(data, statement)
    before = contents(data)

    shown = run("repair", str(data))
    assert shown.status == 1
    assert "m: damaged" in shown.out
    assert f"goes back to lsn {goes_back_to}: the checkpoint after 40 records" in shown.out
    assert (f"lost: {lost} records" if lost else "nothing that was learned is lost") in shown.out
    assert "nothing was changed; --yes repairs" in shown.out
    assert contents(data) == before

    done = run("repair", str(data), "--yes")
    assert done.status == 0, done.out
    assert (data / "models" / "m" / "damaged" / "journal.sqlite3").is_file()
    assert run("verify", str(data)).status == 0, run("verify", str(data)).out
    assert run("repair", str(data)).out == "m: whole\n"
    last = opens_and_goes_on(data)
    assert last == goes_back_to


def opens_and_goes_on(data: Path) -> int:
    """Recover as a server does, and append. The lsn it begins with."""
    store = SqliteStore(data)
    store.open()
    try:
        last = store.checkpoints("m")[-1].lsn
        learner = learner_from(store.load("m", last))
        for record in store.tail("m", last):
            learner = apply_record(learner, record, lambda lsn: store.load("m", lsn)).learner
            last = record.lsn
        store.append("m", [Record(last + 1, Command("reset", {"stream_id": "s0"}))])
        assert [record.lsn for record in store.tail("m", last)] == [last + 1]
    finally:
        store.close()
    return last


def test_what_would_be_lost_names_steps_and_streams(data: Path) -> None:
    change(data, "UPDATE journal SET body = x'00' WHERE lsn = 43")
    done = run("repair", str(data))
    assert "lost: 3 records, 12 steps or more of streams s0, s1" in done.out
    (found,) = run("repair", str(data), "--json").document
    assert found["needed"]
    assert "damaged at lsn 43" in found["journal"]
    assert (found["goes_back_to"], found["lost_records"], found["lost_steps"]) == (42, 3, 12)
    assert (found["lost_streams"], found["moved"]) == (["s0", "s1"], [])


def test_a_damaged_checkpoint_is_taken_out_and_nothing_is_lost(data: Path) -> None:
    flip(checkpoint_of(data, 40), -1)
    done = run("repair", str(data), "--yes")
    assert done.status == 0
    assert "nothing that was learned is lost" in done.out
    assert not checkpoint_of(data, 40).exists()
    assert (data / "models" / "m" / "damaged" / checkpoint_of(data, 40).name).is_file()
    assert run("verify", str(data)).status == 0
    assert opens_and_goes_on(data) == 45


def test_a_return_to_a_checkpoint_that_is_damaged_ends_what_can_be_replayed(data: Path) -> None:
    flip(checkpoint_of(data, 30), -1)
    flip(checkpoint_of(data, 40), -1)
    done = run("repair", str(data))
    assert "damaged at lsn 35: it goes back to the checkpoint after 30 records" in done.out
    assert "goes back to lsn 34: the checkpoint after 20 records" in done.out
    assert "lost: 11 records" in done.out
    assert run("repair", str(data), "--yes").status == 0
    assert run("verify", str(data)).status == 0
    assert opens_and_goes_on(data) == 34


def test_a_missing_journal_is_made_anew(data: Path) -> None:
    journal_of(data).unlink()
    done = run("repair", str(data), "--yes")
    assert "goes back to lsn 40" in done.out
    assert "lost: 5 records, 0 steps or more" in done.out
    assert opens_and_goes_on(data) == 40


def test_a_page_that_cannot_be_read_takes_only_its_records(tmp_path: Path) -> None:
    bodies = tick_records(400, steps=20)
    learn(tmp_path, bodies, save_every=150)  # 300 is the newest
    path = journal_of(tmp_path)
    data = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT count(*) FROM journal").fetchone()
    assert rows == (400,)
    page = 16384
    place = next(at for at in range(len(data) // page // 2, len(data) // page) if data[at * page])
    data[place * page : place * page + 12] = bytes(12)  # its head
    path.write_bytes(data)
    done = run("repair", str(tmp_path), "--yes")
    assert done.status == 0, done.out
    assert run("verify", str(tmp_path)).status == 0
    assert opens_and_goes_on(tmp_path) >= 300


def test_without_a_whole_checkpoint_only_a_backup_helps(data: Path) -> None:
    for path in (data / "models" / "m").glob("checkpoint*"):
        flip(path, 100)
    before = contents(data)
    done = run("repair", str(data), "--yes")
    assert done.status == 1
    assert "none of its checkpoints is whole; bring the model back from a backup" in done.out
    assert contents(data) == before


def test_what_is_whole_is_left_alone(data: Path) -> None:
    before = contents(data)
    done = run("repair", str(data), "--yes")
    assert (done.status, done.out) == (0, "m: whole\n")
    assert contents(data) == before


def test_a_repaired_model_is_that_of_a_run_that_ended_there(data: Path, tmp_path: Path) -> None:
    change(data, "DELETE FROM journal WHERE lsn = 44")
    assert run("repair", str(data), "--yes").status == 0
    bodies = tick_records(45)
    other = learn(
        tmp_path / "other", [*bodies[:34], Command("restore", {"lsn": 30}), *bodies[30:38]]
    )
    store = SqliteStore(data)
    store.open()
    learner = learner_from(store.load("m", 40))
    for record in store.tail("m", 40):
        learner = apply_record(learner, record).learner
    store.close()
    assert different(learner.state(), other.state()) == []
