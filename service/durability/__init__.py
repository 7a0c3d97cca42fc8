"""What outlives the process: the `Store` protocol and a store in a folder."""

from service.durability.folder import FolderStore
from service.durability.store import Checkpoint, Store

__all__ = ["Checkpoint", "FolderStore", "Store"]
