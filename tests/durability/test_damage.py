"""Torn, flipped, cut or lost files: each is detected and named."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bptt.durability import commit_watermark, inspection, reading, Record, repair, SqliteStore, Tick
from bptt.errors import DataDamaged, StorageFailed
from tests.durability.support import checkpoint, numbers, opened, tick_record, tick_records


def model_folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "m"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A model with a checkpoint after 0 records and one after 3, and ten records."""
    with opened(tmp_path, "full") as store:
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 3))
        store.save(checkpoint(3))
        store.append("m", tick_records(4, 10))
    return tmp_path


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The same folder after a kill: all records are in the write-ahead log."""
    with opened(tmp_path / "live", "full") as store:
        store.save(checkpoint(0))
        for record in tick_records(1, 10):
            store.append("m", [record])
        shutil.copytree(tmp_path / "live", tmp_path / "killed")
    return tmp_path / "killed"


def read(store: SqliteStore, after: int = 0) -> tuple[list[int], str]:
    """The readable records of a store, and the error that ends them."""
    found: list[int] = []
    try:
        for record in store.tail("m", after):
            found.append(record.lsn)  # one by one: those before the damage count
    except DataDamaged as error:
        return found, error.message
    return found, ""


# ---------------------------------------------------------------------- checkpoints


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_found(data: Path) -> None:
    path = model_folder(data) / "checkpoint-000000000003.safetensors"
    whole = path.read_bytes()
    with opened(data) as store:
        assert store.load("m", 3).lsn == 3
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(DataDamaged, match=f"{re.escape(str(path))} is damaged"):
                store.load("m", 3)
            assert [each.lsn for each in store.checkpoints("m")] == [0, 3]
        assert store.load("m", 0).lsn == 0


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 300, -1])
def test_a_cut_checkpoint_is_found(data: Path, size: int) -> None:
    path = model_folder(data) / "checkpoint-000000000003.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with opened(data) as store, pytest.raises(DataDamaged, match=re.escape(str(path))):
        store.load("m", 3)


def test_a_checkpoint_of_another_model_or_lsn_is_found(data: Path) -> None:
    folder = model_folder(data)
    shutil.copy(
        folder / "checkpoint-000000000003.safetensors",
        folder / "checkpoint-000000000005.safetensors",
    )
    with opened(data) as store:
        with pytest.raises(DataDamaged, match="it is of model 'm' after 3 records"):
            store.load("m", 5)
        store.save(checkpoint(0, "n"))
        shutil.copy(
            folder / "checkpoint-000000000003.safetensors",
            data / "models" / "n" / "checkpoint-000000000003.safetensors",
        )
        with pytest.raises(DataDamaged, match="it is of model 'm'"):
            store.load("n", 3)


def test_a_missing_checkpoint_is_not_listed_and_the_one_before_leads_on(data: Path) -> None:
    (model_folder(data) / "checkpoint-000000000003.safetensors").unlink()
    with opened(data) as store:
        assert [each.lsn for each in store.checkpoints("m")] == [0]
        assert read(store) == (list(range(1, 11)), "")


# ---------------------------------------------------------------------- the journal


def change(data: Path, *statements: str) -> None:
    """Change the journal's tables as damage might."""
    with closing(sqlite3.connect(model_folder(data) / "journal.sqlite3")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    ("statement", "given", "found"),
    [
        ("DELETE FROM journal WHERE lsn = 6", 5, "has no lsn 6: 7 follows 5"),
        ("DELETE FROM journal WHERE lsn > 8", 8, "has no lsn 9: it ends, but 10 was committed"),
        ("DELETE FROM journal WHERE lsn < 3", 0, "has no lsn 1: 3 follows 0"),
        ("UPDATE journal SET lsn = 12 WHERE lsn = 10", 9, "has no lsn 10: 12 follows 9"),
        (
            "UPDATE journal SET body = substr(body, 1, 40) WHERE lsn = 7",
            6,
            "is damaged at lsn 7: its checksum does not fit",
        ),
        (
            "UPDATE journal SET body = (SELECT body FROM journal WHERE lsn = 4) WHERE lsn = 7",
            6,
            "is damaged at lsn 7: its checksum does not fit",
        ),
        ("UPDATE journal SET body = x'01' WHERE lsn = 7", 6, "at lsn 7: 1 bytes are too few"),
        ("UPDATE journal SET body = 5 WHERE lsn = 7", 6, "at lsn 7: it is no blob"),
        ("DELETE FROM writer", 0, "is damaged: its table 'writer' must have one row"),
        ("DROP TABLE journal", 0, "is damaged: no such table: journal"),
        (
            "PRAGMA application_id = 7",
            0,
            "is no journal: its application_id is 0x7, but must be 0x62707474",
        ),
        ("PRAGMA user_version = 3", 0, "has format 3, but this version of bptt reads 1 and 2"),
        ("UPDATE writer SET base = 4", 0, "has no lsn 1: it begins with 5"),
    ],
)
def test_damage_of_the_journal_is_named_and_what_is_before_it_is_given(
    data: Path, statement: str, given: int, found: str
) -> None:
    change(data, statement)
    with opened(data) as store:
        records, words = read(store)
    assert records == list(range(1, given + 1))
    assert str(model_folder(data) / "journal.sqlite3") in words
    assert found in words


def test_a_missing_journal_is_named(data: Path) -> None:
    (model_folder(data) / "journal.sqlite3").unlink()
    with opened(data) as store:
        assert store.models() == ["m"]
        assert read(store) == ([], f"{model_folder(data) / 'journal.sqlite3'} is missing")
        with pytest.raises(DataDamaged, match="is missing"):
            store.append("m", tick_records(11, 11))
        assert store.load("m", 3).lsn == 3
    assert not (model_folder(data) / "journal.sqlite3").exists(), "it is not made up for"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_journal_is_named(tmp_path: Path, share: float) -> None:
    with opened(tmp_path, "full") as store:
        store.save(checkpoint(0))
        store.append("m", [tick_record(number, steps=500) for number in range(1, 41)])
    path = model_folder(tmp_path) / "journal.sqlite3"
    os.truncate(path, int(path.stat().st_size * share))
    with opened(tmp_path) as store:
        records, words = read(store)
    assert records == list(range(1, len(records) + 1))
    assert len(records) < 40
    assert str(path) in words


def test_a_flipped_byte_anywhere_in_a_journal_gives_no_wrong_record(data: Path) -> None:
    path = model_folder(data) / "journal.sqlite3"
    whole = path.read_bytes()
    with opened(data) as store:
        right = list(store.tail("m", 0))
    silent = 0
    # Records lie at the end of their page, whatever rules SQLite has at its beginning.
    places = [*range(200), *range(200, len(whole), 97)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 0x55
        path.write_bytes(flipped)
        try:
            found = [(each.lsn, _inputs(each)) for each in reading.read(path.parent, 0)]
        except (DataDamaged, StorageFailed):
            continue
        finally:
            for rest in ("-wal", "-shm"):
                Path(f"{path}{rest}").unlink(missing_ok=True)
        silent += 1
        assert found == [(each.lsn, _inputs(each)) for each in right]
    assert silent < len(places), "some of it must have been in what counts"


def _inputs(record: Record) -> bytes:
    assert isinstance(record.body, Tick)
    return record.body.batch.inputs.tobytes()


def test_a_journal_that_a_killed_process_left_is_whole(killed: Path) -> None:
    with opened(killed, "full") as store:
        assert read(store) == (list(range(1, 11)), "")
        store.append("m", tick_records(11, 11))


@pytest.mark.parametrize("what", ["lost", "cut", "flipped", "torn at its end"])
def test_a_lost_end_of_a_journal_is_detected(killed: Path, what: str) -> None:
    """SQLite treats a damaged write-ahead log as one cut by a crash, without an error."""
    path = model_folder(killed) / "journal.sqlite3-wal"
    data = bytearray(path.read_bytes())
    if what == "lost":
        path.unlink()
    elif what == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif what == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[:-100])
    with opened(killed, "full") as store:
        records, words = read(store)
    assert records == list(range(1, len(records) + 1))
    assert len(records) < 10
    assert f"has no lsn {len(records) + 1}: it ends, but 10 was committed" in words
    if what == "torn at its end":
        assert len(records) == 9


def test_an_uncommitted_torn_record_is_no_damage(killed: Path) -> None:
    path = model_folder(killed) / "journal.sqlite3-wal"
    path.write_bytes(path.read_bytes()[:-100])
    commit_watermark.write(model_folder(killed), 9, synced=True)  # killed within the last commit
    with opened(killed, "full") as store:
        assert read(store) == (list(range(1, 10)), "")
        store.append("m", tick_records(10, 12))
        assert numbers(store.tail("m", 9)) == [10, 11, 12]


def test_with_durability_process_records_lost_in_a_power_failure_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, "process") as store:
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 5))
    commit_watermark.write(model_folder(tmp_path), 9, synced=False)
    with opened(tmp_path, "process") as store, caplog.at_level(logging.WARNING):
        assert read(store) == ([1, 2, 3, 4, 5], "")
    assert "ends with lsn 5; 9 was committed, but not synced" in caplog.text


def test_a_damaged_commit_watermark_is_logged_and_stops_nothing(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = model_folder(data) / "committed"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    with opened(data) as store, caplog.at_level(logging.WARNING):
        assert read(store) == (list(range(1, 11)), "")
        assert "committed is damaged" in caplog.text
        store.append("m", tick_records(11, 11))
        caplog.clear()
        assert read(store, 10) == ([11], "")
    assert not caplog.text, "the next commit has written it anew"


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (b"seven", "it does not hold a number"),
        (b"0 6abf4a82\n", "its checksum does not fit"),
        (b"9" * 40, "it does not hold a number"),
        (b"", "it does not hold a number"),
    ],
)
def test_a_damaged_epoch_stops_nothing(
    data: Path, caplog: pytest.LogCaptureFixture, damage: bytes, found: str
) -> None:
    """The journals hold the earlier epochs; the store chooses a later one."""
    (data / "epoch").write_bytes(damage)
    store = SqliteStore(data)
    with caplog.at_level(logging.WARNING):
        assert store.open() > 1000
    assert f"epoch is damaged: {found}" in caplog.text
    assert numbers(store.tail("m", 0)) == list(range(1, 11))
    store.append("m", tick_records(11, 11))
    store.close()
    caplog.clear()
    with opened(data) as again:
        assert numbers(again.tail("m", 10)) == [11]
    assert not caplog.text


def test_an_epoch_of_an_earlier_version_is_the_number_alone(data: Path) -> None:
    (data / "epoch").write_text("7\n")
    store = SqliteStore(data)
    assert store.open() == 8
    store.close()


@pytest.mark.parametrize("value", ["x'ff'", "NULL", "'text'", "1.5", "-1"])
@pytest.mark.parametrize("column", ["epoch", "base"])
def test_a_value_of_another_type_is_damage(data: Path, column: str, value: str) -> None:
    """SQLite returns the type that a damaged page states; neither a start nor a tool fails."""
    change(
        data,
        "CREATE TABLE other (one, epoch, base)",
        "INSERT INTO other SELECT one, epoch, base FROM writer",
        f"UPDATE other SET {column} = {value}",
        "DROP TABLE writer",
        "ALTER TABLE other RENAME TO writer",
    )
    store = SqliteStore(data)
    store.open()
    with pytest.raises(DataDamaged, match="is damaged: its table 'writer' holds"):
        store.tail("m", 0)
    with pytest.raises(DataDamaged, match="is damaged: its table 'writer' holds"):
        store.append("m", tick_records(11, 11))
    store.close()
    found = inspection.survey(store, "m")
    assert "its table 'writer' holds" in found.problems[0]
    assert repair.plan(store, found).needed


def test_leftovers_of_an_interruption_are_removed(data: Path) -> None:
    models = data / "models"
    (models / "m" / "checkpoint-000000000012.safetensors.aside").write_bytes(b"half")
    for leftover in (".deleted-n", ".new-o"):
        (models / leftover).mkdir()
        (models / leftover / "checkpoint-000000000002.safetensors").write_bytes(b"")
    with opened(data) as store:
        assert store.models() == ["m"]
        assert sorted(each.name for each in models.iterdir()) == ["m"]
        assert [each.lsn for each in store.checkpoints("m")] == [0, 3]


def test_a_damaged_model_can_be_deleted(data: Path) -> None:
    (model_folder(data) / "journal.sqlite3").write_bytes(b"no journal at all" * 100)
    with opened(data) as store:
        assert "file is not a database" in read(store)[1]
        store.delete("m")
        assert store.models() == []
