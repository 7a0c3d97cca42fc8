"""The one style of table that all commands print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.table import Table


class ResultTable:
    """A table that is built row by row: text to the left, numbers to the right."""

    def __init__(self) -> None:
        """Start without columns."""
        self._table = Table(
            box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", show_header=False
        )

    def text(self, title: str = "", *, folds: bool = False, style: str = "") -> ResultTable:
        """Add a column of text.

        Args:
            title: of the column.
            folds: long entries are continued on the next line, and not cut, where space is scarce.
            style: of the entries.
        """
        self._add(title, "left", folds=folds, style=style)
        return self

    def numbers(self, *titles: str, folds: bool = False) -> ResultTable:
        """Add columns of numbers; `folds` as for `text`."""
        for title in titles:
            self._add(title, "right", folds=folds, style="")
        return self

    def _add(self, title: str, justify: str, *, folds: bool, style: str) -> None:
        self._table.add_column(
            title,
            justify="right" if justify == "right" else "left",
            no_wrap=not folds,
            overflow="fold" if folds else "ellipsis",
            style=style,
        )
        self._table.show_header = self._table.show_header or bool(title)

    def row(self, *cells: RenderableType) -> None:
        """Add a row."""
        self._table.add_row(*cells)

    def print(self, console: Console, notes: Sequence[str] = ()) -> None:
        """Print the table, and each note below it on a line of its own."""
        console.print(self._table)
        for note in notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True, style="dim")
