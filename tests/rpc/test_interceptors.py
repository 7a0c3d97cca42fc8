"""Interceptors and standard services: defects, counting, health, reflection."""

from __future__ import annotations

import logging
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]

from bptt import v1 as pb
from bptt.config import Limits
from bptt.errors import NotFound
from bptt.rpc.server import RpcServer
from bptt.rpc.servicers import ModelService
from bptt.v1 import models_pb2_grpc
from bptt_core import Learner, ModelSpec, TickResult
from tests.rpc.harness import (
    error_info,
    failure,
    Harness,
    harness,
    small,
    until,
    violations,
    wave,
)
from tests.support.metrics import families


def _broken(spec: ModelSpec) -> Learner:
    raise RuntimeError("a secret of the machine")


async def test_an_unexpected_exception_is_internal_without_its_text_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with harness(make_learner=_broken) as server:
        request = pb.CreateModelRequest(model_id="m", spec=small())
        error = await failure(server.models.CreateModel(request))
        assert error.code() == grpc.StatusCode.INTERNAL
        assert error.details() == "internal error"
        assert not violations(error)
        assert "secret" not in str(error.trailing_metadata())
        error = await failure(server.models.GetModel(pb.GetModelRequest(model_id="m")))
        assert error.code() == grpc.StatusCode.NOT_FOUND
    errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "secret" in caplog.text


class _BreaksAtSecondTick(Learner):
    """A learner that raises an unexpected exception."""

    def apply(self, tick: Any, *, predictions: bool = True) -> TickResult:
        if self.figures.steps >= 4:
            raise MemoryError("a secret of the machine")
        return super().apply(tick, predictions=predictions)


async def test_a_failed_model_stops_learning_and_still_predicts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with harness(make_learner=_BreaksAtSecondTick) as server:
        await server.create("m")
        call = await server.learn()
        await call.send("s", wave(4))
        await call.learned()
        before = await server.predict("s")
        await call.send("s", wave(4, 4), first_step=4)
        refused = await call.refused()
        assert refused.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
        assert "stopped learning" in refused.message
        assert "secret" not in refused.message
        ended = await failure(call.read())
        assert ended.code() == grpc.StatusCode.FAILED_PRECONDITION
        model = await server.model()
        assert model.state == pb.MODEL_STATE_FAILED
        assert model.state_reason == refused.message
        assert await server.predict("s") == before
        assert await server.next_step("s") == 4
        reset = server.streams.ResetStream(pb.ResetStreamRequest(model_id="m", stream_id="s"))
        assert (await failure(reset)).code() == grpc.StatusCode.FAILED_PRECONDITION
        failures = _samples(server, "bptt_model_failures")
        assert {labels: count for labels, count in failures.items() if count} == {
            ("m", "learning"): 1
        }
        await server.create("n")
    assert len([each for each in caplog.records if each.levelno >= logging.ERROR]) == 1


def _samples(server: Harness, family: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(label for key, label in sorted(each.labels.items()) if key != "le"): each.value
        for each in families(server.metrics)[family].samples
        if each.name.endswith(("_total", "_count"))
    }


class _Counting(grpc.aio.ServerInterceptor):
    """Counts calls by method, and refuses one, as authentication does."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.calls.append(details.method.rpartition("/")[2])
        if ("refuse", "this") in details.invocation_metadata:
            return grpc.unary_unary_rpc_method_handler(_refuse)
        return await continuation(details)


async def _refuse(request: bytes, context: Any) -> bytes:
    raise NotFound("no")


async def test_an_interceptor_behind_the_servers_own_runs_once_a_call() -> None:
    counting = _Counting()
    async with harness(interceptors=[counting]) as server:
        await server.create()
        for _ in range(3):
            await server.model()
        for _ in range(2):
            await (await server.learn()).close()
        assert counting.calls == ["CreateModel"] + ["GetModel"] * 3 + ["Learn"] * 2
        request = pb.GetModelRequest(model_id="m")
        refused = server.models.GetModel(request, metadata=(("refuse", "this"),))
        error = await failure(refused)
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert error_info(error).reason == "NOT_FOUND"
        assert (await server.model()).model_id == "m", "the refusal was of one call"
        handled = _samples(server, "grpc_server_handled")
        assert handled["NOT_FOUND", "GetModel", "bptt.v1.ModelService", "unary"] == 1


async def test_credentials_encrypt_and_authenticate_the_connection() -> None:
    """Uses local credentials, which need no certificate."""
    async with harness() as plain:
        registry, metrics = plain.registry, plain.metrics
        local = grpc.local_server_credentials(grpc.LocalConnectionType.LOCAL_TCP)
        models = ModelService(registry, Limits(), plain.gate)
        rpc = RpcServer(plain.learner, models, metrics, credentials=local)
        await rpc.start("127.0.0.1:0")
        try:
            credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
            async with grpc.aio.secure_channel(rpc.address, credentials) as channel:
                stub: Any = models_pb2_grpc.ModelServiceStub(channel)
                assert not (await stub.ListModels(pb.ListModelsRequest())).models
        finally:
            await rpc.stop()


async def test_every_error_carries_reason_domain_and_field(server: Harness) -> None:
    request = pb.GetModelRequest(model_id="x")
    info = error_info(await failure(server.models.GetModel(request)))
    assert (info.domain, info.reason) == ("bptt", "UNKNOWN_MODEL")
    assert dict(info.metadata) == {
        "field": "model_id",
        "value": "'x'",
        "bound": "the name of a model that exists",
    }
    await server.create()
    call = await server.learn()
    await call.send("s", wave(4), first_step=3)
    refused = await call.refused()
    assert (refused.reason, refused.field, refused.value) == ("GAP", "first_step", "3")
    await call.close()


async def test_calls_and_messages_are_counted(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    for first in (0, 4, 9):
        await call.send("s", wave(4), first_step=first)
        await call.read()
    await call.close()
    await failure(server.models.GetModel(pb.GetModelRequest(model_id="x")))
    nothing: Any = server.channel.unary_unary("/bptt.v1.ModelService/Nothing")
    assert (await failure(nothing(b""))).code() == grpc.StatusCode.UNIMPLEMENTED
    learn = ("Learn", "bptt.v1.LearnerService", "bidi_stream")
    get = ("GetModel", "bptt.v1.ModelService", "unary")
    assert _samples(server, "grpc_server_started")[learn] == 1
    assert _samples(server, "grpc_server_msg_received")[learn] == 5
    assert _samples(server, "grpc_server_msg_sent")[learn] == 5
    handled = _samples(server, "grpc_server_handled")
    assert handled["OK", *learn] == 1
    assert handled["NOT_FOUND", *get] == 1
    assert _samples(server, "grpc_server_msg_sent")[get] == 0
    assert _samples(server, "grpc_server_handling_seconds")[learn] == 1
    assert not [labels for labels in handled if "Nothing" in labels]


async def test_a_call_that_its_client_cancels_is_counted_as_cancelled(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    call.raw.cancel()
    labels = ("CANCELLED", "Learn", "bptt.v1.LearnerService", "bidi_stream")
    await until(lambda: _samples(server, "grpc_server_handled").get(labels) == 1)


async def test_health_is_answered_and_watched(server: Harness) -> None:
    health: Any = health_pb2_grpc.HealthStub(server.channel)
    for service in ("", "bptt.v1.LearnerService", "bptt.v1.ModelService"):
        request = health_pb2.HealthCheckRequest(service=service)
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    error = await failure(health.Check(health_pb2.HealthCheckRequest(service="x")))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    await server.rpc.not_serving()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_the_api(server: Harness, version: str) -> None:
    channel: Any = server.channel
    method = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    call = method()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = {each.name for each in (await call.read()).list_services_response.service}
    assert {"bptt.v1.LearnerService", "bptt.v1.ModelService", "grpc.health.v1.Health"} <= names
    itself = f"grpc.reflection.{version}.ServerReflection"
    assert itself in names
    await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=itself))
    assert (await call.read()).file_descriptor_response.file_descriptor_proto
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
