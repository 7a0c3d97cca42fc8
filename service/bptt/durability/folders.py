"""A data folder as it lies on the disk: read without being its writer, repaired, and copied.

`SqliteStore` adds what a writer does. See docs/journal.md for the files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO

from bptt.durability import checkpoints, commit_watermark, lock, reading, rebuild
from bptt.durability.files import DISK, Disk, storage
from bptt.durability.layout import MODELS
from bptt.durability.store import Checkpoint, CheckpointInfo, ModelCopy, Record
from bptt.errors import DataDamaged, StorageFailed

log = logging.getLogger(__name__)

COPY_ATTEMPTS = 10
"""To copy a model whose checkpoints were all replaced between two looks. Each attempt takes
milliseconds where a server saves every few seconds."""

PIECE_BYTES = 1 << 20  # of a checkpoint, read at once


class DataFolder:
    """Reads and repairs a data folder: `StoreReader` and `StoreTools` for one folder of SQLite.

    Args:
        folder: the data folder.
        disk: opens journals and makes all changes.
    """

    def __init__(self, folder: Path, disk: Disk = DISK) -> None:
        self._folder = folder
        self._models = folder / MODELS
        self._disk = disk

    # ------------------------------------------------------------------ reading

    def models(self) -> list[str]:
        """See `StoreReader.models`."""
        with storage("read", self._models):
            found = [each.name for each in self._models.iterdir() if each.is_dir()]
        return sorted(name for name in found if not name.startswith("."))

    def checkpoints(self, model_id: str) -> list[CheckpointInfo]:
        """See `StoreReader.checkpoints`."""
        return checkpoints.infos(self._models / model_id)

    def load(self, model_id: str, lsn: int) -> Checkpoint:
        """See `StoreReader.load`."""
        return checkpoints.load(self._models / model_id, model_id, lsn)

    def base(self, model_id: str) -> int:
        """See `StoreReader.base`."""
        return reading.span(self._models / model_id, self._disk)[0]

    def last(self, model_id: str) -> int:
        """See `StoreReader.last`."""
        return reading.span(self._models / model_id, self._disk)[1]

    def records(self, model_id: str, after: int) -> Iterator[Record]:
        """See `StoreReader.records`."""
        return reading.read(self._models / model_id, after, self._disk)

    def salvage(self, model_id: str) -> Iterator[tuple[int, Record | str]]:
        """See `StoreReader.salvage`."""
        return rebuild.salvage(self._models / model_id, self._disk)

    def committed(self, model_id: str) -> int | None:
        """See `StoreReader.committed`."""
        try:
            watermark = commit_watermark.read(self._models / model_id)
        except (ValueError, OSError):
            return None  # `problems` says so
        return watermark[0] if watermark is not None and watermark[1] else None

    def problems(self, model_id: str) -> list[str]:
        """See `StoreReader.problems`."""
        folder = self._models / model_id
        found = []
        try:
            found += reading.problems(folder, self.epoch(), self._disk)
        except (DataDamaged, StorageFailed) as error:
            found.append(error.message)
        try:
            commit_watermark.read(folder)
        except ValueError as error:
            found.append(f"{folder / commit_watermark.FILE} is damaged: {error}")
        except OSError as error:
            found.append(f"{folder / commit_watermark.FILE} could not be read: {error.strerror}")
        return found

    def epoch(self) -> int:
        """See `StoreReader.epoch`. Where its file is damaged, the journals tell a bound."""
        try:
            return lock.last_epoch(self._folder)
        except DataDamaged as error:
            found = max(map(self._epoch_of, self.models()), default=0) + lock.EPOCHS_BEYOND
            log.warning("%s; %d is taken, above those of all journals", error.message, found)
            return found

    def _epoch_of(self, model_id: str) -> int:
        path = self._models / model_id / reading.FILE
        try:
            with (
                reading.open_to_read(path, self._disk) as connection,
                reading.errors(path, "read"),
            ):
                return reading.state(connection, path).epoch
        except (DataDamaged, StorageFailed):
            return 0  # that model will not be opened for writing

    # ------------------------------------------------------------------ copying

    @contextlib.contextmanager
    def copying(self, model_id: str) -> Iterator[ModelCopy | None]:
        """See `StoreReader.copying`.

        The checkpoints are opened first, so that they stay readable when a server removes them,
        then the journal, within one read transaction.
        """
        folder = self._models / model_id
        with ExitStack() as stack:
            for _ in range(COPY_ATTEMPTS):
                attempt = stack.enter_context(ExitStack())
                files = _open_checkpoints(folder, attempt)
                path = folder / reading.FILE
                try:
                    connection = attempt.enter_context(reading.open_to_read(path, self._disk))
                    with reading.errors(path, "read"):
                        connection.execute("BEGIN")
                        found = reading.state(connection, path)
                except DataDamaged:
                    if folder.is_dir():
                        raise
                    yield None
                    return
                if files and max(files) >= found.base:
                    break
                attempt.close()  # a server has saved and trimmed between the two looks
            else:
                raise DataDamaged(f"{folder} has no checkpoint from which its journal goes on")
            yield ModelCopy(
                model_id,
                found.base,
                found.base if found.last is None else found.last,
                {lsn: partial(_pieces, file) for lsn, file in files.items()},
                partial(_rows, connection, path),
            )

    # ------------------------------------------------------------------ tools

    @contextlib.contextmanager
    def offline(self) -> Iterator[None]:
        """See `StoreTools.offline`."""
        folder = self._folder
        with storage("read", folder):
            if not self._models.is_dir():
                raise StorageFailed(f"{folder} is no data folder: it has no folder {MODELS!r}")
        if not os.access(folder, os.W_OK):
            yield  # no server uses a folder that cannot be written
            return
        descriptor = lock.take(folder)
        try:
            yield
        finally:
            os.close(descriptor)

    def repair(
        self, model_id: str, damaged: Sequence[int], keep: tuple[int, int] | None
    ) -> list[str]:
        """See `StoreTools.repair`. What is taken out is moved to the model's folder `damaged`."""
        moved = rebuild.take_out(self._models / model_id, damaged, keep, self._disk)
        return [str(path) for path in moved]

    @contextlib.contextmanager
    def receiving(self, epoch: int) -> Iterator[Callable[[ModelCopy], int]]:
        """See `StoreTools.receiving`."""
        target, disk = self._folder, self._disk
        if target.exists():
            raise StorageFailed(f"{target} could not be written: it exists already")
        aside = target.with_name(f".{target.name}.aside")
        with storage("written", target):
            shutil.rmtree(aside, ignore_errors=True)  # left by a backup that was interrupted
            disk.make_folder(aside / MODELS)
        try:
            yield lambda copy: rebuild.receive(aside / MODELS / copy.model_id, copy, disk)
            with storage("written", target):
                disk.write(aside / lock.FILE, [lock.encode(epoch)])
                disk.sync_folder(aside / MODELS)
                disk.sync_folder(aside)
                disk.rename(aside, target)
                disk.sync_folder(target.absolute().parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def _open_checkpoints(folder: Path, stack: ExitStack) -> dict[int, BinaryIO]:
    files: dict[int, BinaryIO] = {}
    with contextlib.suppress(StorageFailed):  # the folder was deleted; opening the journal tells
        for lsn in checkpoints.lsns_in(folder):
            with contextlib.suppress(FileNotFoundError):
                path = checkpoints.path_of(folder, lsn)
                files[lsn] = stack.enter_context(path.open("rb"))
    return files


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(PIECE_BYTES):
        yield piece


def _rows(connection: sqlite3.Connection, path: Path) -> Iterator[tuple[int, bytes]]:
    with reading.errors(path, "read"):
        for lsn, body in connection.execute("SELECT rowid, body FROM journal ORDER BY rowid"):
            if not isinstance(body, bytes):
                raise DataDamaged(f"{path} is damaged at lsn {lsn}: it is no blob")
            yield lsn, body
