"""Finds what a damaged model loses if it is repaired so that a server can load it.

Kept are the newest checkpoint that is whole and the records behind it, up to the first that is
damaged or missing. In front of that checkpoint, records are kept as far back as they are whole
without a gap. `StoreTools.repair` carries a plan out.
"""

from __future__ import annotations

from dataclasses import dataclass

from bptt.durability.inspection import stream_names, Survey
from bptt.durability.store import Command, GO_BACK, Record, Store, StoreReader, Tick
from bptt.errors import DataDamaged


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan or result of the repair of one model."""

    survey: Survey
    reason: str
    """What is wrong with the journal; empty if nothing."""
    keep_after: int
    """Records behind this number are kept …"""
    keep_to: int
    """… up to this one: the model goes back to its state after it."""
    lost: int
    """Records behind that: as many as are known to have been there."""
    lost_steps: int
    """Steps in those that can still be read; there may be more."""
    lost_streams: tuple[str, ...]
    """Their streams."""

    @property
    def needed(self) -> bool:
        """Whether there is anything to repair."""
        return bool(self.reason or self.survey.damaged)


def plan(store: StoreReader, found: Survey) -> Plan:
    """What a repair would do.

    Raises:
        DataDamaged: no checkpoint is whole: only a backup can help.
    """
    if not found.whole:
        raise DataDamaged(
            f"model {found.model_id} cannot be repaired: none of its checkpoints is whole; "
            "bring the model back from a backup"
        )
    walk = _Walk(found, stream_names(store, found.model_id))
    for lsn, record in store.salvage(found.model_id):
        walk.take(lsn, record)
    return walk.plan()


class _Walk:
    """Reads all records in order, and finds those that can be kept."""

    def __init__(self, found: Survey, names: dict[int, str]) -> None:
        self._found = found
        self._names = names  # of streams, by incarnation
        self._newest = found.whole[-1]
        self._whole = set(found.whole)
        self._to = self._newest
        self._before: int | None = None  # number before the first of the unbroken records so far
        self._expected = found.base + 1
        self._upper = max(self._newest, found.last, found.committed or 0)
        self._reason = found.problems[0] if found.problems else ""
        self._lost_steps = 0
        self._streams: set[str] = set()

    def take(self, lsn: int, record: Record | str) -> None:
        self._upper = max(self._upper, lsn)
        bad = _reason(record, self._whole)
        if bad and lsn <= self._newest and isinstance(record, Record):
            # A checkpoint is missing that only replay from before the newest one needs. The records
            # before this command lead to no checkpoint that is kept.
            self._before, self._expected = lsn, lsn + 1
            return
        if lsn != self._expected or bad:
            journal = f"the journal of model {self._found.model_id}"
            gap = f"{journal} has no lsn {self._expected}: {lsn} follows {self._expected - 1}"
            self._reason = self._reason or (
                f"{journal} is damaged at lsn {lsn}: {bad}" if bad else gap
            )
            if min(lsn, self._expected) <= self._newest:
                self._before = None
        self._expected = lsn + 1
        if bad:
            return
        if lsn <= self._newest:
            self._before = lsn - 1 if self._before is None else self._before
        elif lsn == self._to + 1:
            self._to = lsn
        elif isinstance(record, Record) and not isinstance(record.body, Command):
            self._lost_steps += len(record.body.batch.inputs)
            self._lose(record.body)

    def _lose(self, tick: Tick) -> None:
        """Note the streams of a tick that is lost, by name or number."""
        ids, numbers = tick.batch.stream_ids, tick.incarnations.tolist()
        for lane in tick.named.tolist():
            self._names[numbers[lane]] = ids[lane]
            self._streams.add(ids[lane])
        if tick.numbered:
            named = set(tick.named.tolist())
            rest = (number for lane, number in enumerate(numbers) if lane not in named)
            self._streams.update(self._names.get(each, f"number {each}") for each in rest)

    def plan(self) -> Plan:
        kept_from_before = self._before is not None and self._expected > self._newest
        after = self._before if kept_from_before and self._before is not None else self._newest
        if not self._reason and self._upper > max(self._to, self._newest):
            self._reason = (
                f"the journal of model {self._found.model_id} ends with lsn {self._to}, but "
                f"{self._upper} was committed"
            )
        lost, streams = self._upper - self._to, tuple(sorted(self._streams))
        return Plan(self._found, self._reason, after, self._to, lost, self._lost_steps, streams)


def _reason(record: Record | str, whole: set[int]) -> str:
    """Why a record cannot be replayed; empty if it can."""
    if isinstance(record, str):
        return record
    body = record.body
    if isinstance(body, Command) and body.name in GO_BACK:
        lsn = body.arguments.get("lsn")
        if lsn not in whole:
            return f"it goes back to the checkpoint after {lsn} records, which is not whole"
    return ""


def carry_out(store: Store, chosen: Plan) -> list[str]:
    """Repair one model as planned, within `Store.offline`.

    Returns:
        The places to which what was taken out has been moved.

    Raises:
        StorageFailed: something could not be written.
    """
    keep = (chosen.keep_after, chosen.keep_to) if chosen.reason else None
    return store.repair(chosen.survey.model_id, list(chosen.survey.damaged), keep)
