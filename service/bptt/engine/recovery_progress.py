"""How far a recovery is: counts records that are replayed, and tells how long the rest will take.

Threads count, the event loop tells. Counting needs no lock: each model has one thread, which
replaces one number.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from bptt.durability import Store

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 2.0  # between two lines in the log during a long recovery

Tell = Callable[[str], None]
"""Is given the text of each progress line of the whole recovery."""


def ignore_progress(text: str) -> None:
    """Nobody is told."""


def records_to_replay(store: Store, model_id: str) -> int:
    """Count the records after a model's newest checkpoint; 0 if they cannot be counted.

    The recovery of the model itself reports why.
    """
    try:
        checkpoints = store.checkpoints(model_id)
        return max(0, store.last(model_id) - checkpoints[-1].lsn) if checkpoints else 0
    except Exception as error:  # noqa: BLE001 - the count is for the log only
        log.debug("model %s: its records cannot be counted: %s", model_id, error)
        return 0


def pace(done: int, total: int, seconds: float) -> str:
    """Say how fast records are replayed, and how long the rest will take at that rate."""
    if done <= 0 or seconds <= 0:
        return "rate not known yet"
    rate = done / seconds
    return f"{rate:.0f} records/s, about {max(total - done, 0) / rate:.0f} s left"


class RecoveryProgress:
    """The progress of all models that are recovered together.

    Args:
        model_ids: the models.
        tell: is given each line, too.
    """

    def __init__(self, model_ids: list[str], tell: Tell = ignore_progress) -> None:
        self._tell = tell
        self._total = dict.fromkeys(model_ids, 0)
        self._done = dict.fromkeys(model_ids, 0)
        self._recovered = 0
        self._start = time.monotonic()
        self._replay_start: float | None = None

    def found(self, model_id: str, records: int) -> None:
        """Note how many records a model has to replay."""
        self._total[model_id] = records

    def replayed(self, model_id: str, records: int) -> None:
        """Note how many of a model's records are replayed so far."""
        if self._replay_start is None:
            self._replay_start = time.monotonic()
        self._done[model_id] = records

    def recovered(self) -> None:
        """Note that one more model is done with, recovered or not."""
        self._recovered += 1

    @property
    def totals(self) -> tuple[int, int]:
        """Records that are replayed, and records to replay; the count may be found too low."""
        done = sum(self._done.values())
        return done, sum(max(self._total[each], self._done[each]) for each in self._total)

    def begins(self) -> None:
        """Log how many models there are."""
        self._say(f"models to recover: {len(self._total)}; counting their records to replay")

    def counted(self) -> None:
        """Log how much there is to do, once all models were counted."""
        _, total = self.totals
        behind = sum(count > 0 for count in self._total.values())
        self._say(
            f"recovering: {total} records to replay, in {behind} of {len(self._total)} models"
        )

    async def report(self) -> None:
        """Log the progress from time to time, until cancelled."""
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            done, total = self.totals
            start = self._replay_start
            seconds = 0.0 if start is None else time.monotonic() - start
            self._say(
                f"recovering: {self._recovered} of {len(self._total)} models, {done} of {total} "
                f"records replayed, {pace(done, total, seconds)}"
            )

    def ends(self) -> None:
        """Log what was done."""
        done, _ = self.totals
        seconds = time.monotonic() - self._start
        self._say(f"recovery ended after {seconds:.1f} s: {done} records replayed")

    def _say(self, text: str) -> None:
        log.info("%s", text)
        self._tell(text)
