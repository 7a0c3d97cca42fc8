"""What outlives the process: the `Store` protocol and a store in a folder."""

from service.durability.fingerprint import differences, fingerprint
from service.durability.folder import FolderStore
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
    "Record",
    "Store",
    "Tick",
    "differences",
    "fingerprint",
]
