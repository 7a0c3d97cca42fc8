"""A real server on loopback in the test's event loop; the test can hold back its trainers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc.aio
import numpy as np
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status  # type: ignore[import-untyped]

from bptt import v1 as pb
from bptt.config import Limits, ServerConfig
from bptt.durability import Store
from bptt.engine.registry import Registry
from bptt.observability.metrics import Metrics
from bptt.rpc.auth.guard import Guard
from bptt.rpc.server import RpcServer
from bptt.rpc.servicers import LearnerService, ModelService
from bptt.v1 import learner_pb2_grpc, models_pb2_grpc
from bptt_core import Learner, ModelSpec


class Gate(ThreadPoolExecutor):
    """A pool whose tasks wait while it is closed: keeps a trainer busy for as long as needed."""

    def __init__(self) -> None:
        super().__init__(2)
        self.held = 0  # tasks so far that had to wait
        self._open = threading.Event()
        self._open.set()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        def waiting() -> Any:
            if not self._open.is_set():
                self.held += 1
            assert self._open.wait(60)
            return function(*arguments, **named)

        return super().submit(waiting)


class Harness:
    """The server's parts, and stubs of a client."""

    def __init__(self, registry: Registry, learner: LearnerService, rpc: RpcServer) -> None:
        self.registry = registry
        self.learner = learner
        self.rpc = rpc
        self.gate = Gate()
        self.metrics = Metrics()
        self.channel = grpc.aio.insecure_channel(rpc.address)
        self.models: Any = models_pb2_grpc.ModelServiceStub(self.channel)
        self.streams: Any = learner_pb2_grpc.LearnerServiceStub(self.channel)

    async def create(self, model_id: str = "m", **spec: Any) -> pb.Model:
        request = pb.CreateModelRequest(model_id=model_id, spec=small(**spec))
        response: pb.CreateModelResponse = await self.models.CreateModel(request)
        return response.model

    async def model(self, model_id: str = "m") -> pb.Model:
        response: pb.GetModelResponse = await self.models.GetModel(
            pb.GetModelRequest(model_id=model_id)
        )
        return response.model

    async def next_step(self, stream_id: str, model_id: str = "m") -> int:
        request = pb.GetStreamRequest(model_id=model_id, stream_id=stream_id)
        return int((await self.streams.GetStream(request)).stream.next_step)

    async def predict(self, stream_id: str, model_id: str = "m") -> list[float]:
        request = pb.PredictRequest(model_id=model_id, stream_id=stream_id)
        return list((await self.streams.Predict(request)).predictions)

    async def learn(self, model_id: str = "m", *, omit_predictions: bool = False) -> Call:
        call = Call(self.streams.Learn())
        opening = pb.OpenLearn(model_id=model_id, omit_predictions=omit_predictions)
        await call.raw.write(pb.LearnRequest(open=opening))
        answer = await call.read()
        assert answer.WhichOneof("message") == "opened", answer
        return call


class Call:
    """An open Learn call."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.durable: dict[str, int] = {}  # stream: last reported durable step

    async def send(self, stream_id: str, inputs: Any, **fields: Any) -> None:
        values = np.asarray(inputs, np.float32).ravel().tolist()
        chunk = pb.Chunk(stream_id=stream_id, inputs=values, **fields)
        await self.raw.write(pb.LearnRequest(chunk=chunk))

    async def read(self) -> Any:
        """Read the next message that is not an acknowledgement; acknowledgements are recorded."""
        while True:
            answer = await self.raw.read()
            if answer is grpc.aio.EOF or answer.WhichOneof("message") != "acknowledged":
                return answer
            assert answer.acknowledged.streams
            for each in answer.acknowledged.streams:
                assert each.durable_step > self.durable.get(each.stream_id, 0)
                self.durable[each.stream_id] = each.durable_step

    async def learned(self) -> pb.ChunkLearned:
        answer = await self.read()
        assert answer.WhichOneof("message") == "learned", answer
        learned: pb.ChunkLearned = answer.learned
        self.durable[learned.stream_id] = learned.durable_step
        return learned

    async def refused(self) -> pb.ChunkRefused:
        answer = await self.read()
        assert answer.WhichOneof("message") == "refused", answer
        refused: pb.ChunkRefused = answer.refused
        return refused

    async def close(self) -> pb.LearnClosed:
        await self.raw.write(pb.LearnRequest(close=pb.CloseLearn()))
        answer = await self.read()
        assert answer.WhichOneof("message") == "closed", answer
        assert await self.read() is grpc.aio.EOF
        assert await self.raw.code() == grpc.StatusCode.OK
        closed: pb.LearnClosed = answer.closed
        return closed


@contextlib.asynccontextmanager
async def harness(
    limits: Limits | None = None,
    make_learner: Callable[[ModelSpec], Learner] = Learner,
    store: Store | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    guard: Guard | None = None,
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[Harness]:
    """Run a server and stop it cleanly at the end. A store must be open.

    With `guard` or `credentials` the harness's own stubs, which have neither TLS nor a token, are
    refused.
    """
    config = ServerConfig(address="127.0.0.1:0", limits=limits or Limits(), threads=2)
    metrics, gate = Metrics(), Gate()
    registry = Registry(config, gate, store, metrics, make_learner)
    with ThreadPoolExecutor(1) as predict_pool:
        learner = LearnerService(registry, config.limits, predict_pool)
        rpc = RpcServer(
            learner,
            ModelService(registry, config.limits, predict_pool),
            metrics,
            message_bytes=config.limits.message_bytes,
            interceptors=interceptors,
            guard=guard,
            credentials=credentials,
        )
        await rpc.start(config.address)
        await rpc.serving()
        server = Harness(registry, learner, rpc)
        server.gate, server.metrics = gate, metrics
        try:
            yield server
        finally:
            gate.open()
            registry.begin_stop()
            await registry.stop(10.0)
            await learner.finish_calls(10.0)
            await server.channel.close()
            await rpc.stop()
            gate.shutdown()


def small(**fields: Any) -> pb.ModelSpec:
    """A spec of two inputs and a very small network."""
    values: dict[str, Any] = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}
    return pb.ModelSpec(**(values | fields))


def wave(steps: int, first: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Two inputs that a network can learn."""
    t = np.arange(first, first + steps)[:, None]
    return np.asarray(np.sin(t / np.array([5.0, 9.0])), np.float32)


async def failure(awaitable: Any) -> grpc.aio.AioRpcError:
    """The error with which a call ends."""
    try:
        await awaitable
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call did not fail")


def violations(error: grpc.aio.AioRpcError) -> Sequence[tuple[str, str]]:
    """Field and description of each `google.rpc.BadRequest` violation of an error."""
    found = []
    for detail in details(error):
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            found += [(each.field, each.description) for each in bad_request.field_violations]
    return found


def error_info(error: grpc.aio.AioRpcError) -> Any:
    """The `google.rpc.ErrorInfo` of an error."""
    [info] = [
        unpacked
        for detail in details(error)
        if detail.Unpack(unpacked := error_details_pb2.ErrorInfo())
    ]
    return info


def details(error: grpc.aio.AioRpcError) -> Sequence[Any]:
    """The details of an error's `google.rpc.Status`."""
    status = rpc_status.from_call(error)
    assert status is not None
    assert status.message == error.details()
    found: Sequence[Any] = status.details
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds; the test's time-out is the bound."""
    while not condition():  # noqa: ASYNC110 - the condition has no event to wait for
        await asyncio.sleep(0)
