"""Tells which rows of a source a stream has already: by digests of the rows, or by their times.

A file is compared before anything is learned: `compare_file`. Standard input can be read only once:
`LiveRows` leaves out what is known while the rows arrive.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from bptt.cli.data.source import Batch
from bptt.cli.data.trail import Known, LAST_ROWS, rows_of, Trail

ROWS_MAX = 1024  # in a batch of a comparison

ReadBatches = Callable[[int, Callable[[Batch], None]], None]
"""Reads a source from its first row: (most rows in a batch, callback for each batch)."""
Outcome = Literal["same", "shorter", "edited", "moved", "later", "different"]


@dataclass(frozen=True, slots=True)
class Compared:
    """How a file compares with the rows that a stream has."""

    outcome: Outcome
    """same: the file begins with them. shorter: they begin with the file. edited: their last rows
    are in their place, but an earlier one differs. moved: their last rows are in another place.
    later: all rows of the file come after them in time. different: none of these."""
    skip: int = 0
    """Rows from the file's first that the stream has."""
    rows: tuple[int, int] = (0, 0)
    """edited, different: the first difference is among these rows, counted from 1."""
    lines: tuple[int, int] = (0, 0)
    """The lines of those rows."""


class _DecidedError(Exception):
    """Ends reading early."""


class Prefix:
    """Compares the rows of a source, from its first, with those that a stream has."""

    def __init__(self, known: Known) -> None:
        """Begin before the first row."""
        self._known = known
        self.trail = Trail()
        self.same_rows = 0
        """Rows that were compared and found equal."""
        self.difference: tuple[int, int] | None = None
        """Among these rows, counted from 1, the first difference is; None: there is none yet."""

    @property
    def is_decided(self) -> bool:
        """All known rows were found, or one that is different."""
        return self.difference is not None or self.same_rows == self._known.rows

    def take(self, batch: Batch) -> int:
        """Compare a batch; return how many of its rows were looked at before it was decided."""
        done = 0
        while done < len(batch.values) and not self.is_decided:
            rows = self.trail.rows
            stop = min(1 << rows.bit_length(), self._known.rows)  # the next digest that is known
            count = min(len(batch.values) - done, stop - rows)
            self.trail.add(batch.after(done).before(count))
            done += count
            if self.trail.rows == stop:
                self._compare(stop)
        return done

    def _compare(self, rows: int) -> None:
        is_step = rows & (rows - 1) == 0 and len(self.trail.steps) <= len(self._known.steps)
        is_same = (
            not is_step or self.trail.steps[-1] == self._known.steps[len(self.trail.steps) - 1]
        )
        if rows == self._known.rows:
            is_same = is_same and self.trail.all_rows == self._known.all_rows
        if is_same:
            self.same_rows = rows
        else:
            self.difference = self.same_rows + 1, rows


def compare_file(known: Known, read: ReadBatches, *, is_moment: bool) -> Compared:
    """Compare a file with the rows that a stream has.

    Args:
        known: what the stream remembers of them; at least one row.
        read: reads the file; called twice if it begins with other rows.
        is_moment: the rows' times are moments, so that later rows are new ones.
    """
    prefix = Prefix(known)
    parts: list[tuple[int, Batch]] = []  # with the number of rows before each

    def take(batch: Batch) -> None:
        before = prefix.trail.rows
        prefix.take(batch)
        # Only the batches since the last equal digest are of interest.
        parts[:] = [each for each in parts if each[0] + len(each[1].values) > prefix.same_rows]
        parts.append((before, batch))
        if prefix.is_decided:
            raise _DecidedError

    _read(read, take)
    if prefix.difference is None:
        is_all = prefix.trail.rows == known.rows
        return Compared("same" if is_all else "shorter", prefix.trail.rows)
    first, last = prefix.difference
    place = _lines(parts, first)[0], _lines(parts, last)[1]
    found = _search(known, read)
    if found.places == 1 and found.end == known.rows:
        return Compared("edited", known.rows, prefix.difference, place)
    if found.places == 1:
        return Compared("moved", found.end)
    if is_moment and known.same_time and found.earliest > known.seconds:
        return Compared("later")
    return Compared("different", 0, prefix.difference, place)


def _lines(parts: list[tuple[int, Batch]], row: int) -> tuple[int, int]:
    """The lines between which a row is; the same one twice if each row of its batch is a line."""
    before, batch = next(each for each in reversed(parts) if each[0] < row)
    first, last = batch.first_line, batch.last_line
    if last - first + 1 == len(batch.values):
        first = last = first + row - before - 1
    return first, last


@dataclass(slots=True)
class _Found:
    places: int = 0
    """Where the last known rows are."""
    end: int = 0
    """Rows up to the end of the first such place."""
    earliest: float = math.inf
    """Time of a row; infinite: there are none."""


def _search(known: Known, read: ReadBatches) -> _Found:
    """Look for the last rows that the stream has, and for the earliest time."""
    found = _Found()
    window: deque[bytes] = deque(maxlen=min(LAST_ROWS, known.rows))
    rows = 0

    def take(batch: Batch) -> None:
        nonlocal rows
        if batch.seconds is not None:
            finite = batch.seconds[batch.seconds == batch.seconds]
            found.earliest = min(found.earliest, float(finite.min(initial=math.inf)))
        for row in rows_of(batch):
            rows += 1
            window.append(row.tobytes())
            if len(window) < LAST_ROWS:  # too few to tell one place from another
                continue
            digest = hashlib.blake2b(b"".join(window), digest_size=len(known.last_rows)).digest()
            if digest == known.last_rows:
                found.places += 1
                found.end = found.end or rows

    _read(read, take)
    if not math.isfinite(found.earliest):
        found.earliest = -math.inf
    return found


def _read(read: ReadBatches, take: Callable[[Batch], None]) -> None:
    with suppress(_DecidedError):
        read(ROWS_MAX, take)


class LiveRows:
    """Leaves out the rows of a live source that a stream has already."""

    def __init__(self, known: Known, say: Callable[[str], None], *, is_moment: bool) -> None:
        """Begin before the first row.

        Args:
            known: what the stream remembers; at least one row.
            say: is told what was found, for people.
            is_moment: the rows' times are moments.
        """
        self._known = known
        self._say = say
        self._by_time = is_moment and known.same_time > 0
        self._prefix = Prefix(known)
        self._seen = Trail()
        self._same_time = 0
        self._held: list[Batch] = []
        self._is_done = False
        self.skipped = 0
        """Rows left out so far, and those of which it is not decided yet."""

    def take(self, batch: Batch) -> list[Batch]:
        """Return what of the rows so far is new."""
        if self._is_done:
            return [batch]
        if not len(batch.values):
            return [batch]
        return self._after_time(batch) if self._by_time else self._after_prefix(batch)

    def _after_time(self, batch: Batch) -> list[Batch]:
        assert batch.seconds is not None
        place = 0
        for now in batch.seconds.tolist():
            self._same_time += now == self._known.seconds
            if now > self._known.seconds or self._same_time > self._known.same_time:
                break
            place += 1
        if place and not self.skipped:
            self._say(
                f"the stream has rows up to {self._known.last_time or 'a time'} already: "
                "rows up to then are skipped"
            )
        self.skipped += place
        self._seen.add(batch.before(place))
        if place == len(batch.values):
            return []
        self._is_done = True
        self._judge()
        return [batch.after(place)]

    def _judge(self) -> None:
        """Note rows that were skipped by time, but are not the ones that the stream has."""
        if self._seen.rows < min(LAST_ROWS, self._known.rows):
            return
        if self._seen.last_rows != self._known.last_rows:
            self._say(
                f"note: {self._seen.rows:,} rows were skipped because of their times, but they are "
                "not those that the stream has; --append learns all rows"
            )

    def _after_prefix(self, batch: Batch) -> list[Batch]:
        is_first = not self._held and not self.skipped
        taken = self._prefix.take(batch)
        if self._prefix.difference is not None:
            self._is_done = True
            held, self._held, self.skipped = self._held, [], 0
            self._say(
                f"the stream has {self._known.rows:,} other rows of this source: the rows are "
                "learned after them"
            )
            return [*held, batch]
        self.skipped += taken
        if self._prefix.is_decided:
            self._is_done = True
            self._held = []
            self._say(f"skipped {self.skipped:,} rows that the stream has already")
            return [batch.after(taken)] if taken < len(batch.values) else []
        if is_first:
            self._say(
                "the first rows are those that the stream has: they wait until it is known whether "
                f"all {self._known.rows:,} are"
            )
        self._held.append(batch)
        return []
