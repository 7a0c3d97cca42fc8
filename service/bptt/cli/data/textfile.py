"""Reads a text as tokens: each byte of a file, packed or not, or of standard input is one token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bptt.cli.data.source import Batch, Source
from bptt.cli.data.unpack import Unpacked

VOCABULARY = 256  # the number of byte values


class TextFile(Source):
    """One text, read as a sequence of bytes."""

    def read(self, tokens_max: int, emit: Callable[[Batch], None]) -> None:
        """Read to the end and pass the bytes on in batches.

        Args:
            tokens_max: the most tokens in a batch.
            emit: receives each batch; its values are (T, 1) token ids.

        Raises:
            InputError: reading failed before the end.
        """
        line = 1
        source = Unpacked(self._raw, self.name, is_live=self.is_live)
        while piece := source.read():
            for first in range(0, len(piece), tokens_max):
                part = piece[first : first + tokens_max]
                values = np.frombuffer(part, np.uint8).astype(np.float32)[:, np.newaxis]
                last = line + part.count(b"\n")
                emit(Batch(values, line, last, 0, self.position()))
                line = last
