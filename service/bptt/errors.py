"""Everything that the service raises on purpose, and the gRPC status each error is answered with.

ServiceError             INTERNAL             root; also any status that has no class of its own
├── InvalidRequest       INVALID_ARGUMENT     a field's value is out of its bounds
├── NotFound             NOT_FOUND
│   ├── UnknownModel                          no model of that name
│   └── UnknownStream                         no stream of that name in its model
├── AlreadyExists        ALREADY_EXISTS
│   └── ModelExists                           a model of that name exists
├── OutOfOrder           OUT_OF_RANGE         a chunk begins after its stream's next step
├── LimitReached         RESOURCE_EXHAUSTED   one more than the server is configured to hold
│   └── QueueFull                             a model has had no room for a chunk for too long
├── Aborted              ABORTED              somebody else is at it
│   └── StreamInUse                           another call learns from the stream
├── ModelFailed          FAILED_PRECONDITION  the model stopped learning after an internal error
│   └── ReadOnly                              it was opened with a damaged journal
├── Unavailable          UNAVAILABLE          not now; the same request may succeed later
│   ├── ServerStopping                        the server is about to stop
│   ├── Recovering                            the model is being brought back
│   ├── StorageFailed                         the data folder could not be written
│   │   └── StorageFull  RESOURCE_EXHAUSTED   for it has no room left; a LimitReached, too
│   ├── StaleWriter                           another server writes to the data folder
│   └── CannotListen                          an address cannot be listened on
│       └── AddressInUse                      it is taken
└── DataDamaged          DATA_LOSS            what is stored cannot be read back

A gap is OUT_OF_RANGE and not INVALID_ARGUMENT: the same chunk is right once the steps before it
have come. Nothing here knows gRPC; codes are the names of its status codes, so that the client
raises the very same classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bptt_core import errors as core

VALUE_CHARACTERS_MAX = 120  # of a value quoted in an error: HTTP/2 trailers hold 8 KB, values 4 MB


def shorten(value: object) -> str:
    """A value as text for people, cut where it is too long for a message."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= VALUE_CHARACTERS_MAX:
        return text
    return f"{text[:VALUE_CHARACTERS_MAX]}… ({len(text)} characters)"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that was wrong: what it is called, what it was, and what it must be."""

    field: str
    value: str
    bound: str

    @property
    def description(self) -> str:
        """The violation as a clause that follows the field's name."""
        return f"is {self.value}, but must be {self.bound}"


class ServiceError(Exception):
    """Root of the service's own errors.

    Attributes:
        code: name of the gRPC status code.
        reason: label of the metric that counts refused chunks.
        message: what a person reads.
        violations: the fields that were wrong, if it was a field.
        retry_seconds: after which it is worth another try; 0: nobody said so.
    """

    code: str = "INTERNAL"
    reason: str = "internal"
    retry_seconds: float = 0.0

    def __init__(self, message: str, violations: Sequence[Violation] = ()) -> None:
        self.message = message
        self.violations = tuple(violations)
        super().__init__(message)


class InvalidRequest(ServiceError):
    """A field's value is out of its bounds. Nothing was changed."""

    code = "INVALID_ARGUMENT"
    reason = "invalid"

    @classmethod
    def of(
        cls, field: str, value: object, bound: str, *, reason: str = "invalid"
    ) -> InvalidRequest:
        """The error of one field; all three of its parts appear in the message."""
        violation = Violation(field, shorten(value), bound)
        error = cls(f"{field} {violation.description}", (violation,))
        error.reason = reason
        return error


class NotFound(ServiceError):
    """What was named is not there."""

    code = "NOT_FOUND"
    reason = "not_found"


class UnknownModel(NotFound):
    """No model of that name."""

    @classmethod
    def of(cls, model_id: str) -> UnknownModel:
        """The error for this name."""
        bound = "the name of a model that exists"
        violation = Violation("model_id", shorten(repr(model_id)), bound)
        return cls(f"model_id {violation.description}", (violation,))


class UnknownStream(NotFound):
    """No stream of that name in its model."""

    @classmethod
    def of(cls, stream_id: str) -> UnknownStream:
        """The error for this name."""
        bound = "the name of a stream that the model has learned from"
        violation = Violation("stream_id", shorten(repr(stream_id)), bound)
        return cls(f"stream_id {violation.description}", (violation,))


class AlreadyExists(ServiceError):
    """What should be made is there already."""

    code = "ALREADY_EXISTS"
    reason = "already_exists"


class ModelExists(AlreadyExists):
    """A model of that name exists."""

    @classmethod
    def of(cls, model_id: str) -> ModelExists:
        """The error for this name."""
        violation = Violation("model_id", shorten(repr(model_id)), "a name that no model has yet")
        return cls(f"model_id {violation.description}", (violation,))


class OutOfOrder(ServiceError):
    """A chunk begins after its stream's next step: what is between them is missing."""

    code = "OUT_OF_RANGE"
    reason = "gap"

    @classmethod
    def of(cls, first_step: int, expected_step: int) -> OutOfOrder:
        """The error of a chunk that begins at `first_step` instead of `expected_step`."""
        bound = f"at most {expected_step}, the stream's next step"
        violation = Violation("first_step", str(first_step), bound)
        return cls(f"first_step {violation.description}", (violation,))


class LimitReached(ServiceError):
    """One more than the server is configured to hold."""

    code = "RESOURCE_EXHAUSTED"
    reason = "limit"

    @classmethod
    def of(cls, what: str, limit: int) -> LimitReached:
        """The error of one `what` above `limit`."""
        violation = Violation(what, str(limit + 1), f"at most {limit}, the server's limit")
        return cls(f"number of {what} {violation.description}", (violation,))


class QueueFull(LimitReached):
    """A model has had no room for a chunk for longer than a client should wait."""

    reason = "queue_full"
    retry_seconds = 1.0  # a queue of a thousand small chunks is worked off in less

    @classmethod
    def of_model(cls, model_id: str, seconds: float) -> QueueFull:
        """The error for a model that had no room for so long."""
        return cls(
            f"model {model_id} had no room for another chunk for {seconds:g} s; try again later"
        )


class ModelFailed(ServiceError):
    """The model stopped learning after an internal error; it still answers predictions."""

    code = "FAILED_PRECONDITION"
    reason = "model_failed"


class ReadOnly(ModelFailed):
    """The model's journal is damaged: it predicts, and learns nothing."""

    reason = "read_only"

    @classmethod
    def of(cls, model_id: str, why: str) -> ReadOnly:
        """The error for a model and what was found in its journal."""
        return cls(
            f"model {model_id} is read-only, because its journal is damaged ({why}); "
            "`bptt repair` shows what would be lost, and repairs it"
        )


class Aborted(ServiceError):
    """Somebody else is at it."""

    code = "ABORTED"
    reason = "aborted"


class StreamInUse(Aborted):
    """Another call that is still open learns from the stream."""

    reason = "stream_in_use"

    @classmethod
    def of(cls, stream_id: str) -> StreamInUse:
        """The error for this stream."""
        bound = "a stream that no other open Learn call sends"
        violation = Violation("stream_id", shorten(repr(stream_id)), bound)
        return cls(f"stream_id {violation.description}", (violation,))


class Unavailable(ServiceError):
    """Not now; the same request may succeed later."""

    code = "UNAVAILABLE"
    reason = "unavailable"


class ServerStopping(Unavailable):
    """The server is about to stop and takes nothing new."""

    reason = "stopping"

    def __init__(
        self,
        message: str = "the server is stopping; try again later",
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message, violations)


class Recovering(Unavailable):
    """The model is being brought back from the store."""

    reason = "recovering"

    @classmethod
    def of(cls, model_id: str) -> Recovering:
        """The error for this model."""
        return cls(f"model {model_id} is being brought back from the store; try again later")

    @classmethod
    def after_failure(cls, model_id: str, seconds: float) -> Recovering:
        """The error for a model that failed and is brought back by itself after so long."""
        error = cls(
            f"model {model_id} stopped learning after an internal error and is brought back from "
            f"the store; try again in {seconds:g} s"
        )
        error.reason = "model_failed"
        error.retry_seconds = seconds
        return error


class StorageFailed(Unavailable):
    """The data folder could not be written. What was learned is still in memory."""

    reason = "storage"


class StorageFull(StorageFailed, LimitReached):
    """There is no room left in the data folder. What was learned is still in memory."""

    code = "RESOURCE_EXHAUSTED"
    reason = "storage"
    retry_seconds = 1.0  # a commit is tried again as often; somebody may have made room


class StaleWriter(Unavailable):
    """Another server writes to the data folder; this one must not."""

    reason = "storage"


class CannotListen(Unavailable):
    """An address cannot be listened on."""

    @classmethod
    def of(cls, field: str, address: str, why: str) -> CannotListen:
        """The error for the address in the configuration's field `field`."""
        violation = Violation(field, shorten(address), "an address to listen on")
        text = f"{field} is {shorten(address)}, which cannot be listened on: {why}"
        return cls(text, (violation,))


class AddressInUse(CannotListen):
    """An address is taken by another program."""

    @classmethod
    def at(cls, field: str, address: str) -> AddressInUse:
        """The error for the address in the configuration's field `field`."""
        violation = Violation(field, shorten(address), "an address that is free")
        return cls(f"{field} is {shorten(address)}, which another program uses", (violation,))


class DataDamaged(ServiceError):
    """What is stored cannot be read back."""

    code = "DATA_LOSS"
    reason = "storage"


_BY_CODE: dict[str, type[ServiceError]] = {
    error.code: error
    for error in (
        InvalidRequest,
        NotFound,
        AlreadyExists,
        OutOfOrder,
        LimitReached,
        Aborted,
        ModelFailed,
        Unavailable,
        DataDamaged,
        ServiceError,
    )
}


def from_status(code: str, message: str, violations: Sequence[Violation] = ()) -> ServiceError:
    """The error that a gRPC status stands for, for the client's side.

    A code that no class has gives a `ServiceError` that carries it.
    """
    error = _BY_CODE.get(code, ServiceError)(message, violations)
    error.code = code
    return error


def from_core(error: core.BpttError, *, prefix: str = "") -> ServiceError:
    """What the service says for an error of `bptt_core`; `prefix` goes before a field's name."""
    if isinstance(error, core.InvalidArgument):
        reason = _CORE_REASONS.get(type(error), "invalid")
        return InvalidRequest.of(prefix + error.field, error.value, error.bound, reason=reason)
    if isinstance(error, core.OrderError):
        return OutOfOrder.of(error.first_step, error.next_step)
    if isinstance(error, core.UnknownStream):
        return UnknownStream.of(error.stream_id)
    return ServiceError("internal error")


_CORE_REASONS: dict[type[core.BpttError], str] = {
    core.ShapeError: "wrong_size",
    core.DtypeError: "invalid",
    core.NonFiniteError: "not_finite",
    core.LabelTooLate: "targets",
    core.LabelTooEarly: "targets",
}
