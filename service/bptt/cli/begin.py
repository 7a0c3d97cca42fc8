"""Where a run of `bptt learn` begins: which rows of its source the stream has already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bptt.cli.console import plural
from bptt.cli.data.known_rows import compare_file, Compared, LiveRows, ReadBatches
from bptt.cli.data.problem import InputError
from bptt.cli.data.steptimes import StepTimes
from bptt.cli.data.trail import Known
from bptt.cli.threads import run_in_thread
from bptt.client import Client, Stream
from bptt.errors import NotFound


@dataclass(frozen=True, slots=True)
class Begin:
    """Where a run begins."""

    next_step: int = 0
    """The stream's next step."""
    skip: int = 0
    """Rows from the source's first that the stream has."""
    live: LiveRows | None = None
    """Leaves out known rows of a source that can be read only once."""
    append: bool = False
    """The stream's steps are not known to be of this source: rows follow them, whatever they are"""
    first_row_step: int = 0
    """Step number of the source's first row, where rows are skipped."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """Compares a source with what its stream remembers."""

    client: Client
    model_id: str
    stream_id: str
    source: str
    """The file's path, or `-`."""
    read: ReadBatches
    """Reads the file anew, from its first row."""
    times: StepTimes | None
    """How its rows' times are written."""
    say: Callable[[str], None]
    """Prints a line for the user."""
    append: bool
    """Learn all rows after the stream's steps."""
    by_number: bool
    """Skip as many rows as the stream has steps, without comparing them."""

    async def find(self) -> Begin:
        """Tell where to begin.

        Raises:
            InputError: the source is not what the stream was fed.
        """
        try:
            stream = await self.client.get_stream(self.model_id, self.stream_id)
        except NotFound:
            return Begin(append=self.append)
        if not stream.next_step:
            return Begin(append=self.append)
        known = Known.read(stream.source_position)
        if self.source == "-":
            return self._live(stream, known)
        compared = None
        if known is not None and not self.by_number:
            compare = partial(compare_file, known, self.read, is_moment=self._is_moment)
            compared = await run_in_thread(compare)
        if self.append:
            self._note_repeats(compared)
            return Begin(stream.next_step, append=True)
        if known is None or compared is None:
            return self._by_number(stream)
        return self._after(stream, known, compared)

    @property
    def _is_moment(self) -> bool:
        return self.times is not None and self.times.format.is_moment

    def _live(self, stream: Stream, known: Known | None) -> Begin:
        if self.append or known is None:
            if not self.append:
                steps = plural(stream.next_step, "step")
                self.say(
                    f"stream {self.stream_id} has {steps} from another program: the rows are "
                    "learned after them"
                )
            return Begin(stream.next_step, append=True)
        live = LiveRows(known, self._say_of_stream, is_moment=self._is_moment)
        return Begin(stream.next_step, live=live)

    def _say_of_stream(self, text: str) -> None:
        self.say(f"stream {self.stream_id}: {text}")

    def _note_repeats(self, compared: Compared | None) -> None:
        if compared is None or compared.outcome not in ("same", "shorter", "moved"):
            return
        self.say(
            f"note: stream {self.stream_id} has the first {plural(compared.skip, 'row')} of "
            f"{self.source} already; --append learns them again"
        )

    def _by_number(self, stream: Stream) -> Begin:
        steps = plural(stream.next_step, "step")
        why = "" if self.by_number else " from another program"
        self.say(
            f"stream {self.stream_id} has {steps}{why}: as many rows are skipped without being "
            "compared"
        )
        return Begin(stream.next_step, stream.next_step)

    def _after(self, stream: Stream, known: Known, compared: Compared) -> Begin:
        steps = plural(stream.next_step, "step")
        if compared.outcome == "same":
            others = stream.next_step - stream.source_step
            more = f", the last {others:,} from another program" if others else ""
            self.say(f"stream {self.stream_id} has {steps}{more}: continuing after them")
        elif compared.outcome == "edited":
            self.say(
                f"note: {_place(compared)} of {self.source} is a row other than the one "
                f"that stream {self.stream_id} has; it is not learned again"
            )
            self.say(f"stream {self.stream_id} has {steps}: continuing after them")
        elif compared.outcome == "moved":
            self.say(
                f"stream {self.stream_id} has {steps}, which end with row {compared.skip:,} of "
                f"{self.source}: continuing after it"
            )
        elif compared.outcome == "later":
            self.say(
                f"stream {self.stream_id} has {steps}; all rows of {self.source} are later than "
                f"the last of them ({known.last_time}) and are learned after it"
            )
        elif compared.outcome == "shorter":
            raise InputError(
                f"{self.source} is shorter than its stream: {plural(compared.skip, 'row')}, but "
                f"stream {self.stream_id} of model {self.model_id} has {steps}; name another "
                "--stream, or add --append"
            )
        else:
            raise InputError(self._difference(known, compared, steps))
        return Begin(
            stream.next_step, compared.skip, first_row_step=stream.source_step - compared.skip
        )

    def _difference(self, known: Known, compared: Compared, steps: str) -> str:
        up_to = f" up to {known.last_time}" if known.last_time else ""
        return (
            f"{_place(compared)} of {self.source} is a row other than the one that stream "
            f"{self.stream_id} of model {self.model_id} has ({steps}{up_to}), so the file was "
            "edited or is another; --append learns all its rows after those, --stream NAME learns "
            "them as another stream, --by-number skips as many rows as there are steps"
        )


def _place(compared: Compared) -> str:
    """The lines among which the first difference is."""
    first, last = compared.lines
    is_one = first == last or compared.rows[0] == compared.rows[1]
    return f"line {first:,}" if is_one else f"among lines {first:,} to {last:,}"
