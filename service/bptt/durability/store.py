"""What the engine needs of a store, whatever keeps the bytes.

A model's life is a sequence of records, numbered from 1: ticks, and commands such as a reset of a
stream. The journal holds the records; a checkpoint holds the model after so many of them. A model
is brought back from a checkpoint and the records behind it:

    for info in reversed(store.checkpoints(model_id)):      # newest first
        checkpoint = store.load(model_id, info.ticks)       # DataDamaged: take the one before
        for record in store.tail(model_id, checkpoint.ticks):
            apply_record(learner, record)

Rules that every store keeps:
- Records of a model are numbered without a gap; that is checked when they are appended and again
  when they are read.
- What `append` and `save` return from is durable as far as the store's durability goes, and what
  they raise from has changed nothing.
- A checkpoint that the command `restore` or `roll_back` names (`arguments["lsn"]`) is kept as
  long as the command's record, so that the journal can be replayed.
- Nothing is ever unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

from bptt.durability.fingerprint import fingerprint
from bptt_core import Chunk

Tick = tuple[Chunk, ...]
"""Exactly what `Learner.apply` got: at most one chunk a stream, in order."""


@dataclass(frozen=True, slots=True)
class Command:
    """Anything but a tick that changes a learner."""

    name: str
    """reset, delete, configure, restore, roll_back."""
    arguments: dict[str, Any]
    """Values for JSON. `restore` and `roll_back` name their checkpoint as `ticks`."""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One entry of a journal."""

    lsn: int
    """Its number in the life of the model: 1, 2, 3, …"""
    body: Tick | Command


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model as it was after so many records."""

    model_id: str
    lsn: int
    """Records in the life of the model, all of which it holds; a later checkpoint has more."""
    arrays: dict[str, npt.NDArray[Any]]
    metadata: dict[str, Any]
    """Values for JSON: the spec and all that is not an array."""
    steps: int = 0
    """Learned in the life of the model."""
    updates: int = 0
    loss: float = math.nan
    """Of the last update, before it was made. NaN: not known yet."""
    skill_ratio: float = math.nan
    fingerprint: dict[str, str] = field(default_factory=fingerprint)
    """Processor and libraries that made it: see `fingerprint.differences`."""


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """What is known of a checkpoint without reading its arrays."""

    lsn: int
    steps: int
    updates: int
    loss: float
    """NaN: not known, or the file's head is damaged, which `load` will tell."""
    skill_ratio: float
    size_bytes: int
    best: bool
    """It has the lowest prequential error of those that are kept, over that of the naive forecast;
    where none has one, the lowest loss."""


class Store(Protocol):
    """Keeps journals and checkpoints, for one writer.

    Different models may be used from different threads at the same time. Of one model, `append` and
    `save` may run side by side; everything else takes turns.

    Every method that writes raises StaleWriter once another writer has opened the store with a
    later epoch: the epoch is checked in the transaction that writes.
    """

    def open(self, epoch: int | None = None) -> int:
        """Become the store's one writer.

        Args:
            epoch: the writer's number, above all before it; None takes the next one.

        Returns:
            The epoch.

        Raises:
            StaleWriter: another writer has it open, or a later epoch was there already.
            StorageFailed: it cannot be read or written.
        """

    def close(self) -> None:
        """Let another writer open it."""

    def models(self) -> list[str]:
        """Names of the models, sorted."""

    def append(self, model_id: str, records: Sequence[Record]) -> None:
        """Put records behind a model's journal, all of them in one transaction.

        Args:
            model_id: a model that has a checkpoint.
            records: numbered on from the journal's last, without a gap.

        Raises:
            StorageFailed: they could not be written: none of them is there, and the same call may
                succeed later.
            StaleWriter: a later writer is there.
            ValueError: they are not numbered on from the journal's last.
        """

    def tail(self, model_id: str, after: int) -> Iterator[Record]:
        """The records behind number `after`, in order.

        Raises:
            DataDamaged: a record is missing or damaged; it names the file, the tick and what was
                found. All records before it were given.
            StorageFailed: the journal cannot be read.
        """

    def last(self, model_id: str) -> int:
        """Number of the journal's last record, or of the one before its first.

        Raises:
            DataDamaged: the journal is missing or is none.
            StorageFailed: it cannot be read.
        """

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, then let go of older ones and of the journal that nobody needs.

        The first one of a model makes the model. Later ones may hold no record that was not
        appended, where there is a journal at all.

        Kept are the newest few, the best, those that the journal names, and the
        journal from the oldest of the newest few on.

        Raises:
            StorageFailed: it could not be written; those before it are untouched.
            StaleWriter: a later writer is there.
        """

    def checkpoints(self, model_id: str) -> list[CheckpointInfo]:
        """A model's checkpoints, oldest first.

        Raises:
            StorageFailed: the folder cannot be read.
        """

    def load(self, model_id: str, lsn: int) -> Checkpoint:
        """The checkpoint after so many records.

        Raises:
            DataDamaged: it is missing or damaged; it names the file.
            StorageFailed: it cannot be read.
        """

    def delete(self, model_id: str) -> None:
        """Forget a model; nothing happens if there is none of that name.

        Raises:
            StorageFailed: it could not be deleted.
            StaleWriter: a later writer is there.
        """
