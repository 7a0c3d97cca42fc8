"""A consistent copy of a data folder, made while a server writes to it.

Of each model: its checkpoints first (opened, so that they stay readable when the server lets go of
them), then the journal as it is at one moment, within one read transaction. What the server commits
later is not part of the copy; what it had acknowledged when the copy began is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bptt.durability import checkpoints, commit_watermark, lock, reading
from bptt.durability.files import storage, sync_folder
from bptt.durability.inspection import model_folders
from bptt.durability.layout import MODELS
from bptt.errors import DataDamaged, StorageFailed

ATTEMPTS = 10
"""To copy a model whose checkpoints were all replaced between two looks. Each attempt takes
milliseconds where a server saves every few seconds."""


@dataclass(frozen=True, slots=True)
class Copied:
    """A model in the copy."""

    model_id: str
    checkpoints: tuple[int, ...]
    last: int
    """Number of the last record in the copy: of the journal, or held by a checkpoint."""
    size_bytes: int


def back_up(
    folder: Path, target: Path, on_copied: Callable[[Copied], None] = lambda _: None
) -> list[Copied]:
    """Copy a data folder. The copy comes into being whole, or not at all.

    Args:
        folder: of a server, running or not.
        target: must not be there yet.
        on_copied: told of each model.

    Raises:
        StorageFailed: something could not be read or written, or `target` is there already.
        DataDamaged: a journal cannot be read; nothing is left at `target`.
    """
    with storage("read", folder):
        names = model_folders(folder)
    if target.exists():
        raise StorageFailed(f"{target} could not be written: it is there already")
    aside = target.with_name(f".{target.name}.aside")
    with storage("written", target):
        shutil.rmtree(aside, ignore_errors=True)  # of a backup that was interrupted
        (aside / MODELS).mkdir(parents=True)
    try:
        copied = []
        for source in names:
            done = _copy_model(source, aside / MODELS / source.name)
            if done is not None:
                copied.append(done)
                on_copied(done)
        epoch = lock.last_epoch(folder)  # after the journals, none of which has a later one
        with storage("written", target):
            (aside / "epoch").write_text(f"{epoch}\n")
            sync_folder(aside / MODELS)
            sync_folder(aside)
            aside.rename(target)
            sync_folder(target.absolute().parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return copied


def _copy_model(source: Path, target: Path) -> Copied | None:
    """Copy a model's folder; None: it was deleted meanwhile."""
    for _ in range(ATTEMPTS):
        with ExitStack() as stack:
            files = _open_checkpoints(source, stack)
            try:
                connection = stack.enter_context(reading.open_to_read(source / reading.FILE))
            except DataDamaged:
                if not source.is_dir():
                    return None
                raise
            with reading.errors(source / reading.FILE, "read"):
                connection.execute("BEGIN")
                (base,) = connection.execute("SELECT base FROM writer").fetchone()
            if not files or max(files) < base:
                continue  # the server has saved again meanwhile, and trimmed
            with storage("written", target):
                target.mkdir()
            return _copy(source, target, files, connection)
    raise DataDamaged(f"{source} has no checkpoint from which its journal goes on")


def _open_checkpoints(folder: Path, stack: ExitStack) -> dict[int, BinaryIO]:
    files: dict[int, BinaryIO] = {}
    with contextlib.suppress(StorageFailed):  # the folder was deleted; the journal will tell
        for lsn in checkpoints.lsns_in(folder):
            with contextlib.suppress(FileNotFoundError):
                path = checkpoints.path_of(folder, lsn)
                files[lsn] = stack.enter_context(path.open("rb"))
    return files


def _copy(
    source: Path, target: Path, files: dict[int, BinaryIO], connection: sqlite3.Connection
) -> Copied:
    path = target / reading.FILE
    with reading.errors(path, "written"), contextlib.closing(sqlite3.connect(path)) as copy:
        connection.backup(copy)
    _, last = reading.span(target)
    commit_watermark.write(target, last, synced=True)
    with storage("written", target):
        for lsn, file in files.items():
            with checkpoints.path_of(target, lsn).open("wb") as out:
                shutil.copyfileobj(file, out, 1 << 20)
                out.flush()
                os.fsync(out.fileno())
        sync_folder(target)
        size = sum(each.stat().st_size for each in target.iterdir())
    return Copied(source.name, tuple(files), max(last, *files), size)
