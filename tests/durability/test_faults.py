"""Full or read-only disks, stale writers, and processes that end at any point."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bptt.config import Durability, Kept
from bptt.durability import lock, SqliteStore
from bptt.durability.sqlite import POINTS
from bptt.errors import DataDamaged, InvalidRequest, StaleWriter, StorageFailed, StorageFull
from tests.durability.support import checkpoint, command, numbers, opened, tick_record, tick_records
from tests.support.disk import fill, mounted


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes; writing to one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---------------------------------------------------------------------- no room


@pytest.mark.parametrize("durability", ["full", "process"])
def test_a_full_disk_loses_nothing_and_ends(tmp_path: Path, durability: Durability) -> None:
    with mounted(tmp_path / "disk", "2m"), opened(tmp_path / "disk", durability) as store:
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 3))
        filler = fill(tmp_path / "disk")
        for _ in range(3):
            with pytest.raises(StorageFull, match=r"journal.*No space left on device"):
                store.append("m", [tick_record(4, steps=20_000)])
            with pytest.raises(StorageFull, match=r"checkpoint.*No space left on device"):
                store.save(checkpoint(3, size=100_000))
        assert numbers(store.tail("m", 0)) == [1, 2, 3]
        filler.unlink()
        store.append("m", [tick_record(4, steps=20_000)])
        store.save(checkpoint(4, size=10_000))
        assert numbers(store.tail("m", 0)) == [1, 2, 3, 4]
        assert [each.lsn for each in store.checkpoints("m")] == [0, 4]
        assert not list((tmp_path / "disk" / "models" / "m").glob("*.aside"))


def test_a_full_disk_while_a_model_is_made_leaves_none(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "1m"), opened(tmp_path / "disk") as store:
        filler = fill(tmp_path / "disk")
        with pytest.raises(StorageFull, match="No space left on device"):
            store.save(checkpoint(0))
        assert store.models() == []
        filler.unlink()
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 2))


def test_a_file_that_may_not_grow_loses_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, "full") as store:
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 3))
        with files_of_at_most(400_000):
            for _ in range(2):
                with pytest.raises(StorageFailed, match=r"journal.*Input/output error"):
                    store.append("m", [tick_record(4, steps=100_000)])
                with pytest.raises(StorageFailed, match=r"checkpoint.*File too large"):
                    store.save(checkpoint(3, size=100_000))
            store.append("m", [tick_record(4)])
            store.save(checkpoint(4))
        assert numbers(store.tail("m", 0)) == [1, 2, 3, 4]
        store.append("m", [tick_record(5, steps=100_000)])
        store.save(checkpoint(5, size=100_000))
        assert [each.lsn for each in store.checkpoints("m")] == [0, 4, 5]


def test_a_folder_that_becomes_read_only_loses_nothing_and_works_again(tmp_path: Path) -> None:
    disk = tmp_path / "disk"

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)

    with mounted(disk, "4m"):
        store = SqliteStore(disk)
        store.open()
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 3))
        store.close()
        remount("ro")
        with pytest.raises(StorageFailed, match="Read-only file system"):
            SqliteStore(disk).open()
        remount("rw")
        store.open()  # no journal is open yet: a file system with open files stays as it is
        folder = disk / "models" / "m"
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        try:
            with pytest.raises(StorageFailed, match="could not be"):
                store.append("m", tick_records(4, 4))
            with pytest.raises(StorageFailed, match="Read-only file system"):
                store.save(checkpoint(3))
            assert store.load("m", 0).lsn == 0
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        store.append("m", tick_records(4, 4))
        store.save(checkpoint(4))
        assert numbers(store.tail("m", 0)) == [1, 2, 3, 4]
        store.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match=r"file/data could not be opened: Not a directory"):
        SqliteStore(tmp_path / "file" / "data").open()


def test_a_journal_locked_by_another_program_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bptt.durability.files.BUSY_SECONDS", 0.01)
    with opened(tmp_path) as store:
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 1))
        path = tmp_path / "models" / "m" / "journal.sqlite3"
        with closing(sqlite3.connect(path, isolation_level=None)) as shell:
            shell.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageFailed, match="database is locked"):
                store.append("m", tick_records(2, 2))
        store.append("m", tick_records(2, 2))


# ---------------------------------------------------------------------- stale writers


def later_writer(folder: Path) -> None:
    """Open the journal as a second server does on a file system without working locks."""
    number = lock.next_epoch(folder, lock.last_epoch(folder), None)
    with closing(sqlite3.connect(folder / "models" / "m" / "journal.sqlite3")) as connection:
        connection.execute("UPDATE writer SET epoch = ?", (number,))
        connection.commit()


def test_a_stale_writer_cannot_commit(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 2))
        later_writer(tmp_path)
        writes: list[Callable[[], None]] = [
            lambda: store.append("m", tick_records(3, 3)),
            lambda: store.save(checkpoint(2)),
            lambda: store.save(checkpoint(0, "new")),
            lambda: store.delete("m"),
        ]
        for write in writes:
            with pytest.raises(StaleWriter, match="has a later writer: epoch 2, this is 1"):
                write()
        assert store.models() == ["m"]
        assert [each.lsn for each in store.checkpoints("m")] == [0]
    with opened(tmp_path) as store:
        assert numbers(store.tail("m", 0)) == [1, 2]


def test_a_writer_that_becomes_stale_while_it_writes_a_checkpoint_does_not_place_it(
    tmp_path: Path,
) -> None:
    def at(point: str) -> None:
        if point == "save.written" and armed:
            later_writer(tmp_path)

    armed = False
    with opened(tmp_path, at_point=at) as store:
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 2))
        armed = True
        with pytest.raises(StaleWriter):
            store.save(checkpoint(2))
        names = sorted(path.name for path in (tmp_path / "models" / "m").glob("checkpoint*"))
        assert names == ["checkpoint-000000000000.safetensors"]


# ---------------------------------------------------------------------- what is kept


def test_history_is_kept_up_to_a_bound(tmp_path: Path) -> None:
    with opened(tmp_path, kept=Kept(history_bytes=1 << 20)) as store:
        store.save(checkpoint(0))
        for last in range(100, 1100, 100):
            store.append(
                "m", [tick_record(number, steps=200) for number in range(last - 99, last + 1)]
            )
            store.save(checkpoint(last))
        first = next(number for number in range(1000) if is_there(store, number))
        assert 100 < first < 800, "some of the 2.4 MB are gone, but more than 800 needs is there"
        kept = (1000 - first) * 200 * 3 * 4
        assert (1 << 19) < kept < (1 << 20) + 100_000


def is_there(store: SqliteStore, after: int) -> bool:
    try:
        next(store.tail("m", after))
    except DataDamaged:
        return False
    return True


def test_a_folder_stays_within_its_bound_and_deletions_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "models" / "m"
    kept = Kept(model_bytes=1_000_000, history_bytes=1 << 20)
    with opened(tmp_path, kept=kept) as store, caplog.at_level(logging.WARNING):
        store.save(checkpoint(0, size=50_000, loss=0.1))  # 400 kB
        for last in range(10, 60, 10):
            store.append(
                "m", [tick_record(number, steps=50) for number in range(last - 9, last + 1)]
            )
            store.save(checkpoint(last, size=50_000, loss=1.0))
            assert [each.lsn for each in store.checkpoints("m")][-1] == last
            sizes = sum(path.stat().st_size for path in folder.glob("checkpoint*"))
            assert sizes <= 1_000_000
    assert "model m: checkpoints removed to stay within 1 MB: 0" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("checkpoints", 0), ("history_bytes", -1), ("model_bytes", 0), ("open_journals", 0)],
)
def test_invalid_bounds_are_refused(name: str, value: int) -> None:
    with pytest.raises(InvalidRequest, match=f"kept.{name} is {value}, but must be at least"):
        Kept(**{name: value})


def test_the_newest_checkpoint_is_kept_at_any_size(tmp_path: Path) -> None:
    with opened(tmp_path, kept=Kept(model_bytes=1000, history_bytes=0)) as store:
        store.save(checkpoint(0, size=10_000))
        store.append("m", tick_records(1, 5))
        store.append("m", [command(6, "restore", lsn=0)])
        store.save(checkpoint(6, size=10_000))
        assert [each.lsn for each in store.checkpoints("m")] == [6]
        assert numbers(store.tail("m", 6)) == []
        store.append("m", tick_records(7, 8))
        store.save(checkpoint(7, size=10_000))
        assert [each.lsn for each in store.checkpoints("m")] == [7]
        assert numbers(store.tail("m", 7)) == [8]


def test_a_journal_that_once_grew_large_becomes_small_again(tmp_path: Path) -> None:
    path = tmp_path / "models" / "m" / "journal.sqlite3"
    with opened(tmp_path, kept=Kept(checkpoints=1, history_bytes=0)) as store:
        store.save(checkpoint(0))
        store.append("m", [tick_record(number, steps=5000) for number in range(1, 501)])  # 30 MB
        store.save(checkpoint(500))
        store.append("m", tick_records(501, 501))
    assert path.stat().st_size < 10 << 20


def test_a_pruning_failure_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path, kept=Kept(checkpoints=1, history_bytes=0)) as store:
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 1))
        in_the_way = tmp_path / "models" / "m" / "checkpoint-000000000000.safetensors"
        in_the_way.unlink()
        in_the_way.mkdir()
        with caplog.at_level(logging.WARNING):
            store.save(checkpoint(1))
        assert "model m: old data was not removed" in caplog.text
        assert store.load("m", 1).lsn == 1


def test_without_a_journal_checkpoints_are_all_there_is(tmp_path: Path) -> None:
    with opened(tmp_path, "none") as store:
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 5))
        assert numbers(store.tail("m", 0)) == []
        store.save(checkpoint(5))
        assert numbers(store.tail("m", 5)) == []
    with opened(tmp_path, "full") as store:  # from now on there is a journal
        store.append("m", tick_records(6, 8))
        store.save(checkpoint(8))
        assert numbers(store.tail("m", 5)) == [6, 7, 8]
    with opened(tmp_path, "none") as store:  # and from now on there is none
        assert numbers(store.tail("m", 8)) == []
        store.save(checkpoint(20))
    with opened(tmp_path, "full") as store:
        assert numbers(store.tail("m", 20)) == []
        store.append("m", tick_records(21, 22))
        assert numbers(store.tail("m", 20)) == [21, 22]


def test_a_journal_that_ends_before_the_newest_checkpoint_begins_again_there(
    tmp_path: Path,
) -> None:
    """As after a power failure with durability `process`, whose checkpoints are synced."""
    with opened(tmp_path, "process") as store:
        store.save(checkpoint(0))
        store.append("m", tick_records(1, 9))
        store.save(checkpoint(9))
    with closing(sqlite3.connect(tmp_path / "models" / "m" / "journal.sqlite3")) as connection:
        connection.execute("DELETE FROM journal WHERE lsn > 4")
        connection.commit()
    with opened(tmp_path, "process") as store:
        assert numbers(store.tail("m", 9)) == []
        with pytest.raises(ValueError, match="lsn 12 cannot follow 4"):
            store.append("m", tick_records(12, 12))
        store.append("m", tick_records(10, 12))
        assert numbers(store.tail("m", 9)) == [10, 11, 12]


# ---------------------------------------------------------------------- many at once


def test_idle_journals_are_closed(tmp_path: Path) -> None:
    with opened(tmp_path, kept=Kept(open_journals=4)) as store:
        names = [f"m{index}" for index in range(12)]
        for turn in range(1, 4):
            for name in names:
                if turn == 1:
                    store.save(checkpoint(0, name))
                store.append(name, tick_records(turn, turn))
                assert open_files() <= 3 * 4
        assert all(numbers(store.tail(name, 0)) == [1, 2, 3] for name in names)


def open_files() -> int:
    """Files of journals that this process has open."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found += "journal.sqlite3" in os.readlink(link)
    return found


def test_models_and_checkpoints_are_written_side_by_side(tmp_path: Path) -> None:
    """Two threads for each model, one appends and one saves, with few open journals."""
    batches, failures = 40, []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - told below, in the test's own thread
                failures.append(error)

        return run

    with opened(tmp_path, kept=Kept(open_journals=2, history_bytes=0)) as store:

        def append(name: str, done: list[threading.Event]) -> None:
            for number in range(1, batches + 1):
                store.append(name, tick_records(10 * number - 9, 10 * number))
                done[number - 1].set()

        def save(name: str, done: list[threading.Event]) -> None:
            for number in range(1, batches + 1):
                assert done[number - 1].wait(60)
                store.save(checkpoint(10 * number, name))

        threads = []
        for index in range(4):
            name = f"m{index}"
            store.save(checkpoint(0, name))
            done = [threading.Event() for _ in range(batches)]
            for work in (append, save):
                target = guarded(lambda work=work, name=name, done=done: work(name, done))  # type: ignore[misc]
                threads.append(threading.Thread(target=target))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        for index in range(4):
            name = f"m{index}"
            assert [each.lsn for each in store.checkpoints(name)] == [380, 390, 400]
            assert numbers(store.tail(name, 380)) == list(range(381, 401))


# ---------------------------------------------------------------------- a process that ends

CHILD = """
import os, sys
from pathlib import Path
from bptt.config import Kept
from bptt.durability import SqliteStore
from tests.durability.support import checkpoint, tick_records

folder, point, nth = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
seen = 0

def at(name):
    global seen
    seen += name == point
    if seen == nth:
        os.kill(os.getpid(), 9)

store = SqliteStore(folder, "full", Kept(checkpoints=1, history_bytes=0), at)
store.open()
store.save(checkpoint(0))
print("saved 0", flush=True)
for number in range(1, 5):
    store.append("m", tick_records(10 * number - 9, 10 * number))
    print("committed", 10 * number, flush=True)
    store.save(checkpoint(10 * number))
    print("saved", 10 * number, flush=True)
store.delete("m")
print("deleted", flush=True)
"""


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_at_any_point_loses_no_committed_record(
    tmp_path: Path, point: str, nth: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), point, str(nth)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if point == "delete.renamed" and nth == 2:
        assert done.returncode == 0, "it comes there once"
    else:
        assert done.returncode == -9, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    committed = max((int(line[1]) for line in told if line[0] == "committed"), default=0)
    saved = max((int(line[1]) for line in told if line[0] == "saved"), default=-1)
    with opened(tmp_path, "full") as store:
        assert not list((tmp_path / "models").glob("*/*.aside"))
        if point == "delete.renamed":
            assert store.models() == []
            return
        assert store.models() == ["m"] if saved >= 0 else store.models() in ([], ["m"])
        for model_id in store.models():
            newest = store.checkpoints("m")[-1].lsn
            assert newest >= saved
            assert store.load(model_id, newest).lsn == newest
            found = numbers(store.tail(model_id, newest))
            last = newest + len(found)
            assert found == list(range(newest + 1, last + 1))
            assert last >= committed
            store.append(model_id, tick_records(last + 1, last + 3))
            assert numbers(store.tail(model_id, last + 1)) == [last + 2, last + 3]
            store.save(checkpoint(last + 3))
