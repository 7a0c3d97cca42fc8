"""Who may do what: a real server with TLS and tokens, and clients of the SDK."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]

from bptt import Client, PermissionDenied, ServiceError, Unauthenticated
from bptt import v1 as pb
from bptt.errors import UnknownModel
from bptt.rpc.auth.table import METHODS, MODEL_HEALTH
from bptt.security import callers
from tests.rpc.conftest import server as server
from tests.rpc.harness import Harness, wave
from tests.security.conftest import Secured

SPEC = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}


async def refusal(awaitable: Any) -> ServiceError:
    try:
        await awaitable
    except ServiceError as error:
        return error
    raise AssertionError("the call was not refused")


async def test_every_method_of_every_service_is_in_the_table(server: Harness) -> None:
    channel: Any = server.channel
    call = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = [each.name for each in (await call.read()).list_services_response.service]
    call.cancel()
    pool = descriptor_pool.Default()
    methods = {
        f"/{name}/{method.name}"
        for name in names
        for method in pool.FindServiceByName(name).methods
    }
    assert len(methods) > 15
    assert methods == set(METHODS), "say in rpc/auth/table.py who may call it"


async def test_a_call_without_a_valid_token_is_refused(secured: Secured) -> None:
    good = secured.token("admin")
    identity = good.split("_")[1]
    bad = [None, "x", f"bptt_{identity}_{'A' * 43}", good[:-1], f"bptt_{'0' * 12}_{'A' * 43}"]
    async with secured.serving() as server:
        for token in bad:
            async with secured.client(server, token) as client:
                error = await refusal(client.list_models())
                assert isinstance(error, Unauthenticated), token
                assert good not in str(error)
                assert token is None or len(token) < 2 or token not in str(error)
        async with secured.client(server, good) as client:
            assert await client.list_models() == []


@pytest.mark.parametrize("header", ["Basic eDp5", "Bearer", "Bearer ", "bptt_x", ""])
async def test_another_form_of_credentials_is_refused(secured: Secured, header: str) -> None:
    secured.token("admin")
    async with secured.serving() as server:
        credentials = grpc.ssl_channel_credentials(secured.ca_file.read_bytes())
        async with grpc.aio.secure_channel(server.rpc.address, credentials) as channel:
            method: Any = channel.unary_unary("/bptt.v1.ModelService/ListModels")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await method(b"", metadata=(("authorization", header),))
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_roles_include_one_another_and_end_at_their_methods(secured: Secured) -> None:
    reader, writer, admin = (secured.token(role) for role in ("reader", "writer", "admin"))
    async with secured.serving() as server:
        async with secured.client(server, admin) as client:
            await client.create_model("m", SPEC)
        async with secured.client(server, writer) as client:
            async with client.learn("m") as session:
                await session.send("s", wave(8))
            async with client.learn("m") as session:
                await session.send("other", wave(8))
            await client.reset_stream("m", "other")
            error = await refusal(client.delete_model("m"))
            assert isinstance(error, PermissionDenied)
            assert "needs the role admin" in str(error)
        async with secured.client(server, reader) as client:
            assert (await client.predict("m", "s")).values.shape[1:] == (1, 2)
            assert [each.model_id for each in await client.list_models()] == ["m"]
            assert isinstance(await refusal(client.reset_stream("m", "s")), PermissionDenied)
            with pytest.raises(PermissionDenied, match="needs the role writer"):
                async with client.learn("m") as session:
                    await session.send("s", wave(8))
        async with secured.client(server, admin) as client:
            await client.delete_model("m")


async def test_a_pattern_bounds_what_a_caller_sees_and_learns(secured: Secured) -> None:
    admin, plant = secured.token("admin"), secured.token("writer", "plant-*", "one")
    async with secured.serving() as server:
        async with secured.client(server, admin) as client:
            for name in ("plant", "plant-1", "plant-2", "one", "one-1", "zoo"):
                await client.create_model(name, SPEC)
        async with secured.client(server, plant) as client:
            seen = [each.model_id for each in await client.list_models()]
            assert seen == ["one", "plant-1", "plant-2"]
            exists = await refusal(client.get_model("zoo"))
            missing = await refusal(client.get_model("zoo-2"))
            assert isinstance(exists, PermissionDenied)
            assert (exists.message, exists.reason, exists.violations) == (
                missing.message,
                missing.reason,
                missing.violations,
            )
            assert isinstance(await refusal(client.get_model("plant-3")), UnknownModel)
            with pytest.raises(PermissionDenied):
                async with client.learn("plant") as session:
                    await session.send("s", wave(8))
            # A page ends before a model that is not shown: the token names one that is.
            ask = pb.ListModelsRequest(page_size=1)
            page = await client._models.ListModels(ask)
            assert page.next_page_token == "one"


async def test_health_is_open_but_a_model_is_for_its_callers(secured: Secured) -> None:
    admin, other = secured.token("admin"), secured.token("reader", "plant-*")
    async with secured.serving() as server:
        async with secured.client(server, admin) as client:
            await client.create_model("m", SPEC)
        await server.rpc.model_serving("m", True)
        credentials = grpc.ssl_channel_credentials(secured.ca_file.read_bytes())
        async with grpc.aio.secure_channel(server.rpc.address, credentials) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)

            async def asked(service: str, token: str | None) -> grpc.StatusCode:
                metadata = (("authorization", f"Bearer {token}"),) if token else ()
                request = health_pb2.HealthCheckRequest(service=service)
                try:
                    await health.Check(request, metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    return error.code()
                return grpc.StatusCode.OK

            assert await asked("", None) is grpc.StatusCode.OK
            assert await asked("bptt.v1.LearnerService", None) is grpc.StatusCode.OK
            assert await asked(MODEL_HEALTH + "m", admin) is grpc.StatusCode.OK
            for name in ("m", "missing"):
                service = MODEL_HEALTH + name
                assert await asked(service, None) is grpc.StatusCode.UNAUTHENTICATED
                assert await asked(service, other) is grpc.StatusCode.PERMISSION_DENIED


async def learned_until_refused(client: Client, opened: asyncio.Event) -> tuple[Any, float]:
    async with client.learn("m") as session:
        await session.send("s", wave(8))
        opened.set()
        while True:
            await session.send("s", wave(8))
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["revoked", "expired", "changed", "file gone"])
async def test_an_open_call_ends_within_a_second_of_its_caller(secured: Secured, how: str) -> None:
    admin = secured.token("admin")
    expires = time.time() + 2.0 if how == "expired" else None
    writer = secured.token("writer", expires=expires, name="w")
    async with secured.serving() as server:
        async with secured.client(server, admin) as client:
            await client.create_model("m", SPEC)
        async with secured.client(server, writer) as client:
            opened = asyncio.Event()
            task = asyncio.create_task(learned_until_refused(client, opened))
            await opened.wait()
            start = time.time() if expires is None else expires
            if how == "revoked":
                callers.revoke(secured.file, "w")
            elif how == "changed":
                text = secured.file.read_text()
                secured.file.write_text(text.replace('"writer", "models"', '"reader", "models"'))
            elif how == "file gone":
                secured.file.unlink()
            error = await refusal(task)
            assert isinstance(error, Unauthenticated), error
            assert time.time() - start < 1.0
            kind = PermissionDenied if how == "changed" else Unauthenticated
            with pytest.raises(kind):
                async with client.learn("m") as session:
                    await session.send("s", wave(8))
        # What was accepted before is learned, and other calls go on.
        if how != "file gone":
            async with secured.client(server, admin) as client:
                assert (await client.get_stream("m", "s")).next_step >= 8


async def test_a_damaged_file_leaves_the_callers_in_force(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    admin = secured.token("admin")
    async with secured.serving() as server, secured.client(server, admin) as client:
        secured.file.write_text("{")
        while not any("stay in force" in record.message for record in caplog.records):
            await asyncio.sleep(0.01)
            assert await client.list_models() == []


async def test_a_token_that_was_just_made_is_taken_at_once(secured: Secured) -> None:
    secured.token("admin")
    async with (
        secured.serving() as server,
        secured.client(server, secured.token("reader")) as client,
    ):
        assert await client.list_models() == []


async def test_a_message_that_cannot_be_decoded_is_told_in_plain_words(
    server: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    channel: Any = server.channel
    for _ in range(100):
        for method in ("ModelService/GetModel", "LearnerService/Predict"):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary(f"/bptt.v1.{method}")(b"\xff\xff\xff")
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "3 bytes that cannot be decoded" in str(raised.value.details())
        call = channel.stream_stream("/bptt.v1.LearnerService/Learn")()
        await call.write(b"\x0a\xff")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    told = [each for each in caplog.records if "cannot be decoded" in each.message]
    assert len(told) <= 3
    assert not any(each.exc_info for each in caplog.records)
