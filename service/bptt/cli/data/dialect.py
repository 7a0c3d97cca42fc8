"""How a table is laid out as text: delimiter, quotes, comments, and where its data begins.

Every delimiter is tried on the first lines; the one that splits titles and data alike, into cells
that are numbers and times, is taken.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bptt.cli.data import titles as titles_of
from bptt.cli.data.cells import is_missing, is_time, is_typed, is_word
from bptt.cli.data.problem import InputError, shown
from bptt.cli.data.records import DELIMITERS, NONE, Record, Records, SPACES, WIDE_SPACES

LINES_MAX = 500  # looked at to tell the layout
TITLE_LINES_MAX = 6  # lines of titles and units over the data
COMMENTS = ("%", "//", "!")
TYPED_SHARE = 0.6  # of a column's cells: then it holds data that titles are told from
TEXT_SCORE = 0.3  # of a cell of text, where a number counts 1
_SEP_LINE = re.compile(r'"?sep=(\\t|[^\w"\r\n])"?[,;\t]*', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the options say of the layout; None: it is told from the file."""

    delimiter: str | None = None
    comment: str | None = None
    skip_rows: int = 0
    has_header: bool = True


@dataclass(frozen=True, slots=True)
class Dialect:
    """How lines become cells, and which lines are data."""

    delimiter: str
    quote: str
    comment: str
    """Lines that begin so hold no data; empty: there are none such."""
    titles: list[str]
    """As in the file; empty where a column has none."""
    title_line: int | None
    data_line: int
    """The first line of data."""
    left_out: list[str] = field(default_factory=list)
    """What was found above the data, for the summary."""

    @property
    def width(self) -> int:
        """Cells in a row."""
        return len(self.titles)


@dataclass(slots=True)
class _Candidate:
    """A delimiter and what the table is with it."""

    delimiter: str
    score: float = 0.0
    width: int = 1
    titles: list[str] | None = None
    title_line: int | None = None
    data_line: int = 1
    left_out: list[str] = field(default_factory=list)
    problem: str = ""


def decide(lines: Sequence[str], layout: Layout, name: str) -> Dialect:
    """The dialect of a table that begins with these lines.

    Args:
        lines: the first lines of the input, without their ends.
        layout: what the options say.
        name: of the input, for messages.

    Raises:
        InputError: no titles are found, or titles and data do not fit together.
    """
    first = layout.skip_rows + 1
    kept = list(lines[layout.skip_rows : layout.skip_rows + LINES_MAX])
    notes = [f"{layout.skip_rows} lines (--skip-rows)"] if layout.skip_rows else []
    _refuse_markup(kept, first, name)
    delimiter = layout.delimiter
    for place, line in enumerate(kept):
        if match := _SEP_LINE.fullmatch(line.strip(" \r")) if line.strip() else None:
            notes.append(f"line {first + place}: {line.strip()}")
            delimiter = delimiter or match[1].replace("\\t", "\t")
            kept, first = kept[place + 1 :], first + place + 1
        if line.strip():
            break
    if not any(line.strip() for line in kept):
        raise InputError(f"{name} is empty; its first line must be a header of column names")
    comment = layout.comment if layout.comment is not None else _comment(kept)
    tried = [delimiter] if delimiter is not None else [*DELIMITERS, WIDE_SPACES, SPACES, NONE]
    quote = _quote(kept)
    candidates = [
        _candidate(kept, each, quote, comment, first, layout.has_header, name) for each in tried
    ]
    best = max(candidates, key=lambda each: each.score)
    if best.titles is None:
        raise InputError(best.problem)
    return Dialect(
        best.delimiter, quote, comment, best.titles, best.title_line, best.data_line,
        notes + best.left_out,
    )  # fmt: skip


def _refuse_markup(lines: Sequence[str], first: int, name: str) -> None:
    line = next((each.strip() for each in lines if each.strip()), "")
    what = None
    if re.match(r'\{\s*("|$)|\[\s*(\{|\[|$)', line):
        what = "JSON"
    elif re.match(r"<(!doctype|html|\?xml|table)\b", line, re.IGNORECASE):
        what = "HTML or XML"
    if what:
        raise InputError(
            f"line {first} of {name} begins {what} ({shown(line)}), but a table of text is read, "
            "such as CSV; export it as CSV"
        )


def _comment(lines: Sequence[str]) -> str:
    """The mark of comments: what the first line begins with, or `#`."""
    line = next((each for each in lines if each.strip()), "")
    # A title may begin with one of the others: %RH.
    return next((mark for mark in COMMENTS if line.startswith(mark + " ")), "#")


def _quote(lines: Sequence[str]) -> str:
    """A single quote if cells are in such, else the usual one."""
    single = sum(bool(re.search(r"(^|[,;\t|])'[^']*'([,;\t|]|$)", line)) for line in lines)
    return "'" if single > len(lines) / 2 else '"'


def _candidate(
    lines: Sequence[str],
    delimiter: str,
    quote: str,
    comment: str,
    first: int,
    has_header: bool,
    name: str,
) -> _Candidate:
    found = _Candidate(delimiter, data_line=first)
    try:
        rows = list(Records(lines, delimiter, quote, comment, name=name, first=first, is_part=True))
    except InputError as error:
        found.problem = str(error)
        return found
    if not rows:
        rows = list(Records(lines, delimiter, quote, "", name=name, first=first, is_part=True))
        comment = ""
    tail = rows[max(1, len(rows) * 3 // 10) :] or rows
    found.width = _modal_width(tail)
    if found.width < 2 and delimiter != NONE:
        found.problem = f"no line of {name} holds the delimiter {delimiter!r}"
        if any(len(cells) > 1 for _, cells in rows):
            found.score = -0.5
        else:
            found.score = -1.0
    body = [row for row in tail if len(row[1]) == found.width]
    typed = [_typed_share(body, column) >= TYPED_SHARE for column in range(found.width)]
    if has_header:
        _find_titles(found, rows, typed, body, name)
        if found.problem and (header := _comment_titles(lines, found, quote, comment, first, rows)):
            found.title_line, found.titles = header
            found.left_out = []
            found.problem = ""
    else:
        found.titles = [""] * found.width
        if start := _body_start(rows, found.width):
            found.data_line = rows[start - 1][0] + 1
            found.left_out = _above(rows[:start])
    if found.score >= 0:
        cells = [_cell_score(cell, delimiter) for _, row in body[:200] for cell in row]
        fits = len(body) / len(tail) * (1.0 if found.titles is not None else 0.5)
        found.score = sum(cells) / max(1, len(cells)) * fits
        if delimiter == NONE:
            found.score *= 0.5 if _is_divided(found.titles, body) else 0.95
    return found


def _is_divided(titles: Sequence[str] | None, body: Sequence[Record]) -> bool:
    """A sign that can be a delimiter is in the title as often as in most rows."""
    title = titles[0] if titles else ""
    for sign in DELIMITERS:
        many = sum(row[0].count(sign) == title.count(sign) for _, row in body)
        if sign in title and many > len(body) / 2:
            return True
    return False


def _modal_width(rows: Sequence[Record]) -> int:
    counts = Counter(len(cells) for _, cells in rows)
    most = max(counts.values())
    return next(len(cells) for _, cells in reversed(rows) if counts[len(cells)] == most)


def _typed_share(rows: Sequence[Record], column: int) -> float:
    cells = [row[column] for _, row in rows if not is_missing(row[column])]
    return sum(map(is_typed, cells)) / len(cells) if cells else 0.0


def _cell_score(cell: str, delimiter: str) -> float:
    if is_missing(cell) or is_typed(cell):
        return 1.0
    others = "".join(each for each in DELIMITERS if each != delimiter)
    return 0.0 if any(mark in cell for mark in others) else TEXT_SCORE


def _body_start(rows: Sequence[Record], width: int) -> int:
    """Index of the first row from which on rows have this width."""
    for place, (_, cells) in enumerate(rows):
        window = rows[place : place + 8]
        if len(cells) == width and sum(len(r) == width for _, r in window) >= 0.75 * len(window):
            return place
    return next((i for i, (_, cells) in enumerate(rows) if len(cells) == width), 0)


def _find_titles(
    found: _Candidate, rows: list[Record], typed: list[bool], body: list[Record], name: str
) -> None:
    """Titles above the data, in a line of the same width."""
    start = _body_start(rows, found.width)
    times = [
        is_typed_column and _is_time_column(body, column)
        for column, is_typed_column in enumerate(typed)
    ]
    place = start
    for _, cells in rows[start : start + TITLE_LINES_MAX]:
        if len(cells) != found.width:
            break
        if not _is_title(cells, typed, times, is_first=place == start):
            break
        place += 1
    if place == start and not any(typed):
        place = start + 1  # a table of text, whose first line is taken for its titles
    if place == start:
        _find_narrow_titles(found, rows, start, body, name)
        return
    above = rows[start:place]
    if len(above) > 1 and found.width == 1:
        lines = ", ".join(f"line {line} ({shown(cells[0])})" for line, cells in above)
        found.problem = (
            f"{name} has one column, and more than one line that may be its title: {lines}; "
            f"--skip-rows {above[-1][0] - 1} takes the last of them"
        )
        return
    found.title_line, found.titles = titles_of.choose(above, times)
    found.data_line = above[-1][0] + 1
    found.left_out = _above(rows[:start]) + [
        f"line {line}: " + ("units" if titles_of.is_units(cells) else "not data")
        + f" ({shown(', '.join(cells))})"
        for line, cells in above
        if line != found.title_line
    ]  # fmt: skip


def _is_time_column(body: Sequence[Record], column: int) -> bool:
    cells = [row[column] for _, row in body if not is_missing(row[column])]
    return bool(cells) and sum(map(is_time, cells)) >= TYPED_SHARE * len(cells)


def _is_title(cells: list[str], typed: list[bool], times: list[bool], *, is_first: bool) -> bool:
    """Whether a row of the data's width is no data."""
    if not any(map(is_word, cells)):
        return False
    over_times = [cell for cell, is_one in zip(cells, times, strict=True) if is_one]
    if over_times:
        is_gap = all(cell and is_missing(cell) for cell in over_times)
        return not is_gap and not any(map(is_typed, over_times))
    over = [cell for cell, is_one in zip(cells, typed, strict=True) if is_one]
    if is_first:
        return any(map(is_word, over))
    return bool(over) and sum(map(is_typed, over)) < len(over) / 2 and titles_of.is_units(cells)


def _above(rows: Sequence[Record]) -> list[str]:
    if not rows:
        return []
    lines = [line for line, _ in rows]
    where = f"line {lines[0]}" if len(lines) == 1 else f"lines {lines[0]} to {lines[-1]}"
    return [f"{where}: above the titles ({shown(', '.join(rows[0][1]))})"]


def _find_narrow_titles(
    found: _Candidate, rows: list[Record], start: int, body: list[Record], name: str
) -> None:
    """Titles in a line that has a cell more or less than the data, or none."""
    line, cells = rows[start]
    found.data_line = rows[start - 1][0] + 1 if start else found.data_line
    found.problem = (
        f"{name} has no header: line {line} holds values ({shown(', '.join(cells))}), but must be "
        "a header of column names; --no-header calls the columns 'column 1', 'column 2' and so on"
    )
    if start == 0:
        return
    title_line, above = rows[start - 1]
    while above and not above[-1]:
        above = above[:-1]
    if not above or not all(is_word(cell) or not cell for cell in above):
        return
    width = found.width
    if len(above) == width - 1 and all(not row[-1] for _, row in body):
        above = [*above, ""]
    elif len(above) == width - 1 > 1 and _counts([row[0] for _, row in body]):
        above = ["", *above]
    elif len(above) == width - 1 and _is_time_column(body, 0) and _is_time_column(body, 1):
        above = [above[0], f"{above[0]} (time of day)", *above[1:]]
    elif len(above) != width:
        if len(above) > 1 and found.delimiter not in (NONE, SPACES, WIDE_SPACES):
            found.problem = _misfit(title_line, above, line, cells, found.delimiter, name)
        return
    found.titles, found.title_line, found.problem = above, title_line, ""
    found.left_out = _above(rows[: start - 1])


def _counts(cells: list[str]) -> bool:
    """Whether cells number the rows."""
    if not all(cell.isdigit() for cell in cells):
        return False
    return all(int(b) - int(a) == 1 for a, b in itertools.pairwise(cells))


def _misfit(
    title_line: int, above: list[str], line: int, cells: list[str], delimiter: str, name: str
) -> str:
    text = (
        f"line {title_line} of {name} has {len(above)} titles ({shown(', '.join(above))}), but "
        f"line {line} has {len(cells)} values ({shown(delimiter.join(cells))})"
    )
    if delimiter == ",":
        return (
            f"{text}; where commas are decimal marks too, values cannot be told apart: write the "
            "file with another delimiter, or name it with --delimiter"
        )
    return f"{text}; name the delimiter with --delimiter, or skip lines with --skip-rows"


def _comment_titles(
    lines: Sequence[str],
    found: _Candidate,
    quote: str,
    comment: str,
    first: int,
    rows: list[Record],
) -> tuple[int, list[str]] | None:
    """Titles in the last comment before the data, as many programs write them: `# time, temp`."""
    if not comment:
        return None
    start = rows[_body_start(rows, found.width)][0] - first
    above: list[Record] = []
    for place, line in enumerate(lines[:start]):
        if not line.startswith(comment):
            continue
        bare = line[len(comment) :].lstrip(comment)
        for text in (bare.lstrip() if found.delimiter != "\t" else bare, bare, line):
            parsed = [cells for _, cells in Records([text], found.delimiter, quote, "", name="")]
            if parsed and len(parsed[0]) == found.width and any(map(is_word, parsed[0])):
                above.append((first + place, [parsed[0][0] or comment, *parsed[0][1:]]))
                break
    if not above:
        return None
    line_number, titles = min(reversed(above), key=lambda row: titles_of.unit_share(row[1]))
    return line_number, [" ".join(title.split()) for title in titles]
    return None
