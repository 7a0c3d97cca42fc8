"""Times that are no written date: a time of day, a duration, a number, and what an option says."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone, tzinfo, UTC
from decimal import Decimal

from bptt.cli.data.timeformat import clock_seconds, DAY


@dataclass(slots=True)
class OfDay:
    """A time of day or a duration: `17:24`, `125:00:05`, `0 days 00:00:01`."""

    label: str = "time of day"
    order: str = ""
    is_moment: bool = False
    wraps: bool = True
    example: str = "00:00:00"
    """Of which times that are written take the parts and widths."""
    hour_digits: int = 2
    """At least so many digits of an hour are written."""
    _PATTERN = re.compile(
        r"(?:(?P<days>-?\d+) days?,?\s*)?"
        r"(?:(?P<sign>[+-])?(?P<H>\d{1,5}):(?P<M>\d{2})(?::(?P<S>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
        r"(?:\s*(?P<p>[AaPp])\.?\s?[Mm]\.?)?)?"
    )

    def learn(self, examples: Sequence[str]) -> None:
        """Take the parts and widths of examples, to write times alike."""
        found = [match for text in examples if (match := self._PATTERN.fullmatch(text))]
        if found:
            self.example = max(found, key=lambda match: len(match[0]))[0]
            self.hour_digits = min(2, *(len(match["H"] or "00") for match in found))

    def seconds(self, text: str) -> tuple[float, bool] | None:
        """As `TimeFormat`."""
        match = self._PATTERN.fullmatch(text)
        if match is None or not text:
            return None
        found = match.groupdict()
        hour = int(found["H"] or 0)
        if hour > 23 or found["days"]:
            self.wraps = False
            self.label = "duration"
        found["H"] = "0" if hour > 24 else found["H"]
        clock = clock_seconds(found)
        if clock is None:
            return None
        clock += hour * 3600 if hour > 24 else 0
        size = -clock if found["sign"] == "-" else clock
        return int(found["days"] or 0) * DAY + size, True

    def text(self, seconds: float, zone: tzinfo | None) -> str:
        """As `TimeFormat`."""
        match = self._PATTERN.fullmatch(self.example)
        assert match is not None
        parts = match.groupdict()
        digits = len(parts["f"] or "")
        ticks = round(seconds * 10**digits) if parts["S"] else round(seconds / 60) * 60
        is_negative = ticks < 0 and parts["days"] is None and not self.wraps
        whole, fraction = divmod(-ticks if is_negative else ticks, 10**digits)
        days, of_day = divmod(whole, int(DAY))
        hour = (whole if parts["days"] is None and not self.wraps else of_day) // 3600
        shown_hour = hour if parts["p"] is None else (hour + 11) % 12 + 1
        half = ("am", "pm")[hour >= 12][0]
        values = {
            "days": str(days),
            "sign": "-" if is_negative else "",
            "H": f"{shown_hour:0{self.hour_digits}d}",
            "M": f"{whole // 60 % 60:02d}",
            "S": f"{whole % 60:02d}",
            "f": f"{fraction:0{digits}d}",
            "p": half if (parts["p"] or "").islower() else half.upper(),
        }
        text, end = "", 0
        for name in ("days", "sign", "H", "M", "S", "f", "p"):
            if name == "sign" and parts["H"] is not None:
                start = match.start("sign") if parts["sign"] else match.start("H")
                text += self.example[end:start] + values["sign"]
                end = match.start("H")
            elif parts[name] is not None:
                text += self.example[end : match.start(name)] + values[name]
                end = match.end(name)
        return text + self.example[end:]


@dataclass(slots=True)
class Number:
    """Units since 1970, since another day, or since an unknown start."""

    unit: float
    label: str
    is_moment: bool
    since: float = 0.0
    """1970-01-01 in this number's units."""
    order: str = ""
    wraps: bool = False
    decimals: int = 0

    def seconds(self, text: str) -> tuple[float, bool] | None:
        """As `TimeFormat`."""
        try:
            number = float(text.replace(",", "."))
        except ValueError:
            return None
        if not math.isfinite(number):
            return None
        return (number - self.since) * self.unit, True

    def text(self, seconds: float, zone: tzinfo | None) -> str:
        """As `TimeFormat`."""
        # Decimal: a number of nanoseconds has more digits than a float holds.
        number = Decimal(repr(round(seconds, 9))) / Decimal(repr(self.unit))
        return f"{number + Decimal(repr(self.since)):.{self.decimals}f}"


@dataclass(slots=True)
class Given:
    """What `--time-format` says, in the signs of strptime."""

    label: str
    order: str = ""
    is_moment: bool = True
    wraps: bool = False
    _zone: tzinfo | None = None
    """Of the time that was last read."""

    def seconds(self, text: str) -> tuple[float, bool] | None:
        """As `TimeFormat`."""
        try:
            when = datetime.strptime(text, self.label)
        except ValueError:
            return None
        if when.tzinfo is not None:
            self._zone = timezone(when.utcoffset() or UTC.utcoffset(None))
        return when.replace(tzinfo=when.tzinfo or UTC).timestamp(), when.tzinfo is not None

    def text(self, seconds: float, zone: tzinfo | None) -> str:
        """As `TimeFormat`."""
        return datetime.fromtimestamp(seconds, self._zone or zone or UTC).strftime(self.label)
