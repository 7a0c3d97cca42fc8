"""Shows the progress of a run: a bar in a terminal, or lines of text or JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from bptt.cli.console import plural, print_json
from bptt.cli.run_statistics import Summary

JSON_SECONDS = 1.0  # between two lines of JSON
READING_SECONDS = 1.0  # after which a command without a terminal says that it reads a file
LINE_SECONDS = 10.0  # between two lines of text where the output is no terminal
BAR_SECONDS = 0.1  # between two updates of the bar
WIDE_COLUMNS = 110  # of a terminal with room for loss and gradient


class Pace:
    """How fast a run goes, and how long it will take."""

    def __init__(self, total: int | None) -> None:
        """Start the clock.

        Args:
            total: bytes of the input; None if unknown.
        """
        self._total = total
        self._started = time.perf_counter()
        self._first: tuple[float, int] | None = None

    def rate(self, rows: int) -> float:
        """Rows a second since the start."""
        return rows / max(1e-9, time.perf_counter() - self._started)

    def seconds_left(self, done: int) -> float | None:
        """Seconds until all bytes are done; None: not known.

        It is judged by the bytes since the first call: those before may have been skipped, because
        an earlier run learned them.
        """
        now = time.perf_counter()
        if self._first is None:
            self._first = now, done
        since, first = self._first
        if self._total is None or done <= first:
            return None
        return max(0, self._total - done) * (now - since) / (done - first)


@asynccontextmanager
async def tell_reading(
    console: Console, file: str, size: int | None, *, as_json: bool
) -> AsyncIterator[None]:
    """Show that a file is being read, where that takes long, until the block ends.

    Args:
        console: for people; without a terminal it gets a line after READING_SECONDS.
        file: the file's name.
        size: its bytes; None if unknown.
        as_json: write a line of JSON instead.
    """
    megabytes = "" if size is None else f" ({size / 1e6:,.1f} MB)"
    text = f"reading {file}{megabytes} before anything is learned"

    def say() -> None:
        if as_json:
            print_json({"event": "reading", "file": file, "bytes": size})
        console.print(text, markup=False, soft_wrap=True)

    if console.is_terminal and not as_json:
        with console.status(escape(text)):
            yield
        return
    timer = asyncio.get_running_loop().call_later(READING_SECONDS, say)
    try:
        yield
    finally:
        timer.cancel()


class Figures(Protocol):
    """What is shown of a run."""

    def summary(self) -> Summary:
        """Return the figures so far."""

    @property
    def steps(self) -> int:
        """Steps learned so far."""

    def figures(self) -> list[str]:
        """Return the figures so far, each as a few words, the most important one first."""


class ProgressDisplay:
    """Shows a run's statistics as they grow: a bar in a terminal, or lines of text or JSON."""

    def __init__(
        self, console: Console, *, total: int | None, as_json: bool, noun: str = "row"
    ) -> None:
        """Prepare the display; `with` starts it.

        Args:
            console: where the bar goes, or lines of text if it is no terminal.
            total: the value of `done` at the end; None if unknown.
            as_json: write lines of JSON to standard output instead of a bar.
            noun: what a step is called.
        """
        self._as_json = as_json
        self._noun = noun
        self._console = console
        self._is_wide = console.width >= WIDE_COLUMNS
        self._pace = Pace(total)
        self._shown = time.perf_counter()
        self._last: tuple[Figures, int] | None = None
        bar = (
            BarColumn(bar_width=12, complete_style="cyan", finished_style="green")
            if total
            else SpinnerColumn("line")
        )
        self._progress = Progress(
            bar,
            TextColumn("{task.fields[line]}"),
            console=console,
            disable=not console.is_terminal or as_json,
        )
        self._task = self._progress.add_task("learning", total=total, line="")

    def __enter__(self) -> ProgressDisplay:
        """Start the bar."""
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Draw the bar a last time and stop it."""
        if self._last is not None:
            statistics, done = self._last
            self._draw(statistics, done)
        self._progress.stop()

    def update(self, statistics: Figures, done: int) -> None:
        """Show the statistics, unless the last update was a moment ago.

        Args:
            statistics: of the run.
            done: how much of `total` is done.
        """
        self._last = statistics, done
        left = self._pace.seconds_left(done)
        now = time.perf_counter()
        seconds = BAR_SECONDS if self._console.is_terminal else LINE_SECONDS
        interval = JSON_SECONDS if self._as_json else seconds
        if now - self._shown < interval:
            return
        self._shown = now
        if self._as_json:
            pace = {"rows_per_second": self._pace.rate(statistics.steps), "seconds_left": left}
            print_json({"event": "progress", **_progress_to_json(statistics.summary()), **pace})
        elif self._console.is_terminal:
            self._draw(statistics, done)
        else:
            self._console.print(self._line(statistics, done), markup=False, soft_wrap=True)

    def _draw(self, statistics: Figures, done: int) -> None:
        self._progress.update(self._task, completed=done, line=self._line(statistics, done))

    def _line(self, statistics: Figures, done: int) -> str:
        rate = self._pace.rate(statistics.steps)
        parts = [plural(statistics.steps, self._noun), f"{rate:,.0f} a second"]
        left = self._pace.seconds_left(done)
        if left is not None:
            parts.append(f"{timedelta(seconds=round(left))} left")
        parts.extend(statistics.figures() if self._is_wide else statistics.figures()[:1])
        return " · ".join(parts)


def _progress_to_json(summary: Summary) -> dict[str, Any]:
    return {
        "steps": summary.steps,
        "updates": summary.updates,
        "loss": summary.loss,
        "gradient_norm": summary.gradient_norm,
        "error": summary.whole.error,
        "error_ratio": summary.whole.ratio,
    }
