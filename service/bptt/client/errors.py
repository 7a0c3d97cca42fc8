"""Turns gRPC statuses into the service's errors.

The client raises the classes of `bptt.errors`, and two of its own:

ServiceError
├── Unavailable
│   └── ServerUnreachable   no server answers at the address, or the connection broke
└── DataDamaged
    └── StepsLost           the server has lost steps that it had acknowledged

A status that carries a google.rpc.ErrorInfo of the domain "bptt" comes from the server: its reason
gives the class. Any other status comes from gRPC or from a proxy, and is judged by its code. Texts
are for people; nothing here depends on them.
"""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from bptt.errors import (
    DataDamaged,
    ERROR_DOMAIN,
    from_status,
    ServiceError,
    Unavailable,
    violations_from_metadata,
)

_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_STATUS_KEY = "grpc-status-details-bin"


class ServerUnreachable(Unavailable):
    """No server answers at the address, or the connection broke. The message names the address."""

    reason = "unreachable"


class StepsLost(DataDamaged):
    """The server has lost steps that it had acknowledged, and the session keeps them no more.

    The server was killed without a journal, or its data folder was changed.
    """

    reason = "steps_lost"

    @classmethod
    def of(cls, stream_id: str, next_step: int, durable_step: int) -> StepsLost:
        """Return the error for a stream that stands before its acknowledged step."""
        return cls(
            f"the server had acknowledged stream {stream_id!r} up to step {durable_step}, but "
            f"expects step {next_step} now: the steps between are lost"
        )


def passes(error: ServiceError) -> bool:
    """Return whether the same request may succeed a little later."""
    return isinstance(error, Unavailable) or error.retry_seconds > 0


def code_name(number: int) -> str:
    """The name of a google.rpc.Code."""
    return _NAMES.get(number, "UNKNOWN")


def from_rpc_error(error: grpc.aio.AioRpcError, address: str) -> ServiceError:
    """Return the error of a call that ended with a status other than OK."""
    code = error.code().name
    text = error.details() or code
    status = _status(error)
    info = _info(status)
    if info is None:
        return _from_grpc(code, text, address)
    violations = violations_from_metadata(info.metadata)
    found = from_status(code, text, violations, reason=info.reason.lower())
    found.retry_seconds = _retry_seconds(status)
    return found


def _from_grpc(code: str, text: str, address: str) -> ServiceError:
    """Return the error for a status that the server did not write.

    gRPC reports a call that broke while it was written to as INTERNAL.
    """
    if code == "UNAVAILABLE":
        return ServerUnreachable(f"no server answers at {address} ({text})")
    if code == "INTERNAL":
        return ServerUnreachable(f"the connection to the server at {address} broke ({text})")
    if code == "CANCELLED":  # by the server: a call that this side cancels raises CancelledError
        return ServerUnreachable(f"the server at {address} ended the call: it is stopping or gone")
    if code == "DEADLINE_EXCEEDED":
        return ServerUnreachable(f"the server at {address} did not answer in time")
    if code == "RESOURCE_EXHAUSTED":  # a message that is too long
        text += "; the bound is the server's limits.message_bytes"
    return from_status(code, text)


def from_broken_call(error: grpc.aio.AioRpcError, address: str) -> ServiceError:
    """Return the error of a call that was open; gRPC has many texts for a server that stopped."""
    found = from_rpc_error(error, address)
    if isinstance(found, ServerUnreachable):
        return ServerUnreachable(f"the server at {address} stopped")
    return found


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_KEY:
            return status_pb2.Status.FromString(value)
    return None


def _info(status: status_pb2.Status | None) -> error_details_pb2.ErrorInfo | None:
    """Return the server's ErrorInfo; None for a status that gRPC itself made."""
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            return info
    return None


def _retry_seconds(status: status_pb2.Status | None) -> float:
    for detail in status.details if status is not None else ():
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return float(retry.retry_delay.ToTimedelta().total_seconds())
    return 0.0
