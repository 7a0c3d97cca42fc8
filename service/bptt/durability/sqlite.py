"""The store of one machine: SQLite for journals, safetensors files for checkpoints.

    DATA/lock, DATA/epoch                              who may write: see `lock`
    DATA/models/NAME/journal.sqlite3, committed        see `journal`
    DATA/models/NAME/checkpoint-NNN.safetensors        see `checkpoints`

A model's folder comes into being whole, by renaming: what is missing from it later is damage.
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
from bptt.durability import checkpoints, codec, journal, lock, reading
from bptt.durability.files import ASIDE, put_in_place, storage, sync_folder, write_aside
from bptt.durability.layout import DELETED, MODELS, NEW
from bptt.durability.store import Checkpoint, CheckpointInfo, Record
from bptt.errors import DataDamaged, ServiceError, StaleWriter, StorageFailed

log = logging.getLogger(__name__)

GIVE_WAY_SECONDS = 0.000_1
"""Between two slices of tidying up: a lock is not fair, and a commit that waits would be passed
over without a pause."""

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
"""Where a store says that it has come to, for tests that end the process there."""


@dataclass(slots=True, eq=False)
class _Model:
    """A model's place in this process."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    journal: journal.Journal | None = None


class SqliteStore:
    """A store in a folder of this machine, for one server at a time.

    Args:
        folder: made if it is not there.
        durability: `full` syncs each commit, `process` leaves that to the operating system, `none`
            keeps no journal.
        kept: what is kept of each model.
        at_point: called with each of `POINTS` when it is reached.
    """

    def __init__(
        self,
        folder: Path,
        durability: Durability = "full",
        kept: Kept | None = None,
        at_point: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._folder = folder
        self._models = folder / MODELS
        self._durability = durability
        self._kept = kept or Kept()
        self._at = at_point
        self._lock: int | None = None
        self._epoch = 0
        self._known: OrderedDict[str, _Model] = OrderedDict()  # used last stands last
        self._registering = threading.Lock()

    # ------------------------------------------------------------------ life

    def open(self, epoch: int | None = None) -> int:
        """See `Store.open`. Clears away what an interrupted write or deletion left."""
        with storage("opened", self._folder):
            self._models.mkdir(parents=True, exist_ok=True)
        self._lock = lock.take(self._folder)
        try:
            self._epoch = lock.next_epoch(self._folder, epoch)
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
            _remove(leftover)

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
        """A model's journal, for this thread alone. Whatever fails, it is opened anew next time."""
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
                    model.journal = journal.Journal(folder, self._epoch, synced=synced)
                    self._close_idle()
                yield model.journal
            except ValueError:  # what was asked for is wrong; the journal is not
                raise
            except BaseException:
                _close(model)
                raise

    def _close_idle(self) -> None:
        """Close the journals that were not used for longest, where there are too many."""
        with self._registering:
            is_open = [each for each in self._known.values() if each.journal is not None]
            surplus = len(is_open) - self._kept.open_journals
            for model in is_open[: max(surplus, 0)]:
                if model.turn.acquire(blocking=False):  # else it is not idle
                    try:
                        _close(model)
                    finally:
                        model.turn.release()

    def models(self) -> list[str]:
        """See `Store.models`."""
        with storage("read", self._models):
            found = [each.name for each in self._models.iterdir() if each.is_dir()]
        return sorted(name for name in found if not name.startswith("."))

    # ------------------------------------------------------------------ the journal

    def append(self, model_id: str, records: Sequence[Record]) -> None:
        """See `Store.append`. Records that are there already, byte for byte, are passed over.

        So a caller may try again what it was told has failed, even where a disk that said so has
        kept it after all.
        """
        if not records:
            return
        encoded = [(record, codec.encode(record)) for record in records]
        for (record, _), lsn in zip(encoded, range(records[0].lsn, 1 << 63), strict=False):
            if record.lsn != lsn:
                raise ValueError(f"tick {record.lsn} stands where {lsn} must")
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
            opened.mark(records[-1].lsn)

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
                raise ValueError(f"tick {first} is there already, and is another")
            encoded = encoded[len(stored) :]
        elif first != last + 1:
            newest = checkpoints.lsns_in(self._models / model_id)[-1:]
            if newest != [first - 1] or first <= last:
                raise ValueError(f"tick {first} cannot follow {last}, the journal's last")
            # The newest checkpoint is ahead: no journal was kept, or its end was lost.
            opened.begin_again(first - 1)
        opened.insert(encoded)

    def tail(self, model_id: str, after: int) -> Iterator[Record]:
        """See `Store.tail`."""
        with self._journal(model_id):
            pass  # from here on no other writer can add to what is read
        return reading.read(self._models / model_id, after)

    def last(self, model_id: str) -> int:
        """See `Store.last`."""
        return reading.span(self._models / model_id)[1]

    # ------------------------------------------------------------------ checkpoints

    def save(self, checkpoint: Checkpoint) -> None:
        """See `Store.save`. What cannot be let go of is a warning: the checkpoint is there."""
        self._check_writer()
        self._at("save.begun")
        model_id = checkpoint.model_id
        folder = self._models / model_id
        if not folder.is_dir():
            self._create(folder, checkpoint)
            return
        path = checkpoints.path_of(folder, checkpoint.lsn)
        with storage("written", path):
            aside = write_aside(path, checkpoints.encode(checkpoint))
        try:
            self._at("save.written")
            self._put_in_place(checkpoint, aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        self._at("save.committed")
        try:
            self._prune(model_id)
        except ServiceError as error:
            log.warning("model %s: what is old was not let go of: %s", model_id, error.message)

    def _create(self, folder: Path, checkpoint: Checkpoint) -> None:
        with storage("written", folder):
            new = self._make_new(checkpoint.model_id)
        try:
            with storage("written", folder):
                path = checkpoints.path_of(new, checkpoint.lsn)
                put_in_place(write_aside(path, checkpoints.encode(checkpoint)), path)
                self._at("save.written")
                journal.create(new, self._epoch, checkpoint.lsn)
                sync_folder(new)
                new.rename(folder)
                self._at("save.renamed")
                sync_folder(self._models)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        self._at("save.committed")

    def _make_new(self, model_id: str) -> Path:
        """An empty folder for a model that is being made, beside what could not be removed."""
        for name in _names(NEW, model_id):
            with contextlib.suppress(FileExistsError):
                (self._models / name).mkdir()
                return self._models / name
        raise AssertionError("the names never end")

    def _put_in_place(self, checkpoint: Checkpoint, aside: Path, path: Path) -> None:
        """Rename within a transaction: a writer that has become stale cannot do it."""
        with self._journal(checkpoint.model_id) as opened, opened.transaction() as (_, last):
            if checkpoint.lsn > last:
                if self._durability != "none":
                    raise ValueError(
                        f"a checkpoint after {checkpoint.lsn} ticks is ahead of the journal, "
                        f"which ends with {last}"
                    )
                opened.begin_again(checkpoint.lsn)
            with storage("written", path):
                put_in_place(aside, path)
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
                checkpoints.path_of(folder, lsn).unlink(missing_ok=True)
                self._at("prune.unlinked")
        self._trim(model_id, plan.basis, history)

    def _say_dropped(self, model_id: str, dropped: set[int]) -> None:
        bound = f"{self._kept.model_bytes / 1e6:,.0f} MB"
        if dropped:
            which = ", ".join(str(lsn) for lsn in sorted(dropped))
            log.warning("model %s: dropped to stay within %s: %s", model_id, bound, which)

    def _trim(self, model_id: str, before: int, history_bytes: int) -> None:
        """Let go of records up to `before` while the journal takes more than `history_bytes`."""
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

    def checkpoints(self, model_id: str) -> list[CheckpointInfo]:
        """See `Store.checkpoints`."""
        return checkpoints.infos(self._models / model_id)

    def load(self, model_id: str, lsn: int) -> Checkpoint:
        """See `Store.load`."""
        return checkpoints.load(self._models / model_id, model_id, lsn)

    def delete(self, model_id: str) -> None:
        """See `Store.delete`."""
        self._check_writer()
        folder = self._models / model_id
        if not folder.is_dir():
            return
        with self._journal_of_the_dead(model_id), storage("deleted", folder):
            # Renamed first: a deletion that is interrupted does not leave half a model.
            gone = self._rename_away(folder)
            self._at("delete.renamed")
            sync_folder(self._models)
        _remove(gone)  # what cannot be removed now is tried again when the store is opened

    def _rename_away(self, folder: Path) -> Path:
        """Give a model's folder a name that no model has."""
        for name in _names(DELETED, folder.name):
            gone = self._models / name
            if not os.path.lexists(gone):
                return folder.rename(gone)
        raise AssertionError("the names never end")

    @contextlib.contextmanager
    def _journal_of_the_dead(self, model_id: str) -> Iterator[None]:
        """Hold a model's journal closed, after a last look at who may write to it."""
        try:
            with self._journal(model_id) as opened, opened.transaction():
                pass
        except (DataDamaged, StorageFailed):
            pass  # what is damaged may be deleted
        with self._registering:
            model = self._known.pop(model_id, None) or _Model()
        with model.turn:
            _close(model)
            yield


def _names(prefix: str, model_id: str) -> Iterator[str]:
    """Names for a folder that is being made or deleted, in the order in which they are tried."""
    yield f"{prefix}{model_id}"
    yield from (f"{prefix}{model_id}~{number}" for number in itertools.count(2))


def _remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; where that fails, a log line says so.

    Of a link the link is removed, and what it names stays.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or type(error).__name__
        log.warning("%s is of no use and could not be removed: %s", path, why)


def _close(model: _Model) -> None:
    if model.journal is not None:
        model.journal.close()
        model.journal = None
