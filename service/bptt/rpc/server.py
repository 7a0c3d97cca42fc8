"""The gRPC server: services, health, reflection, and the address it listens on."""

from __future__ import annotations

import errno
import logging
import socket
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1.health import aio as health_aio  # type: ignore[import-untyped]
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from bptt.config import MESSAGE_BYTES_MAX, READ_AHEAD_BYTES, split_address
from bptt.domain import CallSink
from bptt.errors import AddressInUse, CannotListen
from bptt.rpc.interceptors import CallInterceptor
from bptt.rpc.servicers import LearnerService, ModelService
from bptt.v1 import learner_pb2, learner_pb2_grpc, models_pb2, models_pb2_grpc

log = logging.getLogger(__name__)

OPTIONS = [
    ("grpc.so_reuseport", 0),  # on, a second server would take the same port in silence
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", 1000),  # of one connection; more of them wait at the client
    ("grpc.http2.bdp_probe", 0),  # off, the window stays what the next line says
    ("grpc.http2.lookahead_bytes", READ_AHEAD_BYTES),
    ("grpc.keepalive_time_ms", 60_000),  # a client whose machine went away is noticed
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # clients may ping as often
    ("grpc.keepalive_permit_without_calls", 1),
]

MODEL_HEALTH = "bptt.v1.models/"  # and the model's name: known while it is recovered, and after

_SERVICES = tuple(
    each.full_name
    for file in (learner_pb2, models_pb2)
    for each in file.DESCRIPTOR.services_by_name.values()
)

_CLOSE_SECONDS = 1.0  # for answers under way when the last of the work is done


class RpcServer:
    """The server around the two services.

    Attributes:
        address: host:port where it listens, with the real port, once it is started.
    """

    def __init__(self, learner: LearnerService, models: ModelService, sink: CallSink) -> None:
        self.address = ""
        self._health = health_aio.HealthServicer()
        self._server = grpc.aio.server(interceptors=[CallInterceptor(sink)], options=OPTIONS)
        learner_pb2_grpc.add_LearnerServiceServicer_to_server(learner, self._server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(models, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*_SERVICES, HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self, address: str) -> None:
        """Listen and serve; health says so once `serving` is called.

        Raises:
            AddressInUse: another program has the address.
            CannotListen: it cannot be listened on for another reason.
        """
        host, _ = split_address("address", address)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise why_not("address", address) from error
        await self._server.start()
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{port}"
        for service in ("", *_SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)

    async def serving(self) -> None:
        """Health says from now on that all models are served."""
        for service in ("", *_SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def model_serving(self, model_id: str, is_serving: bool) -> None:
        """Health says whether one model is served, under a service name of its own."""
        status = health_pb2.HealthCheckResponse
        said = status.SERVING if is_serving else status.NOT_SERVING
        await self._health.set(MODEL_HEALTH + model_id, said)

    async def not_serving(self) -> None:
        """From now on health says that this server is about to stop."""
        await self._health.enter_graceful_shutdown()

    async def stop(self) -> None:
        """End what is left, and let go of the address."""
        await self._server.stop(_CLOSE_SECONDS)


def why_not(field: str, address: str) -> CannotListen:
    """The error for an address that could not be listened on, found out by trying once more."""
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
