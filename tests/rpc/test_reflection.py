"""Reflection with tools that have none of our .proto files: buf (v1) and grpcurl (v1alpha)."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.rpc.harness import Harness
from tests.support.tools import program

pytestmark = pytest.mark.tools


async def _run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    return out.decode()


@pytest.mark.parametrize("version", ["grpc-v1", "grpc-v1alpha"])
async def test_buf_calls_a_method_that_it_knows_by_reflection(
    server: Harness, version: str
) -> None:
    buf = program("buf")
    await server.create("m")
    url = f"http://{server.rpc.address}"
    options = ("--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", version)
    listed = await _run(buf, "curl", *options, "--list-services", url)
    assert {"bptt.v1.LearnerService", "bptt.v1.ModelService"} <= set(listed.split())
    method = f"{url}/bptt.v1.ModelService/GetModel"
    answer = json.loads(await _run(buf, "curl", *options, "-d", '{"model_id": "m"}', method))
    assert answer["model"]["modelId"] == "m"


async def test_grpcurl_describes_the_services(server: Harness) -> None:
    grpcurl = program("grpcurl")
    listed = await _run(grpcurl, "-plaintext", server.rpc.address, "list")
    described = ""
    for service in listed.split():
        described += await _run(grpcurl, "-plaintext", server.rpc.address, "describe", service)
    assert "rpc Learn ( stream .bptt.v1.LearnRequest )" in described
    assert "grpc.reflection.v1.ServerReflection is a service" in described
