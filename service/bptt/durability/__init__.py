"""What outlives the process: the `Store` protocol and the store of one machine."""

from bptt.durability.fingerprint import differences, fingerprint
from bptt.durability.sqlite import SqliteStore
from bptt.durability.store import (
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
