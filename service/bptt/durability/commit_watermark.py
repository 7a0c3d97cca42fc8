"""The file that says how far a journal was committed.

    models/NAME/committed      tick i64 · flags u8 (1: commits are synced) · 3 bytes 0 · CRC-32 u32

Written without a sync after each commit, so it costs a microsecond, and may be behind after a crash
but never ahead. It tells when the end of a journal is gone.
"""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

FILE = "committed"

_MARK = struct.Struct("<qB3x")
_SYNCED = 1

log = logging.getLogger(__name__)


def encode(lsn: int, *, synced: bool) -> bytes:
    """The file's bytes: the last committed record, and whether commits are synced."""
    data = _MARK.pack(lsn, _SYNCED if synced else 0)
    return data + zlib.crc32(data).to_bytes(4, "little")


def write(folder: Path, lsn: int, *, synced: bool) -> None:
    """Note the last committed record of a journal that is not open."""
    (folder / FILE).write_bytes(encode(lsn, synced=synced))


def read(folder: Path) -> tuple[int, bool] | None:
    """Number of the last committed record, and whether it was synced; None: none was.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        data = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return None
    if not data:
        return None
    if len(data) != _MARK.size + 4 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum does not fit")
    lsn, flags = _MARK.unpack_from(data)
    return lsn, bool(flags & _SYNCED)


def read_if_whole(folder: Path) -> tuple[int, bool] | None:
    """As `read`; a damaged file is a line in the log, for the journal itself may be whole."""
    try:
        return read(folder)
    except ValueError as error:
        path = folder / FILE
        log.warning("%s is damaged (%s); whether the journal ends early is not known", path, error)
        return None
