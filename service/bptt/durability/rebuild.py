"""Writes a model's folder anew: from its whole parts, or from a copy of another store."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from bptt.durability import checkpoints, codec, commit_watermark, journal, reading
from bptt.durability.files import DISK, Disk, storage
from bptt.durability.layout import DAMAGED
from bptt.durability.store import ModelCopy, Record
from bptt.errors import DataDamaged, StorageFailed

REPAIRED = ".repaired"
"""Folder within a model's folder in which its new journal is written."""


def salvage(folder: Path, disk: Disk = DISK) -> Iterator[tuple[int, Record | str]]:
    """All records, in order: each is whole, or a description of its damage."""
    try:
        with reading.open_to_read(folder / reading.FILE, disk) as connection:
            for lsn, body in _rows(connection):
                if isinstance(body, str):
                    yield lsn, body
                    continue
                try:
                    yield lsn, codec.decode(lsn, body)
                except ValueError as error:
                    yield lsn, str(error)
    except (DataDamaged, StorageFailed):
        return  # there is no journal at all; `problems` says so


_FAULTS = (sqlite3.Error, UnicodeDecodeError)  # the second: sqlite3 decodes texts


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[int, bytes | str]]:
    """Rows in order; for one on a page that SQLite cannot read, its error message."""
    last = None
    with contextlib.suppress(*_FAULTS):
        for lsn, body in connection.execute("SELECT rowid, body FROM journal ORDER BY rowid"):
            yield lsn, body if isinstance(body, bytes) else "it is no blob"
            last = lsn
        return
    with contextlib.suppress(*_FAULTS):
        (highest,) = connection.execute("SELECT max(rowid) FROM journal").fetchone()
        first = 0 if last is None else last
        # One by one: each look-up goes to a page of its own, and only some of them are damaged.
        for lsn in range(first + 1, min(highest or 0, first + SALVAGED_ONE_BY_ONE) + 1):
            try:
                row = connection.execute("SELECT body FROM journal WHERE rowid = ?", (lsn,))
                for (body,) in row.fetchall():
                    yield lsn, body if isinstance(body, bytes) else "it is no blob"
            except _FAULTS as error:
                yield lsn, str(error)


SALVAGED_ONE_BY_ONE = 10_000_000
"""Numbers that are looked up at most, some minutes' work: a damaged one may be anything."""


def take_out(
    folder: Path, damaged: Sequence[int], keep: tuple[int, int] | None, disk: Disk = DISK
) -> list[Path]:
    """Move damage to the folder `damaged`: see `StoreTools.repair`.

    After an interruption the folder `damaged` holds what is missing.

    Raises:
        StorageFailed: something could not be written.
    """
    moved = []
    with storage("written", folder):
        attic = folder / DAMAGED
        disk.make_folder(attic)
        for lsn in damaged:
            moved.append(_move(checkpoints.path_of(folder, lsn), attic, disk))
    if keep is not None:
        moved += _new_journal(folder, keep, attic, disk)
    with storage("written", folder):
        disk.sync_folder(attic)
        disk.sync_folder(folder)
    return moved


def _new_journal(folder: Path, keep: tuple[int, int], attic: Path, disk: Disk) -> list[Path]:
    """Write the records that are kept to a new journal, and put it in the place of the old."""
    after, to = keep
    fresh = folder / REPAIRED
    with storage("written", fresh):
        if fresh.exists():  # left by a repair that was interrupted
            disk.remove_tree(fresh)
        disk.make_folder(fresh)
    kept = (
        (lsn, codec.encode(record), record)
        for lsn, record in salvage(folder, disk)
        if after < lsn <= to and isinstance(record, Record)
    )
    _write_journal(fresh, after, kept, disk)
    with storage("written", folder):
        moved = []
        for name in (f"{reading.FILE}-wal", f"{reading.FILE}-shm", reading.FILE):
            if (folder / name).exists():
                moved.append(_move(folder / name, attic, disk))
        commit_watermark.write(folder, to, synced=True, disk=disk)
        disk.rename(fresh / reading.FILE, folder / reading.FILE)
        disk.remove_tree(fresh)
    return moved


def _write_journal(
    folder: Path, base: int, rows: Iterator[tuple[int, bytes, Record | None]], disk: Disk
) -> None:
    """Create a journal that any writer may take over, and sync it."""
    journal.create(folder, epoch=0, base=base, disk=disk)
    opened = journal.Journal(folder, epoch=0, synced=True, disk=disk)
    try:
        with opened.transaction():
            for lsn, data, record in rows:
                if record is not None:
                    opened.insert([(record, data)])
                else:
                    opened.insert_rows([(lsn, data)], [])
    finally:
        opened.close()  # which moves the log into the file and syncs it


def receive(folder: Path, copy: ModelCopy, disk: Disk = DISK) -> int:
    """Write a copy of a model to a new folder, and sync it.

    Returns:
        How many bytes it takes.

    Raises:
        DataDamaged: the copy's journal cannot be read.
        StorageFailed: something could not be written.
    """
    with storage("written", folder):
        disk.make_folder(folder)
    _write_journal(folder, copy.base, _decoded(copy), disk)
    with storage("written", folder):
        commit_watermark.write(folder, copy.last, synced=True, disk=disk)
        for lsn, pieces in copy.checkpoints.items():
            disk.write(checkpoints.path_of(folder, lsn), pieces())
        disk.sync_folder(folder)
        return sum(each.stat().st_size for each in folder.iterdir())


def _decoded(copy: ModelCopy) -> Iterator[tuple[int, bytes, Record | None]]:
    """Records with their bytes. A damaged one is copied as it is; `bptt verify` finds it."""
    for lsn, data in copy.records():
        try:
            yield lsn, data, codec.decode(lsn, data)
        except ValueError:
            yield lsn, data, None


def _move(path: Path, attic: Path, disk: Disk) -> Path:
    """Move a file to a name in a folder that no file there has yet."""
    target = attic / path.name
    number = 1
    while target.exists():
        number += 1
        target = attic / f"{path.name}.{number}"
    disk.rename(path, target)
    return target
