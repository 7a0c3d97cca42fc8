"""What outlives the process: the `Store` protocol and the store of one machine."""

from service.durability.fingerprint import differences, fingerprint
from service.durability.sqlite import SqliteStore
from service.durability.store import (
    Checkpoint,
    CheckpointInfo,
    Command,
    Record,
    Store,
    Tick,
)

__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "Command",
    "Record",
    "SqliteStore",
    "Store",
    "Tick",
    "differences",
    "fingerprint",
]
