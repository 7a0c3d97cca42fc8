"""What was understood of a table, and what of it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bptt.cli.data.columns import Column, Markers, match_names
from bptt.cli.data.decode import Encoding
from bptt.cli.data.dialect import Dialect
from bptt.cli.data.numbers import NumberFormat
from bptt.cli.data.records import Record
from bptt.cli.data.times import TimeColumn


@dataclass(frozen=True, slots=True)
class Understood:
    """What was understood of a table."""

    name: str
    packing: str | None
    encoding: Encoding
    line_end: str
    dialect: Dialect
    numbers: NumberFormat
    columns: list[Column]
    time: TimeColumn | None
    markers: Markers
    notes: list[str]
    sample: list[Record]
    """The first rows."""

    @property
    def header(self) -> list[str]:
        """Names of all columns."""
        return [column.name for column in self.columns]

    @property
    def numeric(self) -> list[str]:
        """Columns to learn from unless told otherwise."""
        return [column.name for column in self.columns if column.is_learned]

    @property
    def left_out(self) -> dict[str, str]:
        """The other columns, with the reason."""
        return {column.name: column.reason for column in self.columns if not column.is_learned}

    def index(self, option: str, name: str) -> int:
        """Place of a column.

        Raises:
            InputError: it is not there; lists those that are.
        """
        return self.header.index(self.resolve(option, [name])[0])

    def resolve(self, option: str, parts: Sequence[str]) -> list[str]:
        """Names of the columns that an option means.

        Raises:
            InputError: one is not there.
        """
        return match_names(option, parts, self.header)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of each row is read."""

    columns: Sequence[int]
    """By index."""
    keep_missing: Sequence[bool] = ()
    """For each column, whether a value may be missing; a row where another one is is left out.
    Default: none may."""
    classes: Mapping[str, int] | None = None
    """The last column holds names of classes, which are read as these ids; missing is -1."""
    other_class: int | None = None
    """The id as which any other class is read; None: such a row cannot be read."""
    gap_seconds: float = math.inf
    """A row that comes so long after the one before it begins a new sequence."""
    series: int | None = None
    """A column, by index, whose cells name the series of the rows."""
    sort: bool = False
    """Rows in the order of their times; those that repeat another are left out."""
