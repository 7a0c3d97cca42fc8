"""Interprets the text of a CSV cell: number, time, missing value or plain text."""

from __future__ import annotations

import math
import re
from datetime import datetime, UTC

import numpy as np

MISSING = frozenset(("", "na", "n/a", "nan", "null", "nil", "none", "-", "?"))
"""Spellings of a missing value, in lower case."""
FLOAT32_MAX = float(np.finfo(np.float32).max)
_TIME_NAME = re.compile(r"(unix[ _]?)?(date|time|datetime|timestamp|epoch|ts)([ _](utc|local)|\b)")
_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?")
_TIME_VALUE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2}:\d{2}")


def is_missing(text: str) -> bool:
    """Tell whether a cell holds one of the spellings of a missing value."""
    return text.strip().lower() in MISSING


def kind_of(name: str, text: str) -> str:
    """Classify a column by its name and its first value.

    Returns:
        `number`, or the reason why the column is not learned by default: `a time` or `text`.
    """
    if _TIME_NAME.match(name.lower()) or _TIME_VALUE.match(text.strip()):
        return "a time"
    return "number" if parse_number(text.strip()) is not None else "text"


def parse_number(text: str) -> float | None:
    """Parse a finite number that fits float32; None for anything else."""
    if "_" in text:  # Python accepts 1_000; in a CSV it is no number
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) <= FLOAT32_MAX else None


def expected_number(text: str) -> str:
    """Describe why `parse_number` rejected a text, as the second half of an error message."""
    try:
        too_large = math.isfinite(float(text)) and "_" not in text
    except ValueError:
        too_large = False
    if too_large:
        return f"which does not fit float32; the largest magnitude is {FLOAT32_MAX:.2g}"
    return "but must be a finite number"


def seconds_of(text: str) -> float | None:
    """Parse a time as seconds.

    Accepts an ISO date and time, a plain number, a time of day, or `N days` and a time of day. The
    origin depends on the form, so only differences between rows of one column are meaningful.

    Returns:
        Seconds, or None if the text is no time.
    """
    text = text.strip()
    days, _, rest = text.rpartition(" days ")
    match = _TIME_OF_DAY.fullmatch(rest)
    if match is not None and (days or " " not in text):
        hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return float(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds
    try:
        return float(text)
    except ValueError:
        pass
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
