"""Lines in, rows of cells out: delimiters, quotes, comments, blank lines."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator

from bptt.cli.data.cells import is_missing
from bptt.cli.data.problem import InputError

DELIMITERS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "pipe", "^": "^", "~": "~"}
DELIMITERS |= {"\x01": "0x01", "\x1e": "0x1e", "\x1f": "0x1f"}
WIDE_SPACES, SPACES, NONE = "  ", " ", ""
"""Runs of at least two blanks, runs of blanks, and a table of one column."""
NAMES = DELIMITERS | {
    WIDE_SPACES: "two or more spaces",
    SPACES: "spaces",
    NONE: "none (one column)",
}

QUOTED_LINES_MAX = 100  # in one row: a stray quote must not swallow the rest of the input

Record = tuple[int, list[str]]
"""Number of the line where a row ends, from 1, and its cells."""


class _Numbered:
    """Lines for the csv module, which reads as many as a row takes."""

    def __init__(self, lines: Iterable[str], delimiter: str, comment: str, first: int) -> None:
        self.number = first - 1
        self.taken = 0  # lines of the present row
        self.comments = self.blank = 0
        self._blanks = " " if delimiter == "\t" else None
        self._lines = iter(lines)
        self._delimiter = delimiter
        self._comment = comment

    def __iter__(self) -> _Numbered:
        return self

    def __next__(self) -> str:
        while True:
            if self.taken >= QUOTED_LINES_MAX:
                raise csv.Error(f"no end of it in {QUOTED_LINES_MAX} lines")
            line = next(self._lines)
            self.number += 1
            if not line.strip(self._blanks):
                self.blank += 1
                continue
            if self._comment and line.startswith(self._comment) and self._is_comment(line):
                self.comments += 1
                continue
            self.taken += 1
            if self._delimiter == SPACES:
                return " ".join(line.split()) + "\n"
            if self._delimiter == WIDE_SPACES:
                return re.sub(r"\s{2,}|\t", "\t", line.strip()) + "\n"
            return line + "\n"

    def _is_comment(self, line: str) -> bool:
        """Not a first cell such as `#N/A`."""
        first = line.split(self._delimiter or None, 1)[0].strip()
        return first == self._comment or not is_missing(first)


class Records:
    """Rows of cells with the numbers of their lines."""

    def __init__(
        self,
        lines: Iterable[str],
        delimiter: str,
        quote: str,
        comment: str,
        *,
        name: str,
        first: int = 1,
        is_part: bool = False,
        on_problem: Callable[[InputError], None] | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            lines: without their ends.
            delimiter: a character, or one of `SPACES`, `WIDE_SPACES` and `NONE`.
            quote: the character around cells.
            comment: what lines begin with that hold no data; empty: nothing.
            name: of the input, for messages.
            first: number of the first line.
            is_part: the lines may end within a row, and quotes may be wrong: they are only tried.
            on_problem: is told of a row that cannot be read, and raises it or has it left out.
        """
        self._lines = _Numbered(lines, delimiter, comment, first)
        plain = {SPACES: " ", WIDE_SPACES: "\t", NONE: "\x00"}
        self._reader = csv.reader(
            self._lines,
            delimiter=plain.get(delimiter, delimiter),
            quotechar=quote,
            skipinitialspace=delimiter != "\t",
            strict=not is_part,
        )
        self._on_problem = on_problem or _raised
        self._name = name
        self._quote = quote

    def __iter__(self) -> Iterator[Record]:
        """The rows."""
        while True:
            before = self._lines.number
            self._lines.taken = 0
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                problem = InputError(
                    f"line {before + 1} of {self._name} holds a quote ({self._quote}) that is not "
                    f"closed, or text right behind one that is ({error}); close it, or leave it out"
                )
                self._on_problem(problem)
                continue
            yield self._lines.number, [cell.strip() for cell in cells]

    @property
    def comments(self) -> int:
        """Comment lines so far."""
        return self._lines.comments

    @property
    def blank(self) -> int:
        """Blank lines so far."""
        return self._lines.blank


def _raised(problem: InputError) -> None:
    raise problem
