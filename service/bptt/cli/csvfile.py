"""CSV in, arrays out: a file, a .gz file or standard input. It blocks; `pump` gives it a thread."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, UTC
from typing import cast, IO, Self

import numpy as np
from numpy.typing import NDArray

READ_BYTES = 1 << 16  # what a pipe holds
SAMPLE_ROWS_MAX = 100  # rows looked at to tell numbers from text; the first is enough without gaps
MISSING = frozenset(("", "na", "n/a", "nan", "null", "nil", "none", "-", "?"))
NAMES_MAX = 8  # columns named in a message
DELIMITERS = ",;\t"
GZIP_MAGIC = b"\x1f\x8b"
FLOAT32_MAX = float(np.finfo(np.float32).max)
_TIME_NAME = re.compile(r"(unix[ _]?)?(date|time|datetime|timestamp|epoch|ts)([ _](utc|local)|\b)")
_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?")
_TIME_VALUE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2}:\d{2}")

Record = tuple[int, list[str]]
"""Number of the line where a row ends, from 1, and its fields."""


class InputError(Exception):
    """The input cannot be read; the message says where and why."""


def some(names: Sequence[str]) -> str:
    """Names with commas between them; of very many only the first."""
    if len(names) <= NAMES_MAX:
        return ", ".join(names)
    return f"{', '.join(names[:NAMES_MAX])}, … and {len(names) - NAMES_MAX:,} more"


@dataclass(frozen=True, slots=True)
class Sample:
    """What the first rows tell about the columns."""

    header: tuple[str, ...]
    left_out: dict[str, str]
    """Columns that are not numbers to learn from, with the reason."""

    @property
    def time(self) -> int | None:
        """The first column that is a time, by index."""
        times = (i for i, name in enumerate(self.header) if self.left_out.get(name) == "a time")
        return next(times, None)

    @property
    def numeric(self) -> list[str]:
        """Columns to learn from unless told otherwise."""
        return [name for name in self.header if name not in self.left_out]

    def index(self, option: str, name: str) -> int:
        """Place of a column.

        Raises:
            InputError: it is not there; lists those that are.
        """
        if name not in self.header:
            there = some(self.header)
            raise InputError(f"{option}: there is no column {name!r}; there are: {there}")
        return self.header.index(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of each row is read."""

    columns: Sequence[int]
    """By index."""
    keep_missing: Sequence[bool] = ()
    """For each column, whether a value may be missing; a row where another one is is left out.
    Default: none may."""
    classes: Mapping[str, int] | None = None
    """The last column holds names of classes, which are read as these ids; missing is -1."""
    time: int | None = None
    """Column of the rows' times, by index."""
    gap_seconds: float = math.inf
    """A row that comes so long after the one before it begins a new sequence."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive rows of one sequence."""

    values: NDArray[np.float32]
    """(T, columns) of the chosen columns; NaN where a value is missing."""
    first_line: int
    last_line: int
    """Lines of the input where the first and the last row end, from 1."""
    missing: int
    """Rows left out since the batch before, for a missing value."""
    position: int
    """Bytes of the input that were read so far."""
    begins: bool = False
    """The first row comes after a gap in time: another sequence ends before it."""


class CsvTable:
    """One CSV with a header: `sample` tells what it holds, then `read` gives its rows."""

    def __init__(self, path: str) -> None:
        """Open `path`; `-` is standard input.

        Raises:
            InputError: it is not there or cannot be opened.
        """
        self.name = "standard input" if path == "-" else path
        try:
            # Unbuffered: a thread that waits for standard input must hold no lock that the
            # interpreter wants when it exits.
            self._raw = io.FileIO(0, closefd=False) if path == "-" else io.FileIO(path)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"there is no file {path}") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        status = os.fstat(self._raw.fileno())
        self.is_live = not stat.S_ISREG(status.st_mode)
        """More may come later: what is there is handed on before the wait for it."""
        self.size = None if self.is_live else status.st_size
        self._on_wait: Callable[[], None] = lambda: None
        self._records: Iterator[Record] = iter(())
        self._header: list[str] = []

    def __enter__(self) -> Self:
        """The table itself; leaving the block closes its file."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file; standard input stays open."""
        self._raw.close()

    def sample(self) -> Sample:
        """Read the header and as many rows as it takes to know what each column is.

        Raises:
            InputError: there is no header.
        """
        with _reading(self.name):
            records = self._parse()
            line, header = next(records, (0, []))
            self._header = _checked_header(self.name, line, header)
            kinds: dict[str, str] = {}
            taken = []
            for record in itertools.islice(records, SAMPLE_ROWS_MAX):
                taken.append(record)
                for name, text in zip(self._header, record[1], strict=False):
                    if name not in kinds and text.strip().lower() not in MISSING:
                        kinds[name] = _kind(name, text)
                if len(kinds) == len(self._header):
                    break
        self._records = itertools.chain(taken, records)
        left_out = {
            name: kinds.get(name, "without values")
            for name in self._header
            if kinds.get(name, "without values") != "number"
        }
        return Sample(tuple(self._header), left_out)

    def read(
        self,
        choice: Choice,
        rows_max: int,
        emit: Callable[[Batch], None],
        look: Callable[[list[str]], None] = lambda record: None,
    ) -> None:
        """Hand all rows to `emit`, in batches of at most `rows_max`.

        Args:
            choice: what of each row is read.
            rows_max: rows in a batch; fewer where more would have to be waited for.
            emit: takes a batch.
            look: is shown all fields of each row, as text, before it is taken.

        Raises:
            InputError: a value is not a number; the rows before it were handed on.
        """
        builder = _BatchBuilder(emit, lambda: self._raw.tell() if self.size is not None else 0)
        if self.is_live:
            self._on_wait = builder.flush
        try:
            with _reading(self.name):
                before: float | None = None
                for line, record in self._records:
                    row = self._row(choice, line, record)
                    look(record)
                    now = None if choice.time is None else seconds_of(record[choice.time])
                    if now is not None:
                        if before is not None and now - before >= choice.gap_seconds:
                            builder.begin()
                        before = now
                    builder.add(line, row)
                    if len(builder) >= rows_max:
                        builder.flush()
        finally:
            self._on_wait = lambda: None
            builder.flush()

    def _parse(self) -> Iterator[Record]:
        lines = self._lines()
        first = next(lines, "")
        delimiter = max(DELIMITERS, key=first.count)
        reader = csv.reader(
            itertools.chain([first], lines), delimiter=delimiter, skipinitialspace=True
        )
        for record in reader:
            if record:
                yield reader.line_num, record

    def _lines(self) -> Iterator[str]:
        source = self._unpacked()
        rest = b""
        encoding = "utf-8-sig"  # the first line may begin with a byte order mark
        while data := source.read(READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                yield line.decode(encoding, "replace") + "\n"
                encoding = "utf-8"
            self._on_wait()
        if rest:
            yield rest.decode(encoding, "replace")

    def _unpacked(self) -> IO[bytes]:
        if self.is_live:
            return cast(IO[bytes], self._raw)
        magic = self._raw.read(len(GZIP_MAGIC))
        self._raw.seek(0)
        if magic == GZIP_MAGIC:
            return cast(IO[bytes], gzip.open(cast(IO[bytes], self._raw)))
        return cast(IO[bytes], self._raw)

    def _row(self, choice: Choice, line: int, record: list[str]) -> list[float] | None:
        """The chosen columns of one row; None where a value is missing that may not be."""
        if len(record) != len(self._header):
            raise InputError(
                f"line {line} of {self.name} has {len(record)} values, "
                f"but its header has {len(self._header)}"
            )
        row = []
        missing = False
        for place, column in enumerate(choice.columns):
            text = record[column].strip()
            is_class = choice.classes is not None and place == len(choice.columns) - 1
            if text.lower() in MISSING:
                missing = missing or not (choice.keep_missing and choice.keep_missing[place])
                row.append(-1.0 if is_class else math.nan)
                continue
            where = f"line {line}, column {self._header[column]!r} of {self.name}"
            value = choice.classes.get(text) if is_class and choice.classes else _number(text)
            if value is None and is_class and choice.classes:
                there = some(list(choice.classes))
                raise InputError(f"{where} is {text!r}, but the classes are {there}")
            if value is None:
                raise InputError(f"{where} is {text!r}, {_bound(text)}")
            row.append(value)
        return None if missing else row


class _BatchBuilder:
    """Collects rows until they are flushed as one batch."""

    def __init__(self, emit: Callable[[Batch], None], position: Callable[[], int]) -> None:
        self._emit = emit
        self._position = position
        self._rows: list[list[float]] = []
        self._first_line = self._last_line = self._missing = 0
        self._begins = False

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self) -> None:
        """The next row begins a new sequence."""
        self.flush()
        self._begins = True

    def add(self, line: int, row: list[float] | None) -> None:
        if row is None:
            self._missing += 1
            return
        if not self._rows:
            self._first_line = line
        self._rows.append(row)
        self._last_line = line

    def flush(self) -> None:
        """Emit what there is. Rows left out at the very end come as a batch without rows."""
        if not self._rows and not self._missing:
            return
        values = np.asarray(self._rows, dtype=np.float32)
        lines = self._first_line, self._last_line
        batch = Batch(values, *lines, self._missing, self._position(), self._begins)
        if self._rows:
            self._begins = False
        self._rows = []
        self._missing = 0
        self._emit(batch)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what reading may raise into an InputError."""
    try:
        yield
    except (OSError, EOFError, csv.Error, zlib.error) as error:
        raise InputError(f"{name} cannot be read: {error}") from None


def _checked_header(name: str, line: int, header: list[str]) -> list[str]:
    header = [title.strip() for title in header]
    if not header:
        raise InputError(f"{name} is empty, but must begin with a header of column names")
    if all(_number(title) is not None for title in header):
        raise InputError(
            f"line {line} of {name} is all numbers, but must be a header of column names"
        )
    for title in header:
        if header.count(title) > 1:
            raise InputError(f"line {line} of {name} names the column {title!r} twice")
    return header


def _kind(name: str, text: str) -> str:
    """`number`, or why a column is left out."""
    if _TIME_NAME.match(name.lower()) or _TIME_VALUE.match(text.strip()):
        return "a time"
    return "number" if _number(text.strip()) is not None else "text"


def seconds_of(text: str) -> float | None:
    """A time in seconds, since whenever: a date and time, a number, or days and a time of day."""
    text = text.strip()
    days, _, rest = text.rpartition(" days ")
    match = _TIME_OF_DAY.fullmatch(rest)
    if match is not None and (days or " " not in text):
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return float(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    try:
        return float(text)
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when.replace(tzinfo=when.tzinfo or UTC).timestamp()


def _bound(text: str) -> str:
    """What a value that is not a `_number` should have been."""
    try:
        too_large = math.isfinite(float(text)) and "_" not in text
    except ValueError:
        too_large = False
    if too_large:
        return f"which does not fit float32: at most {FLOAT32_MAX:.2g} in size"
    return "but must be a finite number"


def _number(text: str) -> float | None:
    """A number that float32 can hold, or None."""
    if "_" in text:  # Python's own spelling of thousands, which no CSV means
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) <= FLOAT32_MAX else None
