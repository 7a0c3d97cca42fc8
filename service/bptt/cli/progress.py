"""Shows the progress of a run: a bar in a terminal, or lines of JSON."""

from __future__ import annotations

import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bptt.cli.console import print_json
from bptt.cli.run_statistics import Summary

JSON_SECONDS = 1.0  # between two lines of JSON
BAR_SECONDS = 0.1  # between two updates of the bar


class Figures(Protocol):
    """What is shown of a run."""

    def summary(self) -> Summary:
        """Return the figures so far."""

    def line(self) -> str:
        """Return them as one short line."""


class ProgressDisplay:
    """Shows a run's statistics as they grow: a bar in a terminal, lines of JSON, or nothing."""

    def __init__(self, console: Console, *, total: int | None, as_json: bool) -> None:
        """Prepare the display; `with` starts it.

        Args:
            console: where the bar goes; none is drawn unless it is a terminal.
            total: the value of `done` at the end; None if unknown.
            as_json: write lines of JSON to standard output instead of a bar.
        """
        self._as_json = as_json
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
            TimeElapsedColumn(),
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
            self._progress.update(self._task, completed=done, line=statistics.line())
        self._progress.stop()

    def update(self, statistics: Figures, done: int) -> None:
        """Show the statistics, unless the last update was a moment ago.

        Args:
            statistics: of the run.
            done: how much of `total` is done.
        """
        self._last = statistics, done
        now = time.perf_counter()
        interval = JSON_SECONDS if self._as_json else BAR_SECONDS
        if now - self._shown < interval:
            return
        self._shown = now
        if self._as_json:
            print_json({"event": "progress", **_progress_to_json(statistics.summary())})
        else:
            self._progress.update(self._task, completed=done, line=statistics.line())


def _progress_to_json(summary: Summary) -> dict[str, Any]:
    return {
        "steps": summary.steps,
        "updates": summary.updates,
        "loss": summary.loss,
        "gradient_norm": summary.gradient_norm,
        "error": summary.whole.error,
        "error_ratio": summary.whole.ratio,
    }
