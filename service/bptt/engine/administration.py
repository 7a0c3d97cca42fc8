"""Changes a model between two runs: settings, checkpoints, restores, roll-backs.

Each method that changes the learner is given to the worker, which calls it between two runs; so the
learner is never in two hands.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from bptt.durability import Checkpoint, CheckpointInfo, Command, Store
from bptt.engine.checkpointer import Checkpointer
from bptt.engine.journaling import JournalWriter
from bptt.engine.lifecycle import Event, Lifecycle, Operation
from bptt.engine.live import LiveLearner
from bptt.engine.publisher import Publisher
from bptt.engine.records import apply_body, LoadCheckpoint
from bptt.engine.rollback import RollbackPolicy
from bptt.engine.worker import Worker
from bptt.errors import from_core, NotFound, ServiceError, StorageFailed
from bptt_core import Learner, Snapshot, StreamColumns
from bptt_core.errors import BpttError

log = logging.getLogger(__name__)


class Administration:
    """The commands of one model's operator, and the roll-backs of its spec.

    Args:
        live: the model's learner.
        lifecycle: asked before each operation.
        worker: does the work between two runs.
        publisher: publishes what changed.
        journal: of the model.
        checkpointer: of the model.
        store: where checkpoints are; None: nowhere.
        storage: where the disk is waited for.
    """

    def __init__(
        self,
        live: LiveLearner,
        lifecycle: Lifecycle,
        worker: Worker,
        publisher: Publisher,
        journal: JournalWriter,
        checkpointer: Checkpointer,
        store: Store | None,
        storage: Executor,
    ) -> None:
        self._live = live
        self._lifecycle = lifecycle
        self._worker = worker
        self._publisher = publisher
        self._journal = journal
        self._checkpointer = checkpointer
        self._store = store
        self._storage = storage
        self._model_id = live.definition.model_id
        self._policy = RollbackPolicy(store, self._model_id)

    # ------------------------------------------------------------------ settings

    async def configure(self, changes: dict[str, Any]) -> None:
        """Change how the model learns; it is durable when this returns.

        Args:
            changes: as `Learner.configure` takes them.

        Raises:
            InvalidRequest: one is out of its bounds; nothing was changed.
            ServiceError: the model's state does not admit it.
        """
        self._lifecycle.admit(Operation.CONFIGURE)
        await asyncio.shield(self._worker.request(functools.partial(self._configure, changes)))
        await self._journal.up_to(self._journal.last)

    async def _configure(self, changes: dict[str, Any]) -> None:
        command = Command("configure", changes)
        try:
            await self._live.in_thread(apply_body, self._live.learner, command)
        except BpttError as error:
            raise from_core(error) from error
        self._publisher.settings_changed()
        self._journal.put(command)
        self._checkpointer.changed(self._journal.last)
        changed = ", ".join(f"{name} {str(value).lower()}" for name, value in changes.items())
        log.info("model %s configured: %s", self._model_id, changed)

    # ------------------------------------------------------------------ checkpoints

    async def save_checkpoint(self) -> CheckpointInfo:
        """Write a checkpoint of the model as it is after the run that is being made.

        Raises:
            StorageFailed: it could not be written, or there is no store.
            ServiceError: the model's state does not admit it.
        """
        if self._store is None:
            raise _no_store()
        self._lifecycle.admit(Operation.SAVE)
        checkpoint: Checkpoint = await self._worker.request(self._copy)
        return await self._checkpointer.save(checkpoint)

    async def settle(self) -> None:
        """Save the model while it keeps working: check `is_settled` afterwards.

        Raises:
            ServiceError: it could not be saved.
        """
        await self._checkpointer.settled()
        if self._checkpointer.unsaved:
            self._lifecycle.admit(Operation.SAVE)
            await self._checkpointer.save(await self._worker.request(self._copy))

    async def _copy(self) -> Checkpoint:
        return await self._live.copy(self._journal.last)

    async def checkpoints(self) -> list[CheckpointInfo]:
        """The kept checkpoints, oldest first; none without a store.

        Raises:
            StorageFailed: the store cannot be read.
        """
        self._lifecycle.admit(Operation.LIST_CHECKPOINTS)
        if self._store is None:
            return []
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._storage, self._store.checkpoints, self._model_id)

    # ------------------------------------------------------------------ going back

    async def restore(self, lsn: int) -> None:
        """Return to the checkpoint after record `lsn`, including all streams.

        What was accepted before is learned first, and then undone; chunks that come meanwhile are
        refused. The restore is durable when this returns.

        Raises:
            NotFound: there is no such checkpoint.
            DataDamaged: it cannot be read back.
            StorageFailed: there is no store.
            ServiceError: the model's state does not admit it.
        """
        if self._store is None:
            raise _no_store()
        self._lifecycle.admit(Operation.RESTORE)
        if lsn not in {each.lsn for each in await self.checkpoints()}:
            raise NotFound(
                f"lsn is {lsn}, but must be that of a checkpoint of model {self._model_id}; "
                f"`bptt models checkpoints {self._model_id}` lists them"
            )
        self._lifecycle.admit(Operation.RESTORE)  # the disk took its time
        work = functools.partial(self._restore, lsn)
        done = self._worker.request(work, after_queue=True)
        self._lifecycle.apply(Event.RESTORE)
        try:
            await asyncio.shield(done)
        finally:
            self._worker.settle()
        await self._journal.up_to(self._journal.last)

    async def _restore(self, lsn: int) -> None:
        assert self._store is not None
        command = Command("restore", {"lsn": lsn})
        async with self._checkpointer.naming():
            await self._go_back(command, functools.partial(self._store.load, self._model_id))
        log.info(
            "model %s restored to %d steps", self._model_id, self._publisher.published.figures.steps
        )

    async def roll_back(self) -> None:
        """Return to the last good checkpoint; without one the model stays diverged.

        For the worker, between two runs.
        """
        skipped = self._live.learner.figures.consecutive_skipped
        async with self._checkpointer.naming():
            try:
                found = await self._live.in_thread(self._policy.find, self._live.learner)
            except StorageFailed as error:
                log.error("model %s cannot be rolled back: %s", self._model_id, error.message)
                return
            if found is None:
                log.error(
                    "model %s stays diverged, with no good checkpoint to go back to: %d updates in "
                    "a row were not finite",
                    self._model_id,
                    skipped,
                )
                return
            checkpoint, command = found
            await self._go_back(command, lambda _: checkpoint)
        self._publisher.sink.rolled_back()
        log.warning(
            "model %s rolled back to its state after %d steps, its learning rate is now %g: %d "
            "updates in a row were not finite",
            self._model_id,
            checkpoint.steps,
            self._publisher.published.figures.learning_rate,
            skipped,
        )

    async def _go_back(self, command: Command, load: LoadCheckpoint) -> None:
        """Apply a command that names a checkpoint."""

        def in_thread() -> tuple[Learner, Snapshot, tuple[Sequence[str], StreamColumns]]:
            learner = apply_body(self._live.learner, command, load).learner
            names = learner.stream_ids()
            return learner, learner.snapshot(), (names, learner.stream_columns(names))

        learner, snapshot, views = await self._live.in_thread(in_thread)
        self._publisher.begins_anew(learner, snapshot, views)
        self._journal.put(command)
        self._checkpointer.changed(self._journal.last)


def _no_store() -> ServiceError:
    return StorageFailed("there is no data folder: start the server with one to keep checkpoints")
