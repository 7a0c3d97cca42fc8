"""Recovers a learner from its newest checkpoint and the journal after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bptt.domain import ModelDefinition, ModelState, ModelStatus, state_of
from bptt.durability import Checkpoint, differences, Record, Store
from bptt.engine import recovery_progress
from bptt.engine.records import apply_record, definition_from, learner_from, StreamNames
from bptt.engine.views import StreamViews
from bptt.errors import DataDamaged, ServiceError
from bptt_core import Learner
from bptt_core.errors import BpttError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """A recovered model, as of its last committed record."""

    definition: ModelDefinition
    learner: Learner
    lsn: int
    """The last record of its journal."""
    saved_lsn: int
    """The last record in its newest intact checkpoint; later records were replayed."""
    replayed_steps: int
    damage: str | None
    """Damage of its journal; None: the journal is intact, and the model may learn."""
    views: StreamViews
    """Views of its streams. They are made in this thread because 100,000 of them take a second."""

    @property
    def status(self) -> ModelStatus:
        """The current status of the model."""
        return status_of(self.definition, self.learner, len(self.views))

    @property
    def is_settled(self) -> bool:
        """True if its newest checkpoint holds its whole state."""
        return self.saved_lsn == self.lsn and self.damage is None


def status_of(
    definition: ModelDefinition, learner: Learner, streams: int, state: ModelState | None = None
) -> ModelStatus:
    """The status of a model without a trainer; `state` None: derived from the learner's figures."""
    return ModelStatus(
        definition,
        learner.parameter_count,
        streams,
        learner.figures,
        state or state_of(learner.settings, learner.figures),
        learner.settings,
    )


def recover(
    store: Store,
    model_id: str,
    check_going_on: Callable[[], None] = lambda: None,
    on_found: Callable[[ModelStatus], None] = lambda _: None,
    on_replayed: Callable[[int], None] = lambda _: None,
) -> Recovered:
    """Load a model's newest intact checkpoint and replay the journal after it.

    Blocks: call it in a thread. A record that cannot be read or replayed, for any reason except
        lack of memory, counts as damage: the result is the model before that record.

    Args:
        store: already open.
        model_id: a model of the store.
        check_going_on: called before each record; raises to end the recovery early.
        on_found: called with the checkpoint's status before the journal is replayed.
        on_replayed: called after each record with the number of records that are replayed.

    Raises:
        DataDamaged: none of its checkpoints can be loaded.
        StorageFailed: the store cannot be read.
        MemoryError: the model does not fit into memory.
    """
    try:
        return _recover(store, model_id, check_going_on, on_found, on_replayed)
    except _Unreplayable as error:  # the learner may be half changed: restart and stop earlier
        log.error("model %s: record %d cannot be replayed", model_id, error.lsn, exc_info=error)
        return _recover(store, model_id, check_going_on, on_found, on_replayed, error)


class _Unreplayable(Exception):
    """A record made the learner raise an unexpected exception."""

    def __init__(self, lsn: int, error: Exception) -> None:
        super().__init__(f"record {lsn} cannot be learned again: {error!r}")
        self.lsn = lsn


def _recover(
    store: Store,
    model_id: str,
    check_going_on: Callable[[], None],
    on_found: Callable[[ModelStatus], None],
    on_replayed: Callable[[int], None],
    stop_before: _Unreplayable | None = None,
) -> Recovered:
    checkpoint, learner, definition = _newest(store, model_id)
    on_found(status_of(definition, learner, len(learner.stream_ids()), ModelState.RECOVERING))
    learner.warm_up()
    replay = _Replay(
        store, model_id, checkpoint.lsn, learner, check_going_on, on_replayed, stop_before
    )
    damage = None
    try:
        replay.run(checkpoint)
    except DataDamaged as error:
        damage = error.message
        log.error("model %s: opened read-only: %s", model_id, damage)
    steps = replay.learner.figures.steps - checkpoint.steps
    return Recovered(
        definition,
        replay.learner,
        replay.lsn,
        checkpoint.lsn,
        max(steps, 0),
        damage,
        StreamViews.of(replay.learner),
    )


def _newest(store: Store, model_id: str) -> tuple[Checkpoint, Learner, ModelDefinition]:
    """The newest intact checkpoint; damaged ones are logged."""
    damage: DataDamaged | None = None
    for info in reversed(store.checkpoints(model_id)):
        try:
            checkpoint = store.load(model_id, info.lsn)
            learner = learner_from(checkpoint)
            return checkpoint, learner, definition_from(checkpoint, learner)
        except DataDamaged as error:
            found = error
        except (ServiceError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever decoding damaged bytes may raise
            found = DataDamaged(f"its checkpoint {info.lsn} cannot be read back: {error!r}")
        log.error("model %s: going back one checkpoint: %s", model_id, found.message)
        damage = damage or found
    raise damage or DataDamaged("it has no checkpoint")


class _Replay:
    """Replays the journal's records after a checkpoint."""

    def __init__(
        self,
        store: Store,
        model_id: str,
        lsn: int,
        learner: Learner,
        check_going_on: Callable[[], None],
        on_replayed: Callable[[int], None],
        stop_before: _Unreplayable | None,
    ) -> None:
        self._stop_before = stop_before
        self._store = store
        self._model_id = model_id
        self._check_going_on = check_going_on
        self._on_replayed = on_replayed
        self.lsn = lsn
        self.learner = learner
        self._names = StreamNames.of(learner)
        self._last: int | None = None  # record of the journal; read for the first progress line
        self._start = self._said = time.monotonic()

    def run(self, checkpoint: Checkpoint) -> None:
        """Apply all records.

        Raises:
            DataDamaged: a record cannot be read or applied; the learner is as before it.
            _Unreplayable: a record raised unexpectedly; the learner's state is undefined.
        """
        for record in self._records():
            if self.lsn == checkpoint.lsn:
                self._warn_of_differences(checkpoint)
            self._check_going_on()
            self._do(record)
            self._on_replayed(self.lsn - checkpoint.lsn)
            self._say_progress(checkpoint)

    def _records(self) -> Iterator[Record]:
        try:
            yield from self._store.tail(self._model_id, self.lsn)
        except (ServiceError, MemoryError):
            raise
        except Exception as error:  # whatever decoding damaged bytes may raise
            place = f"the record after {self.lsn}"
            raise DataDamaged(f"{place} cannot be read: {error!r}") from error

    def _do(self, record: Record) -> None:
        if self._stop_before is not None and record.lsn == self._stop_before.lsn:
            raise DataDamaged(str(self._stop_before))
        try:
            applied = apply_record(
                self.learner, record, lambda lsn: self._store.load(self._model_id, lsn), self._names
            )
        except BpttError as error:
            raise DataDamaged(f"record {record.lsn} cannot be learned again: {error}") from error
        except (ServiceError, MemoryError):
            raise
        except Exception as error:
            raise _Unreplayable(record.lsn, error) from error
        if applied.learner is not self.learner:
            applied.learner.warm_up()
        self.learner, self.lsn = applied.learner, record.lsn

    def _warn_of_differences(self, checkpoint: Checkpoint) -> None:
        """Warn of another processor or library: rounding differs, so replay may give other bits."""
        for difference in differences(checkpoint.fingerprint):
            log.warning(
                "model %s: its journal is replayed on another machine than it was written on: %s",
                self._model_id,
                difference,
            )

    def _say_progress(self, checkpoint: Checkpoint) -> None:
        now = time.monotonic()
        if now - self._said >= recovery_progress.PROGRESS_SECONDS:
            self._said = now
            if self._last is None:
                self._last = self._store.last(self._model_id)
            done, total = self.lsn - checkpoint.lsn, self._last - checkpoint.lsn
            log.info(
                "model %s: recovering, %d of %d records and %d steps replayed, %s",
                self._model_id,
                done,
                total,
                self.learner.figures.steps - checkpoint.steps,
                recovery_progress.pace(done, total, now - self._start),
            )
