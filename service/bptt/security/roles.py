"""Callers, their roles, and the models that each may use.

A caller has one role on the models whose names match its patterns. A role includes the ones before
it: an admin may do what a writer may, and a writer what a reader may.
"""

from __future__ import annotations

import enum
import fnmatch
from contextvars import ContextVar
from dataclasses import dataclass

from bptt.errors import InvalidRequest

PATTERN_BYTES_MAX = 256  # longer than any model's name


class Role(enum.IntEnum):
    """What a caller may do; each value includes the lower ones."""

    READER = 1
    """Predict, look at models and streams, export."""
    WRITER = 2
    """Learn, reset streams, save checkpoints."""
    ADMIN = 3
    """Create, configure, restore and delete."""

    @classmethod
    def named(cls, name: str, field: str = "role") -> Role:
        """Return the role of this name in small letters.

        Raises:
            InvalidRequest: there is none; the error names `field`.
        """
        for role in cls:
            if role.name.lower() == name:
                return role
        raise InvalidRequest.of(field, name or "empty", "one of reader, writer, admin")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, as the server established it."""

    name: str
    """For people: in the audit and in errors to the caller itself."""
    role: Role
    models: tuple[str, ...]
    """Patterns of model names; `*` stands for any characters and `?` for one."""
    expires: float | None = None
    """Unix time after which the caller is refused; None: never."""
    key: str = ""
    """Identifies the entry, certificate or issuer that the caller was established by."""

    def allows(self, model_id: str) -> bool:
        """Return whether one of the patterns matches a model's name, in full and by case."""
        return any(fnmatch.fnmatchcase(model_id, pattern) for pattern in self.models)


EVERYBODY = Caller("anonymous", Role.ADMIN, ("*",))
"""The caller of every request on a server that does not ask who calls."""

CALLER: ContextVar[Caller] = ContextVar("caller", default=EVERYBODY)
"""The caller of the request that the current task serves."""


def check_patterns(patterns: tuple[str, ...], field: str = "models") -> tuple[str, ...]:
    """Return patterns of model names.

    Raises:
        InvalidRequest: there is none, or one is empty, too long, or has a character other than
            those of model names, `*` and `?`; the error names `field`.
    """
    if not patterns:
        raise InvalidRequest.of(field, "empty", "at least one pattern, as in plant-*")
    for pattern in patterns:
        known = all(each.isascii() and (each.isalnum() or each in "._-*?") for each in pattern)
        if not pattern or not known or len(pattern) > PATTERN_BYTES_MAX:
            bound = (
                f"1 to {PATTERN_BYTES_MAX} letters, digits and ._-, with * for any characters "
                "and ? for one"
            )
            raise InvalidRequest.of(field, repr(pattern), bound)
    return patterns
