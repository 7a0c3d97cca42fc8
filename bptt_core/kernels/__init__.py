"""The compiled backend."""

from bptt_core.backends import Reference as Compiled

__all__ = ["Compiled"]
