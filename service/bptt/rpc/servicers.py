"""The two services: each method reads its request, calls the engine and answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any

import grpc.aio
import numpy as np

from bptt import v1 as pb
from bptt.config import Limits, PAGE_BYTES_MAX
from bptt.domain import check_model_id, check_stream_id
from bptt.durability import portable
from bptt.engine import importing
from bptt.engine.lifecycle import Operation
from bptt.engine.messages import StreamCommand
from bptt.engine.registry import page, Registry
from bptt.engine.trainer import Trainer
from bptt.errors import from_core, InvalidRequest, UnknownStream
from bptt.rpc import convert, convert_answers, convert_models, convert_predict
from bptt.rpc.compiling import compilation_told
from bptt.rpc.learn import Context, LearnCall
from bptt.security.roles import CALLER
from bptt.v1 import learner_pb2_grpc, models_pb2_grpc
from bptt_core.errors import BpttError

INLINE_PREDICT_STEPS = 16
"""Most steps that are predicted on the event loop: about 0.1 ms at the default size, as long as
handing them to a thread takes. More steps, or a larger network, go to the pool."""

INLINE_PREDICT_PARAMETERS = 500_000

DRAIN_SECONDS = 10.0

PIECE_BYTES = 1 << 20  # of a file in one message: far below the 4 MB that clients accept

_AnyContext = grpc.aio.ServicerContext[Any, Any]


class LearnerService(learner_pb2_grpc.LearnerServiceServicer):
    """Learns from streams and answers predictions.

    Args:
        registry: the models.
        limits: bounds of one call.
        executor: runs long predictions; models learn in another one.
    """

    def __init__(self, registry: Registry, limits: Limits, executor: Executor) -> None:
        self._registry = registry
        self._limits = limits
        self._executor = executor
        self._calls: set[asyncio.Task[Any]] = set()

    async def Learn(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        """Learn chunks in the order in which they arrive."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            self._registry.check_running()
            opening = await self._opening(context)
            self._registry.check_running()
            trainer = await self._model(opening.model_id, Operation.OPEN_CALL)
            await LearnCall(trainer, context, opening, self._limits).run()
        finally:
            self._calls.discard(task)

    async def _opening(self, context: Context) -> pb.OpenLearn:
        message: Any = await context.read()
        kind = "none" if message is grpc.aio.EOF else message.WhichOneof("message") or "empty"
        if kind != "open":
            raise InvalidRequest.of("message", kind, "open, the first message of the call")
        opening: pb.OpenLearn = message.open
        return opening

    @property
    def open_calls(self) -> int:
        """Number of Learn calls that have not ended."""
        return len(self._calls)

    async def finish_calls(self, grace: float) -> None:
        """Wait at most `grace` seconds for the open Learn calls to end."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=grace)

    async def Predict(self, request: pb.PredictRequest, context: _AnyContext) -> pb.PredictResponse:
        """Predict from a snapshot, without waiting for the trainer."""
        start = time.perf_counter()
        trainer = await self._model(request.model_id, Operation.PREDICT)
        snapshot, view = trainer.snapshot, None
        if request.stream_id:
            view = trainer.views.get(check_stream_id(request.stream_id))
            if view is None:
                raise UnknownStream.of(request.stream_id)
        spec = trainer.definition.spec
        top_tokens = convert_answers.top_tokens_of(request, spec)
        inputs = convert.ChunkReader(trainer.definition, self._limits).predict_inputs(request)
        small = trainer.parameters <= INLINE_PREDICT_PARAMETERS
        try:
            if inputs is None or (small and len(inputs) <= INLINE_PREDICT_STEPS):
                rows = snapshot.predict(view, inputs)
            else:
                loop = asyncio.get_running_loop()
                rows = await loop.run_in_executor(self._executor, snapshot.predict, view, inputs)
        except BpttError as error:
            raise from_core(error) from error
        trainer.sink.predicted(time.perf_counter() - start)
        next_step = (0 if view is None else view.next_step) + (0 if inputs is None else len(inputs))
        if inputs is None:
            doubles = view is not None and convert_predict.loses_digits(view.last_input)
        else:
            doubles = bool(request.input_doubles)
        return convert_answers.prediction_to_proto(
            np.asarray(rows), snapshot, next_step, top_tokens, doubles=doubles
        )

    async def PredictBatch(
        self, request: pb.PredictBatchRequest, context: _AnyContext
    ) -> pb.PredictBatchResponse:
        """Predict for many streams from one snapshot, without waiting for the trainer."""
        start = time.perf_counter()
        trainer = await self._model(request.model_id, Operation.PREDICT)
        snapshot = trainer.snapshot
        top_tokens = convert_answers.top_tokens_of(request, trainer.definition.spec)
        asked = convert_predict.PredictReader(trainer.definition, self._limits).streams(
            request, trainer.views
        )
        if asked.is_short and trainer.parameters <= INLINE_PREDICT_PARAMETERS:
            rows = asked.predict(snapshot)
        else:
            loop = asyncio.get_running_loop()
            rows = await loop.run_in_executor(self._executor, asked.predict, snapshot)
        trainer.sink.predicted(time.perf_counter() - start)
        return convert_answers.predictions_to_proto(
            rows, snapshot, asked.next_steps, asked.refused, top_tokens, doubles=asked.doubles
        )

    async def GetStream(
        self, request: pb.GetStreamRequest, context: _AnyContext
    ) -> pb.GetStreamResponse:
        """Tell where a stream stands, as of the snapshot."""
        trainer = await self._model(request.model_id, Operation.READ_STREAMS)
        stream_id = check_stream_id(request.stream_id)
        if stream_id not in trainer.views:
            raise UnknownStream.of(stream_id)
        return pb.GetStreamResponse(stream=convert_answers.stream_to_proto(trainer, stream_id))

    async def ListStreams(
        self, request: pb.ListStreamsRequest, context: _AnyContext
    ) -> pb.ListStreamsResponse:
        """Tell where the streams of a model stand, by name, as of the snapshot."""
        trainer = await self._model(request.model_id, Operation.READ_STREAMS)
        after, size = convert_models.page_from_proto(request.page_size, request.page_token)
        names, following = page(trainer.views, after, size)
        streams = [convert_answers.stream_to_proto(trainer, name) for name in names]
        return pb.ListStreamsResponse(streams=streams, next_page_token=following)

    async def ResetStream(
        self, request: pb.ResetStreamRequest, context: _AnyContext
    ) -> pb.ResetStreamResponse:
        """Reset a stream's state, after its accepted chunks are learned."""
        self._registry.check_running()
        trainer = await self._model(request.model_id, Operation.CHANGE_STREAM)
        stream_id = check_stream_id(request.stream_id)
        done = asyncio.get_running_loop().create_future()
        next_step = await trainer.command(StreamCommand(stream_id, "reset", done))
        # The command is durable, and so is every step before it.
        stream = pb.Stream(
            stream_id=stream_id,
            next_step=next_step,
            durable_step=next_step,
            incarnation=trainer.incarnation(stream_id),
        )
        stream.source_position, stream.source_step = trainer.views.source(stream_id)
        return pb.ResetStreamResponse(stream=stream)

    async def DeleteStream(
        self, request: pb.DeleteStreamRequest, context: _AnyContext
    ) -> pb.DeleteStreamResponse:
        """Delete a stream, after its accepted chunks are learned."""
        self._registry.check_running()
        trainer = await self._model(request.model_id, Operation.CHANGE_STREAM)
        stream_id = check_stream_id(request.stream_id)
        done = asyncio.get_running_loop().create_future()
        await trainer.command(StreamCommand(stream_id, "delete", done))
        return pb.DeleteStreamResponse()

    async def _model(self, model_id: str, operation: Operation) -> Trainer:
        return await self._registry.find(check_model_id(model_id), operation)


class ModelService(models_pb2_grpc.ModelServiceServicer):
    """Creates, describes, configures and deletes models."""

    def __init__(self, registry: Registry, limits: Limits, executor: Executor) -> None:
        self._registry = registry
        self._limits = limits
        self._executor = executor

    async def CreateModel(
        self, request: pb.CreateModelRequest, context: _AnyContext
    ) -> pb.CreateModelResponse:
        """Create a model."""
        check_model_id(request.model_id)
        definition = convert_models.definition_from_proto(request.model_id, request.spec)
        async with compilation_told(context):
            trainer = await self._registry.create(definition)
        return pb.CreateModelResponse(model=convert_models.model_to_proto(trainer.status))

    async def GetModel(
        self, request: pb.GetModelRequest, context: _AnyContext
    ) -> pb.GetModelResponse:
        """Describe a model as of its snapshot."""
        status = self._registry.status(check_model_id(request.model_id))
        return pb.GetModelResponse(model=convert_models.model_to_proto(status))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: _AnyContext
    ) -> pb.ListModelsResponse:
        """Describe the models that the caller may see, by name."""
        after, size = convert_models.page_from_proto(request.page_size, request.page_token)
        found, following = self._registry.page(after, size, CALLER.get().allows)
        response, held = pb.ListModelsResponse(next_page_token=following), 0
        for status in found:
            model = convert_models.model_to_proto(status)
            held += model.ByteSize()
            if held > PAGE_BYTES_MAX and response.models:
                response.next_page_token = response.models[-1].model_id
                break
            response.models.append(model)
        return response

    async def DeleteModel(
        self, request: pb.DeleteModelRequest, context: _AnyContext
    ) -> pb.DeleteModelResponse:
        """Delete a model, after its accepted chunks are learned."""
        await self._registry.delete(check_model_id(request.model_id))
        return pb.DeleteModelResponse()

    async def UpdateModel(
        self, request: pb.UpdateModelRequest, context: _AnyContext
    ) -> pb.UpdateModelResponse:
        """Change how a model learns from its next update on."""
        model_id = check_model_id(request.model_id)
        changes = convert_models.changes_from_proto(request)
        trainer = await self._registry.update_model(model_id, **changes)
        return pb.UpdateModelResponse(model=convert_models.model_to_proto(trainer.status))

    async def SaveCheckpoint(
        self, request: pb.SaveCheckpointRequest, context: _AnyContext
    ) -> pb.SaveCheckpointResponse:
        """Write a checkpoint now."""
        model_id = check_model_id(request.model_id)
        info = await self._registry.save_checkpoint(model_id)
        return pb.SaveCheckpointResponse(checkpoint=convert_models.checkpoint_to_proto(info))

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: _AnyContext
    ) -> pb.ListCheckpointsResponse:
        """List the checkpoints of a model, oldest first."""
        found = await self._registry.list_checkpoints(check_model_id(request.model_id))
        checkpoints = [convert_models.checkpoint_to_proto(each) for each in found]
        return pb.ListCheckpointsResponse(checkpoints=checkpoints)

    async def RestoreCheckpoint(
        self, request: pb.RestoreCheckpointRequest, context: _AnyContext
    ) -> pb.RestoreCheckpointResponse:
        """Take a model back to a checkpoint."""
        self._registry.check_running()
        model_id = check_model_id(request.model_id)
        trainer = await self._registry.restore_checkpoint(model_id, request.lsn)
        return pb.RestoreCheckpointResponse(model=convert_models.model_to_proto(trainer.status))

    async def ExportModel(
        self, request: pb.ExportModelRequest, context: _AnyContext
    ) -> AsyncIterator[pb.ExportModelResponse]:
        """Send a model's network as a safetensors file, as of its snapshot."""
        trainer = await self._registry.find(check_model_id(request.model_id), Operation.PREDICT)
        definition, snapshot = trainer.definition, trainer.snapshot
        loop = asyncio.get_running_loop()
        data = await loop.run_in_executor(
            self._executor, lambda: portable.encode(importing.exported(definition, snapshot))
        )
        for start in range(0, len(data), PIECE_BYTES):
            yield pb.ExportModelResponse(data=data[start : start + PIECE_BYTES])

    async def ImportModel(
        self, request_iterator: AsyncIterator[pb.ImportModelRequest], context: _AnyContext
    ) -> pb.ImportModelResponse:
        """Create a model from a safetensors file."""
        self._registry.check_running()
        named, data = await self._imported(request_iterator)
        given = convert_models.given_values(named.spec)
        loop = asyncio.get_running_loop()
        try:
            model = await loop.run_in_executor(self._executor, portable.decode, data)
        except ValueError as error:
            bound = "a safetensors file of numbers in F16, F32 or F64"
            raise InvalidRequest.of("data", f"{len(data)} bytes: {error}", bound) from error
        network = importing.renamed(model.parameters)
        definition = convert_models.definition_of(
            named.model_id,
            importing.values_of(model, network, given),
            tuple(named.spec.input_names) or model.input_names,
            tuple(named.spec.target_names) or model.target_names,
        )
        trainer = await self._registry.create(definition, importing.loader(model, network))
        return pb.ImportModelResponse(
            model=convert_models.model_to_proto(trainer.status),
            notes=(*network.notes, *importing.assumed(model, definition.spec, given)),
        )

    async def _imported(
        self, messages: AsyncIterator[pb.ImportModelRequest]
    ) -> tuple[pb.ImportedModel, bytes]:
        """Return the first message of an import, and its file."""
        named: pb.ImportedModel | None = None
        data = bytearray()
        bound = self._limits.parameters * np.dtype(np.float64).itemsize + PIECE_BYTES
        async for message in messages:
            kind = message.WhichOneof("message") or "empty"
            if named is None:
                if kind != "model":
                    raise InvalidRequest.of("message", kind, "model, the first message of the call")
                named = message.model
                check_model_id(named.model_id)
                continue
            if kind != "data":
                raise InvalidRequest.of("message", kind, "data, after the first message")
            data += message.data
            if len(data) > bound:
                data.clear()
                await _drained(messages)
                value = f"more than {bound} bytes"
                told = f"at most that: the server's limit is {self._limits.parameters} parameters"
                raise InvalidRequest.of("data", value, told)
        if named is None:
            raise InvalidRequest.of("message", "none", "model, the first message of the call")
        return named, bytes(data)


async def _drained(messages: AsyncIterator[Any]) -> None:
    """Read and drop what a client still sends, for at most DRAIN_SECONDS.

    A client whose write meets the end of the call may see an internal error in place of the status.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in messages:
                pass
