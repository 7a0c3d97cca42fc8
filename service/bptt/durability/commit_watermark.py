"""The file `committed`: up to which record a journal was committed.

    models/NAME/committed      lsn i64 · flags u8 (1: commits are synced) · 3 bytes 0 · CRC-32 u32

Written without a sync after each commit, so it costs a microsecond. After a crash it may be behind
the journal and is never ahead of it. A journal that ends before it has lost records.
"""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

from bptt.durability.files import DISK, Disk

FILE = "committed"

_WATERMARK = struct.Struct("<qB3x")
_SYNCED = 1

log = logging.getLogger(__name__)


def encode(lsn: int, *, synced: bool) -> bytes:
    """The file's bytes.

    Args:
        lsn: number of the last committed record.
        synced: whether a commit waits for the disk.
    """
    data = _WATERMARK.pack(lsn, _SYNCED if synced else 0)
    return data + zlib.crc32(data).to_bytes(4, "little")


def write(folder: Path, lsn: int, *, synced: bool, disk: Disk = DISK) -> None:
    """Write and sync the watermark file of a closed journal."""
    disk.write(folder / FILE, [encode(lsn, synced=synced)])


def read(folder: Path) -> tuple[int, bool] | None:
    """Number of the last committed record, and whether it was synced; None: no commit is known.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        data = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return None
    if not data:
        return None
    if len(data) != _WATERMARK.size + 4 or zlib.crc32(data[:-4]) != int.from_bytes(
        data[-4:], "little"
    ):
        raise ValueError("its checksum does not fit")
    lsn, flags = _WATERMARK.unpack_from(data)
    return lsn, bool(flags & _SYNCED)


def read_if_whole(folder: Path) -> tuple[int, bool] | None:
    """As `read`, but a damaged file is logged and read as None: the journal may be whole."""
    try:
        return read(folder)
    except ValueError as error:
        path = folder / FILE
        log.warning(
            "%s is damaged (%s): whether the end of the journal is missing is not known",
            path,
            error,
        )
        return None
