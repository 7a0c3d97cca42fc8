"""A real server process: signals, addresses in use, and restarts."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from bptt import v1 as pb
from bptt.v1 import learner_pb2_grpc, models_pb2_grpc
from tests.rpc.harness import Call, failure, small, wave
from tests.support.server import serving

FREE = ("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")


class Stubs:
    """Stubs for a server in another process."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.models: Any = models_pb2_grpc.ModelServiceStub(channel)
        self.streams: Any = learner_pb2_grpc.LearnerServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    async def health_of(self, model_id: str) -> int:
        request = health_pb2.HealthCheckRequest(service=f"bptt.v1.models/{model_id}")
        status: int = (await self.health.Check(request)).status
        return status

    async def learn(self, model_id: str) -> Call:
        call = Call(self.streams.Learn())
        await call.raw.write(pb.LearnRequest(open=pb.OpenLearn(model_id=model_id)))
        assert (await call.read()).WhichOneof("message") == "opened"
        return call

    async def seen(self, model_id: str, stream_id: str) -> tuple[int, list[float], pb.Model]:
        fields: dict[str, Any] = {"model_id": model_id, "stream_id": stream_id}
        stream = (await self.streams.GetStream(pb.GetStreamRequest(**fields))).stream
        rows = list((await self.streams.Predict(pb.PredictRequest(**fields))).predictions)
        model = (await self.models.GetModel(pb.GetModelRequest(model_id=model_id))).model
        return stream.next_step, rows, model


@contextlib.asynccontextmanager
async def connected(address: str) -> AsyncIterator[Stubs]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield Stubs(channel)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_open_calls_in_order_and_a_restart_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    data = ("--data", str(tmp_path / "data"))
    with serving(*data) as served:
        async with connected(served.address) as client:
            spec = small(horizon=2, input_names=["a", "b"])
            await client.models.CreateModel(pb.CreateModelRequest(model_id="m", spec=spec))
            await client.models.CreateModel(pb.CreateModelRequest(model_id="idle", spec=small()))
            call, idle = await client.learn("m"), await client.learn("idle")
            watch = client.health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            await call.send("s", wave(21))
            await call.learned()
            before = await client.seen("m", "s")
            served.process.send_signal(number)
            answer = await call.read()
            assert answer.WhichOneof("message") == "closed"
            assert answer.closed.server_stopping
            assert await call.read() is grpc.aio.EOF
            assert await call.raw.code() == grpc.StatusCode.OK
            assert (await idle.read()).closed.server_stopping
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert served.process.wait(timeout=30) == 0
    with serving(*data) as served:
        async with connected(served.address) as client:
            after = await client.seen("m", "s")
            assert after == before
            assert list(after[2].spec.input_names) == ["a", "b"]
            listed = await client.models.ListModels(pb.ListModelsRequest())
            assert [each.model_id for each in listed.models] == ["idle", "m"]
            call = await client.learn("m")
            await call.send("s", wave(21), first_step=0)
            await call.send("s", wave(4, 21), first_step=21)
            assert (await call.learned()).next_step == 21
            assert (await call.learned()).next_step == 25
            await call.close()


async def test_learning_after_a_restart_equals_learning_without_one(tmp_path: Path) -> None:
    predictions = []
    for folder, restart in (("once", False), ("twice", True)):
        data = ("--data", str(tmp_path / folder))
        with serving(*data) as served:
            async with connected(served.address) as client:
                await client.models.CreateModel(pb.CreateModelRequest(model_id="m", spec=small()))
                call = await client.learn("m")
                await call.send("s", wave(31))
                await call.learned()
                if not restart:
                    await call.send("s", wave(31, 31))
                    predictions.append(list((await call.learned()).predictions))
                await call.close()
        if restart:
            with serving(*data) as served:
                async with connected(served.address) as client:
                    call = await client.learn("m")
                    await call.send("s", wave(31, 31))
                    predictions.append(list((await call.learned()).predictions))
                    await call.close()
    assert predictions[0] == predictions[1]


async def test_a_deleted_model_stays_deleted(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    with serving(*data) as served:
        async with connected(served.address) as client:
            await client.models.CreateModel(pb.CreateModelRequest(model_id="m", spec=small()))
            await client.models.DeleteModel(pb.DeleteModelRequest(model_id="m"))
    with serving(*data) as served:
        async with connected(served.address) as client:
            assert not (await client.models.ListModels(pb.ListModelsRequest())).models


async def test_without_data_nothing_is_stored() -> None:
    with serving() as served:
        async with connected(served.address) as client:
            await client.models.CreateModel(pb.CreateModelRequest(model_id="m", spec=small()))
            error = await failure(client.streams.GetStream(pb.GetStreamRequest(model_id="m")))
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_server_started_by_hand_is_stopped_by_a_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "bptt.cli", "serve", "--json", *FREE]
    pipe = subprocess.PIPE
    with subprocess.Popen(  # noqa: ASYNC220 - nothing else runs in this test's loop
        command, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = json.loads(process.stdout.readline())["address"]
            async with connected(address) as client:
                await client.models.CreateModel(pb.CreateModelRequest(model_id="m", spec=small()))
                call = await client.learn("m")
                process.send_signal(number)
                assert (await call.read()).closed.server_stopping
            assert process.wait(timeout=30) == 0
            assert process.stderr is not None
            said = process.stderr.read()
            assert "Traceback" not in said
            assert f"asked to stop by {number.name}" in said
            assert "stopped after" in said
        finally:
            process.kill()


def _fails(*options: str) -> str:
    """The error output of `bptt serve` with invalid options."""
    command = [sys.executable, "-m", "bptt.cli", "serve", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_taken_address_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for option in ("--address", "--metrics-address"):
            said = _fails(*FREE, option, address)
            assert address in said
            assert option.removeprefix("--").replace("-", "_") in said


def test_the_address_of_another_server_is_taken() -> None:
    with serving() as served:
        assert served.address in _fails(*FREE, "--address", served.address)
        metrics = urllib.request.urlopen(f"http://{served.metrics_address}/metrics")
        assert metrics.status == 200


def test_the_data_of_another_server_is_not_touched(tmp_path: Path) -> None:
    with serving("--data", str(tmp_path)):
        assert str(tmp_path) in _fails(*FREE, "--data", str(tmp_path))


async def test_a_model_that_cannot_be_brought_back_does_not_stop_the_others(
    tmp_path: Path,
) -> None:
    data = ("--data", str(tmp_path))
    with serving(*data) as served:
        async with connected(served.address) as client:
            await client.models.CreateModel(pb.CreateModelRequest(model_id="m", spec=small()))
            await client.models.CreateModel(pb.CreateModelRequest(model_id="n", spec=small()))
    [path] = (tmp_path / "models" / "m").glob("checkpoint-*.safetensors")
    path.write_bytes(b"not what it should be")
    with serving(*data) as served:
        async with connected(served.address) as client:
            await client.models.GetModel(pb.GetModelRequest(model_id="n"))
            shown = (await client.models.GetModel(pb.GetModelRequest(model_id="m"))).model
            assert shown.state == pb.MODEL_STATE_FAILED
            assert str(path) in shown.state_reason
            listed = (await client.models.ListModels(pb.ListModelsRequest())).models
            assert [(each.model_id, each.state) for each in listed] == [
                ("m", pb.MODEL_STATE_FAILED),
                ("n", pb.MODEL_STATE_RUNNING),
            ]
            predict = client.streams.Predict(pb.PredictRequest(model_id="m"))
            error = await failure(predict)
            assert error.code() == grpc.StatusCode.DATA_LOSS
            assert str(path) in (error.details() or "")
            status = await client.health_of("m")
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
            again = pb.CreateModelRequest(model_id="m", spec=small())
            error = await failure(client.models.CreateModel(again))
            assert error.code() == grpc.StatusCode.ALREADY_EXISTS
            await client.models.DeleteModel(pb.DeleteModelRequest(model_id="m"))
            error = await failure(client.health_of("m"))
            assert error.code() == grpc.StatusCode.NOT_FOUND
            await client.models.CreateModel(again)
            assert await client.health_of("m") == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("address", ["", "50051", "localhost", "localhost:x", "1:2:3", "h:65536"])
def test_an_invalid_address_is_named(address: str) -> None:
    said = _fails(*FREE, "--address", address)
    assert "address" in said
    assert "host:port" in said
