"""`bptt backup`: a copy that is whole, made while another process writes."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from bptt.config import Kept
from bptt.domain import ModelDefinition
from bptt.durability import Record, SqliteStore
from bptt.durability.backup import back_up
from bptt.engine.records import make_checkpoint
from bptt_core import Learner
from tests.cli.conftest import run
from tests.durability.support import checkpoint, numbers
from tests.durability.support import tick_records as records
from tests.support.data import checkpoint_of, journal_of, learn, SPEC, tick_records


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backup") / "data"
    learn(folder, tick_records(45))
    learn(folder, tick_records(5), model_id="n")
    return folder


def test_the_copy_is_whole_and_goes_on(whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    done = run("backup", str(whole), str(target))
    assert done.status == 0, done.err
    assert "m: 3 checkpoints and the journal up to lsn 45" in done.out
    assert "n: 1 checkpoints and the journal up to lsn 5" in done.out
    assert run("verify", str(target)).status == 0
    store = SqliteStore(target)
    assert store.open() == 3, "its epochs go on, too"
    store.append("m", [Record(46, tick_records(46)[45])])
    assert numbers(store.tail("m", 44)) == [45, 46]
    store.close()


def test_for_machines(whole: Path, tmp_path: Path) -> None:
    done = run("backup", str(whole), str(tmp_path / "copy"), "--json")
    m, n = done.document
    assert (m["model_id"], m["last"], m["checkpoints"]) == ("m", 45, [20, 30, 40])
    assert (n["model_id"], n["last"], n["checkpoints"]) == ("n", 5, [0])


def test_a_target_that_is_there_is_not_touched(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = run("backup", str(whole), str(tmp_path))
    assert done.status == 1
    assert done.err == f"bptt: {tmp_path} could not be written: it exists already\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_copy_that_fails_leaves_nothing(whole: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(whole, tmp_path / "data"))
    journal_of(data, "n").write_bytes(b"no journal" * 1000)
    done = run("backup", str(data), str(tmp_path / "copy"))
    assert done.status == 1
    assert f"{journal_of(data, 'n')} is damaged: file is not a database" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    done = run("backup", str(tmp_path / "nowhere"), str(tmp_path / "copy"))
    assert done.status == 2


def test_copies_made_while_a_server_writes_are_all_whole(tmp_path: Path) -> None:
    """Learning, saving, trimming and pruning go on as fast as they can meanwhile."""
    data = tmp_path / "data"
    store = SqliteStore(data, "process", Kept(checkpoints=2, history_bytes=0))
    store.open()
    for model_id in ("m", "n"):
        store.save(checkpoint(0, model_id))
    stop = threading.Event()
    committed = {"m": 0, "n": 0}

    def write(model_id: str) -> None:
        while not stop.is_set():
            last = committed[model_id]
            store.append(model_id, records(last + 1, last + 5))
            committed[model_id] = last + 5
            store.save(checkpoint(last + 5, model_id))

    writers = [threading.Thread(target=write, args=(name,)) for name in committed]
    for writer in writers:
        writer.start()
    try:
        for turn in range(20):
            before = dict(committed)
            copied = back_up(SqliteStore(data), SqliteStore(tmp_path / f"copy-{turn}"))
            assert [each.model_id for each in copied] == ["m", "n"]
            for each in copied:
                assert each.last >= before[each.model_id], "what was acknowledged before is in it"
    finally:
        stop.set()
        for writer in writers:
            writer.join()
        store.close()
    for turn in range(20):
        copy = SqliteStore(tmp_path / f"copy-{turn}")
        copy.open()
        for model_id in ("m", "n"):
            found = copy.checkpoints(model_id)
            assert all(copy.load(model_id, each.lsn).lsn == each.lsn for each in found)
            newest = found[-1].lsn
            tail = numbers(copy.tail(model_id, newest))
            last = newest + len(tail)
            copy.append(model_id, records(last + 1, last + 2))
        copy.close()


def test_a_model_that_is_deleted_meanwhile_is_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data"
    store = SqliteStore(data)
    store.open()
    for model_id in ("a", "b"):
        store.save(
            make_checkpoint(ModelDefinition(model_id, SPEC), Learner(SPEC, backend="reference"), 0)
        )

    def on_copied(copied: object) -> None:
        store.delete("b")

    copied = back_up(SqliteStore(data), SqliteStore(tmp_path / "copy"), on_copied)
    assert [each.model_id for each in copied] == ["a"]
    assert checkpoint_of(tmp_path / "copy", 0, "a").is_file()
    assert not (tmp_path / "copy" / "models" / "b").exists()
    store.close()
