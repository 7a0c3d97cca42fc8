"""What a cell looks like, before it is known how the file writes numbers and times."""

from __future__ import annotations

import re

from bptt.cli.data.numbers import marks_of

MISSING = frozenset(
    (
        *("", "na", "n/a", "n.a.", "nan", "-nan", "+nan", "nat", "<na>", "null", "(null)", "nil"),
        *("none", "-", "--", "---", "?", ".", "..", "*", "\\n", "undefined", "missing"),
        *("unknown", "unavailable", "nd", "n.d.", "no data", "nodata", "err", "error", "err."),
        *("#n/a", "#n/a n/a", "#na", "#nv", "#div/0!", "#value!", "#wert!", "#ref!", "#num!"),
        *("#name?", "#null!", "-1.#ind", "1.#qnan", "1.#ind", "-1.#qnan"),
    )
)
"""Words that stand for a missing value in a column of numbers, in lower case."""
FLAGS = {
    "true": 1.0,
    "false": 0.0,
    "yes": 1.0,
    "no": 0.0,
    "on": 1.0,
    "off": 0.0,
}
"""Words of columns that hold nothing but yes and no, in lower case."""
TIMES_CHARACTERS_MAX = 48
_CLOCK = r"\d{1,2}[:.h]\d{2}(?:[:.]\d{2})?(?:[.,]\d{1,9})?(?:\s*[ap]\.?\s?m\.?)?"
_ZONE = r"\s?(?:z|[a-z]{2,5}|(?:utc|gmt)?[+-]\d{1,2}(?::?\d{2})?)?(?:\[[\w/+-]+\])?"
_MONTH = r"[^\W\d_]{3,10}\.?"
_DATE = "|".join(
    (
        r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}",  # 2024-01-31, 31.1.2024, 1/31/24
        rf"\d{{1,4}}[- /.]{{1,2}}{_MONTH}[- /,.]{{1,2}}\d{{1,4}}",  # 31-Jan-2024, 31. Januar 2024
        rf"{_MONTH}\s\d{{1,2}},?\s\d{{1,4}}",  # Jan 31, 2024
        r"\d{8}(?=T\d)",  # 20240131T1200
    )
)
_TIME = re.compile(
    rf"""(?ix)
    (?: (?:[^\W\d_]{{2,10}}\.?,?[ ])? (?:{_DATE})
        (?:[ T_,:]{{1,2}}[ ]?(?:{_CLOCK}|\d{{4,6}}(?:[.]\d+)?))? {_ZONE}
      | {_CLOCK} [ ] (?:{_DATE})
      | -?\d+[ ]days?\b (?:,?[ ]-?\+?{_CLOCK})?
      | \d{{1,4}}:\d{{2}}(?::\d{{2}})?(?:[.,]\d{{1,9}})?(?:\s*[ap]\.?\s?m\.?)?
    )"""
)


def is_missing(text: str) -> bool:
    """A cell that is empty or says in a usual word that a value is missing."""
    return text.strip().lower() in MISSING


def is_time(text: str) -> bool:
    """A cell that has the look of a date, a time of day, or both."""
    return len(text) <= TIMES_CHARACTERS_MAX and _TIME.fullmatch(text) is not None


def is_typed(text: str) -> bool:
    """A number in some country's form, a time, or yes and no: what data is, and titles are not."""
    return marks_of(text) is not None or is_time(text) or text.lower() in FLAGS


def is_word(text: str) -> bool:
    """Neither data nor the mark of a missing value: what titles are."""
    return not is_missing(text) and not is_typed(text)
