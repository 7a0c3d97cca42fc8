"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from bptt.errors import StorageFailed, StorageFull

ASIDE = ".aside"
"""Ends the name of a file that is still being written; an interrupted write leaves one."""

Piece = bytes | memoryview


def write_aside(path: Path, pieces: Iterable[Piece]) -> Path:
    """Write a file beside the place it is for, and sync it.

    Returns:
        Where it is; `put_in_place` takes it from there.
    """
    aside = path.with_name(path.name + ASIDE)
    try:
        with aside.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        aside.unlink(missing_ok=True)  # or a full disk would fill with what could not be written
        raise
    return aside


def put_in_place(aside: Path, path: Path) -> None:
    """Give a file its name, so that a crash leaves either the old or the new one."""
    aside.rename(path)
    sync_folder(path.parent)


def replace(path: Path, data: bytes) -> None:
    """Put `data` in the place of a file."""
    put_in_place(write_aside(path, [data]), path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage(done: str, path: Path) -> Iterator[None]:
    """Say which path could not be `done` (read, written, …), and why.

    Raises:
        StorageFailed: instead of an OSError of the body; StorageFull where there is no room.
    """
    try:
        yield
    except OSError as error:
        raise failed(done, path, error) from error


def failed(done: str, path: Path, error: OSError) -> StorageFailed:
    """The service's error for one of the operating system's, in its words."""
    kind = StorageFull if error.errno in _NO_ROOM else StorageFailed
    return kind(f"{path} could not be {done}: {error.strerror or type(error).__name__}")


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
