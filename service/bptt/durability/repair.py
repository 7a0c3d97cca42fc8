"""Bring a damaged model back to a state that a server starts from, and say what of it is lost.

What is kept is the newest checkpoint that is whole and the records behind it up to the first that
is damaged or missing. In front of that checkpoint, records are kept as far back as they are whole
without a gap. Nothing is deleted: what is taken out is moved to the folder `damaged` of the model.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bptt.durability import checkpoints, codec, commit_watermark, journal, reading
from bptt.durability.files import storage, sync_folder
from bptt.durability.inspection import Survey
from bptt.durability.layout import DAMAGED
from bptt.durability.store import Command, Record
from bptt.errors import DataDamaged, StorageFailed

ASIDE = ".repaired"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a repair of one model comes to."""

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


def plan(found: Survey) -> Plan:
    """What a repair would do.

    Raises:
        DataDamaged: no checkpoint is whole: only a backup can help.
    """
    if not found.whole:
        raise DataDamaged(
            f"{found.folder} cannot be repaired: none of its checkpoints is whole; "
            "bring the model back from a backup"
        )
    newest = found.whole[-1]
    whole = set(found.whole)
    after = to = newest
    lost_steps, streams, upper = 0, set(), max(newest, found.last, found.committed or 0)
    before: int | None = None  # number before the first of the unbroken records so far
    reason = found.problems[0] if found.problems else ""
    expected = found.base + 1
    for lsn, record in _records(found.folder):
        upper = max(upper, lsn)
        bad = _reason(record, whole)
        if bad and lsn <= newest and isinstance(record, Record):
            # Nobody replays it any more. What is before it leads to no checkpoint that is kept.
            before, expected = lsn, lsn + 1
            continue
        if lsn != expected or bad:
            path = found.folder / reading.FILE
            gap = f"{path} has no tick {expected}: {lsn} follows {expected - 1}"
            reason = reason or (f"{path} is damaged at tick {lsn}: {bad}" if bad else gap)
            if min(lsn, expected) <= newest:
                before = None
        expected = lsn + 1
        if bad:
            continue
        if lsn <= newest:
            before = lsn - 1 if before is None else before
        elif lsn == to + 1:
            to = lsn
        elif isinstance(record, Record) and not isinstance(record.body, Command):
            lost_steps += sum(len(chunk.inputs) for chunk in record.body)
            streams |= {chunk.stream_id for chunk in record.body}
    if before is not None and expected > newest:
        after = before
    if not reason and upper > max(to, newest):
        reason = f"{found.folder / reading.FILE} ends with tick {to}, but {upper} was committed"
    return Plan(found, reason, after, to, upper - to, lost_steps, tuple(sorted(streams)))


def _reason(record: Record | str, whole: set[int]) -> str:
    """Why a record cannot be replayed; empty if it can."""
    if isinstance(record, str):
        return record
    body = record.body
    if isinstance(body, Command) and body.name in journal.GO_BACK:
        lsn = body.arguments.get("lsn")
        if lsn not in whole:
            return f"it goes back to the checkpoint after {lsn} ticks, which is not whole"
    return ""


def _records(folder: Path) -> Iterator[tuple[int, Record | str]]:
    """All records that are there, whole or with what is wrong with them, in order."""
    try:
        with reading.open_to_read(folder / reading.FILE) as connection:
            for lsn, body in _rows(connection):
                if isinstance(body, str):
                    yield lsn, body
                    continue
                try:
                    yield lsn, codec.decode(lsn, body)
                except ValueError as error:
                    yield lsn, str(error)
    except (DataDamaged, StorageFailed):
        return  # no journal at all; the survey says so


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[int, bytes | str]]:
    """Rows in order; those on a page that SQLite cannot read come with its words instead."""
    last = None
    with contextlib.suppress(sqlite3.Error):
        for lsn, body in connection.execute("SELECT tick, body FROM journal ORDER BY tick"):
            yield lsn, body
            last = lsn
        return
    with contextlib.suppress(sqlite3.Error):
        (highest,) = connection.execute("SELECT max(tick) FROM journal").fetchone()
        first = 0 if last is None else last
        # One by one: each look-up goes to a page of its own, and only some of them are damaged.
        for lsn in range(first + 1, (highest or 0) + 1):
            try:
                row = connection.execute("SELECT body FROM journal WHERE tick = ?", (lsn,))
                for (body,) in row.fetchall():
                    yield lsn, body
            except sqlite3.Error as error:
                yield lsn, str(error)


def carry_out(chosen: Plan) -> list[Path]:
    """Repair one model as planned. Should it be interrupted, what is missing is in `damaged`.

    Returns:
        Where what was taken out has been moved to.

    Raises:
        StorageFailed: something could not be written.
    """
    folder = chosen.survey.folder
    moved = []
    with storage("written", folder):
        attic = folder / DAMAGED
        attic.mkdir(exist_ok=True)
        for lsn in chosen.survey.damaged:
            moved.append(_move(checkpoints.path_of(folder, lsn), attic))
    if chosen.reason:
        moved += _rebuild(chosen, attic)
    with storage("written", folder):
        sync_folder(attic)
        sync_folder(folder)
    return moved


def _rebuild(chosen: Plan, attic: Path) -> list[Path]:
    """Write the records that are kept to a new journal, and put it in the place of the old."""
    folder = chosen.survey.folder
    fresh = folder / ASIDE
    with storage("written", fresh):
        for rest in fresh.glob("*"):  # of a repair that was interrupted
            rest.unlink()
        fresh.mkdir(exist_ok=True)
    journal.create(fresh, epoch=0, base=chosen.keep_after)
    opened = journal.Journal(fresh, epoch=0, synced=False)
    try:
        with opened.transaction():
            for lsn, record in _records(folder):
                if chosen.keep_after < lsn <= chosen.keep_to and isinstance(record, Record):
                    opened.insert([(record, codec.encode(record))])
    finally:
        opened.close()  # which moves the log into the file and syncs it
    with storage("written", folder):
        moved = []
        for name in (f"{reading.FILE}-wal", f"{reading.FILE}-shm", reading.FILE):
            if (folder / name).exists():
                moved.append(_move(folder / name, attic))
        commit_watermark.write(folder, chosen.keep_to, synced=True)
        (fresh / reading.FILE).rename(folder / reading.FILE)
        for rest in fresh.glob("*"):
            rest.unlink()
        fresh.rmdir()
    return moved


def _move(path: Path, attic: Path) -> Path:
    """Move a file to where no other of its name is yet."""
    target = attic / path.name
    number = 1
    while target.exists():
        number += 1
        target = attic / f"{path.name}.{number}"
    path.rename(target)
    return target
