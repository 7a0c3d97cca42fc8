"""One model's journal: a table of records in SQLite.

    models/NAME/journal.sqlite3     journal(tick, body), and who may write to it
    models/NAME/committed           number of the last committed record

SQLite checks the order of its own writes, not the bits of its pages: each record has a checksum
(`codec`), numbers may have no gap, and the file `committed` tells when the end of the journal is
missing, as it is when a write-ahead log is cut, damaged or deleted, which SQLite takes for a crash.

Settings, and why:
- Write-ahead log: a commit is one write and one sync, and others can read (a backup) meanwhile.
- locking_mode NORMAL, for the same reader; a lock on the data folder keeps other writers out.
- synchronous FULL syncs each commit, NORMAL leaves that to the operating system: a process that
  is killed loses nothing, a machine that stops may lose the last commits.
- Pages of 16 KB: a record of 2 KB wastes 10 % of a page, with 4 KB pages 96 %; commits take the
  same time.
- auto_vacuum INCREMENTAL: a journal that once grew large can be made small again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from service.durability import codec
from service.durability.store import Command, Record
from service.errors import DataDamaged, StaleWriter, StorageFailed

log = logging.getLogger(__name__)

FILE = "journal.sqlite3"
COMMITTED = "committed"

APPLICATION_ID = 0x62707474  # "bptt": what `file` and SQLite's tools tell it by
SCHEMA_VERSION = 1

PAGE_BYTES = 16_384
LOG_BYTES_MAX = 16 << 20  # to which a write-ahead log is cut once a burst is over
BUSY_SECONDS = 5.0  # for a shell that somebody opened on the file; our own never wait
DELETED_ROWS = 128  # at once, so that a commit waits milliseconds for it, not for all of them
FREED_PAGES = 256  # 4 MB given back to the file system at once

GO_BACK = ("restore", "roll_back")
"""Commands that name a checkpoint, as `ticks`, without which they cannot be replayed."""

_SCHEMA = """
CREATE TABLE writer (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL,
    base INTEGER NOT NULL
);
CREATE TABLE journal (tick INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE needs (tick INTEGER PRIMARY KEY, checkpoint INTEGER NOT NULL);
"""

_STATE = "SELECT epoch, base, (SELECT max(tick) FROM journal) FROM writer"

_MARK = struct.Struct("<qB3x")
_SYNCED = 1


def create(folder: Path, epoch: int, base: int) -> None:
    """Make an empty journal in a model's folder, whose first record will be `base` + 1.

    Raises:
        StorageFailed: it could not be made.
    """
    path = folder / FILE
    with errors(path, "written"), contextlib.closing(_connect(path, "rwc")) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_SCHEMA)
        connection.execute("INSERT INTO writer VALUES (1, ?, ?)", (epoch, base))


class Journal:
    """A journal that is open for writing. One thread at a time.

    Args:
        folder: the model's.
        epoch: the writer's; any writer of a lower one can commit no more from here on.
        synced: whether a commit waits until the disk has it.

    Raises:
        DataDamaged: the file is missing or is no journal.
        StaleWriter: a later writer has had it.
        StorageFailed: it cannot be opened or written.
    """

    def __init__(self, folder: Path, epoch: int, *, synced: bool) -> None:
        self.path = folder / FILE
        self._epoch = epoch
        self._synced = synced
        self._mark: int | None = None
        if not self.path.is_file():
            raise DataDamaged(f"{self.path} is missing")
        with errors(self.path, "opened"):
            self._connection = _connect(self.path, "rw")
            try:
                _check_schema(self._connection, self.path)
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
                self._connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_MAX}")
                self._claim()
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._mark = os.open(folder / COMMITTED, flags, 0o644)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close its files."""
        with contextlib.suppress(sqlite3.Error):  # what was committed is committed
            self._connection.close()
        if self._mark is not None:
            os.close(self._mark)
            self._mark = None

    def _claim(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            (before,) = self._connection.execute("SELECT epoch FROM writer").fetchone()
            if before > self._epoch:
                raise self._stale(before)
            if before < self._epoch:
                self._connection.execute("UPDATE writer SET epoch = ?", (self._epoch,))
            self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _stale(self, later: int) -> StaleWriter:
        return StaleWriter(f"{self.path} has a later writer: epoch {later}, this is {self._epoch}")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[tuple[int, int]]:
        """A transaction of this writer, committed when its body ends. Gives base and last tick.

        `base` is the number before the first record that is kept.

        Raises:
            StaleWriter: a later writer has had the journal; nothing was changed.
            StorageFailed: it could not be committed; nothing was changed.
        """
        with errors(self.path, "written"):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                epoch, base, last = self._connection.execute(_STATE).fetchone()
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
        """Put records and their bytes behind the last."""
        rows = [(record.tick, data) for record, data in records]
        self._connection.executemany("INSERT INTO journal VALUES (?, ?)", rows)
        for record, _ in records:
            if isinstance(record.body, Command) and record.body.name in GO_BACK:
                row = (record.tick, record.body.arguments["ticks"])
                self._connection.execute("INSERT INTO needs VALUES (?, ?)", row)

    def stored(self, first: int, last: int) -> list[bytes]:
        """The bytes of the records from one number to another, both included."""
        rows = self._connection.execute(
            "SELECT body FROM journal WHERE tick BETWEEN ? AND ? ORDER BY tick", (first, last)
        )
        return [body for (body,) in rows]

    def begin_again(self, base: int) -> None:
        """Let go of all records: the next one will be `base` + 1."""
        self._connection.execute("DELETE FROM journal")
        self._connection.execute("DELETE FROM needs")
        self._connection.execute("UPDATE writer SET base = ?", (base,))

    def trim(self, before: int) -> bool:
        """Let go of some of the oldest records up to `before`. True: there are more of them."""
        (base,) = self._connection.execute("SELECT base FROM writer").fetchone()
        upto = min(before, base + DELETED_ROWS)
        if upto <= base:
            return False
        for table in ("journal", "needs"):
            self._connection.execute(f"DELETE FROM {table} WHERE tick <= ?", (upto,))
        self._connection.execute("UPDATE writer SET base = ?", (upto,))
        return bool(upto < before)

    # ------------------------------------------------------------------ beside transactions

    def mark(self, tick: int) -> None:
        """Note that this record is committed, which lets a reader see if it is gone."""
        assert self._mark is not None
        with contextlib.suppress(OSError):  # the commit stands; only this further check is missed
            os.pwrite(self._mark, _mark(tick, synced=self._synced), 0)

    def needs(self) -> list[tuple[int, int]]:
        """Ticks of commands that go back to a checkpoint, and the checkpoint's."""
        with errors(self.path, "read"):
            rows = self._connection.execute("SELECT tick, checkpoint FROM needs").fetchall()
        return [(tick, checkpoint) for tick, checkpoint in rows]

    def used_bytes(self) -> int:
        """What the records take."""
        total, free = self._pages()
        return (total - free) * PAGE_BYTES

    def shrink(self) -> bool:
        """Give some unused space back, if that is most of the file. True: there is more."""
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


# ---------------------------------------------------------------------- reading


def read(folder: Path, after: int) -> Iterator[Record]:
    """The records of a model's journal behind number `after`, in order. Changes nothing.

    Raises:
        DataDamaged: a record is missing or damaged; all before it were given.
        StorageFailed: the file cannot be read.
    """
    path = folder / FILE
    last = after
    with open_to_read(path) as connection, errors(path, "read"):
        _, base, newest = connection.execute(_STATE).fetchone()
        if base > after:
            if newest is None and _committed(folder) <= after:
                return  # nothing was journaled behind `after`, with durability "none"
            raise DataDamaged(f"{path} has no tick {after + 1}: it begins with {base + 1}")
        query = "SELECT tick, body FROM journal WHERE tick > ? ORDER BY tick"
        for tick, body in connection.execute(query, (after,)):
            if tick != last + 1:
                raise DataDamaged(f"{path} has no tick {last + 1}: {tick} follows {last}")
            try:
                record = codec.decode(tick, body)
            except ValueError as error:
                raise DataDamaged(f"{path} is damaged at tick {tick}: {error}") from error
            yield record
            last = tick
    check_end(folder, last)


def _committed(folder: Path) -> int:
    """The last record that is known to have been committed; 0 where that is not known."""
    try:
        mark = read_mark(folder)
    except ValueError:
        return 0
    return 0 if mark is None else mark[0]


def check_end(folder: Path, last: int) -> None:
    """Look whether the end of a journal is there.

    Raises:
        DataDamaged: a later record than `last` was committed.
    """
    path = folder / FILE
    try:
        mark = read_mark(folder)
    except ValueError as error:
        log.warning("%s is damaged (%s); whether %s is whole is not known", COMMITTED, error, path)
        return
    if mark is None or mark[0] <= last:
        return
    tick, synced = mark
    if synced:
        raise DataDamaged(f"{path} has no tick {last + 1}: it ends, but {tick} was committed")
    # Not damage, but what durability "process" promises where the machine stopped.
    log.warning("%s ends with tick %d; %d was committed, but not synced", path, last, tick)


def read_mark(folder: Path) -> tuple[int, bool] | None:
    """Number of the last committed record, and whether it was synced; None: none was.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        data = (folder / COMMITTED).read_bytes()
    except FileNotFoundError:
        return None
    if not data:
        return None
    if len(data) != _MARK.size + 4 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum does not fit")
    tick, flags = _MARK.unpack_from(data)
    return tick, bool(flags & _SYNCED)


def write_mark(folder: Path, tick: int, *, synced: bool) -> None:
    """Note the last committed record of a journal that is not open."""
    (folder / COMMITTED).write_bytes(_mark(tick, synced=synced))


def _mark(tick: int, *, synced: bool) -> bytes:
    data = _MARK.pack(tick, _SYNCED if synced else 0)
    return data + zlib.crc32(data).to_bytes(4, "little")


@contextlib.contextmanager
def open_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write.

    Raises:
        DataDamaged: the file is missing or is no journal.
        StorageFailed: it cannot be read.
    """
    if not path.is_file():
        raise DataDamaged(f"{path} is missing")
    # In a folder that cannot be written SQLite has no place for the index of a write-ahead log.
    # Where there is no log either, it may be told that nobody writes.
    alone = not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists()
    with errors(path, "read"):
        connection = _connect(path, "ro&immutable=1" if alone else "ro")
    try:
        with errors(path, "read"):
            _check_schema(connection, path)
        yield connection
    finally:
        connection.close()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,  # transactions are begun and ended in so many words
        check_same_thread=False,  # one at a time, which its owner sees to
        timeout=BUSY_SECONDS,
    )


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if (application, version) != (APPLICATION_ID, SCHEMA_VERSION):
        found = f"application {application:#x}, version {version}"
        raise DataDamaged(f"{path} is no journal that this program reads: {found}")
    if connection.execute("SELECT count(*) FROM writer").fetchone() != (1,):
        raise DataDamaged(f"{path} is damaged: nobody may write to it")


# ---------------------------------------------------------------------- errors

_NUMBERS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_READONLY: errno.EACCES,
}
"""SQLite has its own words; what people look for is the operating system's."""

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""A table or column that is missing is SQLITE_ERROR: our own statements are right."""


@contextlib.contextmanager
def errors(path: Path, done: str) -> Iterator[None]:
    """Give SQLite's errors, and the operating system's, the names of the service's.

    Raises:
        DataDamaged: SQLite found that the file is not what it wrote.
        StorageFailed: the file could not be `done` (read, written, …).
    """
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        raise _named(path, done, error) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageFailed(f"{path} could not be {done}: {reason}") from error


def _named(path: Path, done: str, error: sqlite3.Error) -> DataDamaged | StorageFailed:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the kind of error
    if code in _DAMAGE:
        return DataDamaged(f"{path} is damaged: {error}")
    if code not in _NUMBERS:
        return StorageFailed(f"{path} could not be {done}: {error}")
    number = _NUMBERS[code]
    if code == sqlite3.SQLITE_READONLY and _read_only(path):
        number = errno.EROFS
    name = getattr(error, "sqlite_errorname", "")
    return StorageFailed(f"{path} could not be {done}: {os.strerror(number)} ({name})")


def _read_only(path: Path) -> bool:
    """Whether the whole file system is."""
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False
