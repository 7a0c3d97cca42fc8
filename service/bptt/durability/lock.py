"""Who may write to a data folder: one process, whose epoch is above all before it.

    DATA/lock     locked by the process that writes; the lock ends with the process, however it ends
    DATA/epoch    number of the last writer

The lock is enough on one machine. The epoch is for where it is not (a lock that a network's file
system does not share): each journal holds it too, and no commit of a lower one succeeds.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bptt.durability.files import replace, storage
from bptt.errors import DataDamaged, StaleWriter


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


def last_epoch(folder: Path) -> int:
    """The epoch of the folder's last writer; 0 if it had none.

    Raises:
        DataDamaged: the file does not hold a number.
        StorageFailed: it cannot be read.
    """
    path = folder / "epoch"
    with storage("read", path):
        try:
            return int(path.read_text())
        except FileNotFoundError:
            return 0
        except ValueError as error:
            raise DataDamaged(f"{path} does not hold a number") from error


def next_epoch(folder: Path, epoch: int | None) -> int:
    """Take an epoch above all before it: the given one, or the next.

    Raises:
        StaleWriter: the given one is not above all before it.
    """
    before = last_epoch(folder)
    epoch = before + 1 if epoch is None else epoch
    if epoch <= before:
        raise StaleWriter(f"epoch is {epoch}, but must be above {before}, the last one")
    with storage("written", folder / "epoch"):
        replace(folder / "epoch", f"{epoch}\n".encode())
    return epoch
