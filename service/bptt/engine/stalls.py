"""A store that refuses commits: the model is STALLED, and nobody waits for the store for ever."""

from __future__ import annotations

import asyncio

from bptt.domain import ModelState as State
from bptt.engine.journaling import JournalWriter
from bptt.engine.lifecycle import Lifecycle, SETTLED
from bptt.engine.worker import Worker

STALL_SECONDS = 10.0
"""How long those who wait for a store that refuses commits are kept waiting; then they are told
when to come back. A commit is tried again every two seconds at least, so hiccups pass unseen."""


class StallWatch:
    """Watches the journal of one model. Lives on the event loop.

    Args:
        lifecycle: of the model.
        worker: moves the lifecycle, and refuses what waits in the queue.
        journal: what is watched.
    """

    def __init__(self, lifecycle: Lifecycle, worker: Worker, journal: JournalWriter) -> None:
        self._lifecycle = lifecycle
        self._worker = worker
        self._journal = journal
        self._timer: asyncio.TimerHandle | None = None
        self._is_deleted = False

    def journal_changed(self) -> None:
        """A commit failed, or worked again, or the journal takes more."""
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
        """Refuse what is queued as soon as the store refuses commits, and not later."""
        self._is_deleted = True
        if self._journal.failure is not None:
            self._worker.refuse_rest(self._journal.failure)

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(STALL_SECONDS, self._too_long)

    def _too_long(self) -> None:
        """Answer what waits for the store; whoever waits from now on waits as long again."""
        failure, self._timer = self._journal.failure, None
        if failure is None or self._journal.broken is not None:
            return
        self._journal.refuse_waiters(failure)
        if self._lifecycle.state is not State.DRAINING:  # a stop has a time of its own
            self._worker.refuse_queue(failure)
            self._wait()

    def cancel(self) -> None:
        """Watch no more, until the journal changes again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
