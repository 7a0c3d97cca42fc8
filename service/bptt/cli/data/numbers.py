"""Numbers as text: decimal marks and thousands separators, told from many cells."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bptt.cli.data.problem import InputError, shown

FLOAT32_MAX = float(np.finfo(np.float32).max)
SPACES = " \u00a0\u2009\u202f"  # between thousands: also those that do not break a line
APOSTROPHES = "'’"
MINUS = "\u2212"
_SHAPE = re.compile(
    r"[+\-\u2212]?(?P<body>\d[\d.,'’ \u00a0\u2009\u202f]*|[.,]\d+)(?P<e>[eE][+-]?\d+)?"
)
_MARK = re.compile(r"[^\d]")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell and its place."""

    line: int
    column: str
    text: str

    def __str__(self) -> str:
        """For a message."""
        return f"line {self.line}, column {self.column!r} is {shown(self.text)}"


@dataclass(frozen=True, slots=True)
class Marks:
    """What the marks in one cell can mean."""

    decimal: str = ""
    """A decimal mark for certain."""
    thousands: str = ""
    """A thousands separator for certain."""
    either: str = ""
    """One or the other: `1.234`."""


def marks_of(text: str) -> Marks | None:
    """The marks of a cell that is a number in some country's form; None: it is none."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        return None
    body = match["body"].translate(_PLAIN_MARKS)
    found = _MARK.findall(body)
    if not found:
        return Marks()
    kinds = list(dict.fromkeys(found))
    last = found[-1]
    if len(kinds) == 1 and last in ".,":
        head, _, tail = body.partition(last)
        if len(found) == 1:
            is_either = len(tail) == 3 and 1 <= len(head) <= 3 and head[0] != "0"
            return Marks(either=last) if is_either and not match["e"] else Marks(decimal=last)
        return Marks(thousands=last) if _is_grouped(body, last) else None
    separator = kinds[0]
    if len(kinds) > 2 or (len(kinds) == 2 and (found.count(last) > 1 or last not in ".,")):
        return None
    whole = body.partition(last)[0] if len(kinds) == 2 else body
    if not _is_grouped(whole, separator):
        return None
    return Marks(decimal=last if len(kinds) == 2 else "", thousands=separator)


_PLAIN_MARKS = {ord(space): " " for space in SPACES} | {ord(each): "'" for each in APOSTROPHES}


def _is_grouped(text: str, separator: str) -> bool:
    """Groups of three digits, or of two before the last as in India."""
    first, *groups = text.split(separator)
    if not 1 <= len(first) <= 3 or len(groups[-1]) != 3 or not first.isdigit() or first[0] == "0":
        return False
    sizes = {len(group) for group in groups[:-1]}
    return sizes <= {3} or (sizes <= {2} and len(first) <= 2)


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """How numbers are written."""

    decimal: str = "."
    thousands: str = ""
    """Empty: there is no separator."""
    _shape: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the expression that numbers other than plain ones match."""
        group = f"[{re.escape(_alike(self.thousands))}]" if self.thousands else ""
        whole = rf"\d{{1,3}}(?:{group}\d{{2,3}})*{group}\d{{3}}|\d+" if group else r"\d+"
        mark = re.escape(self.decimal)
        shape = rf"([+-]?)(?:({whole})(?:{mark}(\d*))?|{mark}(\d+))([eE][+-]?\d+)?"
        object.__setattr__(self, "_shape", re.compile(shape))

    def value(self, text: str) -> float | None:
        """The number, which float32 can hold; None: it is none."""
        number = self._plain(text) if self.decimal == "." else None
        if number is None:
            number = self._other(text)
        if number is None or not math.isfinite(number) or abs(number) > FLOAT32_MAX:
            return None
        return number

    def is_too_large(self, text: str) -> bool:
        """It is a number, but float32 cannot hold it."""
        match = self._shape.fullmatch(text)
        return match is not None and self.value(text) is None

    @staticmethod
    def _plain(text: str) -> float | None:
        if "_" in text:  # Python's own spelling of thousands, which no file means
            return None
        try:
            return float(text)
        except ValueError:
            return None

    def _other(self, text: str) -> float | None:
        match = self._shape.fullmatch(text.replace(MINUS, "-"))
        if match is None:
            return None
        sign, whole, digits, only, power = match.groups()
        if self.thousands and whole:
            whole = re.sub(r"\D", "", whole)
        return float(f"{sign}{whole or '0'}.{digits or only or '0'}{power or ''}")


def _alike(separator: str) -> str:
    """All signs that look like this one."""
    for signs in (SPACES, APOSTROPHES):
        if separator in signs:
            return signs
    return separator


@dataclass(slots=True)
class _Evidence:
    """The first cell that shows each thing."""

    decimal: dict[str, Cell] = field(default_factory=dict)
    thousands: dict[str, Cell] = field(default_factory=dict)
    either: dict[str, Cell] = field(default_factory=dict)
    mixed: dict[str, Cell] = field(default_factory=dict)
    """In a column that has whole numbers below 1,000 without this mark."""


def format_of(
    columns: Iterable[Sequence[Cell]],
    *,
    decimal: str | None,
    thousands: str | None,
    delimiter: str,
    name: str,
) -> NumberFormat:
    """The form of the numbers in some columns.

    Args:
        columns: cells of the columns that hold numbers.
        decimal: what `--decimal` says.
        thousands: what `--thousands` says.
        delimiter: between cells; a comma that is none can be a decimal mark.
        name: of the input.

    Raises:
        InputError: cells contradict one another, or `1.234` can mean two things.
    """
    if decimal is not None:
        given = thousands if thousands is not None else ""
        if thousands is None and (seen := _gather(columns).thousands):
            given = next((mark for mark in seen if mark != decimal), "")
        return NumberFormat(decimal, given)
    evidence = _gather(columns)
    if thousands is not None:
        proven = [mark for mark in evidence.decimal if mark != thousands]
        return NumberFormat(proven[0] if proven else "," if thousands == "." else ".", thousands)
    if len(evidence.decimal) > 1:
        one, other = evidence.decimal.values()
        raise InputError(
            f"{name} has numbers with a decimal point and with a decimal comma: {one}, and {other}"
            "; say with --decimal which it is, and leave the other column out with --columns"
        )
    mark = next(iter(evidence.decimal), "")
    both = [each for each in evidence.thousands if each == mark]
    if both:
        raise InputError(
            f"{name} uses {mark!r} as decimal mark and between thousands: "
            f"{evidence.decimal[mark]}, and {evidence.thousands[mark]}; say with --decimal and "
            "--thousands which it is"
        )
    separator = next(iter(evidence.thousands), "")
    if mark:
        likely = next((each for each in evidence.either if each != mark), "")
        return NumberFormat(mark, separator or likely)
    if separator:
        return NumberFormat("," if separator == "." else ".", separator)
    return _ambiguous(evidence, delimiter, name)


def _ambiguous(evidence: _Evidence, delimiter: str, name: str) -> NumberFormat:
    """Where there are marks, each has three digits behind it."""
    for mark, cell in evidence.either.items():
        # Where semicolons are between cells, decimal commas are usual, and so are points in
        # thousands; where commas are between cells, decimal points are.
        likely = delimiter != ("," if mark == "," else ";")
        if mark in evidence.mixed or not likely or len(evidence.either) > 1:
            example = evidence.mixed.get(mark, cell)
            raise InputError(
                f"{example} in {name}, which can be a decimal number or thousands; say with "
                f"--decimal {mark!r} or --thousands {mark!r} which it is"
            )
    return NumberFormat(next(iter(evidence.either), "."))


def _gather(columns: Iterable[Sequence[Cell]]) -> _Evidence:
    evidence = _Evidence()
    for cells in columns:
        either: dict[str, Cell] = {}
        decimals = False
        small = large = False
        for cell in cells:
            marks = marks_of(cell.text)
            if marks is None:
                continue
            if marks.decimal:
                decimals = True
                evidence.decimal.setdefault(marks.decimal, cell)
            if marks.thousands:
                evidence.thousands.setdefault(marks.thousands, cell)
            if marks.either:
                either.setdefault(marks.either, cell)
            elif not marks.decimal and not marks.thousands and cell.text != "0":
                small = True
                large = large or len(cell.text.lstrip("+-")) > 3
        for mark, cell in either.items():
            evidence.either.setdefault(mark, cell)
            if small and not large and not decimals:
                evidence.mixed.setdefault(mark, cell)
    return evidence
