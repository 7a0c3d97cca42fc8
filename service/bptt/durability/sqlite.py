"""The store of one machine: SQLite for journals, safetensors files for checkpoints.

    DATA/lock, DATA/epoch                              which process may write: see `lock`
    DATA/models/NAME/journal.sqlite3, committed        see `journal`
    DATA/models/NAME/checkpoint-NNN.safetensors        see `checkpoints`

A model's folder is created complete, by renaming it: a file missing from it later is damage.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bptt.config import Durability, Kept
from bptt.durability import checkpoints, codec, journal, lock
from bptt.durability.files import (
    ASIDE,
    DISK,
    Disk,
    put_in_place,
    remove_leftover,
    storage,
    write_aside,
)
from bptt.durability.folders import DataFolder
from bptt.durability.layout import DELETED, NEW
from bptt.durability.store import Checkpoint, Record
from bptt.errors import DataDamaged, ServiceError, StaleWriter, StorageFailed

log = logging.getLogger(__name__)

GIVE_WAY_SECONDS = 0.000_1
"""Pause between two slices of trimming: locks are not fair, and without it a waiting commit might
never get its turn."""

POINTS = (
    "append.begun",
    "append.inserted",
    "append.committed",
    "save.begun",
    "save.written",
    "save.renamed",
    "save.committed",
    "prune.unlinked",
    "trim.deleted",
    "trim.committed",
    "delete.renamed",
)
"""Names of the points at which a store calls `at_point`, for tests that end the process there."""


@dataclass(slots=True, eq=False)
class _Model:
    """A model's place in this process."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    journal: journal.Journal | None = None


class SqliteStore(DataFolder):
    """A store in a folder of this machine, for one server at a time.

    Args:
        folder: the data folder; `open` creates it if it does not exist.
        durability: `full` syncs each commit, `process` leaves that to the operating system, `none`
            keeps no journal.
        kept: what is kept of each model.
        at_point: called with each of `POINTS` when it is reached.
        disk: opens journals and makes all changes.
    """

    def __init__(
        self,
        folder: Path,
        durability: Durability = "full",
        kept: Kept | None = None,
        at_point: Callable[[str], None] = lambda _: None,
        disk: Disk = DISK,
    ) -> None:
        super().__init__(folder, disk)
        self._durability = durability
        self._kept = kept or Kept()
        self._at = at_point
        self._lock: int | None = None
        self._epoch = 0
        self._known: OrderedDict[str, _Model] = OrderedDict()  # used last stands last
        self._registering = threading.Lock()

    # ------------------------------------------------------------------ life

    def open(self, epoch: int | None = None) -> int:
        """See `Store.open`. Removes what an interrupted write or deletion left."""
        with storage("opened", self._folder):
            created = not self._folder.exists()
            self._disk.make_folder(self._models)
            if created:
                self._disk.sync_folder(self._folder.absolute().parent)
        self._lock = lock.take(self._folder)
        try:
            self._epoch = lock.next_epoch(self._folder, self.epoch(), epoch, self._disk)
            self._clear()
        except BaseException:
            self.close()
            raise
        return self._epoch

    def _clear(self) -> None:
        with storage("opened", self._folder):
            folders = [*self._models.glob(f"{DELETED}*"), *self._models.glob(f"{NEW}*")]
            leftovers = [*folders, *self._models.glob(f"*/*{ASIDE}")]
        for leftover in leftovers:
            remove_leftover(leftover, self._disk)

    def close(self) -> None:
        """See `Store.close`."""
        with self._registering:
            known = list(self._known.values())
            self._known.clear()
        for model in known:
            with model.turn:
                _close(model)
        if self._lock is not None:
            os.close(self._lock)  # which unlocks it
            self._lock = None

    def _check_writer(self) -> None:
        if self._lock is None:
            raise StaleWriter(f"{self._folder} is not open")
        later = lock.last_epoch(self._folder)
        if later != self._epoch:
            raise StaleWriter(
                f"{self._folder} has a later writer: epoch {later}, this is {self._epoch}"
            )

    @contextlib.contextmanager
    def _journal(self, model_id: str) -> Iterator[journal.Journal]:
        """A model's journal, for this thread alone. After any failure it is opened anew."""
        with self._registering:
            model = self._known.setdefault(model_id, _Model())
            self._known.move_to_end(model_id)
        with model.turn:
            if self._lock is None:
                raise StaleWriter(f"{self._folder} is not open")
            try:
                if model.journal is None:
                    synced = self._durability == "full"
                    folder = self._models / model_id
                    model.journal = journal.Journal(
                        folder, self._epoch, synced=synced, disk=self._disk
                    )
                    self._close_idle()
                yield model.journal
            except ValueError:  # the argument is wrong, not the journal
                raise
            except BaseException:
                _close(model)
                raise

    def _close_idle(self) -> None:
        """Close the least recently used journals, where too many are open."""
        with self._registering:
            is_open = [each for each in self._known.values() if each.journal is not None]
            surplus = len(is_open) - self._kept.open_journals
            for model in is_open[: max(surplus, 0)]:
                if model.turn.acquire(blocking=False):  # else it is not idle
                    try:
                        _close(model)
                    finally:
                        model.turn.release()

    # ------------------------------------------------------------------ the journal

    def append(self, model_id: str, records: Sequence[Record]) -> None:
        """See `Store.append`. Records that are stored already, byte for byte, are skipped.

        So a caller may repeat an append that failed, even where the disk has kept the records
        although it reported an error.
        """
        if not records:
            return
        encoded = [(record, codec.encode(record)) for record in records]
        for (record, _), lsn in zip(encoded, range(records[0].lsn, 1 << 63), strict=False):
            if record.lsn != lsn:
                raise ValueError(f"lsn is {record.lsn}, but must be {lsn}, the next")
        if self._durability == "none":
            if self._lock is None:
                raise StaleWriter(f"{self._folder} is not open")
            return
        with self._journal(model_id) as opened:
            self._at("append.begun")
            with opened.transaction() as (base, last):
                self._insert(model_id, opened, encoded, base, last)
                self._at("append.inserted")
            self._at("append.committed")
            opened.set_watermark(records[-1].lsn)

    def _insert(
        self,
        model_id: str,
        opened: journal.Journal,
        encoded: list[tuple[Record, bytes]],
        base: int,
        last: int,
    ) -> None:
        first = encoded[0][0].lsn
        if base < first <= last:
            stored = opened.stored(first, last)
            given = [data for _, data in encoded[: len(stored)]]
            if stored != given:
                raise ValueError(f"lsn {first} is stored already, with another record")
            encoded = encoded[len(stored) :]
        elif first != last + 1:
            newest = checkpoints.lsns_in(self._models / model_id)[-1:]
            if newest != [first - 1] or first <= last:
                raise ValueError(f"lsn {first} cannot follow {last}, the journal's last")
            # The newest checkpoint is ahead of the journal: none was kept, or its end was lost.
            opened.begin_again(first - 1)
        opened.insert(encoded)

    def tail(self, model_id: str, after: int) -> Iterator[Record]:
        """See `Store.tail`."""
        with self._journal(model_id):
            pass  # opening it for writing keeps other writers from adding to it
        return self.records(model_id, after)

    # ------------------------------------------------------------------ checkpoints

    def save(self, checkpoint: Checkpoint) -> None:
        """See `Store.save`. Pruning failures are logged; the save still succeeds."""
        self._check_writer()
        self._at("save.begun")
        model_id = checkpoint.model_id
        folder = self._models / model_id
        if not folder.is_dir():
            self._create(folder, checkpoint)
            return
        path = checkpoints.path_of(folder, checkpoint.lsn)
        with storage("written", path):
            aside = write_aside(path, checkpoints.encode(checkpoint), self._disk)
        try:
            self._at("save.written")
            self._put_in_place(checkpoint, aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._disk.unlink(aside)
            raise
        self._at("save.committed")
        try:
            self._prune(model_id)
        except ServiceError as error:
            log.warning("model %s: old data was not removed: %s", model_id, error.message)

    def _create(self, folder: Path, checkpoint: Checkpoint) -> None:
        with storage("written", folder):
            new = self._make_new(checkpoint.model_id)
        try:
            with storage("written", folder):
                path = checkpoints.path_of(new, checkpoint.lsn)
                aside = write_aside(path, checkpoints.encode(checkpoint), self._disk)
                put_in_place(aside, path, self._disk)
                self._at("save.written")
                journal.create(new, self._epoch, checkpoint.lsn, self._disk)
                self._disk.sync_folder(new)
                self._disk.rename(new, folder)
                self._at("save.renamed")
                self._disk.sync_folder(self._models)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        self._at("save.committed")

    def _make_new(self, model_id: str) -> Path:
        """Make an empty folder for a model that is being created."""
        new = self._free_name(NEW, model_id)
        self._disk.make_folder(new)
        return new

    def _put_in_place(self, checkpoint: Checkpoint, aside: Path, path: Path) -> None:
        """Rename within a transaction: a writer that has become stale cannot do it."""
        with self._journal(checkpoint.model_id) as opened, opened.transaction() as (_, last):
            if checkpoint.lsn > last:
                if self._durability != "none":
                    raise ValueError(
                        f"lsn of the checkpoint is {checkpoint.lsn}, but must be at most {last}: "
                        "it is ahead of the journal"
                    )
                opened.begin_again(checkpoint.lsn)
            with storage("written", path):
                put_in_place(aside, path, self._disk)
            self._at("save.renamed")

    def _prune(self, model_id: str) -> None:
        folder = self._models / model_id
        with self._journal(model_id) as opened:
            needs, used = opened.needs(), opened.used_bytes()
        found = checkpoints.infos(folder)
        bound, keep = self._kept.model_bytes, self._kept.checkpoints
        files = sum(each.size_bytes for each in found)
        history = min(self._kept.history_bytes, max(bound - files, 0))
        plan = checkpoints.plan(found, needs, keep=keep)
        if files + used > bound:
            self._trim(model_id, plan.basis, 0)
            with self._journal(model_id) as opened:
                left = bound - opened.used_bytes()
            wanted, plan = plan, checkpoints.plan(found, needs, keep=keep, bytes_left=left)
            self._say_dropped(model_id, set(plan.dropped) - set(wanted.dropped))
        with storage("written", folder):
            for lsn in plan.dropped:
                self._disk.unlink(checkpoints.path_of(folder, lsn))
                self._at("prune.unlinked")
        self._trim(model_id, plan.basis, history)

    def _say_dropped(self, model_id: str, dropped: set[int]) -> None:
        bound = f"{self._kept.model_bytes / 1e6:,.0f} MB"
        if dropped:
            which = ", ".join(str(lsn) for lsn in sorted(dropped))
            log.warning(
                "model %s: checkpoints removed to stay within %s: %s", model_id, bound, which
            )

    def _trim(self, model_id: str, before: int, history_bytes: int) -> None:
        """Delete records up to `before` while the journal takes more than `history_bytes`."""
        more = True
        while more:
            with self._journal(model_id) as opened:
                if opened.used_bytes() <= history_bytes:
                    break
                with opened.transaction():
                    more = opened.trim(before)
                    self._at("trim.deleted")
                self._at("trim.committed")
            time.sleep(GIVE_WAY_SECONDS)
        more = True
        while more:
            with self._journal(model_id) as opened:
                more = opened.shrink()
            time.sleep(GIVE_WAY_SECONDS)

    def delete(self, model_id: str) -> None:
        """See `Store.delete`."""
        self._check_writer()
        folder = self._models / model_id
        if not folder.is_dir():
            return
        with self._closed_for_deletion(model_id), storage("deleted", folder):
            # Renamed first: a deletion that is interrupted does not leave half a model.
            gone = self._rename_away(folder)
            self._at("delete.renamed")
            self._disk.sync_folder(self._models)
        # A folder that cannot be removed now is removed when the store is next opened.
        remove_leftover(gone, self._disk)

    def _rename_away(self, folder: Path) -> Path:
        """Give a model's folder a name that no model has."""
        gone = self._free_name(DELETED, folder.name)
        self._disk.rename(folder, gone)
        return gone

    def _free_name(self, prefix: str, model_id: str) -> Path:
        """A name for a folder that is being made or deleted, beside any that was left over."""
        names = itertools.chain([""], (f"~{number}" for number in itertools.count(2)))
        paths = (self._models / f"{prefix}{model_id}{name}" for name in names)
        return next(path for path in paths if not os.path.lexists(path))

    @contextlib.contextmanager
    def _closed_for_deletion(self, model_id: str) -> Iterator[None]:
        """Check the epoch in a model's journal, then keep the journal closed."""
        try:
            with self._journal(model_id) as opened, opened.transaction():
                pass
        except (DataDamaged, StorageFailed):
            pass  # a damaged model may be deleted
        with self._registering:
            model = self._known.pop(model_id, None) or _Model()
        with model.turn:
            _close(model)
            yield


def _close(model: _Model) -> None:
    if model.journal is not None:
        model.journal.close()
        model.journal = None
