"""The service's errors, and the gRPC status code of each.

ServiceError             INTERNAL             root; also any status that has no class of its own
├── InvalidRequest       INVALID_ARGUMENT     a field's value is out of its bounds
├── NotFound             NOT_FOUND
│   ├── UnknownModel                          no model of that name
│   ├── UnknownStream                         no stream of that name in its model
│   └── StreamDeleted                         the stream's incarnation that a chunk names is deleted
├── AlreadyExists        ALREADY_EXISTS
│   └── ModelExists                           a model of that name exists
├── Unauthenticated      UNAUTHENTICATED      no valid token or client certificate
├── PermissionDenied     PERMISSION_DENIED    the caller may not do this with this model
├── OutOfOrder           OUT_OF_RANGE         a chunk begins after its stream's next step
├── LimitReached         RESOURCE_EXHAUSTED   one more than the server is configured to hold
│   └── QueueFull                             a model's queue was full for too long
├── Aborted              ABORTED              conflicts with another operation
│   └── StreamInUse                           another call learns from the stream
├── ModelFailed          FAILED_PRECONDITION  the model stopped learning after an internal error
│   └── ReadOnly                              it was opened with a damaged journal
├── Unavailable          UNAVAILABLE          the same request may succeed later
│   ├── ServerStopping                        the server is stopping
│   ├── Recovering                            the model is being read from the store
│   ├── StorageFailed                         the data folder could not be written
│   │   └── StorageFull  RESOURCE_EXHAUSTED   the data folder is full; also a LimitReached
│   ├── StaleWriter                           another server writes to the data folder
│   └── CannotListen                          the server cannot listen on an address
│       └── AddressInUse                      another program listens there
└── DataDamaged          DATA_LOSS            stored data cannot be read

A gap is OUT_OF_RANGE and not INVALID_ARGUMENT: the same chunk is accepted once the steps before it
have come. This module does not import gRPC; a code is the name of a gRPC status code.

An error crosses the wire as its code, its reason and its violations; its message is for people
only. Each class has a reason of its own, so the client raises the class that the server raised.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bptt_core import errors as core

ERROR_DOMAIN = "bptt"  # of every google.rpc.ErrorInfo
VALUE_CHARACTERS_MAX = 120  # of a value quoted in an error: HTTP/2 trailers hold 8 KB, values 4 MB


def shorten(value: object) -> str:
    """Return a value as text, cut to VALUE_CHARACTERS_MAX characters."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= VALUE_CHARACTERS_MAX:
        return text
    return f"{text[:VALUE_CHARACTERS_MAX]}… ({len(text)} characters)"


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: its name, its value, and the values that it may have."""

    field: str
    value: str
    bound: str

    @property
    def description(self) -> str:
        """The violation as a clause to put after the name of the field."""
        return f"is {self.value}, but must be {self.bound}"


class ServiceError(Exception):
    """Root of the service's own errors.

    Attributes:
        code: name of the gRPC status code.
        reason: name of the class on the wire, where it is in capitals, and label of the metric that
            counts refused chunks. An InvalidRequest may have one of several reasons.
        message: text for people.
        violations: the wrong fields; empty where no field is to blame.
        retry_seconds: the time after which to try again; 0: unknown.
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
        """Return the error for one field; its name, value and bound appear in the message."""
        violation = Violation(field, shorten(value), bound)
        error = cls(f"{field} {violation.description}", (violation,))
        error.reason = reason
        return error

    @classmethod
    def unknown_field(cls, field: str, value: object, known: Sequence[str]) -> InvalidRequest:
        """Return the error for an unknown field; names a similar one, or all known ones."""
        close = difflib.get_close_matches(field, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(known)}"
        violation = Violation(field, shorten(value), "a known field: " + ", ".join(known))
        error = cls(f"unknown field {field!r}; {hint}", (violation,))
        error.reason = "unknown_field"
        return error


class NotFound(ServiceError):
    """The request names something that does not exist."""

    code = "NOT_FOUND"
    reason = "not_found"


class UnknownModel(NotFound):
    """No model of that name."""

    reason = "unknown_model"

    @classmethod
    def of(cls, model_id: str) -> UnknownModel:
        """Return the error for this name."""
        bound = "the name of a model that exists"
        violation = Violation("model_id", shorten(repr(model_id)), bound)
        return cls(f"model_id {violation.description}", (violation,))


class UnknownStream(NotFound):
    """No stream of that name in its model."""

    reason = "unknown_stream"

    @classmethod
    def of(cls, stream_id: str) -> UnknownStream:
        """Return the error for this name."""
        bound = "the name of a stream that the model has learned from"
        violation = Violation("stream_id", shorten(repr(stream_id)), bound)
        return cls(f"stream_id {violation.description}", (violation,))


class StreamDeleted(NotFound):
    """The stream's incarnation that a chunk names is deleted; nothing of the chunk was learned."""

    reason = "stream_deleted"

    @classmethod
    def of(cls, stream_id: str, incarnation: int) -> StreamDeleted:
        """Return the error for a chunk of this incarnation."""
        bound = f"the incarnation that stream {shorten(repr(stream_id))} is now, or 0 for any"
        violation = Violation("incarnation", str(incarnation), bound)
        text = f"incarnation {incarnation} of stream {shorten(repr(stream_id))} has been deleted"
        return cls(text, (violation,))


class AlreadyExists(ServiceError):
    """The request creates something that exists already."""

    code = "ALREADY_EXISTS"
    reason = "already_exists"


class ModelExists(AlreadyExists):
    """A model of that name exists."""

    reason = "model_exists"

    @classmethod
    def of(cls, model_id: str) -> ModelExists:
        """Return the error for this name."""
        violation = Violation("model_id", shorten(repr(model_id)), "a name that no model has yet")
        return cls(f"model_id {violation.description}", (violation,))


class Unauthenticated(ServiceError):
    """The call has no token or client certificate that is valid now."""

    code = "UNAUTHENTICATED"
    reason = "unauthenticated"


class PermissionDenied(ServiceError):
    """The caller may not do this. Says nothing about whether the model exists."""

    code = "PERMISSION_DENIED"
    reason = "permission_denied"


class OutOfOrder(ServiceError):
    """A chunk begins after its stream's next step; the steps between are missing."""

    code = "OUT_OF_RANGE"
    reason = "gap"

    @classmethod
    def of(cls, first_step: int, expected_step: int) -> OutOfOrder:
        """Return the error for a chunk that begins at `first_step` instead of `expected_step`."""
        bound = f"at most {expected_step}, the stream's next step"
        violation = Violation("first_step", str(first_step), bound)
        return cls(f"first_step {violation.description}", (violation,))


class LimitReached(ServiceError):
    """One more than the server is configured to hold."""

    code = "RESOURCE_EXHAUSTED"
    reason = "limit"

    @classmethod
    def of(cls, what: str, limit: int) -> LimitReached:
        """Return the error for one `what` above `limit`."""
        violation = Violation(what, str(limit + 1), f"at most {limit}, the server's limit")
        return cls(f"number of {what} {violation.description}", (violation,))


class QueueFull(LimitReached):
    """The queue of a model was full for longer than a client should wait."""

    reason = "queue_full"
    retry_seconds = 1.0  # a queue of a thousand small chunks is learned in less

    @classmethod
    def of_model(cls, model_id: str, seconds: float) -> QueueFull:
        """Return the error for a model whose queue was full for `seconds`."""
        return cls(f"the queue of model {model_id} was full for {seconds:g} s; try again later")


class ModelFailed(ServiceError):
    """The model stopped learning after an internal error; it still predicts."""

    code = "FAILED_PRECONDITION"
    reason = "model_failed"


class ReadOnly(ModelFailed):
    """The model's journal is damaged; the model predicts but does not learn."""

    reason = "read_only"

    @classmethod
    def of(cls, model_id: str, why: str) -> ReadOnly:
        """Return the error for a model and what was found in its journal."""
        return cls(
            f"model {model_id} is read-only because its journal is damaged ({why}); "
            "`bptt repair` shows what would be lost and repairs it"
        )


class Aborted(ServiceError):
    """Conflicts with another operation."""

    code = "ABORTED"
    reason = "aborted"


class StreamInUse(Aborted):
    """Another open Learn call sends the stream."""

    reason = "stream_in_use"

    @classmethod
    def of(cls, stream_id: str) -> StreamInUse:
        """Return the error for this stream."""
        bound = "a stream that no other open Learn call sends"
        violation = Violation("stream_id", shorten(repr(stream_id)), bound)
        return cls(f"stream_id {violation.description}", (violation,))


class Unavailable(ServiceError):
    """The server cannot do this now; the same request may succeed later."""

    code = "UNAVAILABLE"
    reason = "unavailable"


class ServerStopping(Unavailable):
    """The server is stopping and accepts nothing new."""

    reason = "stopping"

    def __init__(
        self,
        message: str = "the server is stopping; try again later",
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(message, violations)


class Recovering(Unavailable):
    """The model is being read from the store."""

    reason = "recovering"

    @classmethod
    def of(cls, model_id: str) -> Recovering:
        """Return the error for this model."""
        return cls(f"model {model_id} is being read from the store; try again later")

    @classmethod
    def after_failure(cls, model_id: str, seconds: float) -> Recovering:
        """The error for a model that failed and is recovered automatically after `seconds`."""
        error = cls(
            f"model {model_id} stopped learning after an internal error and is recovered from "
            f"the store; try again in {seconds:g} s"
        )
        error.reason = "model_failed"
        error.retry_seconds = seconds
        return error


class StorageFailed(Unavailable):
    """The data folder could not be written. Everything learned is still in memory."""

    reason = "storage"


class StorageFull(StorageFailed, LimitReached):
    """The data folder is full. Everything learned is still in memory."""

    code = "RESOURCE_EXHAUSTED"
    reason = "storage_full"
    retry_seconds = 1.0  # the server repeats a failed commit about as often


class StaleWriter(Unavailable):
    """Another server writes to the data folder, so this one must not."""

    reason = "stale_writer"


class CannotListen(Unavailable):
    """The server cannot listen on an address."""

    reason = "cannot_listen"

    @classmethod
    def of(cls, field: str, address: str, why: str) -> CannotListen:
        """Return the error for the address in the configuration's field `field`."""
        violation = Violation(field, shorten(address), "an address to listen on")
        text = f"{field} is {shorten(address)}, but the server cannot listen there: {why}"
        return cls(text, (violation,))


class AddressInUse(CannotListen):
    """Another program listens on an address."""

    reason = "address_in_use"

    @classmethod
    def at(cls, field: str, address: str) -> AddressInUse:
        """Return the error for the address in the configuration's field `field`."""
        violation = Violation(field, shorten(address), "an address that is free")
        return cls(f"{field} is {shorten(address)}, which another program uses", (violation,))


class DataDamaged(ServiceError):
    """Stored data cannot be read."""

    code = "DATA_LOSS"
    reason = "data_damaged"


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


def _classes(root: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield root
    for each in root.__subclasses__():
        yield from _classes(each)


_BY_REASON = {each.reason: each for each in _classes(ServiceError)}


def from_status(
    code: str, message: str, violations: Sequence[Violation] = (), *, reason: str = ""
) -> ServiceError:
    """Return the error that the server raised, from what crossed the wire.

    Args:
        code: name of the gRPC status code.
        message: text for people.
        violations: the wrong fields.
        reason: the error's reason. One that no class here has, as a newer server may send, gives
            the general class of the code; a code that no class has gives a `ServiceError`.
    """
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, ServiceError)
    error = kind(message, violations)
    error.code = code
    error.reason = reason or kind.reason
    return error


def violations_to_metadata(violations: Sequence[Violation]) -> dict[str, str]:
    """Return the metadata of a google.rpc.ErrorInfo: `field`, `value` and `bound`.

    Those of a second violation are `field_2` and so on.
    """
    metadata: dict[str, str] = {}
    for number, each in enumerate(violations, start=1):
        suffix = "" if number == 1 else f"_{number}"
        metadata["field" + suffix] = each.field
        metadata["value" + suffix] = each.value
        metadata["bound" + suffix] = each.bound
    return metadata


def violations_from_metadata(metadata: Mapping[str, str]) -> tuple[Violation, ...]:
    """Return the violations that `violations_to_metadata` was given."""
    found: list[Violation] = []
    suffix = ""
    while "field" + suffix in metadata:
        parts = (metadata.get(name + suffix, "") for name in ("field", "value", "bound"))
        found.append(Violation(*parts))
        suffix = f"_{len(found) + 1}"
    return tuple(found)


def from_core(error: core.BpttError, *, prefix: str = "") -> ServiceError:
    """Return the service's error for one of `bptt_core`.

    Args:
        error: the core's error.
        prefix: put before the name of a field.
    """
    if isinstance(error, core.UnknownField):
        violation = Violation(prefix + error.field, error.value, error.bound)
        return InvalidRequest(str(error), (violation,))
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
