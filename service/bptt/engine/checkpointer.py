"""Writes a model's checkpoints from copies, while it keeps learning.

Rules:
- A checkpoint is due after so many records, or so many seconds after the first record it would
  hold. It changes nothing in the model, so the time of writing does not change what is learned.
- The copy is made between two runs; the file is written while the next ones go on.
- A checkpoint is written once all records that it includes are in the journal.
- Writing one prunes others, but never one that a command is about to name: see `naming`.
- After a replay a checkpoint is due at once: otherwise a server that is killed again and again
  before a checkpoint is due would replay more each time.
- One at a time. A failed write is logged, and tried again when the next checkpoint is due.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor

from bptt.config import ServerConfig
from bptt.domain import ModelSink
from bptt.durability import Checkpoint, CheckpointInfo, Store
from bptt.engine.journaling import JournalWriter
from bptt.errors import ServiceError, StorageFailed

log = logging.getLogger(__name__)


class Checkpointer:
    """Writes the checkpoints of one model. Lives on the event loop.

    Attributes:
        due: True if a copy should be made now.
        unsaved: True if the model has changed since the last checkpoint.

    Args:
        model_id: the model.
        store: where checkpoints are written. None: nowhere; no checkpoint is ever due.
        journal: of the model.
        executor: where files are written.
        config: how often they are written.
        sink: receives the duration of each write.
        lsn: the last record that the newest checkpoint, or its replayed journal, holds.
        wake: called when a checkpoint becomes due by the clock.
    """

    def __init__(
        self,
        model_id: str,
        store: Store | None,
        journal: JournalWriter,
        executor: Executor,
        config: ServerConfig,
        sink: ModelSink,
        *,
        lsn: int,
        wake: Callable[[], None],
    ) -> None:
        self.due = False
        self.unsaved = False
        self._model_id = model_id
        self._store = store
        self._journal = journal
        self._executor = executor
        self._config = config
        self._sink = sink
        self._tried_lsn = lsn
        self._wake = wake
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()  # held while a file is written and others are pruned
        self._named_at = 0  # the last record that names a checkpoint
        self._saved_lsn = -1  # of the newest checkpoint written by this object
        self._stopped = False
        self._closed: ServiceError | None = None

    def changed(self, lsn: int) -> None:
        """Note that the model has applied records up to this one."""
        self.unsaved = True
        if self._store is None or self._is_writing:
            return
        if lsn - self._tried_lsn >= self._config.checkpoint_records:
            self.due = True
        else:
            self._in_time()

    def replayed(self) -> None:
        """Note that the model was recovered from a checkpoint and the records after it."""
        self.due = self.unsaved = True

    @property
    def _is_writing(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def _in_time(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._config.checkpoint_seconds, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        if not self._is_writing:
            self.due = True
            self._wake()

    def begin(self, checkpoint: Checkpoint) -> None:
        """Write a copy that was just made, while learning continues; a failure is logged."""
        self._taken(checkpoint)
        self._writing = asyncio.create_task(self._write_or_say(checkpoint))

    async def save(self, checkpoint: Checkpoint) -> CheckpointInfo:
        """Write a fresh copy, after any write in progress.

        Returns:
            The checkpoint that holds the copy, or a newer one that was written in the meantime.

        Raises:
            ServiceError: the checkpoint could not be written.
        """
        self._taken(checkpoint)
        try:
            if self._writing is not None:
                await asyncio.wait([self._writing])
            written: list[CheckpointInfo] = []
            await self._write(checkpoint, written)
        except BaseException:
            self.unsaved = True
            raise
        if self.unsaved and not self._stopped:
            self._in_time()
        if not written:
            raise StorageFailed(f"the checkpoint of model {self._model_id} is not in the store")
        return written[0]

    async def stop(self) -> None:
        """Begin no more writes, and wait for the one in progress."""
        self.due, self._stopped = False, True
        self._cancel_timer()
        if self._writing is not None:
            await asyncio.wait([self._writing])

    async def close(self, why: ServiceError) -> None:
        """Stop as `stop`; after it returns, no thread writes a checkpoint any more."""
        self._closed = why
        await self.stop()
        async with self._lock:
            pass

    @contextlib.asynccontextmanager
    async def naming(self) -> AsyncIterator[None]:
        """Block pruning until the command that names a checkpoint is durable.

        The body reads the checkpoint and puts the command into the journal. After the commit the
        journal protects the checkpoint.
        """
        async with self._lock:
            yield
            self._named_at = self._journal.last

    async def settled(self) -> None:
        """Wait for the write in progress."""
        if self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing])

    @property
    def is_settled(self) -> bool:
        """True if the newest checkpoint holds the whole model and no write is in progress."""
        return not (self.unsaved or self.due or self._is_writing or self._lock.locked())

    def _taken(self, checkpoint: Checkpoint) -> None:
        self.due = False
        self.unsaved = checkpoint.lsn < self._journal.last  # a run may have come after the copy
        self._tried_lsn = checkpoint.lsn
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _write_or_say(self, checkpoint: Checkpoint) -> None:
        try:
            await self._write(checkpoint)
        except ServiceError as error:
            self.unsaved = True
            log.error("model %s not saved: %s", self._model_id, error.message)
        except Exception:
            self.unsaved = True
            log.exception("model %s not saved", self._model_id)
        if self.unsaved and not self._stopped:  # changed since the copy, or the write failed
            self._in_time()

    async def _write(
        self, checkpoint: Checkpoint, written: list[CheckpointInfo] | None = None
    ) -> None:
        """Write a copy; append the checkpoint that holds it to `written`, if given."""
        if self._store is None:
            raise StorageFailed("there is no store to write checkpoints to")
        store, lsn = self._store, checkpoint.lsn
        while True:
            await self._journal.up_to(max(lsn, self._named_at))
            async with self._lock:
                if self._closed is not None:
                    raise self._closed
                if self._journal.committed < self._named_at:  # the number has grown meanwhile
                    continue
                start = time.perf_counter()
                loop = asyncio.get_running_loop()
                if lsn >= self._saved_lsn:  # else a newer one exists
                    await loop.run_in_executor(self._executor, store.save, checkpoint)
                    self._saved_lsn = lsn
                seconds = time.perf_counter() - start
                if written is not None:  # under the lock: a later checkpoint may prune this one
                    infos = await loop.run_in_executor(
                        self._executor, store.checkpoints, self._model_id
                    )
                    written += [each for each in infos if each.lsn >= lsn][:1]
                break
        self._sink.saved(seconds)
        log.info(
            "model %s saved after %d steps, in %.0f ms",
            self._model_id,
            checkpoint.steps,
            1000 * seconds,
        )
