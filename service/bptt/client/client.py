"""The client: a connection to one server, as an asynchronous context manager."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import ArrayLike

from bptt import v1 as pb
from bptt.client import convert, convert_predict
from bptt.client.access import Access, is_loopback
from bptt.client.connection import RECONNECT_SECONDS
from bptt.client.digits import number_array
from bptt.client.errors import from_rpc_error, ServerUnreachable
from bptt.client.session import LearnSession
from bptt.client.types import (
    BatchPrediction,
    Checkpoint,
    Imported,
    Model,
    ModelSpec,
    Prediction,
    Stream,
)
from bptt.compiling import COMPILING_KEY
from bptt.v1 import learner_pb2_grpc, models_pb2_grpc

CONNECT_SECONDS = 10.0  # for a server that accepts a connection but sends nothing
CALL_SECONDS = 60.0  # far more than a busy server needs for any answer
CREATE_SECONDS = 300.0  # the first model of a cell compiles its kernels, which takes up to minutes
RECONNECT_MILLISECONDS = 200  # between attempts: a restarted server is found soon
MESSAGE_BYTES_MAX = 64 << 20  # far above the 4 MB to which the server bounds its answers
PAGE_SIZE = 1000  # the server's maximum
PIECE_BYTES = 1 << 20  # of a file in one message: below the server's 4 MB


class Client:
    """A connection to a server.

    ```python
    async with Client.connect("127.0.0.1:50051") as client:
        await client.create_model("sea", {"input_size": 1})
        async with client.learn("sea") as session:
            await session.send("buoy", [[4.9], [4.8], [4.8]])
        prediction = await client.predict("sea", "buoy")
    ```

    Every call raises a `ServiceError`: see `bptt.errors`.
    """

    def __init__(
        self, address: str, *, wait_seconds: float = 0.0, access: Access | None = None
    ) -> None:
        """See `connect`."""
        self.address = address
        self._access = Access.from_environment() if access is None else access
        self._wait_seconds = wait_seconds
        self._channel: Any = None
        self._learner: Any = None
        self._models: Any = None

    @classmethod
    def connect(
        cls, address: str, *, wait_seconds: float = 0.0, access: Access | None = None
    ) -> Self:
        """A client of the server at `address`, connected when its block is entered.

        Args:
            address: host and port.
            wait_seconds: how long to wait for a server that is not up yet.
            access: certificates and token. None: those that the environment names (BPTT_TLS_CA,
                BPTT_TOKEN and others, see `Access`).
        """
        return cls(address, wait_seconds=wait_seconds, access=access)

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ServerUnreachable: no server answers at the address.
            InvalidRequest: a file of the access cannot be read, or its token would leave this
                machine without TLS.
        """
        options = [
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MILLISECONDS),
            ("grpc.max_reconnect_backoff_ms", RECONNECT_MILLISECONDS),
            ("grpc.min_reconnect_backoff_ms", RECONNECT_MILLISECONDS),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", -1),  # the server refuses messages that are too long
        ]
        if is_loopback(self.address):
            options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach this machine
        self._channel = self._access.channel(self.address, options)
        try:
            await self._connected()
        except BaseException:
            await self._channel.close()
            raise
        self._learner = self._access.stub(learner_pb2_grpc.LearnerServiceStub(self._channel))
        self._models = self._access.stub(models_pb2_grpc.ModelServiceStub(self._channel))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        await self._channel.close()

    async def _connected(self) -> None:
        loop = asyncio.get_running_loop()
        failing_until = loop.time() + self._wait_seconds
        deadline = loop.time() + max(self._wait_seconds, CONNECT_SECONDS)
        while True:
            state = self._channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return
            failed = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
            remaining = (failing_until if failed else deadline) - loop.time()
            if remaining <= 0:
                raise await self._unreachable()
            try:
                # Not `wait_for`, which in Python 3.11 forgets a Ctrl-C that comes with the answer.
                async with asyncio.timeout(remaining):
                    await self._channel.wait_for_state_change(state)
            except TimeoutError:
                raise await self._unreachable() from None

    async def _unreachable(self) -> ServerUnreachable:
        why = await asyncio.to_thread(self._access.why_not, self.address)
        return ServerUnreachable(f"no server answers at {self.address}{why}")

    async def _ask(self, method: Any, request: Any, seconds: float = CALL_SECONDS) -> Any:
        try:
            return await method(request, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.address) from None

    async def create_model(
        self,
        model_id: str,
        spec: ModelSpec | Mapping[str, Any] | pb.ModelSpec,
        *,
        on_compiling: Callable[[], None] | None = None,
    ) -> Model:
        """Create a model.

        Args:
            model_id: its name.
            spec: what it learns, and how.
            on_compiling: called when the server begins to compile kernels for it, which takes half
                a minute for the first model of a cell; None: nobody is told.

        Raises:
            InvalidRequest: a value is out of its bounds.
            AlreadyExists: a model of that name exists.
        """
        message = spec if isinstance(spec, pb.ModelSpec) else convert.spec_to_proto(spec)
        request = pb.CreateModelRequest(model_id=model_id, spec=message)
        call = self._models.CreateModel(request, timeout=CREATE_SECONDS)
        told = asyncio.ensure_future(_tell_compiling(call, on_compiling))
        try:
            answer = await self._ask(lambda *_, **__: call, request)
        finally:
            told.cancel()
        return convert.model_from_proto(answer.model)

    async def get_model(self, model_id: str) -> Model:
        """Return a model. Raises UnknownModel."""
        request = pb.GetModelRequest(model_id=model_id)
        return convert.model_from_proto((await self._ask(self._models.GetModel, request)).model)

    async def list_models(self) -> list[Model]:
        """Return all models, by name."""
        pages = self._pages(self._models.ListModels, pb.ListModelsRequest(page_size=PAGE_SIZE))
        return [convert.model_from_proto(item) async for page in pages for item in page.models]

    async def delete_model(self, model_id: str) -> None:
        """Delete a model and all its streams. Raises NotFound."""
        await self._ask(self._models.DeleteModel, pb.DeleteModelRequest(model_id=model_id))

    async def update_model(
        self,
        model_id: str,
        *,
        learning_rate: float | None = None,
        clip: str | None = None,
        clip_threshold: float | None = None,
        paused: bool | None = None,
    ) -> Model:
        """Change how a model learns from its next update on; None keeps a setting.

        Args:
            model_id: the model.
            learning_rate: > 0.
            clip: `none`, `value`, `norm` or `layer_norm`.
            clip_threshold: > 0.
            paused: True: the model reads and predicts but does not learn. False: it learns again,
                also after a divergence.

        Raises:
            NotFound: no such model.
            InvalidRequest: a value is out of its bounds; nothing was changed.
        """
        request = pb.UpdateModelRequest(model_id=model_id, paused=paused)
        changes = {"learning_rate": learning_rate, "clip": clip, "clip_threshold": clip_threshold}
        spec = convert.spec_to_proto(changes)
        for field, value in spec.ListFields():
            setattr(request, field.name, value)
        answer = await self._ask(self._models.UpdateModel, request)
        return convert.model_from_proto(answer.model)

    async def save_checkpoint(self, model_id: str) -> Checkpoint:
        """Write a checkpoint now. Raises NotFound."""
        request = pb.SaveCheckpointRequest(model_id=model_id)
        answer = await self._ask(self._models.SaveCheckpoint, request)
        return convert.checkpoint_from_proto(answer.checkpoint)

    async def list_checkpoints(self, model_id: str) -> list[Checkpoint]:
        """The checkpoints of a model, oldest first. Raises NotFound."""
        request = pb.ListCheckpointsRequest(model_id=model_id)
        answer = await self._ask(self._models.ListCheckpoints, request)
        return [convert.checkpoint_from_proto(each) for each in answer.checkpoints]

    async def restore_checkpoint(self, model_id: str, lsn: int) -> Model:
        """Take a model and its streams back to a checkpoint. Raises NotFound."""
        request = pb.RestoreCheckpointRequest(model_id=model_id, lsn=lsn)
        answer = await self._ask(self._models.RestoreCheckpoint, request)
        return convert.model_from_proto(answer.model)

    async def export_model(self, model_id: str) -> bytes:
        """Return a model's network as a safetensors file, under PyTorch's names.

        `load_state_dict(safetensors.torch.load(data), strict=True)` takes it for a module whose
        recurrent layers are called `rnn` and whose linear layer is called `head`. Raises NotFound.
        """
        call = self._models.ExportModel(
            pb.ExportModelRequest(model_id=model_id), timeout=CREATE_SECONDS
        )
        try:
            return b"".join([piece.data async for piece in call])
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.address) from None

    async def import_model(
        self, model_id: str, data: bytes, spec: ModelSpec | Mapping[str, Any] | None = None
    ) -> Imported:
        """Create a model from a safetensors file.

        Args:
            model_id: the new model's name.
            data: the file: of `export_model`, or of a PyTorch module with one `nn.RNN`, `nn.LSTM`
                or `nn.GRU` and one `nn.Linear`: `safetensors.torch.save(module.state_dict())`.
            spec: fields that take the place of what the file tells. `task` is required for a file
                of another program, and `cell` for an `nn.RNN` with ReLU.

        Raises:
            InvalidRequest: the file, or a field, is not valid.
            AlreadyExists: a model of that name exists.
        """
        message = convert.spec_to_proto(spec or {})

        async def pieces() -> AsyncIterator[pb.ImportModelRequest]:
            yield pb.ImportModelRequest(model=pb.ImportedModel(model_id=model_id, spec=message))
            for start in range(0, len(data), PIECE_BYTES):
                yield pb.ImportModelRequest(data=data[start : start + PIECE_BYTES])

        answer = await self._ask(self._models.ImportModel, pieces(), CREATE_SECONDS)
        return Imported(convert.model_from_proto(answer.model), tuple(answer.notes))

    def learn(
        self,
        model_id: str,
        *,
        predictions: bool = True,
        top_tokens: int | None = None,
        resume: bool = True,
        reconnect_seconds: float = RECONNECT_SECONDS,
    ) -> LearnSession:
        """Return a session that feeds a model: `async with client.learn(model_id) as session`.

        Args:
            model_id: the model.
            predictions: True: answers have the predictions made before each step was learned, error
                bands and anomaly scores.
            top_tokens: next token: how many of the likeliest to name for each step. None: 5.
            resume: True: when the connection breaks, or the server stops or is killed, the session
                opens another call and continues where its streams stand. Each chunk is learned once
                and answered once, in order. If a chunk's answer was lost after the chunk had been
                learned, its answer has no predictions. False: the session fails instead.
            reconnect_seconds: how long to try each time before the session fails.
        """
        opening = pb.OpenLearn(
            model_id=model_id, omit_predictions=not predictions, top_tokens=top_tokens
        )
        return LearnSession(
            self._learner,
            self.address,
            opening,
            resume=resume,
            reconnect_seconds=reconnect_seconds,
        )

    async def predict(
        self,
        model_id: str,
        stream_id: str = "",
        inputs: ArrayLike | None = None,
        *,
        tokens: ArrayLike | None = None,
        top_tokens: int | None = None,
    ) -> Prediction:
        """Predict without changing anything.

        Args:
            model_id: the model.
            stream_id: predict from this stream's live state; empty: from a zero state.
            inputs: (T, input_size) steps to read after that state, without learning them. A
                forecast may leave them out.
            tokens: next token: (T,) token ids, in place of inputs.
            top_tokens: next token: how many of the likeliest to name. None: 5.

        Raises:
            NotFound: no such model or stream.
            InvalidRequest: a value is out of its bounds.
        """
        request = pb.PredictRequest(model_id=model_id, stream_id=stream_id, top_tokens=top_tokens)
        steps = 0
        if inputs is not None:
            convert.add_steps(request, number_array("inputs", inputs))
        if tokens is not None:
            steps = convert.add_tokens(request, tokens)
        answer = await self._ask(self._learner.Predict, request)
        return convert.prediction_from_proto(answer, steps or 1)

    async def predict_batch(
        self,
        model_id: str,
        stream_ids: Sequence[str],
        inputs: ArrayLike | None = None,
        *,
        tokens: ArrayLike | None = None,
        steps: ArrayLike | None = None,
        top_tokens: int | None = None,
    ) -> BatchPrediction:
        """Predict from many streams' live states, without changing anything.

        A stream that does not exist, or whose inputs are not valid, has its reason in
        `BatchPrediction.refused`; the others are predicted, all from one snapshot of the model.

        Args:
            model_id: the model.
            stream_ids: B streams, each once. The server's limits bound their number and that of
                steps.
            inputs: (B, input_size), or (B, T, input_size) steps to read after each state, without
                learning them; with `steps` (N, input_size), one stream after another. A forecast
                may leave them out.
            tokens: next token: (B,), (B, T) or (N,) token ids, in place of inputs.
            steps: (B,) number of steps of each stream.
            top_tokens: next token: how many of the likeliest to name. None: 5.

        Raises:
            NotFound: no such model.
            InvalidRequest: an array has another shape, or a value is out of its bounds.
        """
        names = list(stream_ids)
        request, shape, counts = convert_predict.request_of(names, inputs, tokens, steps)
        request.model_id = model_id
        if top_tokens is not None:
            request.top_tokens = top_tokens
        answer = await self._ask(self._learner.PredictBatch, request)
        return convert_predict.prediction_of(answer, names, counts, shape)

    async def get_stream(self, model_id: str, stream_id: str) -> Stream:
        """Return where a stream stands. Raises UnknownStream."""
        request = pb.GetStreamRequest(model_id=model_id, stream_id=stream_id)
        return convert.stream_from_proto((await self._ask(self._learner.GetStream, request)).stream)

    async def list_streams(self, model_id: str) -> list[Stream]:
        """Return where all streams of a model stand, by name. Raises UnknownModel."""
        request = pb.ListStreamsRequest(model_id=model_id, page_size=PAGE_SIZE)
        pages = self._pages(self._learner.ListStreams, request)
        return [convert.stream_from_proto(item) async for page in pages for item in page.streams]

    async def reset_stream(self, model_id: str, stream_id: str) -> Stream:
        """Reset a stream's recurrent state and unfinished window. Raises UnknownStream."""
        request = pb.ResetStreamRequest(model_id=model_id, stream_id=stream_id)
        answer = await self._ask(self._learner.ResetStream, request)
        return convert.stream_from_proto(answer.stream)

    async def delete_stream(self, model_id: str, stream_id: str) -> None:
        """Delete a stream; the model keeps what it learned. Raises UnknownStream."""
        request = pb.DeleteStreamRequest(model_id=model_id, stream_id=stream_id)
        await self._ask(self._learner.DeleteStream, request)

    async def _pages(self, method: Any, request: Any) -> AsyncIterator[Any]:
        while True:
            page = await self._ask(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


async def _tell_compiling(call: Any, on_compiling: Callable[[], None] | None) -> None:
    """Call `on_compiling` if the server says in its initial metadata that it compiles kernels."""
    if on_compiling is None:
        return
    if any(key == COMPILING_KEY for key, _ in await call.initial_metadata() or ()):
        on_compiling()
