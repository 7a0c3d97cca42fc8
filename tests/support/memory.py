"""A store in the memory of this process: no files, no SQLite, the same promises."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bptt.durability import (
    Checkpoint,
    CheckpointInfo,
    checkpoints,
    codec,
    Command,
    ModelCopy,
    Record,
)
from bptt.durability.store import GO_BACK
from bptt.errors import DataDamaged, StaleWriter, StorageFailed

KEPT_CHECKPOINTS = 3


@dataclass
class Kept:
    """One model, encoded. A test may change the bytes to damage it."""

    base: int = 0
    committed: int = 0
    journal: dict[int, bytes] = field(default_factory=dict)
    checkpoints: dict[int, bytes] = field(default_factory=dict)
    taken_out: dict[str, bytes] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return max(self.journal, default=self.base)


@dataclass
class Memory:
    """What several stores, one after the other, keep: as a data folder is for SQLite."""

    exists: bool = False
    epoch: int = 0
    in_use: bool = False
    models: dict[str, Kept] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


_MEMORIES: dict[Path, Memory] = {}


def memory_at(place: Path) -> Memory:
    """The memory of this name; the same one each time."""
    return _MEMORIES.setdefault(place, Memory())


class MemoryStore:
    """Implements `Store`.

    Args:
        memory: outlives the store.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._epoch: int | None = None

    def open(self, epoch: int | None = None) -> int:
        with self._memory.lock:
            before = self._memory.epoch
            if self._memory.in_use:
                raise StaleWriter("the memory is one which another server uses")
            epoch = before + 1 if epoch is None else epoch
            if epoch <= before:
                raise StaleWriter(f"epoch is {epoch}, but must be above {before}, the last one")
            self._memory.exists = self._memory.in_use = True
            self._memory.epoch = self._epoch = epoch
        return epoch

    def close(self) -> None:
        if self._epoch == self._memory.epoch:
            self._memory.in_use = False
        self._epoch = None

    def _check_writer(self) -> None:
        if self._epoch is None or self._epoch != self._memory.epoch:
            raise StaleWriter(f"the memory has a later writer: epoch {self._memory.epoch}")

    def _kept(self, model_id: str) -> Kept:
        try:
            return self._memory.models[model_id]
        except KeyError:
            raise DataDamaged(f"the journal of model {model_id} is missing") from None

    # ------------------------------------------------------------------ reading

    def models(self) -> list[str]:
        if not self._memory.exists:
            raise StorageFailed("there is no such memory")
        return sorted(self._memory.models)

    def checkpoints(self, model_id: str) -> list[CheckpointInfo]:
        kept = self._memory.models.get(model_id, Kept())
        found = []
        for lsn, data in sorted(kept.checkpoints.items()):
            try:
                each = checkpoints.decode(data, model_id, lsn)
                figures = each.steps, each.updates, each.loss, each.skill_ratio
            except ValueError:
                figures = 0, 0, float("nan"), float("nan")
            found.append((lsn, len(data), figures))
        return checkpoints.described(found)

    def load(self, model_id: str, lsn: int) -> Checkpoint:
        try:
            return checkpoints.decode(self._kept(model_id).checkpoints[lsn], model_id, lsn)
        except KeyError:
            raise DataDamaged(f"checkpoint {lsn} of model {model_id} is missing") from None
        except ValueError as error:
            raise DataDamaged(
                f"checkpoint {lsn} of model {model_id} is damaged: {error}"
            ) from error

    def base(self, model_id: str) -> int:
        return self._kept(model_id).base

    def last(self, model_id: str) -> int:
        return self._kept(model_id).last

    def records(self, model_id: str, after: int) -> Iterator[Record]:
        kept, journal = self._kept(model_id), f"the journal of model {model_id}"
        with self._memory.lock:
            rows = sorted((lsn, data) for lsn, data in kept.journal.items() if lsn > after)
            base, committed = kept.base, kept.committed
        if base > after:
            raise DataDamaged(f"{journal} has no lsn {after + 1}: it begins with {base + 1}")
        for expected, (lsn, data) in enumerate(rows, after + 1):
            if lsn != expected:
                raise DataDamaged(f"{journal} has no lsn {expected}: {lsn} follows {expected - 1}")
            try:
                yield codec.decode(lsn, data)
            except ValueError as error:
                raise DataDamaged(f"{journal} is damaged at lsn {lsn}: {error}") from error
        last = after + len(rows)
        if committed > last:
            raise DataDamaged(
                f"{journal} has no lsn {last + 1}: it ends, but {committed} was committed"
            )

    def salvage(self, model_id: str) -> Iterator[tuple[int, Record | str]]:
        kept = self._memory.models.get(model_id, Kept())
        for lsn, data in sorted(kept.journal.items()):
            try:
                yield lsn, codec.decode(lsn, data)
            except ValueError as error:
                yield lsn, str(error)

    def committed(self, model_id: str) -> int | None:
        return self._kept(model_id).committed

    def problems(self, model_id: str) -> list[str]:
        return [] if model_id in self._memory.models else [f"model {model_id} has no journal"]

    def epoch(self) -> int:
        return self._memory.epoch

    @contextlib.contextmanager
    def copying(self, model_id: str) -> Iterator[ModelCopy | None]:
        with self._memory.lock:
            kept = self._memory.models.get(model_id)
            if kept is None:
                yield None
                return
            rows = sorted(kept.journal.items())
            whole = {lsn: partial(iter, [data]) for lsn, data in sorted(kept.checkpoints.items())}
            yield ModelCopy(model_id, kept.base, kept.last, whole, lambda: iter(rows))

    # ------------------------------------------------------------------ writing

    def append(self, model_id: str, records: Sequence[Record]) -> None:
        encoded = [(record.lsn, codec.encode(record)) for record in records]
        if not encoded:
            return
        first = encoded[0][0]
        if [lsn for lsn, _ in encoded] != list(range(first, first + len(encoded))):
            raise ValueError(f"lsn {encoded[-1][0]} does not follow without a gap")
        with self._memory.lock:
            self._check_writer()
            kept = self._kept(model_id)
            if not kept.base < first <= kept.last + 1:
                raise ValueError(f"lsn {first} cannot follow {kept.last}, the journal's last")
            for lsn, data in encoded:
                if kept.journal.get(lsn, data) != data:
                    raise ValueError(f"lsn {lsn} is stored already, with another record")
            kept.journal.update(encoded)
            kept.committed = kept.last

    def tail(self, model_id: str, after: int) -> Iterator[Record]:
        self._check_writer()
        return self.records(model_id, after)

    def save(self, checkpoint: Checkpoint) -> None:
        data = b"".join(checkpoints.encode(checkpoint))
        with self._memory.lock:
            self._check_writer()
            model_id, lsn = checkpoint.model_id, checkpoint.lsn
            kept = self._memory.models.get(model_id)
            if kept is None:
                kept = self._memory.models[model_id] = Kept(base=lsn, committed=lsn)
            elif lsn > kept.last:
                raise ValueError(f"lsn of the checkpoint is {lsn}: it is ahead of the journal")
            kept.checkpoints[lsn] = data
            plan = checkpoints.plan(self.checkpoints(model_id), _needs(kept), keep=KEPT_CHECKPOINTS)
            for gone in plan.dropped:
                del kept.checkpoints[gone]
            for gone in range(kept.base + 1, plan.basis + 1):
                kept.journal.pop(gone, None)
            kept.base = max(kept.base, plan.basis)

    def delete(self, model_id: str) -> None:
        with self._memory.lock:
            self._check_writer()
            self._memory.models.pop(model_id, None)

    # ------------------------------------------------------------------ tools

    @contextlib.contextmanager
    def offline(self) -> Iterator[None]:
        with self._memory.lock:
            if not self._memory.exists:
                raise StorageFailed("there is no such memory")
            if self._memory.in_use:
                raise StaleWriter("the memory is one which another server uses")
            self._memory.in_use = True
        try:
            yield
        finally:
            self._memory.in_use = False

    def repair(
        self, model_id: str, damaged: Sequence[int], keep: tuple[int, int] | None
    ) -> list[str]:
        kept = self._kept(model_id)
        moved = {f"checkpoint {lsn}": kept.checkpoints.pop(lsn) for lsn in damaged}
        if keep is not None:
            after, to = keep
            whole = {lsn for lsn, each in self.salvage(model_id) if isinstance(each, Record)}
            for lsn in sorted(kept.journal):
                if lsn not in whole or not after < lsn <= to:
                    moved[f"record {lsn}"] = kept.journal.pop(lsn)
            kept.base, kept.committed = after, to
        kept.taken_out |= moved
        return list(moved)

    @contextlib.contextmanager
    def receiving(self, epoch: int) -> Iterator[Callable[[ModelCopy], int]]:
        if self._memory.exists:
            raise StorageFailed("the memory could not be written: it exists already")
        received: dict[str, Kept] = {}

        def put(copy: ModelCopy) -> int:
            whole = {lsn: b"".join(pieces()) for lsn, pieces in copy.checkpoints.items()}
            kept = Kept(copy.base, copy.last, dict(copy.records()), whole)
            received[copy.model_id] = kept
            return sum(map(len, (*kept.journal.values(), *kept.checkpoints.values())))

        yield put
        self._memory.models, self._memory.epoch, self._memory.exists = received, epoch, True


def _needs(kept: Kept) -> list[tuple[int, int]]:
    records = (codec.decode(lsn, data) for lsn, data in kept.journal.items())
    return [
        (record.lsn, record.body.arguments["lsn"])
        for record in records
        if isinstance(record.body, Command) and record.body.name in GO_BACK
    ]
