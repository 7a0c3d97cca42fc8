"""Titles of columns: which of the lines above the data names them, and how each is made unique."""

from __future__ import annotations

import re
from collections.abc import Sequence

TIME_TITLE = re.compile(
    r"(?i)(?<![a-zäöüß])(date|time|datetime|timestamps?|time[ _]?stamp|epoch|ts|datum|zeit|uhrzeit|"
    r"zeitstempel|fecha|hora|heure|horodatage|dato|tid|pvm|created_at|recorded_at)"
    r"(?![a-zäöüß])"
)
"""Words for a time in the languages that files came in."""
_UNIT = re.compile(
    r"""(?ix)
      [\[(<{] .{0,20} [\])>}]                                 # [°C], (m/s)
    | [µumkcMGdhn]?(?:m|s|g|a|v|w|k|n|j|l|pa|hz|bar|wh|ah|b|lx|ppm|ppb|sec|min|h|d|mol|ohm|
          cd|rad|lux|va|var|siemens)
      (?:[²³23]|\^-?\d|\*\*-?\d)?                              # m, kW, m3
    | (?:deg|degree|degrees|°|º)\s?[CFKnewsr]? | celsius | kelvin | fahrenheit | degc | degf
    | %|percent|prozent|pct|rh|%rh|‰|psu|ph|none|unitless|dimensionless|counts?|code
    | text|string|float|int|integer|double|bool|date|datetime|num|numeric
    | [a-zµ°²³%]{1,8} / [a-zµ°²³0-9]{1,8} | [a-zµ]+\s[a-z0-9]+[-⁻]\d+
    | [YymMdDhHsS]{1,4}(?:[-/.: T]+[YymMdDhHsSfaAPpt]{1,4})+ | hh | utc | gmt | local | z
    | yr | mo | dy | hr | mn | degt
    | ts | rn | smp | avg | max | min | std | tot | sum | mean | median
    | [$€£]
    """
)


def choose(
    rows: Sequence[tuple[int, list[str]]], time_columns: Sequence[bool]
) -> tuple[int, list[str]]:
    """The titles among the lines above the data that have as many cells as it.

    Args:
        rows: line numbers and cells, from the top.
        time_columns: for each column, whether its cells have the look of times.

    Returns:
        The line that gives the titles, and the titles; empty where a column has none.
    """
    best = max(range(len(rows)), key=lambda i: (_score(rows[i][1], time_columns), -i))
    line, titles = rows[best]
    titles = [" ".join(title.split()) for title in titles]
    if len(rows) > 1 and not _complete(titles):
        titles = _joined([cells for _, cells in rows if not is_units(cells)] or [titles])
    return line, titles


def is_units(cells: Sequence[str]) -> bool:
    """A row of units, kinds or aggregates, such as `yyyy-mm-dd, °C, %`."""
    return unit_share(cells) > 0.5


def unit_share(cells: Sequence[str]) -> float:
    """How many of the cells that are not empty can be units."""
    named = [cell.strip() for cell in cells if cell.strip()]
    return sum(bool(_UNIT.fullmatch(cell)) for cell in named) / len(named) if named else 0.0


def _score(cells: Sequence[str], time_columns: Sequence[bool]) -> int:
    named = [cell for cell in cells if cell.strip()]
    over_time = any(
        is_time and TIME_TITLE.search(cell)
        for cell, is_time in zip(cells, time_columns, strict=True)
    )
    is_unique = len({cell.strip() for cell in named}) == len(named)
    numbers = any(cell.strip().replace(".", "", 1).isdigit() for cell in named)
    return 2 * over_time - 4 * is_units(cells) + (is_unique and len(named) == len(cells)) - numbers


def _complete(titles: Sequence[str]) -> bool:
    return all(titles) and len(set(titles)) == len(titles)


def _joined(rows: Sequence[Sequence[str]]) -> list[str]:
    """Titles over several lines; an empty cell of an upper line has the title to its left."""
    width = len(rows[0])
    parts: list[list[str]] = [[] for _ in range(width)]
    for number, row in enumerate(rows):
        above = ""
        is_last = number == len(rows) - 1
        for column, cell in enumerate(row):
            text = " ".join(cell.split())
            above = text or above
            text = text if is_last else above
            if text and text not in parts[column]:
                parts[column].append(text)
    return [" ".join(part) for part in parts]


def unique(titles: Sequence[str]) -> tuple[list[str], list[str]]:
    """Titles that are there and differ.

    Returns:
        The titles, and a note on each that was changed or made.
    """
    taken = {title for title in titles if title}
    names: list[str] = []
    notes: list[str] = []
    for column, title in enumerate(titles, 1):
        name = title or f"column {column}"
        count = 1
        while name in names or (not title and name in taken):
            count += 1
            name = f"{title or f'column {column}'}.{count}"
        if title and name != title:
            notes.append(f"the title {title!r} is there again in column {column}: called {name!r}")
        names.append(name)
    return names, notes
