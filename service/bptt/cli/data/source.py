"""Shared by the file formats: opening a file, unpacking gzip, and the batches they produce."""

from __future__ import annotations

import gzip
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, IO, Self

import numpy as np
from numpy.typing import NDArray

READ_BYTES = 1 << 16  # the capacity of a pipe
NAMES_MAX = 8  # column names listed in a message
GZIP_MAGIC = b"\x1f\x8b"


class InputError(Exception):
    """The input cannot be used; the message names the place and the reason."""


def join_names(names: Sequence[str]) -> str:
    """Join names with commas; a long list is cut after NAMES_MAX names."""
    if len(names) <= NAMES_MAX:
        return ", ".join(names)
    return f"{', '.join(names[:NAMES_MAX])}, … and {len(names) - NAMES_MAX:,} more"


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive rows of one sequence."""

    values: NDArray[np.float32]
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
        self.is_live = not stat.S_ISREG(status.st_mode)
        """The source is a pipe or terminal, so more data may arrive later."""
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

    def unpacked(self) -> IO[bytes]:
        """Return the content as bytes; gzip is recognised by its first bytes, in files only."""
        raw = cast(IO[bytes], self._raw)
        if self.is_live:
            return raw
        magic = self._raw.read(len(GZIP_MAGIC))
        self._raw.seek(0)
        return cast(IO[bytes], gzip.open(raw)) if magic == GZIP_MAGIC else raw
