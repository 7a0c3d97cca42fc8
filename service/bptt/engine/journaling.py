"""Writes applied records to the journal, and resolves the waiters for their durability.

    applied → JournalWriter.put → one transaction for all waiting records (in a thread) → committed

Rules:
- Records are numbered in the order in which they were applied, and committed in that order.
- A transaction collects the records of GATHER_SECONDS, or is written at once if a waiter needs it.
  During the write the next one collects, so a slow disk makes larger transactions.
- The waiting records are bounded: while `blocked` is true, no more records are applied.
- A commit that fails is tried again until it works or the model leaves memory. Until then nothing
  is acknowledged and nothing is lost: the records are in memory. Waiters do not wait for ever:
  `refuse_waiters` answers them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from bptt.durability import Command, Record, Store, Tick
from bptt.engine.messages import IntArray, Moves
from bptt.engine.slots import StreamSlots
from bptt.errors import ServiceError, StorageFailed

log = logging.getLogger(__name__)

GATHER_SECONDS = 0.002  # with a step a message, a commit each took as much time as all the rest
WAITING_RECORDS_MAX = 4096  # a second of small ones, should the disk stand still
WAITING_BYTES_MAX = 32 << 20  # of their arrays
FIRST_PAUSE_SECONDS = 0.05  # before a failed commit is tried again; doubled each time ...
LAST_PAUSE_SECONDS = 2.0  # ... up to this: the longest pause once the disk has room again


def weight(body: Tick | Command) -> int:
    """Size of a record's arrays in bytes."""
    if isinstance(body, Command):
        return 0
    targets = body.batch.targets
    return int(body.batch.inputs.nbytes + (0 if targets is None else targets.nbytes))


class DurableSteps:
    """The step up to which each stream is durable.

    A stream is behind while the last record that moved it, `moved`, is not durable. Then `durable`
    counts from the record `since` on: an earlier one may have moved another stream in the same
    slot, or the same stream before a restore.

    Args:
        slots: holds the columns `moved`, `since` and `durable`.
    """

    def __init__(self, slots: StreamSlots) -> None:
        self._slots = slots
        self._moves: deque[tuple[int, Moves]] = deque()
        self._committed = 0

    def applied(self, lsn: int, moves: Moves) -> None:
        """Note a record that moved streams and is not durable yet."""
        table, slots = self._slots, moves.slots
        # The stream was not behind, or begins here: it may have been deleted just before.
        fresh = (table.moved[slots] <= self._committed) | (moves.before == 0)
        if np.count_nonzero(fresh):
            new = slots if np.count_nonzero(fresh) == len(slots) else slots[fresh]
            table.since[new] = lsn
            table.durable[slots] = np.where(fresh, moves.before, table.durable[slots])
        table.moved[slots] = lsn
        self._moves.append((lsn, moves))

    def committed(self, lsn: int) -> None:
        """Note that all records up to this one are durable."""
        self._committed = max(self._committed, lsn)
        table = self._slots
        while self._moves and self._moves[0][0] <= lsn:
            number, moves = self._moves.popleft()
            slots, after = moves.slots, moves.after
            own = table.since[slots] <= number
            if np.count_nonzero(own) < len(slots):
                slots, after = slots[own], after[own]
            table.durable[slots] = after

    def begins_anew(self) -> None:
        """No stream is behind any more: all may be elsewhere."""
        self._slots.moved[:] = 0

    def step(self, stream_id: str) -> int:
        """The step before which all applied steps of a stream are durable; 0 if it is unknown."""
        slot = self._slots.numbers.get(stream_id)
        return 0 if slot is None else int(self.steps(np.array([slot]))[0])

    def steps(self, slots: IntArray) -> IntArray:
        """As `step`, for the streams in these slots; a slot of -1 is an unknown stream."""
        table = self._slots
        behind = table.moved[slots] > self._committed
        steps: IntArray = np.where(behind, table.durable[slots], table.next_step[slots])
        return np.where(slots < 0, 0, steps)


class JournalWriter:
    """Writes a model's records to the store's journal. Lives on the event loop.

    Attributes:
        last: lsn of the last record put.
        committed: lsn of the last durable record.
        failure: the error of the last commit; None if it succeeded.
        broken: the error after which nothing is committed any more; None before it.

    Args:
        model_id: the model's name.
        store: stores the journal; None: every record counts as committed at once.
        executor: threads that wait for the disk.
        last: lsn of the last record in the store.
        on_commit: called after a commit with `committed` and the duration in seconds.
        on_change: called when `blocked` or `failure` has changed.
    """

    def __init__(
        self,
        model_id: str,
        store: Store | None,
        executor: Executor,
        *,
        last: int,
        on_commit: Callable[[int, float], None],
        on_change: Callable[[], None],
    ) -> None:
        self.last = self.committed = last
        self.failure: ServiceError | None = None
        self.broken: Exception | None = None
        self._model_id = model_id
        self._store = store
        self._executor = executor
        self._on_commit = on_commit
        self._on_change = on_change
        self._waiting: list[Record] = []
        self._weight = 0
        self._task: asyncio.Task[None] | None = None
        self._appending: asyncio.Future[None] | None = None  # the write in a thread
        self._timer: asyncio.TimerHandle | None = None  # ends the gathering
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def blocked(self) -> bool:
        """True while no further record should be applied."""
        if self.failure is not None or self.broken is not None:
            return True
        return self.last - self.committed >= WAITING_RECORDS_MAX or self._weight > WAITING_BYTES_MAX

    def put(self, body: Tick | Command) -> int:
        """Number an applied record and queue it for the next transaction."""
        self.last += 1
        if self._store is None:
            self.committed = self.last
            return self.last
        self._waiting.append(Record(self.last, body))
        self._weight += weight(body)
        if not self._is_writing and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(GATHER_SECONDS, self._begin)
        return self.last

    @property
    def _is_writing(self) -> bool:
        return self._task is not None and not self._task.done()

    def _begin(self) -> None:
        """Write the collected records."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and self.broken is None and not self._is_writing:
            self._task = asyncio.create_task(self._write(), name=f"journal {self._model_id}")

    async def up_to(self, lsn: int) -> None:
        """Wait until a record and all earlier ones are durable.

        Raises:
            ServiceError: they cannot become durable, or the store has refused commits for too long.
        """
        if self.committed >= lsn:
            return
        if self.broken is not None:
            raise self._never()
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append((lsn, waiter))
        self._begin()
        await waiter

    def refuse_waiters(self, why: ServiceError) -> None:
        """Answer all tasks that wait for a commit with an error; the commit is still retried."""
        waiters, self._waiters = self._waiters, deque()
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(why)

    def give_up(self, why: ServiceError) -> None:
        """Commit no more records; waiters get `why`. The rest was never acknowledged."""
        if self._waiting or self._is_writing:
            self._break(self.failure or why)
            if self._timer is not None:
                self._timer.cancel()
            if self._task is not None:
                self._task.cancel()

    async def close(self, why: ServiceError) -> None:
        """Give up as `give_up`; after it returns, no thread writes to the journal any more."""
        self.give_up(why)
        if self.broken is None:
            self._break(why)
        if self._appending is not None:
            await asyncio.wait([self._appending])

    async def _write(self) -> None:
        assert self._store is not None
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_SECONDS
        while self._waiting and self.broken is None:
            batch, self._waiting = self._waiting, []
            start = time.perf_counter()
            try:
                self._appending = loop.run_in_executor(
                    self._executor, self._store.append, self._model_id, batch
                )
                self._appending.add_done_callback(_look_at)
                await asyncio.shield(self._appending)  # a thread cannot be cancelled
            except StorageFailed as error:
                self._waiting = batch + self._waiting
                self._say_failed(error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001 - kept, and raised in all waiting tasks
                log.error("model %s: the journal is closed: %s", self._model_id, error)
                self._break(error)
            else:
                self._say_committed(batch, time.perf_counter() - start)
                pause = FIRST_PAUSE_SECONDS
                if not self._waiters:
                    break
        if self._waiting and self.broken is None:
            self._timer = loop.call_later(GATHER_SECONDS, self._begin)

    def _say_failed(self, error: ServiceError) -> None:
        if self.failure is None:
            log.error(
                "model %s: nothing is learned or acknowledged until this passes: %s",
                self._model_id,
                error.message,
            )
        self.failure = error
        self._on_change()

    def _say_committed(self, batch: list[Record], seconds: float) -> None:
        was_blocked = self.blocked
        self._weight -= sum(weight(each.body) for each in batch)
        if self.failure is not None:
            self.failure = None
            log.info("model %s: its journal is written again", self._model_id)
        self.committed = batch[-1].lsn
        while self._waiters and self._waiters[0][0] <= self.committed:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
        self._on_commit(self.committed, seconds)
        if was_blocked:
            self._on_change()

    def _break(self, error: Exception) -> None:
        self.broken = error
        while self._waiters:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(self._never())
        self._on_change()

    def _never(self) -> ServiceError:
        if isinstance(self.broken, ServiceError):
            return self.broken
        return StorageFailed(f"the journal of model {self._model_id} is closed: {self.broken}")


def _look_at(appended: asyncio.Future[None]) -> None:
    """Mark an append's error as seen: its task may be cancelled and never awaited."""
    if not appended.cancelled():
        appended.exception()
