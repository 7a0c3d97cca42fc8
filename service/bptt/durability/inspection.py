"""A look at a data folder that changes nothing: which files are whole, and what is wrong."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bptt.durability import checkpoints, commit_watermark, lock, reading
from bptt.durability.files import storage
from bptt.durability.layout import MODELS
from bptt.errors import DataDamaged, StorageFailed


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep servers off a data folder meanwhile.

    Raises:
        StaleWriter: one is there.
        StorageFailed: it is not a data folder.
    """
    with storage("read", folder):
        if not (folder / MODELS).is_dir():
            raise StorageFailed(f"{folder} is no data folder: it has no folder {MODELS!r}")
    if not os.access(folder, os.W_OK):
        yield  # what cannot be written, no server uses
        return
    descriptor = lock.take(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def model_folders(folder: Path) -> list[Path]:
    """The models' folders in a data folder, in the order of their names."""
    found = [each for each in (folder / MODELS).iterdir() if each.is_dir()]
    return sorted(each for each in found if not each.name.startswith("."))


@dataclass(frozen=True, slots=True)
class Survey:
    """A model's files."""

    folder: Path
    whole: tuple[int, ...]
    """Ticks of the checkpoints that can be loaded, oldest first."""
    damaged: dict[int, str]
    """What is wrong with the others, by their ticks."""
    base: int
    """Number of the journal's first record, less one; 0 where it cannot be read."""
    last: int
    """Number of its last record."""
    committed: int | None
    """Number of the last record that was synced; None: not known."""
    problems: tuple[str, ...]
    """What is wrong with the journal as a whole."""

    @property
    def model_id(self) -> str:
        """The model's name."""
        return self.folder.name


def survey(folder: Path) -> Survey:
    """Look at one model's folder: load every checkpoint, look at the journal's pages.

    The records are not read: `reading.read` does that.
    """
    whole, damaged = [], {}
    for lsn in checkpoints.lsns_in(folder):
        try:
            checkpoints.load(folder, folder.name, lsn)
            whole.append(lsn)
        except (DataDamaged, StorageFailed) as error:
            damaged[lsn] = error.message
    base = last = 0
    problems: list[str] = []
    try:
        base, last = reading.span(folder)
        problems += reading.integrity(folder)
    except (DataDamaged, StorageFailed) as error:
        problems.append(error.message)
    committed = None
    try:
        marked = commit_watermark.read(folder)
        committed = marked[0] if marked is not None and marked[1] else None
    except ValueError as error:
        problems.append(f"{folder / commit_watermark.FILE} is damaged: {error}")
    return Survey(folder, tuple(whole), damaged, base, last, committed, tuple(problems))
