"""A journal learned again, offline: to see that it gives the same model, or what another would do.

`verify` replays a journal under the model's own spec, from the oldest checkpoint from which it can,
and compares every later checkpoint bit for bit. `compare` learns the same ticks from fresh
parameters under several specs side by side, and tells how well each would have predicted them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bptt.durability import checkpoints, differences, inspection, reading
from bptt.durability.journal import GO_BACK
from bptt.durability.store import Command, Record, Tick
from bptt.engine.records import apply_record, learner_from
from bptt.errors import DataDamaged, from_core, InvalidRequest, ServiceError
from bptt_core import Chunk, Learner, ModelSpec
from bptt_core.errors import BpttError, UnknownStream

Progress = Callable[[int, int], None]
"""Called with records done and records in all."""

State = tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]
"""What `Learner.state` gives, and a checkpoint holds."""


# ---------------------------------------------------------------------- the same model again


@dataclass(slots=True)
class Verified:
    """What was found of one model."""

    model_id: str
    checkpoints: int = 0
    """Those that are whole."""
    first: int = 0
    """Number of the journal's first record."""
    last: int = 0
    """Number of its last."""
    replayed_from: int | None = None
    """Ticks of the checkpoint that replay began with; None: there was none to begin with."""
    compared: list[int] = field(default_factory=list)
    """Ticks of the checkpoints that replay gave bit for bit."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


def verify(folder: Path, on_progress: Progress = lambda done, all_of: None) -> Verified:
    """Check one model's folder: checksums, order, and that replay gives the checkpoints again.

    Nothing is changed and nothing raised: what is wrong is part of what is returned.
    """
    started = time.perf_counter()
    found = inspection.survey(folder)
    result = Verified(found.model_id, len(found.whole), found.base + 1, found.last)
    result.problems += [*found.damaged.values(), *found.problems]
    try:
        _replay(found, result, on_progress)
    except ServiceError as error:
        if error.message not in result.problems:
            result.problems.append(error.message)
    result.seconds = time.perf_counter() - started
    return result


def _replay(found: inspection.Survey, result: Verified, on_progress: Progress) -> None:
    folder, model_id = found.folder, found.model_id
    reach = [lsn for lsn in found.whole if lsn >= found.base]
    if not reach:
        newest = found.whole[-1] if found.whole else "none"
        raise DataDamaged(
            f"{folder} has no checkpoint from which its journal goes on: the newest that is whole "
            f"is {newest}, and the journal begins with {found.base + 1}"
        )
    basis = checkpoints.load(folder, model_id, reach[0])
    result.replayed_from = basis.lsn
    learner = learner_from(basis)
    changed = differences(basis.fingerprint)
    begin = basis.lsn
    for record in reading.read(folder, found.base):
        if record.lsn % PROGRESS_RECORDS == 0:
            on_progress(record.lsn - found.base, found.last - found.base)
        if record.lsn <= begin:
            continue
        later = [lsn for lsn in reach if lsn >= record.lsn]
        if later and _goes_back_to_one_gone(folder, record):
            # Let go of, for replay from the oldest that is needed does not meet this record.
            begin = later[0]
            learner = learner_from(checkpoints.load(folder, model_id, begin))
            result.notes.append(
                f"tick {record.lsn} goes back to a checkpoint that is no longer kept: replayed "
                f"again from {begin}"
            )
            continue
        try:
            learner = apply_record(
                learner, record, lambda lsn: checkpoints.load(folder, model_id, lsn)
            ).learner
        except BpttError as error:
            what = from_core(error).message
            raise DataDamaged(f"{folder}: tick {record.lsn} cannot be replayed: {what}") from error
        if record.lsn in reach:
            other = checkpoints.load(folder, model_id, record.lsn)
            _compare(result, record.lsn, learner.state(), other.arrays, other.metadata, changed)
    if found.last < reach[-1]:
        result.notes.append(
            f"the journal ends with {found.last}: the checkpoint after {reach[-1]} ticks cannot be "
            "replayed"
        )
    on_progress(found.last - found.base, found.last - found.base)


def _goes_back_to_one_gone(folder: Path, record: Record) -> bool:
    body = record.body
    if not isinstance(body, Command) or body.name not in GO_BACK:
        return False
    return not checkpoints.path_of(folder, body.arguments["lsn"]).exists()


PROGRESS_RECORDS = 256  # between two calls: a bar is drawn ten times a second at most


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
        f"replay does not give the checkpoint after {lsn} ticks: {', '.join(differing)} differ"
        + (f", on another machine or with other libraries: {because}" if because else "")
    )


def different(left: State, right: State) -> list[str]:
    """Names of what differs in two states, bit for bit. The order of their streams is free."""
    one, other = _by_stream(*left), _by_stream(*right)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _by_stream(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in a state, with streams in the order of their names."""
    names = list(metadata["streams"])
    order = sorted(range(len(names)), key=names.__getitem__)
    everything: dict[str, Any] = {**metadata, "streams": sorted(names)}
    for name, array in arrays.items():
        mine = array[order] if name.startswith("streams.") else array
        everything[name] = (array.dtype.str, mine.shape, mine.tobytes())
    return everything


# ---------------------------------------------------------------------- what another would do


@dataclass(slots=True)
class Trial:
    """How a spec does on a journal's ticks, from fresh parameters. All figures are prequential."""

    name: str
    spec: ModelSpec
    fixed: frozenset[str] = frozenset()
    """Settings that journaled changes of settings leave as they are here."""
    learner: Learner = field(init=False)
    losses: list[tuple[int, float, float]] = field(init=False, default_factory=list)
    """Of each update: steps, loss, and the naive forecast's loss."""
    clipped: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Make the learner."""
        self.learner = Learner(self.spec)

    def apply(self, body: Tick | Command) -> None:
        """Learn a tick, or do what a command says if it says something to a fresh model."""
        started = time.perf_counter()
        if isinstance(body, Command):
            self._do(body)
        else:
            placed = [each for each in map(self._placed, body) if each is not None]
            for update in self.learner.apply(placed).updates if placed else ():
                self.clipped += update.clipped
                self.skipped += update.skipped
                if not update.skipped:
                    self.losses.append((update.steps, update.loss, update.baseline_loss))
        self.seconds += time.perf_counter() - started

    def _placed(self, chunk: Chunk) -> Chunk | None:
        """The chunk at the end of its stream, which begins here where the journal does.

        None: nothing is left of it, for it only has targets of steps before that beginning.
        """
        try:
            at = self.learner.next_step(chunk.stream_id)
        except UnknownStream:
            at = 0
        shift = chunk.first_step - at
        if shift == 0:
            return chunk
        changes: dict[str, Any] = {"first_step": at}
        first_target = chunk.first_target_step
        if first_target is not None and chunk.targets is not None:
            before = max(0, shift - first_target)  # targets of steps before the beginning
            left = len(chunk.targets) > before
            if not left and not len(chunk.inputs):
                return None
            changes |= {
                "first_target_step": first_target - shift + before if left else None,
                "targets": chunk.targets[before:] if left else None,
            }
        return dataclasses.replace(chunk, **changes)

    def _do(self, command: Command) -> None:
        arguments = command.arguments
        if command.name == "configure":
            arguments = {k: v for k, v in arguments.items() if k not in self.fixed}
            if not arguments:
                return
        if command.name in ("reset", "delete", "configure"):
            with contextlib.suppress(UnknownStream):  # it was gone before the journal's beginning
                apply_record(self.learner, Record(0, Command(command.name, arguments)))

    def mean_loss(self, from_share: float = 0.0) -> tuple[float, float]:
        """Mean loss a step, and the naive forecast's, of the updates behind a share of them."""
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
    """Commands that go back to a checkpoint, which a fresh model has not."""
    trials: tuple[Trial, ...]


def changed_spec(spec: ModelSpec, changes: Mapping[str, Any]) -> ModelSpec:
    """The spec with other values.

    Raises:
        InvalidRequest: a name or a value is not one of a spec's.
    """
    try:
        return ModelSpec.from_dict(spec.to_dict() | dict(changes))
    except BpttError as error:
        raise from_core(error) from error


def model_spec(folder: Path) -> ModelSpec:
    """The spec of a model's newest whole checkpoint.

    Raises:
        DataDamaged: none is whole.
    """
    reasons = []
    for lsn in reversed(checkpoints.lsns_in(folder)):
        try:
            return learner_from(checkpoints.load(folder, folder.name, lsn)).spec
        except DataDamaged as error:
            reasons.append(error.message)
    raise DataDamaged("; ".join(reasons) or f"{folder} has no checkpoint")


def compare(
    folder: Path, trials: Sequence[Trial], on_progress: Progress = lambda done, all_of: None
) -> Compared:
    """Learn a model's journal with each trial, from its first record that is kept.

    Raises:
        DataDamaged: a record is damaged.
        InvalidRequest: a trial's spec cannot learn what the journal holds.
    """
    base, last = reading.span(folder)
    for trial in trials:
        trial.learner.warm_up()
    steps, left_out = 0, 0
    streams: set[str] = set()
    for record in reading.read(folder, base):
        last = record.lsn  # more may have come since
        if isinstance(record.body, Command):
            left_out += record.body.name in GO_BACK
        else:
            steps += sum(len(chunk.inputs) for chunk in record.body)
            streams |= {chunk.stream_id for chunk in record.body}
        for trial in trials:
            try:
                trial.apply(record.body)
            except BpttError as error:
                what = from_core(error)
                words = f"{trial.name} cannot learn tick {record.lsn}: {what.message}"
                raise InvalidRequest(words, what.violations) from error
        if record.lsn % PROGRESS_RECORDS == 0:
            on_progress(record.lsn - base, last - base)
    on_progress(last - base, last - base)
    return Compared(
        folder.name, base + 1, last, steps, len(streams), base == 0, left_out, tuple(trials)
    )
