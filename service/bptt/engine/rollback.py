"""Chooses the checkpoint to which a diverged model rolls back, if its spec says `roll_back`.

Rules:
- The newest good checkpoint: whole, and made when the last update had not been skipped.
- A checkpoint from which no update could be made after a roll-back is passed over by the next one.
  So a model whose data cannot be learned does not roll back for ever.
- When none is left the model stays diverged, and learns nothing.

The journal holds the choice and the learning rate: replay goes back to the same checkpoint.
"""

from __future__ import annotations

import logging
import math

from bptt.durability import Checkpoint, Command, Store
from bptt.errors import DataDamaged
from bptt_core import Learner

log = logging.getLogger(__name__)

LEARNING_RATE_FACTOR = 0.5
SKIPPED = "consecutive_skipped"
"""Of a checkpoint's metadata: updates in a row that had been skipped when it was made."""


class RollbackPolicy:
    """The checkpoints to which one model may roll back. Call `find` in a trainer's thread."""

    def __init__(self, store: Store | None, model_id: str) -> None:
        self._store = store
        self._model_id = model_id
        self._before = math.inf  # checkpoints from this lsn on have been tried
        self._updates = -1  # that were not skipped, when the last one was tried

    def find(self, learner: Learner) -> tuple[Checkpoint, Command] | None:
        """The checkpoint and the command that rolls back to it. None: no checkpoint qualifies.

        Raises:
            StorageFailed: the store cannot be read.
        """
        if self._store is None:
            return None
        figures = learner.figures
        updates = figures.updates - figures.skipped_updates
        if updates != self._updates:
            self._before, self._updates = math.inf, updates
        for info in reversed(self._store.checkpoints(self._model_id)):
            if info.lsn >= self._before:
                continue
            try:
                checkpoint = self._store.load(self._model_id, info.lsn)
            except DataDamaged as error:
                log.error(
                    "model %s: cannot roll back to a checkpoint: %s", self._model_id, error.message
                )
                continue
            if checkpoint.metadata.get(SKIPPED, 0):
                continue
            self._before = info.lsn
            rate = figures.learning_rate or learner.spec.learning_rate  # 0 before a warm-up
            assert rate is not None
            rate *= LEARNING_RATE_FACTOR
            arguments = {"lsn": info.lsn, "learning_rate": rate}
            return checkpoint, Command("roll_back", arguments)
        return None
