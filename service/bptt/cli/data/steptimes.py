"""Times of a stream's steps and of forecasts, as text in the file's own format."""

from __future__ import annotations

import calendar
import math
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo, UTC

from bptt.cli.data.order import Steps
from bptt.cli.data.othertimes import Given
from bptt.cli.data.timeformat import DAY, TimeFormat, Written
from bptt.cli.data.times import TimeColumn

_CALENDAR = ((1, 28, 31), (3, 89, 92), (12, 365, 366))
"""Steps of whole months: how many, and from how many to how many days they take."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Tells the time that a forecast is for, and writes times as the file does."""

    format: TimeFormat
    zone: tzinfo | None
    """Of times that name none; None: UTC."""
    step_seconds: float
    """The usual step between two rows; NaN where it is not known."""
    months: int = 0
    """The usual step in months, where it is one of the calendar; else 0."""

    @classmethod
    def of(cls, time: TimeColumn, steps: Steps) -> StepTimes:
        """Take the usual step from the steps between rows.

        Args:
            time: the column of times.
            steps: those of one series.
        """
        usual = steps.quantile(0.5)
        is_calendar = isinstance(time.format, (Written, Given))
        low, high = (steps.quantile(share) / DAY for share in (0.1, 0.9))
        months = 0
        for count, least, most in _CALENDAR:
            # An hour more or less, where a clock is set within a step.
            if is_calendar and least - 0.05 <= low and high <= most + 0.05:
                months = count
        return cls(time.format, time.zone, usual, months)

    def text(self, seconds: float) -> str:
        """Write a moment in UTC, or seconds since an unknown start; empty for NaN."""
        return self.format.text(seconds, self.zone) if math.isfinite(seconds) else ""

    def ahead(self, seconds: float, steps: int) -> float:
        """Return the time that a forecast is for.

        Args:
            seconds: the time of the step after which the forecast was made; NaN: not known.
            steps: how many usual steps ahead, at least 1.

        Returns:
            A moment as `seconds`; NaN where the time or the usual step is not known.
        """
        if not math.isfinite(seconds) or not math.isfinite(self.step_seconds):
            return math.nan
        days = self.step_seconds / DAY
        if self.months:
            local = datetime.fromtimestamp(seconds, UTC).astimezone(self.zone or UTC)
            return _months_later(local, self.months * steps).timestamp()
        if self.zone is not None and self.format.is_moment and days >= 1 and days.is_integer():
            # A day in a zone with daylight saving is not always 24 hours long.
            local = datetime.fromtimestamp(seconds, UTC).astimezone(self.zone)
            return (local + timedelta(days=days * steps)).timestamp()
        return seconds + steps * self.step_seconds

    def forecast(self, seconds: float, steps: int) -> str:
        """Write the time that a forecast is for; the arguments are those of `ahead`."""
        return self.text(self.ahead(seconds, steps))


def _months_later(when: datetime, months: int) -> datetime:
    """The same day of a later month; the last day of a month stays the last day."""
    years, month = divmod(when.month - 1 + months, 12)
    year, month = when.year + years, month + 1
    last = calendar.monthrange(year, month)[1]
    is_last = when.day == calendar.monthrange(when.year, when.month)[1]
    return when.replace(year=year, month=month, day=last if is_last else min(when.day, last))
