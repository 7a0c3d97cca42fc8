"""Text in, tokens out: the bytes of a file, of a .gz file or of standard input, as they come."""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections.abc import Callable
from typing import cast, IO, Self

import numpy as np

from bptt.cli.csvfile import Batch, GZIP_MAGIC, InputError

VOCABULARY = 256  # every byte there is
READ_BYTES = 1 << 16  # what a pipe holds


class TextFile:
    """One text, read as a stream of bytes."""

    def __init__(self, path: str) -> None:
        """Open `path`; `-` is standard input.

        Raises:
            InputError: it is not there or cannot be opened.
        """
        self.name = "standard input" if path == "-" else path
        try:
            self._raw = io.FileIO(0, closefd=False) if path == "-" else io.FileIO(path)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"there is no file {path}") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        status = os.fstat(self._raw.fileno())
        self.is_live = not stat.S_ISREG(status.st_mode)
        self.size = None if self.is_live else status.st_size

    def __enter__(self) -> Self:
        """The text itself; leaving the block closes its file."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file; standard input stays open."""
        self._raw.close()

    def read(self, tokens_max: int, emit: Callable[[Batch], None]) -> None:
        """Hand all bytes to `emit`, in batches of at most `tokens_max`, (T, 1) each.

        Raises:
            InputError: it cannot be read to its end.
        """
        line = 1
        try:
            source = self._unpacked()
            while piece := source.read(READ_BYTES):
                for first in range(0, len(piece), tokens_max):
                    part = piece[first : first + tokens_max]
                    values = np.frombuffer(part, np.uint8).astype(np.float32)[:, np.newaxis]
                    last = line + part.count(b"\n")
                    position = 0 if self.size is None else self._raw.tell()
                    emit(Batch(values, line, last, 0, position))
                    line = last
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{self.name} cannot be read: {error}") from None

    def _unpacked(self) -> IO[bytes]:
        raw = cast(IO[bytes], self._raw)
        if self.is_live:
            return raw
        magic = self._raw.read(len(GZIP_MAGIC))
        self._raw.seek(0)
        return cast(IO[bytes], gzip.open(raw)) if magic == GZIP_MAGIC else raw
