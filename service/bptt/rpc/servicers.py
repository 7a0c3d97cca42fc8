"""The two services: each method reads its request, calls the engine and answers."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from typing import Any

import grpc.aio
import numpy as np

from bptt import v1 as pb
from bptt.config import Limits, PAGE_BYTES_MAX
from bptt.domain import check_model_id, check_stream_id
from bptt.engine.lifecycle import Operation
from bptt.engine.messages import StreamCommand
from bptt.engine.registry import page, Registry
from bptt.engine.trainer import Trainer
from bptt.errors import from_core, InvalidRequest, UnknownStream
from bptt.rpc import convert, convert_answers, convert_models, convert_predict
from bptt.rpc.learn import Context, LearnCall
from bptt.v1 import learner_pb2_grpc, models_pb2_grpc
from bptt_core.errors import BpttError

INLINE_PREDICT_STEPS = 16
"""Most steps that are predicted on the event loop: about 0.1 ms at the default size, as long as
handing them to a thread takes. More steps, or a larger network, go to the pool."""

INLINE_PREDICT_PARAMETERS = 500_000

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

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def CreateModel(
        self, request: pb.CreateModelRequest, context: _AnyContext
    ) -> pb.CreateModelResponse:
        """Create a model."""
        check_model_id(request.model_id)
        definition = convert_models.definition_from_proto(request.model_id, request.spec)
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
        """Describe all models, by name."""
        after, size = convert_models.page_from_proto(request.page_size, request.page_token)
        found, following = self._registry.page(after, size)
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
