"""The published state of a model: its snapshot, its stream views and its figures.

A run on the event loop does not copy them; `catch_up` copies them when a request reads them. Unread
copies took a third of such a run. A run in a thread returns its own copies, because no request can
read the learner during the run. While such a run is under way, the published state is complete.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

from numpy.typing import NDArray

from bptt.engine.messages import Outcome
from bptt.engine.slots import StreamSlots
from bptt.engine.views import StreamViews
from bptt_core import Figures, Learner, Snapshot, StreamColumns

LOOK_SECONDS = 1.0  # for the event loop to answer another thread; it is busy for milliseconds
BEHIND_RUNS_MAX = 32  # one copy in so many runs costs little, and its time is measured


class PublishedState:
    """The published state of one model. Lives on the event loop.

    Args:
        learner: read by `catch_up`; while `catch_up` has nothing to copy, another thread may use
            the learner.
        on_figures: called with the previous and the new figures.
        views: views of the learner's streams. None: they are created.
    """

    def __init__(
        self,
        learner: Learner,
        on_figures: Callable[[Figures, Figures], None],
        views: StreamViews | None = None,
    ) -> None:
        self._learner = learner
        self._on_figures = on_figures
        self._snapshot = learner.snapshot()
        self._views = StreamViews.of(learner) if views is None else views
        self._figures = learner.figures
        self._band: tuple[NDArray[Any], NDArray[Any]] | None = None
        self._behind: dict[str, None] = {}  # streams changed since then
        self._runs = 0  # runs since then
        self._seconds = 0.0  # duration of these runs
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The immutable snapshot that predictions read."""
        self.catch_up()
        return self._snapshot

    @property
    def views(self) -> StreamViews:
        """Live state of each stream, as of the snapshot."""
        self.catch_up()
        return self._views

    @property
    def slots(self) -> StreamSlots:
        """The slots of the model's streams."""
        return self._views.slots

    @property
    def figures(self) -> Figures:
        """The model's figures, as of the snapshot."""
        self.catch_up()
        return self._figures

    @property
    def last_figures(self) -> Figures:
        """The figures published last. `diverged` is current even while others are behind."""
        return self._figures

    @property
    def may_wait(self) -> bool:
        """True if one more run may leave the published state behind."""
        return self._runs < BEHIND_RUNS_MAX

    def next_step(self, stream_id: str) -> int:
        """The number of a stream's next step; 0 for an unknown stream."""
        return self._views.next_step(stream_id)

    def incarnation(self, stream_id: str) -> int:
        """The stream's incarnation; 0 for an unknown stream."""
        return self._views.incarnation(stream_id)

    def knows(self, stream_id: str) -> bool:
        """True if a stream has that name."""
        return stream_id in self._views

    def __len__(self) -> int:
        return len(self._views)

    def error_band(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The newest error band, without a new snapshot; cached until the next run."""
        if self._band is None:
            self._band = (self._learner if self._behind else self._snapshot).error_band()
        return self._band

    # ------------------------------------------------------------------ changes

    def takes(self, outcome: Outcome) -> None:
        """Publish the copies that a run in a thread made."""
        assert outcome.snapshot is not None
        assert outcome.report is not None
        self._copy_views(self._behind)  # of earlier runs on the loop
        for stream_id in outcome.gone:
            self._views.discard(stream_id)
        if outcome.views is not None:
            self._views.put_all(*outcome.views)
        self._snapshot, self._band = outcome.snapshot, None
        outcome.seconds += self._seconds
        self._behind.clear()
        self._runs, self._seconds = 0, 0.0
        self._figures_are(outcome.report.figures)

    def is_behind(self, outcome: Outcome) -> None:
        """Note a run on the event loop, which made no copies. Its streams have views already."""
        self._loop = asyncio.get_running_loop()
        self._band = None
        next_step = self._views.slots.next_step
        for _, moves in outcome.records:
            if moves is not None:
                next_step[moves.slots] = moves.after
        self._behind |= outcome.touched
        self._runs += 1
        self._seconds += outcome.seconds
        if any(each.updates and each.updates[-1].skipped for each in outcome.ticks):
            self.catch_up()  # it may have diverged, and answers show that

    def begins_anew(
        self, learner: Learner, snapshot: Snapshot, views: tuple[Sequence[str], StreamColumns]
    ) -> None:
        """Replace the whole state, after a restore or a roll-back."""
        self._learner, self._snapshot = learner, snapshot
        self._views.begins_anew(*views)
        self._behind.clear()
        self._band = None
        self._figures_are(learner.figures)

    def forget(self) -> None:
        """Free the memory of a model that has stopped."""
        del self._learner, self._snapshot

    def freeze(self) -> None:
        """Keep the last complete state for good: the learner's own state is undefined."""
        self._behind.clear()
        self._band = None

    def takes_figures(self, figures: Figures) -> None:
        """Publish figures that changed with the settings."""
        self._figures_are(figures)

    def catch_up(self) -> None:
        """Copy the state that runs on the event loop have changed."""
        if not self._behind:
            return
        streams, self._behind = self._behind, {}
        self._copy_views(streams)
        self._snapshot = self._learner.snapshot()
        self._figures_are(self._learner.figures)

    def _copy_views(self, streams: Collection[str]) -> None:
        if streams:
            names = list(streams)
            self._views.put_all(names, self._learner.stream_columns(names))

    def catch_up_from_any_thread(self) -> None:
        """Thread-safe `catch_up`; blocks up to LOOK_SECONDS."""
        if not self._behind or self._loop is None:
            return
        try:
            is_on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_on_loop = False
        if is_on_loop:
            self.catch_up()
            return
        done = threading.Event()

        def look() -> None:
            self.catch_up()
            done.set()

        try:
            self._loop.call_soon_threadsafe(look)
        except RuntimeError:  # the loop is closed: nothing changes any more
            return
        done.wait(LOOK_SECONDS)

    def _figures_are(self, figures: Figures) -> None:
        before, self._figures = self._figures, figures
        self._on_figures(before, figures)
