"""Ways to write a time: dates in all orders, times of day, numbers since an epoch, durations.

A format reads a cell as seconds and writes seconds as a cell, so that forecasts can carry times in
the file's own form.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone, tzinfo, UTC
from typing import Protocol
from zoneinfo import ZoneInfo

from bptt.cli.data.problem import InputError

DAY = 86400.0
EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
YEAR_MIN, YEAR_MAX = 1900, 2200
CENTURY_TURNS = 69  # of two digits: 69 is 1969, 68 is 2068, as POSIX has it
_MONTH_NAMES = tuple(
    names.split()
    for names in (
        "jan feb mar apr may jun jul aug sep oct nov dec",
        "january february march april may june july august september october november december",
        "jan feb mär apr mai jun jul aug sep okt nov dez",
        "jan feb mrz apr mai jun jul aug sept okt nov dez",
        "januar februar märz april mai juni juli august september oktober november dezember",
        "janv févr mars avr mai juin juil août sept oct nov déc",
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "ene feb mar abr may jun jul ago sept oct nov dic",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "gen feb mar apr mag giu lug ago set ott nov dic",
        (
            "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre "
            "dicembre"
        ),
        "jan fev mar abr mai jun jul ago set out nov dez",
        "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
    )
)
"""Of the year, each row in one language and length."""
MONTHS = {name: number for names in _MONTH_NAMES for number, name in enumerate(names, 1)}
ZONES = {"z": 0.0, "utc": 0, "gmt": 0, "ut": 0, "wet": 0, "west": 1, "cet": 1, "cest": 2, "bst": 1}
ZONES |= {"eet": 2, "eest": 3, "msk": 3, "jst": 9, "kst": 9, "aest": 10, "aedt": 11, "nzst": 12}
ZONES |= {"est": -5, "edt": -4, "cst": -6, "cdt": -5, "mst": -7, "mdt": -6, "pst": -8, "pdt": -7}
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0, "d": DAY}
PLAUSIBLE_SECONDS = (3e8, 2.6e9)
"""Of a number since 1970: the years 1979 to 2052."""
SERIALS = {
    "excel": (25569.0, (2e4, 8e4)),
    "matlab": (719529.0, (7e5, 8e5)),
    "julian": (2440587.5, (2.4e6, 2.6e6)),
}
"""Days since another day than 1970-01-01: that day, and what is plausible."""

_CLOCK = (
    r"(?P<H>\d{1,2})[:.h](?P<M>\d{2})(?:[:.](?P<S>\d{2})(?:[.,](?P<f>\d{1,9}))?)?"
    r"(?:\s*(?P<p>[AaPp])\.?\s?[Mm]\.?)?"
)
_COMPACT_CLOCK = r"(?P<H>\d{2})(?P<M>\d{2})(?P<S>\d{2})?"
_ZONE = r"\s?(?P<z>(?:UTC|GMT)?[+-]\d{1,2}(?::?\d{2})?|[A-Za-z]{1,5})?(?:\[[\w/+-]+\])?"
_NAME = r"(?P<b>[^\W\d_]{3,10})\.?"
_GAP = r"[- /.]{1,2}"
_Y4, _Y2 = r"(?P<Y>\d{4})", r"(?P<y>\d{2})"
_D, _M = r"(?P<d>\d{1,2})", r"(?P<m>\d{1,2})"
_S, _T = r"(?P<s>[-/.])", r"(?P=s)"
_DATES = (
    ("year first", f"{_Y4}{_S}{_M}{_T}{_D}"),
    ("day first", f"{_D}{_S}{_M}{_T}{_Y4}"),
    ("month first", f"{_M}{_S}{_D}{_T}{_Y4}"),
    ("day first", f"{_D}{_S}{_M}{_T}{_Y2}"),
    ("month first", f"{_M}{_S}{_D}{_T}{_Y2}"),
    ("year first", f"{_Y2}{_S}{_M}{_T}{_D}"),
    ("named month", f"{_D}{_GAP}{_NAME}[- /,.]{{1,2}}{_Y4}"),
    ("named month", f"{_D}{_GAP}{_NAME}[- /,.]{{1,2}}{_Y2}"),
    ("named month", rf"{_NAME}\s{_D},?\s{_Y4}"),
    ("named month", f"{_Y4}{_GAP}{_NAME}{_GAP}{_D}"),
    ("year first", r"(?P<Y>\d{4})(?P<m>\d{2})(?P<d>\d{2})"),
    ("year first", rf"{_Y4} {_M} {_D}"),
)
_WEEKDAY = r"(?:(?P<a>[^\W\d_]{2,10})\.?,? )?"
_WEEKDAYS = tuple(
    names.split()
    for names in (
        "mon tue wed thu fri sat sun",
        "monday tuesday wednesday thursday friday saturday sunday",
        "mo di mi do fr sa so",
        "montag dienstag mittwoch donnerstag freitag samstag sonntag",
        "lun mar mer jeu ven sam dim",
        "lundi mardi mercredi jeudi vendredi samedi dimanche",
        "lun mar mié jue vie sáb dom",
        "lunes martes miércoles jueves viernes sábado domingo",
        "lun mar mer gio ven sab dom",
    )
)
"""From Monday, each row in one language and length."""


class TimeFormat(Protocol):
    """Reads and writes times of one form."""

    label: str
    """For people."""
    order: str
    """Of day, month and year; empty where that is no question."""
    is_moment: bool
    """Seconds since 1970; else since an unknown start."""
    wraps: bool
    """Begins anew at midnight."""

    def seconds(self, text: str) -> tuple[float, bool] | None:
        """The seconds, and whether they are UTC; else they are local. None: it is no such time."""

    def text(self, seconds: float, zone: tzinfo | None) -> str:
        """A moment in UTC, or seconds since the start, in this form."""


@dataclass(slots=True)
class Written:
    """A date and a time of day, or only a date."""

    order: str
    pattern: re.Pattern[str]
    label: str = ""
    is_moment: bool = True
    wraps: bool = False
    _template: list[tuple[str, str]] = field(default_factory=list)
    _offset: float | None = None
    """Of the zone that was last read, in seconds."""
    _days: dict[tuple[str, ...], int | None] = field(default_factory=dict)
    _is_iso: bool = False
    """The standard library reads it, in a tenth of the time."""

    def seconds(self, text: str) -> tuple[float, bool] | None:
        """As `TimeFormat`."""
        if self._is_iso:
            try:
                when = datetime.fromisoformat(text)
            except ValueError:
                pass
            else:
                if when.tzinfo is None:
                    return when.replace(tzinfo=UTC).timestamp(), False
                east = when.utcoffset()
                self._offset = east.total_seconds() if east is not None else 0.0
                return when.timestamp(), True
        match = self.pattern.fullmatch(text)
        if match is None:
            return None
        found = match.groupdict()
        day = self._day(found)
        clock = clock_seconds(found)
        if day is None or clock is None:
            return None
        seconds = day * DAY + clock
        zone = found.get("z")
        if zone is None:
            return seconds, False
        offset = offset_of(zone)
        if offset is None:
            return None
        self._offset = offset
        return seconds - offset, True

    def _day(self, found: dict[str, str | None]) -> int | None:
        key = tuple(found.get(name) or "" for name in "Yymbd")
        if key not in self._days:
            if len(self._days) > 1000:
                self._days.clear()
            self._days[key] = _day_number(*key)
        return self._days[key]

    def learn(self, text: str) -> None:
        """Take the widths, signs and letters of an example, to write times alike."""
        match = self.pattern.fullmatch(text)
        if match is None:
            return
        spans = sorted(
            (match.span(name), name)
            for name in match.groupdict()
            if name != "s" and match[name] is not None
        )
        end = 0
        for (start, stop), name in spans:
            self._template += [("", text[end:start]), (name, text[start:stop])]
            end = stop
        self._template.append(("", text[end:]))
        has_half = match.groupdict().get("p") is not None
        signs = {"Y": "%Y", "y": "%y", "m": "%m", "b": "%b", "d": "%d", "M": "%M", "S": "%S"}
        signs |= {"H": "%I" if has_half else "%H", "f": "%f", "p": "%p", "z": "%z", "a": "%a"}
        text = "".join(signs[name] if name else part for name, part in self._template)
        self.label = re.sub(r"%p\.?\s?[Mm]\.?", "%p", text)
        self._is_iso = self.label.startswith("%Y-%m-%d")

    def text(self, seconds: float, zone: tzinfo | None) -> str:
        """As `TimeFormat`."""
        fixed = timezone(timedelta(seconds=self._offset)) if self._offset is not None else None
        digits = next((len(part) for name, part in self._template if name == "f"), 0)
        moment = datetime.fromtimestamp(round(seconds, digits), UTC)
        moment = moment.astimezone(fixed or zone or UTC)
        return "".join(_written(name, part, moment, self) for name, part in self._template)

    @property
    def example(self) -> str:
        """The example that times are written like."""
        return "".join(part for _, part in self._template)

    @property
    def is_twelve_hours(self) -> bool:
        """AM and PM."""
        return any(name == "p" for name, _ in self._template)


def _written(name: str, example: str, when: datetime, form: Written) -> str:
    """One part of a time, as wide as the example."""
    hour = (when.hour + 11) % 12 + 1 if form.is_twelve_hours else when.hour
    numbers = {"Y": when.year, "y": when.year % 100, "m": when.month, "d": when.day}
    numbers |= {"H": hour, "M": when.minute, "S": when.second}
    if name in numbers:
        # Two digits without a zero do not tell whether one digit has a zero before it.
        is_padded = example.startswith("0") or len(example) > 2
        return f"{numbers[name]:0{len(example) if is_padded else 1}d}"
    if name == "f":
        return f"{when.microsecond:06d}"[: len(example)].ljust(len(example), "0")
    if name == "p":
        half = "p" if when.hour >= 12 else "a"
        return half if example.islower() else half.upper()
    if name in ("a", "b"):
        rows, place = (_MONTH_NAMES, when.month - 1) if name == "b" else (_WEEKDAYS, when.weekday())
        names = next((names for names in rows if example.lower() in names), None)
        if names is None:
            return example
        text = names[place]
        if example.islower():
            return text
        return text.upper() if example.isupper() else text.title()
    return example


def _day_number(year: str, short: str, month: str, name: str, day: str) -> int | None:
    """Days since 1970."""
    if short:
        year = str(int(short) + (1900 if int(short) >= CENTURY_TURNS else 2000))
    number = MONTHS.get(name.lower()) if name else int(month)
    if number is None or not YEAR_MIN <= int(year) <= YEAR_MAX:
        return None
    try:
        return date(int(year), number, int(day)).toordinal() - EPOCH_ORDINAL
    except ValueError:
        return None


def clock_seconds(found: dict[str, str | None]) -> float | None:
    """Seconds since midnight."""
    hour = int(found.get("H") or 0)
    minute, second = int(found.get("M") or 0), int(found.get("S") or 0)
    half = found.get("p")
    if half is not None:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half in "pP" else 0)
    if minute > 59 or second > 60 or hour > 24 or (hour == 24 and (minute or second)):
        return None
    fraction = found.get("f")
    return hour * 3600 + minute * 60 + second + (float(f"0.{fraction}") if fraction else 0.0)


@functools.lru_cache(maxsize=256)
def offset_of(zone: str) -> float | None:
    """Seconds east of UTC of `Z`, `CET`, `+01:00`, `UTC-5`; None: it is not known."""
    if zone.lower() in ZONES:
        return ZONES[zone.lower()] * 3600.0
    match = re.fullmatch(r"(?:UTC|GMT)?([+-])(\d{1,2}):?(\d{2})?", zone, re.IGNORECASE)
    if match is None or int(match[2]) > 15:
        return None
    size = int(match[2]) * 3600.0 + int(match[3] or 0) * 60.0
    return -size if match[1] == "-" else size


def zone_of(text: str) -> tzinfo:
    """The zone that `--time-zone` names.

    Raises:
        InputError: there is none of that name.
    """
    offset = offset_of(text)
    if offset is not None:
        return timezone(timedelta(seconds=offset))
    try:
        return ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise InputError(
            f"--time-zone is {text!r}, but must be a zone's name, such as Europe/Berlin or UTC, "
            "or an offset, such as +01:00"
        ) from None


def written_formats(examples: Sequence[str], share: float) -> list[Written]:
    """The formats that read at least this share of the examples, those that read most first."""
    found: list[tuple[int, Written]] = []
    least = max(1, math.ceil(share * len(examples)))
    for order, pattern in _patterns():
        if not any(pattern.fullmatch(each) for each in examples[:20]):
            continue
        form = Written(order, pattern)
        count = sum(form.seconds(each) is not None for each in examples)
        if count >= least:
            form.learn(max(examples, key=lambda each: _detail(form, each)))
            found.append((count, form))
    most = max((count for count, _ in found), default=0)
    return [form for count, form in found if count == most]


def _detail(form: Written, text: str) -> tuple[int, int]:
    """How much of a time an example shows: a date alone may stand for midnight."""
    match = form.pattern.fullmatch(text)
    if match is None:
        return -1, 0
    padded = sum(bool(part) and part.startswith("0") for part in match.groupdict().values())
    return sum(part is not None for part in match.groupdict().values()), padded


@functools.cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple(_made())


def _made() -> Iterator[tuple[str, re.Pattern[str]]]:
    for order, day in _DATES:
        yield order, re.compile(rf"{_WEEKDAY}{day}(?:[ T_,:]{{1,2}}\s?{_CLOCK})?{_ZONE}")
        yield order, re.compile(rf"{_WEEKDAY}{day}[ T]?{_COMPACT_CLOCK}{_ZONE}")
        yield order, re.compile(rf"{_CLOCK}[ ,]{{1,2}}{day}{_ZONE}")
    parts = rf"{_Y4} {_M} {_D} (?P<H>\d{{1,2}})(?: (?P<M>\d{{1,2}})(?: (?P<S>\d{{1,2}}))?)?"
    yield "year first", re.compile(parts)
