"""What the file formats share: opening a file, and the batches they produce."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bptt.cli.data.problem import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive rows of one sequence."""

    values: NDArray[np.floating[Any]]
    """(T, columns) of the selected columns; NaN where a value is missing."""
    first_line: int
    last_line: int
    """Input lines on which the first and the last row end, counted from 1."""
    missing: int
    """Rows left out since the previous batch because a value is missing."""
    position: int
    """Bytes of the input read so far."""
    begins: bool = False
    """The first row starts a new sequence: it follows a gap in time."""
    seconds: NDArray[np.float64] | None = None
    """(T,) times of the rows in UTC, or since a start; NaN where a time cannot be read. None: the
    rows have no times."""
    times: Sequence[str] = ()
    """The same times as they are written in the file; empty: the rows have no times."""

    source_position: bytes = b""
    """Where the source stands after the last row, as it is stored with the steps."""

    def before(self, count: int) -> Batch:
        """The first `count` rows only, and the count of rows left out."""
        return replace(
            self,
            values=self.values[:count],
            seconds=None if self.seconds is None else self.seconds[:count],
            times=self.times[:count],
        )

    def after(self, count: int) -> Batch:
        """The same without the first `count` rows and without the count of rows left out."""
        return replace(
            self,
            values=self.values[count:],
            missing=0,
            begins=self.begins and not count,
            seconds=None if self.seconds is None else self.seconds[count:],
            times=self.times[count:],
        )


class Source:
    """A file, or standard input, opened for reading as bytes."""

    def __init__(self, path: str) -> None:
        """Open the source.

        Args:
            path: a file's path, or `-` for standard input.

        Raises:
            InputError: the file does not exist or cannot be opened.
        """
        self.name = "standard input" if path == "-" else path
        try:
            # Unbuffered: a thread blocked on standard input must hold no lock that the
            # interpreter needs when it exits.
            self._raw = io.FileIO(0, closefd=False) if path == "-" else io.FileIO(path)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"file not found: {path}") from None
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        status = os.fstat(self._raw.fileno())
        self.is_live = path == "-" or not stat.S_ISREG(status.st_mode)
        """The source can be read only once, and more data may arrive later."""
        self.size = None if self.is_live else status.st_size
        """Bytes in the file; None for a live source."""

    def __enter__(self) -> Self:
        """Return the source itself; leaving the block closes the file."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file; standard input stays open."""
        self._raw.close()

    def position(self) -> int:
        """Return the number of bytes read so far; 0 for a live source."""
        return 0 if self.size is None else self._raw.tell()
