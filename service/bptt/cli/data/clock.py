"""Reads the times of one column row by row."""

from __future__ import annotations

from datetime import datetime, tzinfo, UTC

from bptt.cli.data.timeformat import DAY, TimeFormat


class Clock:
    """Reads the times of one column row by row: midnights and hours that come twice are told."""

    def __init__(self, form: TimeFormat, zone: tzinfo | None) -> None:
        """Begin before the first row."""
        self._format = form
        self._zone = zone
        self._last: float | None = None
        self._days = 0.0
        self._offsets: dict[float, tuple[float, float]] = {}

    def seconds(self, text: str) -> float | None:
        """The moment in UTC, or the seconds since the start; None: it cannot be read.

        Raises:
            ValueError: the zone has no such time; says so.
        """
        found = self._format.seconds(text)
        if found is None:
            return None
        seconds, is_utc = found
        if not is_utc and self._zone is not None:
            seconds = self._in_zone(seconds, self._zone, text)
        if self._format.wraps:
            seconds += self._days
            if self._last is not None and seconds < self._last - DAY / 2:
                self._days += DAY
                seconds += DAY
        self._last = seconds
        return seconds

    def _in_zone(self, local: float, zone: tzinfo, text: str) -> float:
        quarter = local // 900
        if quarter not in self._offsets:
            if len(self._offsets) > 1000:
                self._offsets.clear()
            self._offsets[quarter] = self._offsets_at(local, zone, text)
        early, late = self._offsets[quarter]
        # An hour that comes twice is read as the first, unless that runs backwards.
        if early != late and self._last is not None and local - early < self._last:
            return local - late
        return local - early

    @staticmethod
    def _offsets_at(local: float, zone: tzinfo, text: str) -> tuple[float, float]:
        when = datetime.fromtimestamp(local, UTC).replace(tzinfo=None)
        both = [when.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1)]
        early, late = (offset.total_seconds() if offset else 0.0 for offset in both)
        back = datetime.fromtimestamp(local - early, UTC).astimezone(zone).replace(tzinfo=None)
        if back != when and early < late:
            raise ValueError(
                f"{text!r}, but {zone} has no such time: clocks go forward there; if the times do "
                "not follow daylight saving, give an offset, such as --time-zone +01:00"
            )
        return early, late
