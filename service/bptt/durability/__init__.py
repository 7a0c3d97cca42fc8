"""Durable state: the `Store` protocol, and the store that keeps it in a folder of one machine."""

from bptt.durability.fingerprint import differences, fingerprint
from bptt.durability.portable import PortableModel
from bptt.durability.sqlite import SqliteStore
from bptt.durability.store import (
    Checkpoint,
    CheckpointInfo,
    Command,
    ModelCopy,
    Record,
    Store,
    StoreReader,
    StoreTools,
    Tick,
)

__all__ = [
    "Checkpoint",
    "CheckpointInfo",
    "Command",
    "ModelCopy",
    "PortableModel",
    "Record",
    "SqliteStore",
    "Store",
    "StoreReader",
    "StoreTools",
    "Tick",
    "differences",
    "fingerprint",
]
