"""The life of a model as one table: its states, the events that move it, what each state admits.

Rules:
- A model is in exactly one state. gRPC, health and metrics show that state.
- `apply` is the only way from one state to another; an event that the table does not list is an
  error of the program.
- Every entrance asks `admit` with its operation before it changes or reads anything.
- Nothing here waits, logs, or uses an event loop. Code that acts on a change of state sets
  `on_change`.

Most states refuse with an error that says why the model is in that state. That error comes with the
event (`why`), and `REFUSES_WITH` says of which classes it may be.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import MappingProxyType

from bptt.domain import ModelState as State
from bptt.errors import (
    DataDamaged,
    ModelFailed,
    ReadOnly,
    Recovering,
    ServerStopping,
    ServiceError,
    StorageFailed,
    UnknownModel,
)


class Event(enum.Enum):
    """The events that move a model from one state to another."""

    RUN = "run"
    """It starts to learn: recovered, resumed, restored, or its store commits again."""
    PAUSE = "pause"
    """An operator paused it."""
    DIVERGE = "diverge"
    """Too many updates in a row were not finite."""
    STALL = "stall"
    """The store refused a commit, which is tried again."""
    RESTORE = "restore"
    """An operator asked for a checkpoint."""
    ROLL_BACK = "roll back"
    """It diverged, and its spec says that it goes back to a checkpoint."""
    DAMAGE = "damage"
    """Recovery found a journal that cannot be replayed to its end."""
    FAIL = "fail"
    """Its worker ended, or it could not be recovered."""
    RETRY = "retry"
    """Another attempt to recover it from the store begins."""
    DRAIN = "drain"
    """Stop, eviction or deletion: accepted work is finished, and no more is accepted."""
    STOP = "stop"
    """Nothing of it runs any more."""


class Operation(enum.Enum):
    """The operations that requests perform on a model."""

    SHOW = "show"
    """GetModel and ListModels."""
    PREDICT = "predict"
    """Predict, from the newest whole snapshot."""
    READ_STREAMS = "read streams"
    """GetStream and ListStreams, as of the newest whole snapshot."""
    OPEN_CALL = "open call"
    """The first message of a Learn call."""
    LEARN = "learn"
    """A chunk of a Learn call."""
    CHANGE_STREAM = "change stream"
    """ResetStream and DeleteStream."""
    CONFIGURE = "configure"
    """UpdateModel."""
    SAVE = "save"
    """SaveCheckpoint."""
    RESTORE = "restore"
    """RestoreCheckpoint."""
    LIST_CHECKPOINTS = "list checkpoints"
    """ListCheckpoints."""
    DELETE = "delete"
    """DeleteModel."""


_RUNS = {
    Event.RUN: State.RUNNING,
    Event.PAUSE: State.PAUSED,
    Event.DIVERGE: State.DIVERGED,
}
_LEAVES = {
    Event.FAIL: State.FAILED,
    Event.DRAIN: State.DRAINING,
}

TRANSITIONS: MappingProxyType[State, dict[Event, State]] = MappingProxyType(
    {
        State.RECOVERING: {
            **_RUNS,
            Event.ROLL_BACK: State.ROLLING_BACK,  # the process ended before the roll-back
            Event.DAMAGE: State.READ_ONLY,
            Event.FAIL: State.FAILED,
            Event.STOP: State.STOPPED,
        },
        State.RUNNING: {
            Event.PAUSE: State.PAUSED,
            Event.DIVERGE: State.DIVERGED,
            Event.STALL: State.STALLED,
            Event.RESTORE: State.RESTORING,
            Event.ROLL_BACK: State.ROLLING_BACK,
            **_LEAVES,
        },
        State.PAUSED: {
            Event.RUN: State.RUNNING,
            Event.DIVERGE: State.DIVERGED,
            Event.STALL: State.STALLED,
            Event.RESTORE: State.RESTORING,
            **_LEAVES,
        },
        State.DIVERGED: {
            Event.RUN: State.RUNNING,
            Event.PAUSE: State.PAUSED,
            Event.STALL: State.STALLED,
            Event.RESTORE: State.RESTORING,
            **_LEAVES,
        },
        State.STALLED: {
            **_RUNS,
            Event.STALL: State.STALLED,  # for another reason
            Event.ROLL_BACK: State.ROLLING_BACK,  # the run that was being made diverged
            **_LEAVES,
        },
        State.RESTORING: {
            **_RUNS,
            Event.STALL: State.STALLED,
            Event.ROLL_BACK: State.ROLLING_BACK,  # what was accepted before it diverged
            **_LEAVES,
        },
        State.ROLLING_BACK: {
            **_RUNS,
            Event.STALL: State.STALLED,
            Event.RESTORE: State.RESTORING,
            **_LEAVES,
        },
        State.READ_ONLY: {**_LEAVES},
        State.FAILED: {
            Event.RETRY: State.RECOVERING,
            Event.FAIL: State.FAILED,  # it is not tried again
            Event.STOP: State.STOPPED,
        },
        State.DRAINING: {
            Event.FAIL: State.FAILED,
            Event.STOP: State.STOPPED,
        },
        State.STOPPED: {},
    }
)

_READS = frozenset({Operation.SHOW, Operation.PREDICT, Operation.READ_STREAMS})
_ALL = frozenset(Operation)

ADMITS: MappingProxyType[State, frozenset[Operation]] = MappingProxyType(
    {
        State.RECOVERING: _READS,
        State.RUNNING: _ALL,
        State.PAUSED: _ALL,
        State.DIVERGED: _ALL,
        State.STALLED: _READS | {Operation.OPEN_CALL, Operation.LIST_CHECKPOINTS, Operation.DELETE},
        State.RESTORING: _READS
        | {Operation.OPEN_CALL, Operation.LIST_CHECKPOINTS, Operation.DELETE},
        State.ROLLING_BACK: _ALL,
        State.READ_ONLY: _READS
        | {Operation.OPEN_CALL, Operation.LIST_CHECKPOINTS, Operation.DELETE},
        State.FAILED: _READS | {Operation.LIST_CHECKPOINTS, Operation.DELETE},
        State.DRAINING: _READS,
        State.STOPPED: _READS,
    }
)
"""Operations that a state admits. PREDICT and READ_STREAMS need a snapshot besides: a model that
has not been in memory since the server started has none, and they are refused with its state's
error."""

REFUSES_WITH: MappingProxyType[State, tuple[type[ServiceError], ...]] = MappingProxyType(
    {
        State.RECOVERING: (Recovering,),
        State.STALLED: (StorageFailed,),
        State.RESTORING: (Recovering,),
        State.READ_ONLY: (ReadOnly,),
        # Recovering: it will be tried again. ModelFailed, DataDamaged: it will not.
        State.FAILED: (Recovering, ModelFailed, DataDamaged),
        State.DRAINING: (ServerStopping, UnknownModel, Recovering),
        State.STOPPED: (ServerStopping, UnknownModel, Recovering),
    }
)
"""Classes of the error with which a state refuses what it does not admit."""

SETTLED = frozenset({State.RUNNING, State.PAUSED, State.DIVERGED})
"""States in which chunks are applied as they come; which of the three follows from the figures."""

SERVING = frozenset({State.RUNNING, State.PAUSED, State.ROLLING_BACK})
"""States in which health reports the model as SERVING: it does all that its operator wants."""


class IllegalTransition(Exception):
    """The table has no entry for an event in a state: a defect of the program."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"no event {event.value!r} in state {state.value!r}")


class Lifecycle:
    """The state of one model.

    Attributes:
        state: the state now.
        why: the error that came with the last event; None: none came.
        on_change: called after each change of state.

    Args:
        model_id: named in errors.
    """

    def __init__(self, model_id: str) -> None:
        self.state = State.RECOVERING
        self.why: ServiceError | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._model_id = model_id
        self._admitted = ADMITS[self.state]

    def can(self, event: Event) -> bool:
        """Whether the table has an entry for the event in this state."""
        return event in TRANSITIONS[self.state]

    def apply(self, event: Event, why: ServiceError | None = None) -> None:
        """Move to the next state.

        Args:
            event: what happened.
            why: the error for operations that the next state refuses. None where the next state has
                one of its own.

        Raises:
            IllegalTransition: the table has no such entry; nothing was changed.
        """
        following = TRANSITIONS[self.state].get(event)
        if following is None:
            raise IllegalTransition(self.state, event)
        if following is State.STOPPED:
            why = why or self.why
        assert why is None or isinstance(why, REFUSES_WITH[following]), (following, why)
        before, self.state, self.why = self.state, following, why
        self._admitted = ADMITS[following]
        if before is not following:
            self.on_change()

    def admit(self, operation: Operation) -> None:
        """Return if the state admits an operation; raise otherwise.

        Raises:
            ServiceError: this state does not admit it; of a class in `REFUSES_WITH`.
        """
        if operation not in self._admitted:
            raise self.refusal()

    def refusal(self) -> ServiceError:
        """The error for operations that this state does not admit."""
        if self.why is not None:
            return self.why.with_traceback(None)  # raised often: tracebacks would add up
        if self.state is State.RESTORING:
            return Recovering(
                f"model {self._model_id} is being restored to a checkpoint; try again later"
            )
        return Recovering.of(self._model_id)


# ---------------------------------------------------------------------- for the documentation


def diagram() -> str:
    """The transition table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.RECOVERING.name}"]
    for state, events in TRANSITIONS.items():
        by_target: dict[State, list[str]] = {}
        for event, target in events.items():
            by_target.setdefault(target, []).append(event.value)
        for target, names in by_target.items():
            lines.append(f"    {state.name} --> {target.name}: {', '.join(names)}")
    lines.append(f"    {State.STOPPED.name} --> [*]")
    return "\n".join(lines) + "\n"


def table() -> str:
    """What each state admits, and the errors with which it refuses the rest, in Markdown."""
    lines = ["| state | admits | refuses the rest with |", "|---|---|---|"]
    for state, admitted in ADMITS.items():
        named = ", ".join(each.value for each in Operation if each in admitted)
        errors = " or ".join(each.__name__ for each in REFUSES_WITH.get(state, ()))
        lines.append(
            f"| {state.name} | {'everything' if admitted == _ALL else named} | {errors or '–'} |"
        )
    return "\n".join(lines) + "\n"
