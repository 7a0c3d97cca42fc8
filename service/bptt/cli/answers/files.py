"""Tables of predictions in files: CSV, JSON lines and Parquet.

A table of text is written whole rows at a time and handed to the system at once, so that a process
that is killed leaves whole rows. A Parquet file is not readable before its end is written: it grows
under another name, and takes its own when the run ends.
"""

from __future__ import annotations

import csv
import fcntl
import importlib.util
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bptt.cli.answers.parquet import ParquetRows
from bptt.cli.data.problem import InputError

SUFFIXES = (".csv", ".jsonl", ".parquet")
COPY_BYTES = 1 << 20

Row = tuple[Any, ...]
"""The values of a table's columns, in their order; None where there is none."""


class Column(NamedTuple):
    """A column of a table."""

    name: str
    kind: type
    """str, int or float."""


def check_path(option: str, text: str) -> str:
    """Check that a table can be written, before anything is learned.

    Raises:
        InputError: the name says no format, a package is missing, or the folder cannot be written.
    """
    path = Path(text)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{option} is {text!r}, but must end in .csv, .jsonl or .parquet")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            f"{option} {text} needs pyarrow, which is not installed; "
            "type: pip install 'bptt[tables]'"
        )
    check_folder(option, path)
    return text


def check_folder(option: str, path: Path) -> None:
    """Check that a file can be written in its folder.

    Raises:
        InputError: it cannot.
    """
    if path.is_dir():
        raise InputError(f"{option} is {path}, which is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"{option} is {path}, but there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{option} is {path}, which cannot be written: permission denied")


def table_of(path: str, columns: Sequence[Column]) -> TableFile:
    """Return the table in a file, by the file's suffix; nothing is read or written yet."""
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        return ParquetTable(path, columns)
    return (JsonTable if suffix == ".jsonl" else CsvTable)(path, columns)


class TableFile(ABC):
    """A table in a file, whose rows are of streams and steps."""

    def __init__(self, path: str, columns: Sequence[Column]) -> None:
        """Name the file.

        Args:
            path: of the file.
            columns: of the table; `stream` and `step` are among them.
        """
        self.path = Path(path)
        self.columns = columns

    @abstractmethod
    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the file by the names of columns; none if there is no file.

        Raises:
            InputError: it is no such table.
        """

    @abstractmethod
    def create(self) -> None:
        """Begin the file anew.

        Raises:
            InputError: the file cannot be written, or is there and holds something else.
        """

    @abstractmethod
    def resume(self, stream: str, first_step: int) -> None:
        """Open the file, which need not be there, for more rows of a stream.

        Args:
            stream: the stream.
            first_step: its rows from this step on are removed from the file.

        Raises:
            InputError: as `create`, or another command writes the file now.
        """

    @abstractmethod
    def write(self, rows: Sequence[Row]) -> None:
        """Write rows.

        Raises:
            InputError: the file cannot be written, such as on a full disk.
        """

    @abstractmethod
    def close(self) -> None:
        """Write what is left and close the file."""

    def _problem(self, error: OSError) -> InputError:
        return InputError(f"cannot write {self.path}: {error.strerror}")

    def _foreign(self, found: Sequence[str]) -> InputError:
        mine = ", ".join(column.name for column in self.columns)
        return InputError(
            f"{self.path} exists and has the columns {', '.join(found) or '(none)'}, but "
            f"predictions of this model have {mine}; name another file"
        )


class TextTable(TableFile):
    """A table of text, to which rows are appended."""

    _file: io.FileIO

    def records(self) -> Iterator[dict[str, Any]]:
        """As `TableFile`."""
        for record, _, _ in self._places():
            yield record

    @abstractmethod
    def _places(self) -> Iterator[tuple[dict[str, Any], int, int]]:
        """Yield each whole row with the places of its first byte and of that after its last."""

    @abstractmethod
    def _header(self) -> bytes: ...

    @abstractmethod
    def _text(self, rows: Sequence[Row]) -> str: ...

    def create(self) -> None:
        """As `TableFile`."""
        next(self.records(), None)  # refuses what is no such table
        try:
            self._take()
            self._file.truncate(0)
            self._append(self._header())
        except OSError as error:
            raise self._problem(error) from None

    def resume(self, stream: str, first_step: int) -> None:
        """As `TableFile`; a row that was not written whole is removed as well."""
        try:
            self._take()
            self._keep(stream, first_step)
            if not self.path.stat().st_size:
                self._append(self._header())
        except OSError as error:
            raise self._problem(error) from None

    def _take(self) -> None:
        """Open the file, and refuse it if another process writes to it."""
        self._file = io.FileIO(self.path, "a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"another command writes to {self.path}; name another file") from None

    def _keep(self, stream: str, first_step: int) -> None:
        """Remove rows. Those of other streams may follow: then the rest is written anew."""
        kept = [(0, len(self._header()))] if self.path.stat().st_size else []
        for record, first, last in self._places():
            if record["stream"] == stream and int(record["step"]) >= first_step:
                continue
            if kept and kept[-1][1] == first:
                kept[-1] = (kept[-1][0], last)
            else:
                kept.append((first, last))
        if len(kept) <= 1:
            self._file.truncate(kept[0][1] if kept else 0)
            return
        beside = self.path.with_name(self.path.name + ".part")
        with self.path.open("rb") as old, beside.open("wb") as new:
            for first, last in kept:
                old.seek(first)
                while first < last:
                    piece = old.read(min(COPY_BYTES, last - first))
                    new.write(piece)
                    first += len(piece)
            new.flush()
            os.fsync(new.fileno())
        beside.replace(self.path)
        self._file.close()
        self._take()

    def write(self, rows: Sequence[Row]) -> None:
        """As `TableFile`."""
        try:
            self._append(self._text(rows).encode())
        except OSError as error:
            raise self._problem(error) from None

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def close(self) -> None:
        """As `TableFile`."""
        self._file.close()


class CsvTable(TextTable):
    """Comma-separated values with a header, as RFC 4180; UTF-8."""

    def _header(self) -> bytes:
        return self._text([tuple(column.name for column in self.columns)]).encode()

    def _text(self, rows: Sequence[Row]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()

    def _places(self) -> Iterator[tuple[dict[str, Any], int, int]]:
        if not self.path.exists() or not self.path.stat().st_size:
            return
        names = [column.name for column in self.columns]
        with self.path.open("rb") as file:
            lines = _WholeLines(file)
            rows = csv.reader(lines)
            header = next(rows, [])
            if header != names:
                raise self._foreign(header)
            first = lines.place
            for row in rows:
                if len(row) == len(names):
                    yield dict(zip(names, row, strict=True)), first, lines.place
                first = lines.place


class JsonTable(TextTable):
    """One JSON object a line."""

    def _header(self) -> bytes:
        return b""

    def _text(self, rows: Sequence[Row]) -> str:
        names = [column.name for column in self.columns]
        objects = (dict(zip(names, row, strict=True)) for row in rows)
        return "".join(json.dumps(each, allow_nan=False) + "\n" for each in objects)

    def _places(self) -> Iterator[tuple[dict[str, Any], int, int]]:
        if not self.path.exists():
            return
        names = [column.name for column in self.columns]
        with self.path.open("rb") as file:
            lines = _WholeLines(file)
            first = 0
            for line in lines:
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if not isinstance(record, dict) or list(record) != names:
                    raise self._foreign(list(record) if isinstance(record, dict) else [])
                yield record, first, lines.place
                first = lines.place


class _WholeLines:
    """The lines of a file that have their line end."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.place = 0
        """Bytes of the lines so far."""
        self._file = file

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            if not line.endswith(b"\n"):
                return
            self.place += len(line)
            yield line.decode("utf-8", "replace")


class ParquetTable(TableFile):
    """A Parquet file, in row groups. It is replaced as a whole when the table is closed."""

    _rows: ParquetRows

    def records(self) -> Iterator[dict[str, Any]]:
        """As `TableFile`."""
        if not self.path.exists():
            return
        names = [column.name for column in self.columns]
        found = ParquetRows.names(self.path)
        if found != names:
            raise self._foreign(found)
        yield from ParquetRows.read(self.path)

    def create(self) -> None:
        """As `TableFile`."""
        next(self.records(), None)  # refuses what is no such table
        try:
            self._rows = ParquetRows(self.path.with_name(self.path.name + ".part"), self.columns)
        except OSError as error:
            raise self._problem(error) from None

    def resume(self, stream: str, first_step: int) -> None:
        """As `TableFile`."""
        self.create()
        try:
            if self.path.exists():
                self._rows.copy(self.path, stream, first_step)
        except OSError as error:
            raise self._problem(error) from None

    def write(self, rows: Sequence[Row]) -> None:
        """As `TableFile`."""
        try:
            self._rows.write(rows)
        except OSError as error:
            raise self._problem(error) from None

    def close(self) -> None:
        """As `TableFile`."""
        try:
            self._rows.close()
            self._rows.path.replace(self.path)
        except OSError as error:
            raise self._problem(error) from None
