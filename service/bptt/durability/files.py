"""Files that exist whole or not at all, and the one place where a store changes files."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from bptt.errors import StorageFailed, StorageFull

log = logging.getLogger(__name__)

ASIDE = ".aside"
"""Suffix of a file that is still being written. An interrupted write leaves one."""

BUSY_SECONDS = 5.0  # a user's shell may hold a journal open; our own connections never wait

Piece = bytes | memoryview


class Disk:
    """The operations with which a store changes files and makes the changes durable.

    A seam: a test gives a store a disk that records these operations, and builds from the record
    what a power failure would have left.
    """

    def connect(self, path: Path, mode: str) -> sqlite3.Connection:
        """Open a database in one of SQLite's modes: ro, rw, rwc."""
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,  # transactions are begun and ended explicitly
            check_same_thread=False,  # its owner lets one thread at a time use it
            timeout=BUSY_SECONDS,
        )

    def write(self, path: Path, pieces: Iterable[Piece]) -> None:
        """Create a file, or replace what it holds, and sync it."""
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())

    def overwrite(self, descriptor: int, path: Path, data: bytes) -> None:
        """Write at the beginning of an open file, without a sync."""
        os.pwrite(descriptor, data, 0)

    def sync_file(self, path: Path) -> None:
        """Make the contents of a file durable."""
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def make_folder(self, path: Path) -> None:
        """Create a folder and those above it that do not exist."""
        path.mkdir(parents=True, exist_ok=True)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or a folder; a file at `target` is replaced."""
        source.rename(target)

    def unlink(self, path: Path) -> None:
        """Remove a file; nothing happens if it does not exist."""
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all in it."""
        shutil.rmtree(path)


DISK = Disk()
"""The operating system's files."""


def write_aside(path: Path, pieces: Iterable[Piece], disk: Disk = DISK) -> Path:
    """Write a file beside its final place, and sync it.

    Returns:
        Where the file is; `put_in_place` moves it from there.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        disk.write(aside, pieces)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.unlink(aside)  # or unfinished files would fill a full disk
        raise
    return aside


def put_in_place(aside: Path, path: Path, disk: Disk = DISK) -> None:
    """Rename a file to its final name, so that a crash leaves either the old or the new one."""
    disk.rename(aside, path)
    disk.sync_folder(path.parent)


def replace(path: Path, data: bytes, disk: Disk = DISK) -> None:
    """Replace what a file holds, so that a crash leaves either the old or the new contents."""
    put_in_place(write_aside(path, [data], disk), path, disk)


def remove_leftover(path: Path, disk: Disk = DISK) -> None:
    """Remove a file, or a folder with all that is in it; where that fails, log why.

    Of a link the link is removed, and its target stays.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            disk.remove_tree(path)
        else:
            disk.unlink(path)
    except OSError as error:
        why = error.strerror or type(error).__name__
        log.warning("%s is left over and could not be removed: %s", path, why)


@contextlib.contextmanager
def storage(done: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the body into an error that names the path and what failed.

    Args:
        done: what could not be done, as a participle: "read", "written".
        path: of what.

    Raises:
        StorageFailed: instead of an OSError of the body; StorageFull if the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise failed(done, path, error) from error


def failed(done: str, path: Path, error: OSError) -> StorageFailed:
    """The service's error for an error of the operating system."""
    kind = StorageFull if error.errno in _NO_ROOM else StorageFailed
    return kind(f"{path} could not be {done}: {error.strerror or type(error).__name__}")


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
