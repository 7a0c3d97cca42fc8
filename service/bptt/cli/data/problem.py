"""The error of a file that cannot be read, and how names and cells are shown in messages."""

from __future__ import annotations

from collections.abc import Sequence

NAMES_MAX = 8  # columns named in a message
CELL_CHARACTERS_MAX = 40  # of a cell that is shown in a message


class InputError(Exception):
    """The input cannot be read. The message names the place and the option that helps."""


def join_names(names: Sequence[str]) -> str:
    """Join names with commas; a long list is cut after NAMES_MAX names."""
    if len(names) <= NAMES_MAX:
        return ", ".join(names)
    return f"{', '.join(names[:NAMES_MAX])}, … and {len(names) - NAMES_MAX:,} more"


def shown(text: str) -> str:
    """A cell or line in quotes, cut where it is long."""
    if len(text) > CELL_CHARACTERS_MAX:
        text = text[: CELL_CHARACTERS_MAX - 1] + "…"
    return repr(text)
