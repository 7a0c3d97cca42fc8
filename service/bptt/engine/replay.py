"""A journal learned again, offline: to check the model, or to compare it with another spec.

`verify` replays a journal under the model's own spec, from the oldest checkpoint from which it can,
and compares every later checkpoint bit for bit. `compare` learns the same ticks from fresh
parameters under several specs side by side, and reports how well each would have predicted them.
Both take any store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.durability import differences, inspection
from bptt.durability.store import Command, GO_BACK, Record, StoreReader, UNREADABLE
from bptt.engine.records import apply_record, learner_from, StreamNames
from bptt.engine.trimming import rows_from
from bptt.errors import DataDamaged, from_core, InvalidRequest, ServiceError
from bptt_core import Batch, Learner, ModelSpec
from bptt_core.errors import BpttError, UnknownStream

Progress = Callable[[int, int], None]
"""Called with the number of records done and the number of all."""

State = tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]
"""What `Learner.state` gives, and a checkpoint holds."""


# ---------------------------------------------------------------------- the same model again


@dataclass(slots=True)
class Verified:
    """The result of replaying one model."""

    model_id: str
    checkpoints: int = 0
    """How many are whole."""
    first: int = 0
    """Number of the journal's first record."""
    last: int = 0
    """Number of its last."""
    replayed_from: int | None = None
    """The lsn of the checkpoint that replay began with; None: there was none to begin with."""
    compared: list[int] = field(default_factory=list)
    """The lsn of each checkpoint that replay gave bit for bit."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def verify(
    store: StoreReader, model_id: str, on_progress: Progress = lambda done, all_of: None
) -> Verified:
    """Check one model: checksums, order, and that replay gives the checkpoints again.

    Changes nothing. Problems are returned, not raised.
    """
    started = time.perf_counter()
    found = inspection.survey(store, model_id)
    result = Verified(model_id, len(found.whole), found.base + 1, found.last)
    result.problems += [*found.damaged.values(), *found.problems]
    try:
        _replay(store, found, result, on_progress)
    except ServiceError as error:
        if error.message not in result.problems:
            result.problems.append(error.message)
    result.seconds = time.perf_counter() - started
    return result


def _replay(
    store: StoreReader, found: inspection.Survey, result: Verified, on_progress: Progress
) -> None:
    model_id = found.model_id
    reach = [lsn for lsn in found.whole if lsn >= found.base]
    if not reach:
        newest = found.whole[-1] if found.whole else "none"
        raise DataDamaged(
            f"model {model_id} has no checkpoint from which its journal goes on: the newest that "
            f"is whole is {newest}, and the journal begins with {found.base + 1}"
        )
    basis = store.load(model_id, reach[0])
    result.replayed_from = basis.lsn
    learner = learner_from(basis)
    names = StreamNames.of(learner)
    changed = differences(basis.fingerprint)
    begin = basis.lsn
    for record in store.records(model_id, found.base):
        if record.lsn % PROGRESS_RECORDS == 0:
            on_progress(record.lsn - found.base, found.last - found.base)
        if record.lsn <= begin:
            continue
        later = [lsn for lsn in reach if lsn >= record.lsn]
        if later and _goes_back_to_one_gone(found, record):
            # It was removed because replay from the oldest that is needed does not meet this one.
            begin = later[0]
            learner = learner_from(store.load(model_id, begin))
            names.add(learner)
            result.notes.append(
                f"lsn {record.lsn} goes back to a checkpoint that is no longer kept: replayed "
                f"again from {begin}"
            )
            continue
        learner = _learned_again(store, model_id, learner, record, names)
        if record.lsn in reach:
            other = store.load(model_id, record.lsn)
            _compare(result, record.lsn, learner.state(), other.arrays, other.metadata, changed)
    if found.last < reach[-1]:
        result.notes.append(
            f"the journal ends with {found.last}: the checkpoint after {reach[-1]} records cannot "
            "be replayed"
        )
    on_progress(found.last - found.base, found.last - found.base)


def _learned_again(
    store: StoreReader, model_id: str, learner: Learner, record: Record, names: StreamNames
) -> Learner:
    """Apply a record.

    Raises:
        DataDamaged: the learner refuses it, or breaks on it.
    """
    try:
        return apply_record(learner, record, lambda lsn: store.load(model_id, lsn), names).learner
    except BpttError as error:
        what = from_core(error).message
    except UNREADABLE as error:
        what = repr(error)
    raise DataDamaged(f"model {model_id}: lsn {record.lsn} cannot be replayed: {what}")


def _goes_back_to_one_gone(found: inspection.Survey, record: Record) -> bool:
    body = record.body
    if not isinstance(body, Command) or body.name not in GO_BACK:
        return False
    lsn = body.arguments["lsn"]
    return lsn not in found.whole and lsn not in found.damaged


PROGRESS_RECORDS = 256  # between two calls; a bar is drawn at most ten times a second


def _compare(
    result: Verified,
    lsn: int,
    state: State,
    arrays: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, Any],
    changed: Sequence[str],
) -> None:
    differing = different(state, (arrays, metadata["learner"]))
    if not differing:
        result.compared.append(lsn)
        return
    because = "; ".join(changed)
    result.problems.append(
        f"replay does not give the checkpoint after {lsn} records: {', '.join(differing)} differ"
        + (f", on another machine or with other libraries: {because}" if because else "")
    )


def different(left: State, right: State) -> list[str]:
    """Names of the parts of two states that are not equal bit for bit, in any order of streams."""
    one, other = _by_stream(*left), _by_stream(*right)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _by_stream(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """All parts of a state by name, with streams in the order of their names."""
    names = list(metadata["streams"])
    order = sorted(range(len(names)), key=names.__getitem__)
    everything: dict[str, Any] = {**metadata, "streams": sorted(names)}
    for name, array in arrays.items():
        mine = array[order] if name.startswith("streams.") else array
        everything[name] = (array.dtype.str, mine.shape, mine.tobytes())
    return everything


# ---------------------------------------------------------------------- another spec


@dataclass(slots=True)
class Trial:
    """Learns a journal's ticks under a spec, from fresh parameters. All figures are prequential."""

    name: str
    spec: ModelSpec
    fixed: frozenset[str] = frozenset()
    """Names of settings that the journal's `configure` commands do not change here."""
    learner: Learner = field(init=False)
    losses: list[tuple[int, float, float]] = field(init=False, default_factory=list)
    """Of each update: steps, loss, and the naive forecast's loss."""
    clipped: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Make the learner."""
        self.learner = Learner(self.spec)

    def apply(self, body: Batch | Command) -> None:
        """Learn a tick, or follow a command if a fresh model can."""
        started = time.perf_counter()
        if isinstance(body, Command):
            self._do(body)
        elif len(placed := self._placed(body)):
            for update in self.learner.apply(placed).updates:
                self.clipped += update.clipped
                self.skipped += update.skipped
                if not update.skipped:
                    self.losses.append((update.steps, update.loss, update.baseline_loss))
        self.seconds += time.perf_counter() - started

    def _placed(self, batch: Batch) -> Batch:
        """The tick renumbered so that its streams begin with the journal.

        A lane is left out if it only has targets of steps before that beginning.
        """
        at = np.array([self._next_step(stream_id) for stream_id in batch.stream_ids])
        shift = batch.first_steps - at
        if not np.count_nonzero(shift):
            return batch
        targets, places = batch.targets, batch.first_target_steps
        if targets is None or places is None:
            return dataclasses.replace(batch, first_steps=at)
        labels = batch.lengths if batch.target_lengths is None else batch.target_lengths
        before = np.where(places < 0, 0, np.maximum(0, shift - places))
        before = np.minimum(before, labels)  # targets of steps before the beginning
        left = labels - before
        batch = dataclasses.replace(
            batch,
            first_steps=at,
            targets=targets[rows_from(before, labels)],
            target_lengths=left,
            first_target_steps=np.where((places < 0) | (left == 0), -1, places - shift + before),
        )
        something = (batch.lengths > 0) | (left > 0)
        if batch.ends is not None:
            something |= batch.ends
        return batch if something.all() else batch.select(np.flatnonzero(something))

    def _next_step(self, stream_id: str) -> int:
        try:
            return self.learner.next_step(stream_id)
        except UnknownStream:
            return 0

    def _do(self, command: Command) -> None:
        arguments = command.arguments
        if command.name == "configure":
            arguments = {k: v for k, v in arguments.items() if k not in self.fixed}
            if not arguments:
                return
        if command.name in ("reset", "delete", "configure"):
            with contextlib.suppress(UnknownStream):  # last seen before the journal's beginning
                apply_record(self.learner, Record(0, Command(command.name, arguments)))

    def mean_loss(self, from_share: float = 0.0) -> tuple[float, float]:
        """Mean loss a step, and the naive forecast's.

        Args:
            from_share: share of the updates, from the first on, that is left out.
        """
        taken = self.losses[int(len(self.losses) * from_share) :]
        steps = sum(each[0] for each in taken)
        if not steps:
            return math.nan, math.nan
        loss = math.fsum(each[0] * each[1] for each in taken) / steps
        naive = math.fsum(each[0] * each[2] for each in taken) / steps
        return loss, naive


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison of specs on one journal."""

    model_id: str
    first: int
    """Number of the first record that was learned."""
    last: int
    steps: int
    streams: int
    from_beginning: bool
    """Whether the journal begins with the model."""
    left_out: int
    """Commands that go back to a checkpoint, which a fresh model does not have."""
    trials: tuple[Trial, ...]


def changed_spec(spec: ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """The spec with some values changed.

    Raises:
        InvalidRequest: a field is unknown, or its value is out of bounds.
    """
    try:
        return ModelSpec.from_dict(spec.to_dict() | dict(changes))
    except BpttError as error:
        raise from_core(error) from error


def model_spec(store: StoreReader, model_id: str) -> ModelSpec:
    """The spec of a model's newest whole checkpoint.

    Raises:
        DataDamaged: none is whole.
        StorageFailed: the checkpoints cannot be listed.
    """
    reasons = []
    for info in reversed(store.checkpoints(model_id)):
        try:
            return learner_from(store.load(model_id, info.lsn)).spec
        except DataDamaged as error:
            reasons.append(error.message)
    raise DataDamaged("; ".join(reasons) or f"model {model_id} has no checkpoint")


def compare(
    store: StoreReader,
    model_id: str,
    trials: Sequence[Trial],
    on_progress: Progress = lambda done, all_of: None,
) -> Compared:
    """Learn a model's journal with each trial, from its first record that is kept.

    Raises:
        DataDamaged: a record is damaged.
        InvalidRequest: a trial's spec cannot learn what the journal holds.
    """
    base, last = store.base(model_id), store.last(model_id)
    for trial in trials:
        trial.learner.warm_up()
    steps, left_out = 0, 0
    streams: set[str] = set()
    names = StreamNames(inspection.stream_names(store, model_id), others="number {}".format)
    for record in store.records(model_id, base):
        last = record.lsn  # a server may have added more since
        body = record.body if isinstance(record.body, Command) else names.batch(record.body)
        if isinstance(body, Command):
            left_out += body.name in GO_BACK
        else:
            steps += len(body.inputs)
            streams.update(body.stream_ids)
        for trial in trials:
            try:
                trial.apply(body)
            except BpttError as error:
                what = from_core(error)
                words = f"{trial.name} cannot learn lsn {record.lsn}: {what.message}"
                raise InvalidRequest(words, what.violations) from error
        if record.lsn % PROGRESS_RECORDS == 0:
            on_progress(record.lsn - base, last - base)
    on_progress(last - base, last - base)
    return Compared(
        model_id, base + 1, last, steps, len(streams), base == 0, left_out, tuple(trials)
    )
