"""Watches a store that refuses commits: the model is STALLED, and waiting tasks get an error."""

from __future__ import annotations

import asyncio

from bptt.domain import ModelState as State
from bptt.engine.journaling import JournalWriter
from bptt.engine.lifecycle import Lifecycle, SETTLED
from bptt.engine.worker import Worker

STALL_SECONDS = 10.0
"""How long tasks wait for a store that refuses commits; then they get an error that says when to
retry. A commit is retried at least every two seconds, so short failures stay unnoticed."""


class StallWatch:
    """Watches the journal of one model. Lives on the event loop.

    Args:
        lifecycle: the model's lifecycle.
        worker: moves the lifecycle, and refuses the queue.
        journal: the watched journal.
    """

    def __init__(self, lifecycle: Lifecycle, worker: Worker, journal: JournalWriter) -> None:
        self._lifecycle = lifecycle
        self._worker = worker
        self._journal = journal
        self._timer: asyncio.TimerHandle | None = None
        self._is_deleted = False

    def journal_changed(self) -> None:
        """React to a change of the journal's `failure` or `blocked`."""
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
        """Note a deletion: the queue is refused as soon as the store refuses commits."""
        self._is_deleted = True
        if self._journal.failure is not None:
            self._worker.refuse_rest(self._journal.failure)

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(STALL_SECONDS, self._too_long)

    def _too_long(self) -> None:
        """Refuse everything that waits for the store; later waits get the full time."""
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
