"""How a journal is read, and what SQLite's errors are called. Nothing here writes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from bptt.durability import codec, commit_watermark
from bptt.durability.files import failed
from bptt.durability.store import Record
from bptt.errors import DataDamaged, StorageFailed

log = logging.getLogger(__name__)

FILE = "journal.sqlite3"

APPLICATION_ID = 0x62707474  # "bptt": what `file` and SQLite's tools tell it by
SCHEMA_VERSION = 1

BUSY_SECONDS = 5.0  # for a shell that somebody opened on the file; our own never wait

STATE = "SELECT epoch, base, (SELECT max(tick) FROM journal) FROM writer"


def read(folder: Path, after: int) -> Iterator[Record]:
    """The records of a model's journal behind number `after`, in order. Changes nothing.

    Raises:
        DataDamaged: a record is missing or damaged; all before it were given.
        StorageFailed: the file cannot be read.
    """
    path = folder / FILE
    marked = commit_watermark.read_if_whole(
        folder
    )  # before the journal: whoever writes meanwhile is not behind it
    last = after
    with open_to_read(path) as connection, errors(path, "read"):
        _, base, newest = connection.execute(STATE).fetchone()
        if base > after:
            if newest is None and (marked is None or marked[0] <= after):
                return  # nothing was journaled behind `after`, with durability "none"
            raise DataDamaged(f"{path} has no tick {after + 1}: it begins with {base + 1}")
        query = "SELECT tick, body FROM journal WHERE tick > ? ORDER BY tick"
        for lsn, body in connection.execute(query, (after,)):
            if lsn != last + 1:
                raise DataDamaged(f"{path} has no tick {last + 1}: {lsn} follows {last}")
            try:
                record = codec.decode(lsn, body)
            except ValueError as error:
                raise DataDamaged(f"{path} is damaged at tick {lsn}: {error}") from error
            yield record
            last = lsn
    if marked is None or marked[0] <= last:
        return
    committed, synced = marked
    if synced:
        raise DataDamaged(f"{path} has no tick {last + 1}: it ends, but {committed} was committed")
    # Not damage, but what durability "process" promises where the machine stopped.
    log.warning("%s ends with tick %d; %d was committed, but not synced", path, last, committed)


def span(folder: Path) -> tuple[int, int]:
    """The numbers of a journal's first record, less one, and of its last.

    Raises:
        DataDamaged: it is missing or is no journal.
        StorageFailed: it cannot be read.
    """
    path = folder / FILE
    with open_to_read(path) as connection, errors(path, "read"):
        _, base, newest = connection.execute(STATE).fetchone()
    return base, base if newest is None else newest


def integrity(folder: Path) -> list[str]:
    """What SQLite finds wrong with the journal's pages; empty if nothing.

    Raises:
        DataDamaged: it is missing or is no journal.
        StorageFailed: it cannot be read.
    """
    path = folder / FILE
    with open_to_read(path) as connection, errors(path, "read"):
        rows = connection.execute("PRAGMA integrity_check(10)").fetchall()
    return [] if rows == [("ok",)] else [f"{path} is damaged: {text}" for (text,) in rows]


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
        connection = connect(path, "ro&immutable=1" if alone else "ro")
    try:
        with errors(path, "read"):
            check_schema(connection, path)
        yield connection
    finally:
        connection.close()


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection in one of SQLite's modes: ro, rw, rwc."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,  # transactions are begun and ended in so many words
        check_same_thread=False,  # one at a time, which its owner sees to
        timeout=BUSY_SECONDS,
    )


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Look whether a file is a journal of this version.

    Raises:
        DataDamaged: it is not.
    """
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
        raise failed(done, path, error) from error


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
    return failed(done, path, OSError(number, f"{os.strerror(number)} ({name})"))


def _read_only(path: Path) -> bool:
    """Whether the whole file system is."""
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False
