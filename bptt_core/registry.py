"""Named choices of a model that can be extended: cells and optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from bptt_core.errors import InvalidArgument


class Named(Protocol):
    """An entry of a registry."""

    @property
    def name(self) -> str:
        """Lower-case identifier: the value of a spec's field."""
        ...


Entry = TypeVar("Entry", bound=Named)


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Entries by name, in the order in which they were registered.

    Args:
        field: the spec's field whose values are the names; errors carry it.
    """

    def __init__(self, field: str) -> None:
        self._field = field
        self._entries: dict[str, Entry] = {}

    def __getitem__(self, name: str) -> Entry:
        """The entry of that name."""
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """All names, in order of registration."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._entries)

    def register(self, entry: Entry) -> None:
        """Add an entry; specs accept its name from now on.

        Raises:
            InvalidArgument: the name is taken or is no lower-case identifier; nothing was changed.
        """
        name = entry.name
        if not name.isidentifier() or name != name.lower():
            raise InvalidArgument(self._field, name, "a lower-case identifier")
        if name in self._entries:
            raise InvalidArgument(self._field, name, "a name that is not registered yet")
        self._entries[name] = entry

    def unregister(self, name: str) -> None:
        """Remove an entry; specs refuse its name from now on.

        Raises:
            InvalidArgument: nothing is registered under that name.
        """
        if name not in self._entries:
            raise InvalidArgument(self._field, name, "one of " + ", ".join(self._entries))
        del self._entries[name]
