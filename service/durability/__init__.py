"""What outlives the process: the `Store` protocol and the store of one machine."""

from service.durability.fingerprint import differences, fingerprint
from service.durability.folder import FolderStore
from service.durability.sqlite import Kept, SqliteStore
from service.durability.store import (
    Checkpoint,
    CheckpointInfo,
    Command,
    Durability,
    Record,
    Store,
    Tick,
)

__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "Command",
    "Durability",
    "FolderStore",
    "Kept",
    "Record",
    "SqliteStore",
    "Store",
    "Tick",
    "differences",
    "fingerprint",
]
