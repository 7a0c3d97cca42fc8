"""How a journal is read, and what SQLite's errors are called. Nothing here writes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bptt.durability import codec, commit_watermark
from bptt.durability.files import DISK, Disk, failed
from bptt.durability.store import Record
from bptt.errors import DataDamaged, StorageFailed

log = logging.getLogger(__name__)

FILE = "journal.sqlite3"

APPLICATION_ID = 0x62707474  # "bptt": how `file` and SQLite's tools recognise it
SCHEMA_VERSION = 2
SCHEMA_VERSIONS = (1, SCHEMA_VERSION)
"""Versions that are read. Version 1 calls the columns `lsn` `tick`; a writer renames them. Queries
call the column `rowid`, which is its name in both."""

WRITE_VERSION = 18  # byte of SQLite's header; "Database File Format", section 1.3.3
WRITE_VERSIONS = (1, 2)  # a rollback journal, a write-ahead log

SCHEMA = (
    """CREATE TABLE writer (
        one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, base INTEGER NOT NULL
    )""",
    "CREATE TABLE journal (lsn INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE needs (lsn INTEGER PRIMARY KEY, checkpoint INTEGER NOT NULL)",
)

_INTEGERS = 1 << 63


class State(NamedTuple):
    """The writer of a journal, and the records that it holds."""

    epoch: int
    base: int
    """Number of the first record, less one."""
    last: int | None
    """Number of the last record; None: there is none."""


def state(connection: sqlite3.Connection, path: Path) -> State:
    """Read a journal's state.

    Raises:
        DataDamaged: its row is missing or holds something else than whole numbers.
    """
    row = connection.execute(
        "SELECT epoch, base, (SELECT max(rowid) FROM journal) FROM writer"
    ).fetchone()
    if row is None:
        raise DataDamaged(f"{path} is damaged: its table 'writer' has no row")
    epoch, base, last = row
    if not (_is_count(epoch) and _is_count(base) and (last is None or _is_count(last))):
        raise DataDamaged(f"{path} is damaged: its table 'writer' holds {row!r}")
    return State(epoch, base, last)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _INTEGERS


def counts(rows: list[tuple[object, ...]], path: Path, table: str) -> list[tuple[int, ...]]:
    """Rows that must hold whole numbers.

    Raises:
        DataDamaged: one does not.
    """
    found: list[tuple[int, ...]] = []
    for row in rows:
        if not all(map(_is_count, row)):
            raise DataDamaged(f"{path} is damaged: its table {table!r} holds {row!r}")
        found.append(tuple(each for each in row if isinstance(each, int)))
    return found


def read(folder: Path, after: int, disk: Disk = DISK) -> Iterator[Record]:
    """The records of a model's journal behind number `after`, in order. Changes nothing.

    Raises:
        DataDamaged: a record is missing or damaged; all before it were given.
        StorageFailed: the file cannot be read.
    """
    path = folder / FILE
    # Read before the journal, so that commits during this read are not taken for a lost end.
    watermark = commit_watermark.read_if_whole(folder)
    last = after
    with open_to_read(path, disk) as connection, errors(path, "read"):
        found = state(connection, path)
        if found.base > after:
            if found.last is None and (watermark is None or watermark[0] <= after):
                return  # nothing was journaled behind `after`, with durability "none"
            raise DataDamaged(f"{path} has no lsn {after + 1}: it begins with {found.base + 1}")
        query = "SELECT rowid, body FROM journal WHERE rowid > ? ORDER BY rowid"
        for lsn, body in connection.execute(query, (after,)):
            if lsn != last + 1:
                raise DataDamaged(f"{path} has no lsn {last + 1}: {lsn} follows {last}")
            try:
                record = codec.decode(lsn, body)
            except ValueError as error:
                raise DataDamaged(f"{path} is damaged at lsn {lsn}: {error}") from error
            yield record
            last = lsn
    if watermark is None or watermark[0] <= last:
        return
    committed, synced = watermark
    if synced:
        raise DataDamaged(f"{path} has no lsn {last + 1}: it ends, but {committed} was committed")
    # Not damage: with durability "process" a machine that stops may lose its last commits.
    log.warning("%s ends with lsn %d; %d was committed, but not synced", path, last, committed)


def span(folder: Path, disk: Disk = DISK) -> tuple[int, int]:
    """The numbers of a journal's first record, less one, and of its last.

    Raises:
        DataDamaged: it is missing or is no journal.
        StorageFailed: it cannot be read.
    """
    path = folder / FILE
    with open_to_read(path, disk) as connection, errors(path, "read"):
        found = state(connection, path)
    return found.base, found.base if found.last is None else found.last


def problems(folder: Path, epoch: int, disk: Disk = DISK) -> list[str]:
    """What is wrong with the journal's pages and its writer; empty if nothing.

    Args:
        folder: the model's.
        epoch: of the data folder's last writer.
        disk: opens the journal.

    Raises:
        DataDamaged: it is missing or is no journal.
        StorageFailed: it cannot be read.
    """
    path = folder / FILE
    with open_to_read(path, disk) as connection, errors(path, "read"):
        found = state(connection, path)
        rows = connection.execute("PRAGMA integrity_check(10)").fetchall()
        needs = connection.execute("SELECT rowid, checkpoint FROM needs").fetchall()
        counts(needs, path, "needs")
        tables = connection.execute("SELECT CAST(sql AS BLOB) FROM sqlite_schema").fetchall()
    said = [] if rows == [("ok",)] else [f"{path} is damaged: {text}" for (text,) in rows]
    # SQLite reads a table whose definition is damaged, and then refuses to write to it.
    if sorted(_definition(sql) for (sql,) in tables) != sorted(each.encode() for each in SCHEMA):
        said.append(f"{path} is damaged: the definitions of its tables are not those of a journal")
    with errors(path, "read"), path.open("rb") as file:
        version = file.read(WRITE_VERSION + 1)[WRITE_VERSION]
    if version not in WRITE_VERSIONS:  # SQLite reads the file, and refuses to write to it
        said.append(
            f"{path} is damaged: its header's write version is {version}, but must be 1 or 2"
        )
    if found.epoch > epoch:
        said.append(
            f"{path} is damaged: its writer's epoch is {found.epoch}, but must be at most {epoch}, "
            "the data folder's"
        )
    return said


def _definition(sql: bytes | None) -> bytes:
    """A table's definition as version 2 writes it."""
    return (sql or b"").replace(b'"', b"").replace(b"(tick ", b"(lsn ")


@contextlib.contextmanager
def open_to_read(path: Path, disk: Disk = DISK) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write.

    Raises:
        DataDamaged: the file is missing or is no journal.
        StorageFailed: it cannot be read.
    """
    if not path.is_file():
        raise DataDamaged(f"{path} is missing")
    # SQLite needs a file for the index of a write-ahead log, which it cannot create in a folder
    # that is not writable. Where there is no log either, it may take the file for immutable.
    immutable = not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists()
    with errors(path, "read"):
        connection = disk.connect(path, "ro&immutable=1" if immutable else "ro")
    try:
        with errors(path, "read"):
            check_schema(connection, path)
        yield connection
    finally:
        connection.close()


def check_schema(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a journal.

    Raises:
        DataDamaged: the file is no journal, or of a version that is not read.
    """
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version")
    )
    if application != APPLICATION_ID:
        raise DataDamaged(
            f"{path} is no journal: its application_id is {application:#x}, but must be "
            f"{APPLICATION_ID:#x}"
        )
    if version not in SCHEMA_VERSIONS:
        raise DataDamaged(
            f"{path} has format {version}, but this version of bptt reads "
            f"{' and '.join(map(str, SCHEMA_VERSIONS))}; use the version of bptt that wrote it, or "
            "a later one"
        )
    if connection.execute("SELECT count(*) FROM writer").fetchone() != (1,):
        raise DataDamaged(f"{path} is damaged: its table 'writer' must have one row")
    return int(version)


# ---------------------------------------------------------------------- errors

_NUMBERS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_READONLY: errno.EACCES,
}
"""The operating system's errors behind SQLite's, which operators know better."""

_DAMAGE = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_TOOBIG,
)
"""A missing table or column is SQLITE_ERROR, a changed one may give any of the last three: our own
statements and values are right."""


@contextlib.contextmanager
def errors(path: Path, done: str) -> Iterator[None]:
    """Turn SQLite's and the operating system's errors into the service's.

    Args:
        path: the journal.
        done: what could not be done, as a participle: "read", "written".

    Raises:
        DataDamaged: SQLite found that the file is not what it wrote.
        StorageFailed: the file could not be read or written.
    """
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        raise _named(path, done, error) from error
    except UnicodeDecodeError as error:  # sqlite3 decodes texts, and messages that quote them
        raise DataDamaged(f"{path} is damaged: it holds a text that is not UTF-8") from error
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
    """Whether the whole file system is read-only."""
    try:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    except OSError:
        return False
