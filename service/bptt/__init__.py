"""Online learning from streaming sequences; this package exports the names of the SDK.

The names are imported on first use: the command line must set gRPC's environment variables before
gRPC is loaded, and a server does not need the client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bptt.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> object:
    """Import a name of the SDK on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("bptt.client"), name)
