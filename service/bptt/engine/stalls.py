"""Makes a model STALLED while its store refuses commits, so that no request waits for ever."""

from __future__ import annotations

import asyncio

from bptt.domain import ModelState as State
from bptt.engine.journaling import JournalWriter
from bptt.engine.lifecycle import Lifecycle, SETTLED
from bptt.engine.worker import Worker

STALL_SECONDS = 10.0
"""How long requests wait for a store that refuses commits; then their error says when to retry. A
failed commit is tried again every two seconds at least, so short failures stay unseen."""


class StallWatch:
    """Watches the journal of one model. Lives on the event loop.

    Args:
        lifecycle: of the model.
        worker: moves the lifecycle, and refuses what waits in the queue.
        journal: the journal to watch.
    """

    def __init__(self, lifecycle: Lifecycle, worker: Worker, journal: JournalWriter) -> None:
        self._lifecycle = lifecycle
        self._worker = worker
        self._journal = journal
        self._timer: asyncio.TimerHandle | None = None
        self._is_deleted = False

    def journal_changed(self) -> None:
        """React to the journal: a commit failed or worked again, or it accepts records again."""
        self._worker.wake()
        state, failure = self._lifecycle.state, self._journal.failure
        if state in SETTLED or state is State.STALLED:
            self._worker.settle()
        if failure is None:
            self.cancel()
        elif state is State.DRAINING and self._is_deleted:
            self._worker.refuse_rest(failure)
        elif self._timer is None:
            self._wait()

    def model_is_deleted(self) -> None:
        """Refuse queued chunks as soon as the store refuses commits."""
        self._is_deleted = True
        if self._journal.failure is not None:
            self._worker.refuse_rest(self._journal.failure)

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(STALL_SECONDS, self._too_long)

    def _too_long(self) -> None:
        """Refuse the requests that wait for the store; later ones wait up to STALL_SECONDS."""
        failure, self._timer = self._journal.failure, None
        if failure is None or self._journal.broken is not None:
            return
        self._journal.refuse_waiters(failure)
        if self._lifecycle.state is not State.DRAINING:  # a stop has its own limit
            self._worker.refuse_queue(failure)
            self._wait()

    def cancel(self) -> None:
        """Stop the timer until the journal changes again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
