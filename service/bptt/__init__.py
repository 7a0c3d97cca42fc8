"""Online learning from streaming sequences; this package exports the names of the SDK."""

from bptt.client import Client

__all__ = ["Client"]
