"""Reads a CSV into arrays, from a file, a .gz file or standard input.

Reading blocks; `bptt.cli.threads` runs it beside the event loop.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bptt.cli.data.source import Batch, InputError, join_names, READ_BYTES, Source
from bptt.cli.data.values import expected_number, is_missing, kind_of, parse_number, seconds_of

SAMPLE_ROWS_MAX = 100  # rows sampled to classify the columns; one suffices if no value is missing
DELIMITERS = ",;\t"

Record = tuple[int, list[str]]
"""The line on which a row ends, counted from 1, and the row's fields."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The columns of a file, classified by its first rows."""

    header: tuple[str, ...]
    left_out: dict[str, str]
    """Columns that are not numeric, with the reason."""

    @property
    def time(self) -> int | None:
        """Index of the first column that holds times; None if there is none."""
        times = (i for i, name in enumerate(self.header) if self.left_out.get(name) == "a time")
        return next(times, None)

    @property
    def numeric(self) -> list[str]:
        """The numeric columns, which are learned unless others are named."""
        return [name for name in self.header if name not in self.left_out]

    def index(self, option: str, name: str) -> int:
        """Return the index of a column.

        Args:
            option: the command-line option that names it, for the message.
            name: the column's name.

        Raises:
            InputError: the file has no such column; the message lists those it has.
        """
        if name not in self.header:
            known = join_names(self.header)
            raise InputError(f"{option}: no column {name!r}; the columns are: {known}")
        return self.header.index(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSelection:
    """The columns that are read from each row."""

    columns: Sequence[int]
    """Column indices."""
    keep_missing: Sequence[bool] = ()
    """For each column: True if its value may be missing. A row that lacks another value is left
    out. Empty: no value may be missing."""
    classes: Mapping[str, int] | None = None
    """The last column holds class names, which are read as these ids; a missing class is -1."""
    time: int | None = None
    """Index of the column that holds the rows' times."""
    gap_seconds: float = math.inf
    """A row at least this long after the previous one begins a new sequence."""


class CsvTable(Source):
    """One CSV with a header: call `sample` first, then `read`."""

    def __init__(self, path: str) -> None:
        """Open the file.

        Args:
            path: a file's path, or `-` for standard input.

        Raises:
            InputError: the file does not exist or cannot be opened.
        """
        super().__init__(path)
        self._on_wait: Callable[[], None] = lambda: None
        self._records: Iterator[Record] = iter(())
        self._header: list[str] = []

    def sample(self) -> Sample:
        """Read the header and the rows needed to classify each column.

        Raises:
            InputError: there is no header, or reading failed.
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
                    if name not in kinds and not is_missing(text):
                        kinds[name] = kind_of(name, text)
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
        selection: ColumnSelection,
        rows_max: int,
        emit: Callable[[Batch], None],
        on_record: Callable[[list[str]], None] = lambda record: None,
    ) -> None:
        """Read to the end and pass the rows on in batches.

        Args:
            selection: the columns to read from each row.
            rows_max: the most rows in a batch. A live source yields fewer rather than wait.
            emit: receives each batch.
            on_record: receives all fields of each row, as text, before the row is added.

        Raises:
            InputError: a value is invalid; the rows before it were passed on.
        """
        builder = _BatchBuilder(emit, self.position)
        if self.is_live:
            self._on_wait = builder.flush
        try:
            with _reading(self.name):
                before: float | None = None
                for line, record in self._records:
                    row = self._row(selection, line, record)
                    on_record(record)
                    now = None if selection.time is None else seconds_of(record[selection.time])
                    if now is not None:
                        if before is not None and now - before >= selection.gap_seconds:
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
        source = self.unpacked()
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

    def _row(self, selection: ColumnSelection, line: int, record: list[str]) -> list[float] | None:
        """Parse the selected columns of a row; None if a required value is missing."""
        if len(record) != len(self._header):
            raise InputError(
                f"line {line} of {self.name} has {len(record)} values, "
                f"but its header has {len(self._header)}"
            )
        row = []
        missing = False
        for place, column in enumerate(selection.columns):
            text = record[column].strip()
            is_class = selection.classes is not None and place == len(selection.columns) - 1
            if is_missing(text):
                missing = missing or not (selection.keep_missing and selection.keep_missing[place])
                row.append(-1.0 if is_class else math.nan)
                continue
            where = f"line {line}, column {self._header[column]!r} of {self.name}"
            classes = selection.classes if is_class else None
            value = classes.get(text) if classes else parse_number(text)
            if value is None and classes:
                known = join_names(list(classes))
                raise InputError(f"{where} is {text!r}, but the classes are {known}")
            if value is None:
                raise InputError(f"{where} is {text!r}, {expected_number(text)}")
            row.append(value)
        return None if missing else row


class _BatchBuilder:
    """Collects rows until `flush` emits them as one batch."""

    def __init__(self, emit: Callable[[Batch], None], position: Callable[[], int]) -> None:
        self._emit = emit
        self._position = position
        self._rows: list[list[float]] = []
        self._first_line = self._last_line = self._missing = 0
        self._begins = False

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self) -> None:
        """Emit the collected rows; the next row begins a new sequence."""
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
        """Emit the collected rows; rows left out at the end of the file yield an empty batch."""
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
    """Convert the errors of reading and parsing to InputError."""
    try:
        yield
    except (OSError, EOFError, csv.Error, zlib.error) as error:
        raise InputError(f"cannot read {name}: {error}") from None


def _checked_header(name: str, line: int, header: list[str]) -> list[str]:
    header = [title.strip() for title in header]
    if not header:
        raise InputError(f"{name} is empty; its first line must be a header of column names")
    if all(parse_number(title) is not None for title in header):
        raise InputError(
            f"line {line} of {name} is all numbers; it must be a header of column names"
        )
    for title in header:
        if header.count(title) > 1:
            raise InputError(f"line {line} of {name}: column {title!r} appears twice")
    return header
