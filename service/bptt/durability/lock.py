"""Which process may write to a data folder: one, whose epoch is above all before it.

    DATA/lock     locked by the process that writes; the lock ends with the process, however it ends
    DATA/epoch    number of the last writer, and its CRC-32: "7 6abf4a82"

The lock is enough on one machine. The epoch is for file systems that do not share locks between
machines: each journal holds it too, and no commit of a writer with a lower epoch succeeds.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from pathlib import Path

from bptt.durability.files import DISK, Disk, replace, storage
from bptt.errors import DataDamaged, StaleWriter

FILE = "epoch"


def take(folder: Path) -> int:
    """Lock a data folder for this process.

    Returns:
        The descriptor that holds the lock until it is closed.

    Raises:
        StaleWriter: another process has it.
        StorageFailed: the lock's file cannot be opened.
    """
    path = folder / "lock"
    with storage("opened", path):
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise StaleWriter(f"data is {folder}, which another server uses") from error
    return lock


def encode(epoch: int) -> bytes:
    """The bytes of the file `epoch`."""
    text = str(epoch).encode()
    return b"%s %08x\n" % (text, zlib.crc32(text))


def last_epoch(folder: Path) -> int:
    """The epoch of the folder's last writer; 0 if it had none.

    Raises:
        DataDamaged: the file holds something else than what was written.
        StorageFailed: it cannot be read.
    """
    path = folder / FILE
    with storage("read", path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return 0
    number, *checksum = data.split()[:2] or [b""]
    if not number.isdigit() or len(number) > _DIGITS_MAX:
        raise DataDamaged(f"{path} is damaged: it does not hold a number")
    # Files of an earlier version hold the number alone.
    if checksum and data != encode(int(number)):
        raise DataDamaged(f"{path} is damaged: its checksum does not fit")
    return int(number)


_DIGITS_MAX = 18  # fits SQLite's integers

EPOCHS_BEYOND = 1000
"""Added to the highest epoch of the journals where the folder's own is damaged: more than writers
may have taken since without opening a journal."""


def next_epoch(folder: Path, before: int, epoch: int | None, disk: Disk = DISK) -> int:
    """Take an epoch above all before it: the given one, or the next.

    Args:
        folder: a data folder that this process has locked.
        before: the highest epoch so far.
        epoch: the one to take; None: the next.
        disk: makes the changes.

    Raises:
        StaleWriter: the given one is not above `before`.
        StorageFailed: it cannot be written.
    """
    epoch = before + 1 if epoch is None else epoch
    if epoch <= before:
        raise StaleWriter(f"epoch is {epoch}, but must be above {before}, the last one")
    with storage("written", folder / FILE):
        replace(folder / FILE, encode(epoch), disk)
    return epoch
