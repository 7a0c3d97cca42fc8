"""Applies journal records to a learner, and converts learners to and from checkpoints.

Live learning, recovery, `bptt verify` and `bptt replay` share `apply_body`, so that a replay
repeats exactly what was learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bptt.domain import ModelDefinition
from bptt.durability import Checkpoint, Command, Record, Tick
from bptt.durability.store import checksum_of, UNREADABLE
from bptt.engine.rollback import SKIPPED
from bptt.errors import DataDamaged, InvalidRequest
from bptt_core import Batch, Learner, TickResult
from bptt_core.errors import BpttError

LoadCheckpoint = Callable[[int], Checkpoint]
"""A checkpoint of the record's model, by its lsn."""


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """Result of applying a record."""

    learner: Learner
    """The learner to continue with: the same one, unless the record restored another."""
    result: TickResult | None
    """The result of a tick; None for a command."""


class StreamNames:
    """Names of a model's streams by incarnation, for ticks that were read from a journal.

    Args:
        names: of the streams that are known before the first record.
        others: makes a name for a number that is not known; None: that is damage. With such names
            the names of a tick are not compared to those of its writing.
    """

    def __init__(
        self, names: Mapping[int, str], others: Callable[[int], str] | None = None
    ) -> None:
        self._names = dict(names)
        self._others = others

    @classmethod
    def of(cls, learner: Learner) -> StreamNames:
        """The names of a learner's streams."""
        names = cls({})
        names.add(learner)
        return names

    def add(self, learner: Learner) -> None:
        """Add the streams of a learner."""
        for stream_id in learner.stream_ids():
            self._names[learner.incarnation(stream_id)] = stream_id

    def batch(self, tick: Tick) -> Batch:
        """The tick's lanes with all names; learns the names that it holds.

        Raises:
            DataDamaged: a number is not known, or means another stream than when it was written.
        """
        batch, numbers = tick.batch, tick.incarnations.tolist()
        for lane in tick.named.tolist():
            if numbers[lane]:
                self._names[numbers[lane]] = batch.stream_ids[lane]
        if not tick.numbered:
            return batch
        names = list(map(self._names.get, numbers))
        for lane in tick.named.tolist():
            names[lane] = batch.stream_ids[lane]
        if self._others is not None:
            whole = [
                self._others(n) if name is None else name
                for n, name in zip(numbers, names, strict=True)
            ]
            return dataclasses.replace(batch, stream_ids=tuple(whole))
        known = [name for name in names if name is not None]
        if len(known) < len(names):
            number = numbers[names.index(None)]
            raise DataDamaged(f"stream number {number} is not one of the model's streams")
        if checksum_of(known) != tick.names_checksum:
            raise DataDamaged("the numbers of its streams belong to streams of other names")
        return dataclasses.replace(batch, stream_ids=tuple(known))


def apply_record(
    learner: Learner,
    record: Record,
    load: LoadCheckpoint | None = None,
    names: StreamNames | None = None,
) -> Applied:
    """Apply a record to a learner. Depends on its arguments only.

    Args:
        learner: changed; has applied all earlier records.
        record: a tick or a command.
        load: reads the checkpoints that the commands `restore` and `roll_back` name. None: these
            commands are refused.
        names: of the streams before the record; changed. None: those of `learner`.

    Raises:
        BpttError: the learner refuses the record and is unchanged.
        DataDamaged: the command is unknown, or its checkpoint cannot be loaded; the learner is
            unchanged.
    """
    try:
        if isinstance(record.body, Command):
            applied = apply_body(learner, record.body, load)
            if names is not None and applied.learner is not learner:
                names.add(applied.learner)
            return applied
        batch = (names or StreamNames.of(learner)).batch(record.body)
        return apply_body(learner, batch)
    except DataDamaged as error:
        raise DataDamaged(f"record {record.lsn}: {error.message}") from error


def apply_body(
    learner: Learner, body: Batch | Command, load: LoadCheckpoint | None = None
) -> Applied:
    """Apply a tick with all names, or a command, that has no lsn yet."""
    if not isinstance(body, Command):
        return Applied(learner, learner.apply(body))
    arguments = body.arguments
    if body.name == "reset":
        learner.reset_stream(arguments["stream_id"])
    elif body.name == "delete":
        learner.delete_stream(arguments["stream_id"])
    elif body.name == "configure":
        learner.configure(**arguments)
    elif body.name == "restore":
        if load is None:
            raise DataDamaged("a restore needs a checkpoint, and there is nowhere to read it from")
        restored = learner_from(load(arguments["lsn"]))
        restored.number_streams_above(learner.last_incarnation)
        return Applied(restored, None)
    elif body.name == "roll_back":
        if load is None:
            raise DataDamaged(
                "a roll-back needs a checkpoint, and there is nowhere to read it from"
            )
        _roll_back(learner, load(arguments["lsn"]), arguments["learning_rate"])
    else:
        raise DataDamaged(f"the command {body.name!r} is not known")
    return Applied(learner, None)


def _roll_back(learner: Learner, checkpoint: Checkpoint, learning_rate: float) -> None:
    try:
        arrays, metadata = checkpoint.arrays, checkpoint.metadata["learner"]
        learner.roll_back(arrays, metadata, learning_rate=learning_rate)
    except (BpttError, *UNREADABLE) as error:
        raise _misfit(checkpoint, error) from error


def make_checkpoint(definition: ModelDefinition, learner: Learner, lsn: int) -> Checkpoint:
    """All of a model that a restart needs, copied: the learner may go on at once."""
    arrays, metadata = learner.state()
    figures = learner.figures
    named: dict[str, Any] = {
        "learner": metadata,
        "input_names": list(definition.input_names),
        "target_names": list(definition.target_names),
        SKIPPED: figures.consecutive_skipped,
    }
    return Checkpoint(
        definition.model_id,
        lsn,
        arrays,
        named,
        steps=figures.steps,
        updates=figures.updates,
        loss=figures.loss,
        skill_ratio=figures.skill_ratio,
    )


def learner_from(checkpoint: Checkpoint) -> Learner:
    """Load the learner of a checkpoint.

    Raises:
        DataDamaged: the checkpoint does not have this version's form.
    """
    try:
        return Learner.from_state(checkpoint.arrays, checkpoint.metadata["learner"])
    except (BpttError, *UNREADABLE) as error:
        raise _misfit(checkpoint, error) from error


def definition_from(checkpoint: Checkpoint, learner: Learner) -> ModelDefinition:
    """Load the model definition of a checkpoint.

    Raises:
        DataDamaged: the checkpoint does not have this version's form.
    """
    try:
        names = tuple(checkpoint.metadata["input_names"])
        target_names = tuple(checkpoint.metadata.get("target_names", ()))  # older ones have none
        return ModelDefinition(checkpoint.model_id, learner.spec, names, target_names)
    except (InvalidRequest, *UNREADABLE) as error:
        raise _misfit(checkpoint, error) from error


def _misfit(checkpoint: Checkpoint, error: Exception) -> DataDamaged:
    which = f"the checkpoint of model {checkpoint.model_id} after {checkpoint.lsn} records"
    return DataDamaged(f"{which} does not fit: {error}")
