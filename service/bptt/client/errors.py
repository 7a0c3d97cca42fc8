"""From a gRPC status to the service's own errors.

The client raises the classes of `bptt.errors`, and two of its own:

ServiceError
├── Unavailable
│   └── ServerUnreachable   nobody answers at the address, or the connection broke
└── DataDamaged
    └── StepsLost           the server has forgotten steps that it had acknowledged
"""

from __future__ import annotations

import re

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from bptt.errors import DataDamaged, from_status, ServiceError, Unavailable, Violation

_DESCRIPTION = re.compile(r"is (?P<value>.*), but must be (?P<bound>.*)", re.DOTALL)
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_BROKEN = "Internal error from Core"  # gRPC's words where a call ended while it was written to
_STATUS_KEY = "grpc-status-details-bin"


class ServerUnreachable(Unavailable):
    """Nobody answers at the address, or the connection broke. Names the address."""

    reason = "unreachable"


class StepsLost(DataDamaged):
    """The server has forgotten steps that it had acknowledged, and nobody has kept them.

    It was killed without a journal, or its data folder was changed.
    """

    @classmethod
    def of(cls, stream_id: str, next_step: int, durable_step: int) -> StepsLost:
        """The error for a stream that was acknowledged up to a step, and is now at another."""
        return cls(
            f"the server had acknowledged stream {stream_id!r} up to step {durable_step}, but "
            f"expects step {next_step} of it now: what is between them is lost"
        )


def passes(error: ServiceError) -> bool:
    """Whether the same request may succeed a little later, by the kind of error."""
    return isinstance(error, Unavailable) or error.retry_seconds > 0


def code_name(number: int) -> str:
    """The name of a google.rpc.Code."""
    return _NAMES.get(number, "UNKNOWN")


def from_rpc_error(error: grpc.aio.AioRpcError, address: str) -> ServiceError:
    """The error of a call that ended with a status other than OK."""
    code = error.code().name
    text = error.details() or code
    status = _status(error)
    if status is None and code == "INTERNAL" and _BROKEN in text:
        return ServerUnreachable(f"the server at {address} stopped")
    if status is None and code == "UNAVAILABLE" and "stopping" not in text:
        return ServerUnreachable(f"no server answers at {address} ({text})")
    if status is None and code == "CANCELLED":  # not by us: then it is a CancelledError
        return ServerUnreachable(f"the server at {address} ended the call: it is stopping or gone")
    if status is None and code == "DEADLINE_EXCEEDED":
        return ServerUnreachable(f"the server at {address} did not answer in time")
    found = from_status(code, text, _violations(status))
    found.retry_seconds = _retry_seconds(status)
    return found


def from_broken_call(error: grpc.aio.AioRpcError, address: str) -> ServiceError:
    """The same for a call that was open, where gRPC has many words for a server that stopped."""
    found = from_rpc_error(error, address)
    if isinstance(found, ServerUnreachable):
        return ServerUnreachable(f"the server at {address} stopped")
    return found


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    """What the server itself said; None where gRPC made the status up."""
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_KEY:
            return status_pb2.Status.FromString(value)
    return None


def _retry_seconds(status: status_pb2.Status | None) -> float:
    for detail in status.details if status is not None else ():
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToTimedelta().total_seconds())
    return 0.0


def _violations(status: status_pb2.Status | None) -> tuple[Violation, ...]:
    found = []
    for detail in status.details if status is not None else ():
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            found += [_violation(item) for item in bad_request.field_violations]
    return tuple(found)


def _violation(item: error_details_pb2.BadRequest.FieldViolation) -> Violation:
    match = _DESCRIPTION.search(item.description)
    if match is None:
        return Violation(item.field, "", item.description)
    return Violation(item.field, match["value"], match["bound"])
