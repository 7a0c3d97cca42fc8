"""Times of the steps that follow a stream's last one."""

from __future__ import annotations

from dataclasses import dataclass

from bptt.cli.data.steptimes import StepTimes
from bptt.cli.data.trail import Known
from bptt.client import Stream


@dataclass(frozen=True, slots=True)
class Clock:
    """Continues the times of a stream's source."""

    times: StepTimes
    """How the source writes times, and its usual step."""
    seconds: float
    """Time of the last step; NaN: it has none."""
    next_step: int
    """Number of the step after it."""

    @classmethod
    def of_stream(cls, stream: Stream) -> Clock | None:
        """Return the clock of what `bptt learn` fed to a stream.

        None: the source had no times, or the stream's last steps are from another program.
        """
        known = Known.read(stream.source_position)
        if known is None or known.times is None or stream.source_step != stream.next_step:
            return None
        return cls(known.times, known.seconds, stream.next_step)

    def time_of(self, step: int) -> str:
        """Return the time that a later step is forecast for; empty if it is not known."""
        ahead = step - self.next_step + 1
        return self.times.forecast(self.seconds, ahead) if ahead > 0 else ""
