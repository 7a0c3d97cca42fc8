"""The gRPC server: its services, health, reflection, interceptors and address."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1.health import aio as health_aio  # type: ignore[import-untyped]
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME

from bptt.config import MESSAGE_BYTES_MAX, READ_AHEAD_BYTES, split_address
from bptt.domain import CallSink
from bptt.errors import AddressInUse, CannotListen
from bptt.rpc import reflection
from bptt.rpc.auth.guard import Guard
from bptt.rpc.auth.table import MODEL_HEALTH
from bptt.rpc.interceptors import CallInterceptor
from bptt.rpc.servicers import LearnerService, ModelService
from bptt.v1 import learner_pb2, learner_pb2_grpc, models_pb2, models_pb2_grpc

log = logging.getLogger(__name__)

OPTIONS = [
    ("grpc.so_reuseport", 0),  # if on, a second server takes the same port without an error
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", 1000),  # of one connection; the client holds further ones back
    ("grpc.http2.bdp_probe", 0),  # if off, the window stays at the next line's value
    ("grpc.http2.lookahead_bytes", READ_AHEAD_BYTES),
    ("grpc.keepalive_time_ms", 60_000),  # detects a client whose machine is gone
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # clients may ping this often
    ("grpc.keepalive_permit_without_calls", 1),
]

_SERVICES = tuple(
    each.full_name
    for file in (learner_pb2, models_pb2)
    for each in file.DESCRIPTOR.services_by_name.values()
)

_CLOSE_SECONDS = 1.0  # for answers that are being sent when all work is done


class _Health(health_aio.HealthServicer):  # type: ignore[misc]
    """Health checks; a service that was removed is answered like one that never existed."""

    async def Check(self, request: Any, context: Any) -> Any:
        """See grpc.health.v1."""
        response = await super().Check(request, context)
        if response.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return response


class RpcServer:
    """The server of the two services.

    Args:
        learner: serves LearnerService.
        models: serves ModelService.
        sink: counts calls.
        interceptors: run for every call, in this order, after the server's own one, which counts
            the calls that they refuse and turns the `ServiceError` that they raise into a status.
        message_bytes: the most bytes of one message from a client.
        credentials: for TLS, as `grpc.ssl_server_credentials` makes them. None: no encryption.
        guard: knows the callers. None: everybody may do everything.
        reflects: True: clients can read the API from the server.

    Attributes:
        address: host:port where it listens, with the real port, once it is started.
    """

    def __init__(
        self,
        learner: LearnerService,
        models: ModelService,
        sink: CallSink,
        *,
        message_bytes: int = MESSAGE_BYTES_MAX,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        credentials: grpc.ServerCredentials | None = None,
        guard: Guard | None = None,
        reflects: bool = True,
    ) -> None:
        self.address = ""
        self._guard = guard
        self._credentials = credentials
        self._health = _Health()
        self._server = grpc.aio.server(
            interceptors=[CallInterceptor(sink, guard), *interceptors],
            options=[*OPTIONS, ("grpc.max_receive_message_length", message_bytes)],
        )
        learner_pb2_grpc.add_LearnerServiceServicer_to_server(learner, self._server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(models, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflects:
            reflection.add_to_server((*_SERVICES, HEALTH_NAME), self._server)

    async def start(self, address: str) -> None:
        """Listen and serve. Health stays NOT_SERVING until `serving` is called.

        Raises:
            AddressInUse: another program has the address.
            CannotListen: listening there failed for another reason.
        """
        host, _ = split_address("address", address)
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise why_not("address", address) from error
        await self._server.start()
        if self._guard is not None:
            self._guard.start()
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{port}"
        for service in ("", *_SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)

    async def serving(self) -> None:
        """Set the health of the server and of both services to SERVING."""
        for service in ("", *_SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def model_serving(self, model_id: str, is_serving: bool | None) -> None:
        """Health says whether one model is served, under a service name of its own.

        Args:
            model_id: the model.
            is_serving: None: the model is gone, and so is its service name.
        """
        status = health_pb2.HealthCheckResponse
        said = status.SERVING if is_serving else status.NOT_SERVING
        if is_serving is None:
            said = status.SERVICE_UNKNOWN
        await self._health.set(MODEL_HEALTH + model_id, said)

    async def not_serving(self) -> None:
        """Set all health to NOT_SERVING for good, because the server is about to stop."""
        await self._health.enter_graceful_shutdown()

    async def stop(self) -> None:
        """End the remaining calls and free the address."""
        await self._server.stop(_CLOSE_SECONDS)
        if self._guard is not None:
            await self._guard.stop()


def why_not(field: str, address: str) -> CannotListen:
    """Return the error for an address on which listening failed, found by another attempt."""
    host, port = split_address(field, address)
    try:
        found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return AddressInUse.at(field, address)
        return CannotListen.of(field, address, error.strerror or str(error))
    return AddressInUse.at(field, address)
