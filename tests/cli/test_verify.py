"""`bptt verify` on data folders that are whole, damaged, in use, or not replayed bit for bit."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from bptt.durability import Command, Record, SqliteStore, Tick
from bptt_core import ModelSpec
from tests.cli.conftest import run
from tests.support.data import checkpoint_of, flip, journal_of, learn, tick_records


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, of different cells, with resets, deletions and a restore in the journal."""
    folder = tmp_path_factory.mktemp("verify") / "data"
    learn(folder, tick_records(45))
    bodies = tick_records(20)
    learn(
        folder,
        [
            *bodies[:6],
            Command("reset", {"stream_id": "s1"}),
            Command("delete", {"stream_id": "s0"}),
            Command("restore", {"lsn": 5}),
            *bodies[5:12],
        ],
        model_id="n",
        spec=ModelSpec(input_size=2, hidden_size=4, cell="lstm", k1=2, k2=4),
        save_every=5,
    )
    return folder


@pytest.fixture
def data(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "data"))


def test_a_whole_folder_is_replayed_bit_for_bit(whole: Path) -> None:
    done = run("verify", str(whole))
    assert done.status == 0, done.out
    assert "m: whole\n" in done.out
    assert "n: whole\n" in done.out
    assert "bit for bit the checkpoints after: 30, 40" in done.out
    assert done.err == ""


def test_for_machines(whole: Path) -> None:
    done = run("verify", str(whole), "--json", "--model", "n")
    assert done.status == 0, done.out
    (found,) = done.document
    assert (found["model_id"], found["first"], found["last"]) == ("n", 1, 16)
    assert found["replayed_from"] == 5
    assert found["compared"] == [10, 15]
    assert (found["problems"], found["notes"]) == ([], [])


def test_what_is_damaged_is_named(data: Path) -> None:
    flip(checkpoint_of(data, 30), -5)
    with closing(sqlite3.connect(journal_of(data, "n"))) as connection:
        connection.execute("UPDATE journal SET body = x'00' WHERE lsn = 8")
        connection.commit()
    done = run("verify", str(data))
    assert done.status == 1
    assert "m: NOT WHOLE\n" in done.out
    assert f"{checkpoint_of(data, 30)} is damaged: its checksum does not fit" in done.out
    assert "bit for bit the checkpoints after: 40" in done.out
    assert "n: NOT WHOLE\n" in done.out
    assert f"{journal_of(data, 'n')} is damaged at lsn 8: 1 bytes are too few" in done.out
    assert "bit for bit the checkpoints after: none to compare" in done.out


def test_another_model_than_the_journal_gives_is_seen(data: Path) -> None:
    """A checkpoint that is whole, but is not what the records make."""
    store = SqliteStore(data)
    store.open()
    found = store.load("m", 30)
    found.arrays["model.parameters"] = found.arrays["model.parameters"] + 1e-7
    store.save(found)
    store.close()
    done = run("verify", str(data), "--model", "m")
    assert done.status == 1
    words = "replay does not give the checkpoint after 30 records: model.parameters differ"
    assert words in done.out
    assert "bit for bit the checkpoints after: 40" in done.out


def test_a_record_that_the_model_cannot_have_learned_is_named(data: Path) -> None:
    store = SqliteStore(data)
    store.open()
    (record,) = store.tail("m", 44)
    assert isinstance(record.body, Tick)
    store.append("m", [Record(46, record.body)])  # its first step has been learned
    store.close()
    done = run("verify", str(data), "--model", "m")
    assert done.status == 1
    assert "lsn 46 cannot be replayed: first_step is 132, but must be at most 135" in done.out


@pytest.mark.parametrize("lost", ["journal", "checkpoints"])
def test_what_is_missing_is_named(data: Path, lost: str) -> None:
    if lost == "journal":
        journal_of(data).unlink()
    else:
        for path in (data / "models" / "m").glob("checkpoint*"):
            path.unlink()
    done = run("verify", str(data), "--model", "m")
    assert done.status == 1
    found = f"{journal_of(data)} is missing" if lost == "journal" else "has no checkpoint"
    assert found in done.out


def test_a_return_to_a_checkpoint_that_is_gone_by_now_is_no_damage(tmp_path: Path) -> None:
    """The history that is kept for `bptt replay` may reach further back than replay needs."""
    bodies = tick_records(60)
    data, other = tmp_path / "data", tmp_path / "other"
    learn(data, [*bodies[:12], Command("restore", {"lsn": 10}), *bodies[10:50]], save_every=5)
    learn(other, bodies[:5], save_every=5)
    shutil.copy(checkpoint_of(other, 5), checkpoint_of(data, 5))  # as if it were the best of all
    assert not checkpoint_of(data, 10).exists()
    done = run("verify", str(data), "--json")
    assert done.status == 0, done.out
    (found,) = done.document
    assert (found["first"], found["replayed_from"]) == (1, 5)
    assert found["compared"][-2:] == [45, 50]
    (note,) = found["notes"]
    assert "lsn 13 goes back to a checkpoint that is no longer kept" in note
    assert run("repair", str(data)).out == "m: whole\n"


def test_a_folder_in_use_is_left_alone(data: Path) -> None:
    store = SqliteStore(data)
    store.open()
    try:
        done = run("verify", str(data))
        assert done.status == 1
        assert done.err == f"bptt: data is {data}, which another server uses\n"
        assert done.out == ""
    finally:
        store.close()


def test_what_is_no_data_folder_is_told(tmp_path: Path) -> None:
    done = run("verify", str(tmp_path))
    assert done.status == 1
    assert "is no data folder: it has no folder 'models'" in done.err
    done = run("verify", str(tmp_path / "nowhere"))
    assert done.status == 2
    (tmp_path / "models").mkdir()
    done = run("verify", str(tmp_path))
    assert (done.status, done.out) == (0, f"no models in {tmp_path}\n")
    done = run("verify", str(tmp_path), "--model", "none")
    assert done.status == 1
    assert "model_id is 'none'" in done.err
