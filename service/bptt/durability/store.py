"""The `Store` protocol: the operations that the engine and the offline commands use.

A model's life is a sequence of records, numbered 1, 2, 3, …: ticks, and commands such as a reset of
a stream. A record's number is its log sequence number, `lsn`. The journal holds the records; a
checkpoint holds the model after the record of its lsn. A model is brought back from a checkpoint
and the records behind it:

    for info in reversed(store.checkpoints(model_id)):      # newest first
        checkpoint = store.load(model_id, info.lsn)         # DataDamaged: take the one before
        for record in store.tail(model_id, checkpoint.lsn):
            apply_record(learner, record)

Rules that every store keeps:
- Records of a model are numbered without a gap; that is checked when they are appended and again
  when they are read.
- What `append` and `save` return from is durable as far as the store's durability goes, and what
  they raise from has changed nothing.
- A checkpoint that the command `restore` or `roll_back` names (`arguments["lsn"]`) is kept as
  long as the command's record, so that the journal can be replayed.
- Whatever bytes it finds, reading them gives what was written or raises DataDamaged.
- Nothing is ever unpickled.

Records and checkpoints have one encoding each (`codec`, `checkpoints`), the same in every store, so
that a backup can go from one kind of store to another.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bptt.durability.fingerprint import fingerprint
from bptt_core import Batch, Chunk

Array = npt.NDArray[Any]

GO_BACK = ("restore", "roll_back")
"""Commands that name a checkpoint, as `lsn`, without which they cannot be replayed."""

UNREADABLE = (
    struct.error,
    ValueError,  # UnicodeDecodeError and json.JSONDecodeError are some
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""Errors that decoding arbitrary bytes may raise: each means that the bytes are damaged."""


@dataclass(frozen=True, slots=True, eq=False)
class Tick:
    """What `Learner.apply` got: at most one lane a stream, in order.

    A record names a stream only where it opens it; after that, the number of its opening stands
    for it (`Learner.incarnation`), so that a record of a thousand lanes needs no names.
    """

    batch: Batch
    """The lanes. In a tick that was read, the name of a numbered lane is ""."""
    incarnations: Array
    """(B,) int64, the number of each lane's stream; 0: known by its name only."""
    named: Array
    """(n,) int64, rising: the lanes whose names the record holds."""
    names_checksum: int | None = None
    """`checksum_of` all names, as it was read; None for a tick that was not read from a journal."""

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Tick:
        """A tick of chunks, with all names and no numbers."""
        batch, count = Batch.of(chunks), len(chunks)
        return cls(batch, np.zeros(count, np.int64), np.arange(count))

    @property
    def numbered(self) -> bool:
        """True if lanes are known by their number only."""
        return self.names_checksum is not None and len(self.named) < len(self.batch)


def checksum_of(names: Sequence[str]) -> int:
    """CRC-32 of the names in order, which a replay compares: a number may mean another stream."""
    return zlib.crc32("\0".join(names).encode())


@dataclass(frozen=True, slots=True)
class Command:
    """A change of a learner that is not a tick."""

    name: str
    """reset, delete, configure, restore, roll_back."""
    arguments: dict[str, Any]
    """Values for JSON. `restore` and `roll_back` name their checkpoint as `lsn`."""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One entry of a journal."""

    lsn: int
    """Its number in the life of the model: 1, 2, 3, …"""
    body: Tick | Command


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model as it was after the record `lsn`."""

    model_id: str
    lsn: int
    """Number of the last record that it contains; 0: none."""
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
    """A checkpoint without its arrays."""

    lsn: int
    steps: int
    updates: int
    loss: float
    """NaN: not known, or the file's head is damaged, for which `load` raises."""
    skill_ratio: float
    size_bytes: int
    best: bool
    """It has the lowest skill ratio of those that are kept; where none has one, the lowest loss."""


@dataclass(frozen=True, slots=True)
class ModelCopy:
    """One model at one moment, encoded as every store encodes it."""

    model_id: str
    base: int
    """Number of the first record, less one."""
    last: int
    """Number of the last record; `base` if there is none."""
    checkpoints: Mapping[int, Callable[[], Iterator[bytes]]]
    """By lsn, oldest first: reads a checkpoint's bytes in pieces."""
    records: Callable[[], Iterator[tuple[int, bytes]]]
    """Reads the records, in order."""


class StoreReader(Protocol):
    """Reads a store that need not be open, while another process may write to it."""

    def models(self) -> list[str]:
        """Names of the models, sorted.

        Raises:
            StorageFailed: there is no store, or it cannot be read.
        """

    def checkpoints(self, model_id: str) -> list[CheckpointInfo]:
        """A model's checkpoints, oldest first.

        Raises:
            StorageFailed: they cannot be listed.
        """

    def load(self, model_id: str, lsn: int) -> Checkpoint:
        """The checkpoint of this lsn.

        Raises:
            DataDamaged: it is missing or damaged; the error says which and how.
            StorageFailed: it cannot be read.
        """

    def base(self, model_id: str) -> int:
        """Number of the first record that the journal keeps, less one.

        Raises:
            DataDamaged: the journal is missing or is none.
            StorageFailed: it cannot be read.
        """

    def last(self, model_id: str) -> int:
        """Number of the journal's last record; `base` if it has none.

        Raises:
            DataDamaged: the journal is missing or is none.
            StorageFailed: it cannot be read.
        """

    def records(self, model_id: str, after: int) -> Iterator[Record]:
        """The records behind number `after`, in order.

        Raises:
            DataDamaged: a record is missing or damaged; the error names the place, the lsn and what
                was found. All records before it were given.
            StorageFailed: the journal cannot be read.
        """

    def salvage(self, model_id: str) -> Iterator[tuple[int, Record | str]]:
        """All records, in order: each is whole, or a description of its damage.

        A journal that cannot be read at all has none; `problems` says why.
        """

    def committed(self, model_id: str) -> int | None:
        """Number of the last record that is known to have been synced; None: not known."""

    def problems(self, model_id: str) -> list[str]:
        """What is wrong with a journal as a whole, apart from its records; empty if nothing."""

    def epoch(self) -> int:
        """The epoch of the last writer; 0: there was none.

        Raises:
            DataDamaged: it cannot be read back.
            StorageFailed: it cannot be read.
        """

    def copying(self, model_id: str) -> AbstractContextManager[ModelCopy | None]:
        """A model as it is now, readable until the block ends; None: it has been deleted.

        Raises:
            DataDamaged: its journal cannot be read.
            StorageFailed: something cannot be read.
        """


class StoreTools(Protocol):
    """Changes a store that no server uses."""

    def offline(self) -> AbstractContextManager[None]:
        """Keep writers off the store until the block ends.

        Raises:
            StaleWriter: a writer has it open.
            StorageFailed: there is no store.
        """

    def repair(
        self, model_id: str, damaged: Sequence[int], keep: tuple[int, int] | None
    ) -> list[str]:
        """Take damage out of a model. Nothing is deleted; call it within `offline`.

        Args:
            model_id: a model of the store.
            damaged: the lsn of each checkpoint to take out.
            keep: (after, to): the journal keeps the whole records behind `after` up to `to`, and no
                others. None: it stays as it is.

        Returns:
            The places to which what was taken out has been moved.

        Raises:
            StorageFailed: something could not be written.
        """

    def receiving(self, epoch: int) -> AbstractContextManager[Callable[[ModelCopy], int]]:
        """Create the store from copies: whole when the block ends, or not at all if it raises.

        Args:
            epoch: of the last writer of the store that is copied.

        Returns:
            What puts a copy in and returns how many bytes it takes.

        Raises:
            StorageFailed: there is a store already, or it could not be written.
        """


class Store(StoreReader, StoreTools, Protocol):
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

    def append(self, model_id: str, records: Sequence[Record]) -> None:
        """Add records to the end of a model's journal, all of them in one transaction.

        Args:
            model_id: a model that has a checkpoint.
            records: numbered on from the journal's last, without a gap.

        Raises:
            StorageFailed: they could not be written: none was stored, and the same call may
                succeed later.
            StaleWriter: a later writer uses the store.
            ValueError: they are not numbered on from the journal's last.
        """

    def tail(self, model_id: str, after: int) -> Iterator[Record]:
        """As `records`, for the writer: from the call on no other writer can add to them.

        Raises:
            StaleWriter: a later writer uses the store.
            DataDamaged: see `records`.
            StorageFailed: the journal cannot be read.
        """

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, then remove older ones and the records that nothing needs any more.

        The first one of a model makes the model. Later ones may hold no record that was not
        appended, where there is a journal at all.

        Kept are the newest few, the best, those that the journal names, and the
        journal from the oldest of the newest few on.

        Raises:
            StorageFailed: it could not be written; those before it are untouched.
            StaleWriter: a later writer uses the store.
        """

    def delete(self, model_id: str) -> None:
        """Delete a model; nothing happens if it does not exist.

        Raises:
            StorageFailed: it could not be deleted.
            StaleWriter: a later writer uses the store.
        """
