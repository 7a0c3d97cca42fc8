"""One model's journal: a table of records in SQLite.

    models/NAME/journal.sqlite3     journal(lsn, body), and the epoch of its writer
    models/NAME/committed           number of the last committed record: see `commit_watermark`

SQLite checks the order of its own writes, not the bits of its pages: each record has a checksum
(`codec`), numbers may have no gap, and the file `committed` shows when the end of the journal is
missing. It is missing when a write-ahead log was cut, damaged or deleted, which SQLite takes for a
crash.

Settings, and why:
- Write-ahead log: a commit is one write and one sync, and others can read (a backup) meanwhile.
- locking_mode NORMAL, for the same reader; a lock on the data folder keeps other writers out.
- synchronous FULL syncs each commit, NORMAL leaves that to the operating system: a process that
  is killed loses nothing, a machine that stops may lose the last commits.
- Pages of 16 KB: a record of 2,150 bytes takes 2,376 of the file, with 4 KB pages 4,119; commits
  take the same time.
- auto_vacuum INCREMENTAL: a journal that once grew large can be made small again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from bptt.durability import commit_watermark
from bptt.durability.files import DISK, Disk
from bptt.durability.reading import (
    APPLICATION_ID,
    check_schema,
    counts,
    errors,
    FILE,
    SCHEMA,
    SCHEMA_VERSION,
    state,
)
from bptt.durability.store import Command, GO_BACK, Record
from bptt.errors import DataDamaged, StaleWriter

PAGE_BYTES = 16_384
LOG_PAGES = 1000  # of the write-ahead log, 16 MB, before it is moved into the file
LOG_BYTES_MAX = 16 << 20  # to which a write-ahead log is cut once a burst is over
DELETED_ROWS = 128  # at once, so that a commit waits milliseconds for it, not for all of them
FREED_PAGES = 256  # 4 MB given back to the file system at once

_FROM_VERSION_1 = (
    "ALTER TABLE journal RENAME COLUMN tick TO lsn",
    "ALTER TABLE needs RENAME COLUMN tick TO lsn",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)


def create(folder: Path, epoch: int, base: int, disk: Disk = DISK) -> None:
    """Create an empty journal in a model's folder, whose first record will be `base` + 1.

    Raises:
        StorageFailed: it could not be made.
    """
    path = folder / FILE
    with errors(path, "written"):
        with contextlib.closing(disk.connect(path, "rwc")) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # once, in the end, is enough
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute("INSERT INTO writer VALUES (1, ?, ?)", (epoch, base))
            connection.execute("COMMIT")
        disk.sync_file(path)


class Journal:
    """A journal that is open for writing. One thread at a time.

    Args:
        folder: the model's.
        epoch: the writer's; any writer of a lower one can commit no more from here on.
        synced: whether a commit waits until the disk has it.
        disk: opens the files and writes them.

    Raises:
        DataDamaged: the file is missing or is no journal.
        StaleWriter: a later writer has had it.
        StorageFailed: it cannot be opened or written.
    """

    def __init__(self, folder: Path, epoch: int, *, synced: bool, disk: Disk = DISK) -> None:
        self.path = folder / FILE
        self._disk = disk
        self._watermark_path = folder / commit_watermark.FILE
        self._epoch = epoch
        self._synced = synced
        self._watermark: int | None = None
        if not self.path.is_file():
            raise DataDamaged(f"{self.path} is missing")
        with errors(self.path, "opened"):
            self._connection = disk.connect(self.path, "rw")
            try:
                version = check_schema(self._connection, self.path)
                # The claim need not be synced: it is, with the first commit behind it.
                self._connection.execute("PRAGMA synchronous = NORMAL")
                self._connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_MAX}")
                self._connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
                self._claim(version)
                if synced:
                    self._connection.execute("PRAGMA synchronous = FULL")
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._watermark = os.open(self._watermark_path, flags, 0o644)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close its files."""
        with contextlib.suppress(sqlite3.Error):  # what was committed is committed
            self._connection.close()
        if self._watermark is not None:
            os.close(self._watermark)
            self._watermark = None

    def _claim(self, version: int) -> None:
        """Take the journal from earlier writers, and bring it to this version's format."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            before = state(self._connection, self.path).epoch
            if before > self._epoch:
                raise self._stale(before)
            if before < self._epoch:
                self._connection.execute("UPDATE writer SET epoch = ?", (self._epoch,))
            if version == 1:
                for statement in _FROM_VERSION_1:
                    self._connection.execute(statement)
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _stale(self, later: int) -> StaleWriter:
        return StaleWriter(f"{self.path} has a later writer: epoch {later}, this is {self._epoch}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[tuple[int, int]]:
        """A transaction of this writer, committed when its body ends.

        Returns:
            Number of the first record that is kept, less one, and of the last.

        Raises:
            StaleWriter: a later writer has had the journal; nothing was changed.
            StorageFailed: it could not be committed; nothing was changed.
        """
        with errors(self.path, "written"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                epoch, base, last = state(self._connection, self.path)
                if epoch != self._epoch:
                    raise self._stale(epoch)
                yield base, base if last is None else last
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # SQLite may have done it by itself
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    # ------------------------------------------------------------------ within a transaction

    def insert(self, records: Sequence[tuple[Record, bytes]]) -> None:
        """Add records, given with their bytes, behind the last."""
        needs = [
            (record.lsn, record.body.arguments["lsn"])
            for record, _ in records
            if isinstance(record.body, Command) and record.body.name in GO_BACK
        ]
        self.insert_rows([(record.lsn, data) for record, data in records], needs)

    def insert_rows(
        self, rows: Sequence[tuple[int, bytes]], needs: Sequence[tuple[int, int]]
    ) -> None:
        """Add encoded records behind the last.

        Args:
            rows: number and bytes of each.
            needs: number of each that goes back to a checkpoint, and the checkpoint's lsn.
        """
        self._connection.executemany("INSERT INTO journal VALUES (?, ?)", rows)
        if needs:
            self._connection.executemany("INSERT INTO needs VALUES (?, ?)", needs)

    def stored(self, first: int, last: int) -> list[bytes]:
        """The bytes of the records from one number to another, both included."""
        rows = self._connection.execute(
            "SELECT body FROM journal WHERE rowid BETWEEN ? AND ? ORDER BY rowid", (first, last)
        )
        return [body for (body,) in rows]

    def begin_again(self, base: int) -> None:
        """Delete all records: the next one will be `base` + 1."""
        self._connection.execute("DELETE FROM journal")
        self._connection.execute("DELETE FROM needs")
        self._connection.execute("UPDATE writer SET base = ?", (base,))

    def trim(self, before: int) -> bool:
        """Delete some of the oldest records up to `before`. True: there are more of them."""
        base = state(self._connection, self.path).base
        upto = min(before, base + DELETED_ROWS)
        if upto <= base:
            return False
        for table in ("journal", "needs"):
            self._connection.execute(f"DELETE FROM {table} WHERE rowid <= ?", (upto,))
        self._connection.execute("UPDATE writer SET base = ?", (upto,))
        return bool(upto < before)

    # ------------------------------------------------------------------ beside transactions

    def set_watermark(self, lsn: int) -> None:
        """Write the watermark of this committed record: a reader then notices if it is missing."""
        assert self._watermark is not None
        data = commit_watermark.encode(lsn, synced=self._synced)
        with contextlib.suppress(OSError):  # the commit stands; only this further check is missed
            self._disk.overwrite(self._watermark, self._watermark_path, data)

    def needs(self) -> list[tuple[int, int]]:
        """The lsn of each command that goes back to a checkpoint, and the checkpoint's."""
        with errors(self.path, "read"):
            rows = self._connection.execute("SELECT rowid, checkpoint FROM needs").fetchall()
            found = counts(rows, self.path, "needs")
        return [(lsn, checkpoint) for lsn, checkpoint in found]

    def used_bytes(self) -> int:
        """Bytes of the database's pages in use."""
        total, free = self._pages()
        return (total - free) * PAGE_BYTES

    def shrink(self) -> bool:
        """Give some unused space back, if most of the file is unused. True: there is more."""
        total, free = self._pages()
        if free <= max(total // 2, FREED_PAGES):
            return False
        with errors(self.path, "written"):
            self._connection.execute(f"PRAGMA incremental_vacuum({FREED_PAGES})").fetchall()
        return True

    def _pages(self) -> tuple[int, int]:
        with errors(self.path, "read"):
            (total,) = self._connection.execute("PRAGMA page_count").fetchone()
            (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return total, free
