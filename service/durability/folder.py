"""A store in a folder: one folder a model, one safetensors file a checkpoint.

    DATA/lock                                    locked by the server that runs on the folder
    DATA/epoch                                   number of the last server that opened it
    DATA/models/NAME/checkpoint-000000001234.safetensors

A file holds the arrays, and in its header the metadata as JSON, so that both are replaced in one
step: written aside, synced, renamed, and the folder synced. The newest two are kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from service.durability.store import Checkpoint, CheckpointInfo, Record
from service.errors import DataDamaged, StaleWriter, StorageFailed

KEPT = 2
"""Checkpoints of a model: the newest, and one to go back to by hand should it be damaged."""

_FORMAT = "bptt checkpoint 1"
_FILE = re.compile(r"checkpoint-(\d{12,})\.safetensors")
_DELETED = ".deleted-"
_ASIDE = ".aside"


class FolderStore:
    """Checkpoints in a folder of this machine, for one server at a time.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models = folder / "models"
        self._lock: int | None = None

    def open(self, epoch: int | None = None) -> int:
        """See `Store.open`. Clears away what an interrupted write or deletion left."""
        with _storage("opened", self._folder):
            self._models.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise StaleWriter(f"data is {self._folder}, which another server uses") from error
        self._lock = lock
        try:
            return self._begin(epoch)
        except BaseException:
            self.close()
            raise

    def _begin(self, epoch: int | None) -> int:
        with _storage("opened", self._folder):
            before = self._last_epoch()
            epoch = before + 1 if epoch is None else epoch
            if epoch <= before:
                raise StaleWriter(f"epoch is {epoch}, but must be above {before}, the last one")
            _replace(self._folder / "epoch", f"{epoch}\n".encode())
            for leftover in self._models.glob(f"{_DELETED}*"):
                shutil.rmtree(leftover)
            for leftover in self._models.glob(f"*/*{_ASIDE}"):
                leftover.unlink()
        return epoch

    def _last_epoch(self) -> int:
        try:
            return int((self._folder / "epoch").read_text())
        except FileNotFoundError:
            return 0
        except ValueError as error:
            raise DataDamaged(f"{self._folder / 'epoch'} does not hold a number") from error

    def close(self) -> None:
        """See `Store.close`."""
        if self._lock is not None:
            os.close(self._lock)  # which unlocks it
            self._lock = None

    def models(self) -> list[str]:
        """See `Store.models`."""
        with _storage("read", self._models):
            names = [each.name for each in self._models.iterdir() if each.is_dir()]
        return sorted(name for name in names if self._ticks(name))

    def append(self, model_id: str, records: Sequence[Record]) -> None:
        """See `Store.append`. There is no journal: checkpoints are all that is kept."""
        self._check_open()

    def tail(self, model_id: str, after: int) -> Iterator[Record]:
        """See `Store.tail`. There is none."""
        return iter(())

    def save(self, checkpoint: Checkpoint) -> None:
        """See `Store.save`."""
        self._check_open()
        folder = self._models / checkpoint.model_id
        metadata = {"format": _FORMAT, "model_id": checkpoint.model_id, "ticks": checkpoint.ticks}
        header = {"bptt": json.dumps(metadata | {"metadata": checkpoint.metadata})}
        arrays = {name: np.ascontiguousarray(each) for name, each in checkpoint.arrays.items()}
        with _storage("written", folder):
            if not folder.is_dir():
                folder.mkdir()
                _sync(self._models)
            data = safetensors.numpy.save(arrays, header)
            _replace(self._path(checkpoint.model_id, checkpoint.ticks), data)
            for ticks in self._ticks(checkpoint.model_id)[:-KEPT]:
                self._path(checkpoint.model_id, ticks).unlink()

    def checkpoints(self, model_id: str) -> list[CheckpointInfo]:
        """See `Store.checkpoints`. What is not in a file's name is not looked for."""
        found = []
        for ticks in self._ticks(model_id):
            with _storage("read", self._path(model_id, ticks)):
                size = self._path(model_id, ticks).stat().st_size
            found.append(CheckpointInfo(ticks, 0, 0, math.nan, math.nan, size, best=False))
        return found

    def _ticks(self, model_id: str) -> list[int]:
        with _storage("read", self._models / model_id):
            names = os.listdir(self._models / model_id)
        return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))

    def load(self, model_id: str, ticks: int) -> Checkpoint:
        """See `Store.load`."""
        path = self._path(model_id, ticks)
        with _storage("read", path):
            data = path.read_bytes()
        try:
            header = _header(data)
            arrays = safetensors.numpy.load(data)
            named = (header["format"], header["model_id"], header["ticks"])
            if named != (_FORMAT, model_id, ticks):
                raise DataDamaged(f"{path} is not what its name says")
            return Checkpoint(model_id, ticks, arrays, header["metadata"])
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise DataDamaged(
                f"{path} is damaged ({error}); move it away to go back to the checkpoint before it"
            ) from error

    def delete(self, model_id: str) -> None:
        """See `Store.delete`."""
        self._check_open()
        folder = self._models / model_id
        with _storage("deleted", folder):
            if folder.is_dir():
                # Renamed first: a deletion that is interrupted does not leave half a model.
                gone = self._models / f"{_DELETED}{model_id}"
                folder.rename(gone)
                _sync(self._models)
                shutil.rmtree(gone)

    def _path(self, model_id: str, ticks: int) -> Path:
        return self._models / model_id / f"checkpoint-{ticks:012d}.safetensors"

    def _check_open(self) -> None:
        if self._lock is None:
            raise StaleWriter(f"{self._folder} is not open")


def _header(data: bytes) -> dict[str, Any]:
    """The metadata of a safetensors file: 8 bytes of length, then JSON."""
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["bptt"])
    return header


def _replace(path: Path, data: bytes) -> None:
    """Put `data` in the place of a file, so that a crash leaves either the old or the new one."""
    aside = path.with_name(path.name + _ASIDE)
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)  # or a full disk would fill with what could not be written
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storage(done: str, path: Path) -> Iterator[None]:
    """Say which path could not be read or written, and why."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageFailed(f"{path} could not be {done}: {reason}") from error
