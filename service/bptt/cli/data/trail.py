"""What a stream remembers of the source it was fed from: digests and times of its rows.

A trail is stored with the stream's steps as their source position, so it is exactly as durable as
they are. With it a later run tells whether a source begins with the rows that the stream has.

    trail    version u8 = 1 · rows u64 · digest of all rows 6 bytes · of the last rows 6 bytes
             · time of the last row f64 · rows of that time u32, 0 if an earlier row is later
             · number of further digests u8 · digests 3 bytes each: of the first 1, 2, 4, 8, … rows
             · form of the times: the usual step f64 · months u8 · length u8 · JSON

Numbers are little-endian. A digest is BLAKE2b of the rows: their times and values in float64.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bptt.cli.data.problem import InputError
from bptt.cli.data.source import Batch
from bptt.cli.data.steptimes import StepTimes
from bptt.cli.data.timespec import format_of, spec_of

VERSION = 1
TRAIL_BYTES_MAX = 256  # the server's bound of a source position
LAST_ROWS = 8  # in the digest by which the end of what is known is found inside a longer file
_DIGESTS_MAX = 32  # 2**31 rows; beyond it only all rows are compared
_HEAD = struct.Struct("<BQ6s6sdIB")
_TIMES = struct.Struct("<dBB")
_SHORT = 3
_LONG = 6

Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Known:
    """The trail of an earlier run, as the server tells it."""

    rows: int
    """Of the source, from its first row."""
    all_rows: bytes
    """Digest of all of them."""
    last_rows: bytes
    """Digest of the last LAST_ROWS of them, or of all if they are fewer."""
    seconds: float
    """Time of the last row; NaN: it has none."""
    same_time: int
    """How many rows have that time; 0: an earlier row has a later time, so that times do not tell
    which rows are known."""
    steps: tuple[bytes, ...]
    """Digests of the first 1, 2, 4, … rows."""
    times: StepTimes | None
    """How times are written; None: there are none."""

    @classmethod
    def read(cls, data: bytes) -> Known | None:
        """Read a source position; None: it is empty, or of another program."""
        try:
            version, rows, whole, last, seconds, same, count = _HEAD.unpack_from(data)
            at = _HEAD.size
            steps = tuple(data[at + _SHORT * i : at + _SHORT * (i + 1)] for i in range(count))
            at += _SHORT * count
            usual, months, length = _TIMES.unpack_from(data, at)
            text = data[at + _TIMES.size :]
            if version != VERSION or len(text) != length:
                return None
            times = None
            if length:
                form, zone = format_of(json.loads(text))
                times = StepTimes(form, zone, usual, months)
        except (struct.error, ValueError, KeyError, TypeError, InputError):
            return None
        return cls(rows, whole, last, seconds, same, steps, times)

    @property
    def last_time(self) -> str:
        """Time of the last row as the source writes it; empty: it has none."""
        return self.times.text(self.seconds) if self.times is not None else ""


class Trail:
    """Follows the rows of a source from its first one."""

    def __init__(self, times: StepTimes | None = None) -> None:
        """Begin before the first row.

        Args:
            times: how the source writes times; None: it has none.
        """
        self.rows = 0
        self.steps: list[bytes] = []
        """Digests of the first 1, 2, 4, … rows."""
        self.seconds = math.nan
        """Time of the last row that has one."""
        self._latest = -math.inf
        self._latest_rows = 0  # with that time
        self._times = times
        self._hash = hashlib.blake2b(digest_size=_LONG)
        self._last: Rows | None = None
        self._form = self._form_of(times)

    def add(self, batch: Batch) -> None:
        """Take the rows of a batch."""
        if not len(batch.values):
            return
        rows = rows_of(batch)
        done = 0
        while done < len(rows):
            # Up to the next power of two, where a digest is kept.
            stop = min(len(rows), done + (1 << self.rows.bit_length()) - self.rows)
            self._hash.update(rows[done:stop].tobytes())
            self.rows += stop - done
            done = stop
            if self.rows & (self.rows - 1) == 0 and len(self.steps) < _DIGESTS_MAX:
                self.steps.append(self.all_rows[:_SHORT])
        before = rows if self._last is None else np.concatenate([self._last, rows])
        self._last = before[-LAST_ROWS:].copy()
        if batch.seconds is not None:
            self._follow(batch.seconds)

    def _follow(self, seconds: Rows) -> None:
        for now in seconds.tolist():
            if not math.isfinite(now):
                continue
            self.seconds = now
            if now > self._latest:
                self._latest, self._latest_rows = now, 0
            self._latest_rows += now == self._latest

    @property
    def same_time(self) -> int:
        """How many rows have the last one's time; 0: an earlier row has a later time."""
        return self._latest_rows if self.seconds == self._latest else 0

    @property
    def all_rows(self) -> bytes:
        """Digest of all rows so far."""
        return self._hash.digest()

    @property
    def last_rows(self) -> bytes:
        """Digest of the last rows."""
        data = b"" if self._last is None else self._last.tobytes()
        return hashlib.blake2b(data, digest_size=_LONG).digest()

    def position(self) -> bytes:
        """The trail up to the last row, at most TRAIL_BYTES_MAX bytes."""
        head = _HEAD.pack(
            VERSION,
            self.rows,
            self.all_rows,
            self.last_rows,
            self.seconds,
            min(self.same_time, 2**32 - 1),
            len(self.steps),
        )
        data = head + b"".join(self.steps)
        form = self._form if len(data) + len(self._form) <= TRAIL_BYTES_MAX else self._form_of(None)
        return data + form

    @staticmethod
    def _form_of(times: StepTimes | None) -> bytes:
        if times is None:
            return _TIMES.pack(math.nan, 0, 0)
        spec = spec_of(times.format, times.zone)
        text = json.dumps(spec, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > 255:
            return _TIMES.pack(math.nan, 0, 0)
        return _TIMES.pack(times.step_seconds, times.months, len(text)) + text


def rows_of(batch: Batch) -> Rows:
    """What is remembered of rows: (T, 1 + columns), times and values; of a text, (T, 1) tokens."""
    values = np.ascontiguousarray(batch.values, dtype=np.float64)
    if batch.seconds is None:
        return values
    return np.concatenate([batch.seconds[:, np.newaxis], values], axis=1)
