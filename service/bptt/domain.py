"""Value types and sink protocols of the service, free of gRPC, Prometheus and files."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bptt.config import (
    INPUT_NAME_BYTES_MAX,
    Limits,
    SOURCE_POSITION_BYTES_MAX,
    STREAM_ID_BYTES_MAX,
)
from bptt.errors import InvalidRequest, ServiceError, shorten
from bptt_core import (
    Batch,
    bytes_of_model,
    bytes_of_stream,
    Figures,
    GradientFlow,
    ModelSpec,
    params,
    Settings,
    TickResult,
    UpdateReport,
)

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]

_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
_MODEL_ID_BOUND = (
    "1 to 63 of the characters a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
)


def check_model_id(model_id: str) -> str:
    """Return a valid model name unchanged; it is safe as a folder's name and in a log line.

    Raises:
        InvalidRequest: the name is not valid.
    """
    if not _MODEL_ID.fullmatch(model_id):
        raise InvalidRequest.of("model_id", shorten(repr(model_id)), _MODEL_ID_BOUND)
    return model_id


def check_stream_id(stream_id: str) -> str:
    """Return a valid stream name unchanged.

    Raises:
        InvalidRequest: the name is empty, or longer than STREAM_ID_BYTES_MAX.
    """
    size = len(stream_id.encode())
    if not 1 <= size <= STREAM_ID_BYTES_MAX:
        bound = f"1 to {STREAM_ID_BYTES_MAX} bytes long"
        value = f"{size} bytes: {stream_id!r}"
        raise InvalidRequest.of("stream_id", value, bound, reason="stream_id")
    return stream_id


def check_source_position(position: bytes) -> bytes:
    """Return a valid source position unchanged.

    Raises:
        InvalidRequest: it is longer than SOURCE_POSITION_BYTES_MAX.
    """
    if len(position) > SOURCE_POSITION_BYTES_MAX:
        bound = f"at most {SOURCE_POSITION_BYTES_MAX} bytes long"
        raise InvalidRequest.of("source_position", f"{len(position)} bytes", bound)
    return position


@dataclass(frozen=True, slots=True)
class ModelDefinition:
    """A model as its user asked for it.

    Raises:
        InvalidRequest: the name, or an input or target name, is not valid.
    """

    model_id: str
    spec: ModelSpec
    input_names: tuple[str, ...] = ()
    """Display names of the inputs: none, or `input_size` of them."""
    target_names: tuple[str, ...] = ()
    """Display names of the targets or classes: none, or one for each. The targets of a forecast are
    inputs and have the inputs' names."""

    def __post_init__(self) -> None:
        """Check the names, which the spec does not contain."""
        check_model_id(self.model_id)
        spec = self.spec
        _check_names("spec.input_names", self.input_names, "input_size", spec.input_size)
        if self.target_names and spec.task not in ("regression", "classification"):
            value = f"{len(self.target_names)} names"
            raise InvalidRequest.of("spec.target_names", value, f"left out for task {spec.task}")
        _check_names("spec.target_names", self.target_names, "output_size", spec.target_count)

    def check_size(self, limits: Limits) -> None:
        """Refuse a network that is too large for the server, before it is allocated.

        Raises:
            InvalidRequest: the network exceeds the limit of parameters or memory.
        """
        count = params.count(self.spec)
        if count > limits.parameters:
            spec = self.spec
            value = f"{spec.hidden_size} with {spec.layers} layers, {count} parameters"
            bound = f"small enough for at most {limits.parameters} parameters, the server's limit"
            raise InvalidRequest.of("spec.hidden_size", value, bound)
        self._check_bytes(limits)

    def _check_bytes(self, limits: Limits) -> None:
        """Refuse a network whose learning takes too much memory; name the field to reduce."""
        bound = limits.model_bytes
        if _bytes(self.spec, limits) <= bound:
            return
        spec = self.spec
        fits_shorter = _bytes(dataclasses.replace(spec, k2=spec.k1), limits) <= bound
        field, other = ("k2", "hidden_size") if fits_shorter else ("hidden_size", "k2")
        needed = f"{_bytes(spec, limits) / 2**30:.1f} GiB"
        rest = f"{other} {getattr(spec, other)} and layers {spec.layers}"
        value = f"{getattr(spec, field)} with {rest}, {needed}"
        fits = f"small enough for at most {bound / 2**30:.1f} GiB of memory, the server's limit"
        raise InvalidRequest.of(f"spec.{field}", value, fits)


def _bytes(spec: ModelSpec, limits: Limits) -> int:
    """Memory of a model and one stream, for ticks of as many streams as a run may have."""
    return bytes_of_model(spec, limits.run_chunks) + bytes_of_stream(spec)


def tick_lanes(spec: ModelSpec, limits: Limits) -> int:
    """The largest number of lanes in one tick of a model, by the server's limits.

    The buffers for a tick's streams count towards `model_bytes`.
    """
    lanes = limits.tick_chunks
    least = max(1, min(lanes, max(spec.max_batch_streams, limits.run_chunks)))
    while lanes > least and bytes_of_model(spec, lanes) > limits.model_bytes:
        lanes = max(least, lanes // 2)
    return lanes


def _check_names(field: str, names: tuple[str, ...], size_name: str, size: int) -> None:
    if names and len(names) != size:
        bound = f"none, or as many as {size_name}, which is {size}"
        raise InvalidRequest.of(field, f"{len(names)} names", bound)
    for name in names:
        if not 1 <= len(name.encode()) <= INPUT_NAME_BYTES_MAX:
            raise InvalidRequest.of(field, repr(name), f"1 to {INPUT_NAME_BYTES_MAX} bytes long")


@dataclass(frozen=True, slots=True, eq=False)
class IncomingChunk:
    """A well-formed chunk that has no position in its stream yet."""

    stream_id: str
    first_step: int | None
    """None: append to the stream."""
    inputs: FloatArray | IntArray
    """(T, D), or (T,) token ids. T >= 1; with a label delay it may be 0."""
    targets: FloatArray | IntArray | None
    """(S, O) for regression, (S,) class ids for classification."""
    end_of_sequence: bool
    first_target_step: int | None = None
    """Step of the first target. None: the first step of the chunk."""
    incarnation: int = 0
    """Incarnation of the stream that the chunk belongs to; 0: the current one, or a new one."""
    source_position: bytes = b""
    """Where the client's source stands after the last step; empty: not told."""


@dataclass(frozen=True, slots=True, eq=False)
class IncomingBatch:
    """A message of well-formed lanes that have no positions in their streams yet.

    Columns: B lanes, one lane a stream, no stream twice. N steps and M targets, lane after lane.
    A message of one chunk is a batch of one lane.
    """

    stream_ids: tuple[str, ...]
    """B names."""
    first_steps: IntArray
    """(B,) int64; -1: append to the stream."""
    lengths: IntArray
    """(B,) int64, steps of each lane: at least 1; with a label delay it may be 0."""
    inputs: FloatArray | IntArray
    """(N, D), or (N,) token ids."""
    targets: FloatArray | IntArray | None
    """(M, O) for regression, (M,) class ids for classification."""
    ends: BoolArray
    """(B,) bool, the end of the stream's sequence."""
    target_lengths: IntArray | None = None
    """(B,) int64, targets of each lane; only with a label delay. None: `lengths`, or no targets."""
    first_target_steps: IntArray | None = None
    """(B,) int64, step of the first target. -1, and None for all lanes: the lane's first step."""
    incarnations: IntArray | None = None
    """(B,) int64, incarnation of the stream that the lane belongs to; 0, and None for all lanes:
    the current one, or a new one."""
    source_positions: tuple[bytes, ...] | None = None
    """Where the client's source stands after each lane; empty, and None for all lanes: not told."""

    @classmethod
    def of(cls, chunk: IncomingChunk) -> IncomingBatch:
        """A message of one chunk as a batch of one lane."""
        targets, labelled = chunk.targets, chunk.first_target_step
        delayed = targets is not None and (
            labelled is not None or len(targets) != len(chunk.inputs)
        )
        return cls(
            (chunk.stream_id,),
            np.array([-1 if chunk.first_step is None else chunk.first_step]),
            np.array([len(chunk.inputs)]),
            chunk.inputs,
            targets,
            np.array([chunk.end_of_sequence]),
            np.array([len(targets)]) if targets is not None and delayed else None,
            None if labelled is None else np.array([labelled]),
            np.array([chunk.incarnation]) if chunk.incarnation else None,
            (chunk.source_position,) if chunk.source_position else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class LaneRefused:
    """A lane of a message that was not learned. Nothing of it was changed."""

    lane: int
    """Position of the lane in the message."""
    stream_id: str
    first_step: int | None
    """As it was sent; None: append."""
    expected_step: int
    error: ServiceError


@dataclass(slots=True, eq=False)
class BatchAnswer:
    """The answer to one message: columns of the K lanes that were learned, and the refused lanes.

    The learned lanes stand in the message's order. Their steps stand lane after lane.
    """

    index: int
    """Number of the message in its call, from 0."""
    lanes: IntArray
    """(K,) int64, position of each learned lane in the message; rising."""
    stream_ids: tuple[str, ...]
    """K names."""
    first_steps: IntArray
    """(K,) int64, the stream's next step before the lane."""
    next_steps: IntArray
    """(K,) int64, the stream's next step after it."""
    incarnations: IntArray
    """(K,) int64, number of the stream's opening that the lane belongs to."""
    offsets: IntArray
    """(K + 1,) int64: the steps of lane k are rows offsets[k] to offsets[k + 1] of `predictions`
    and `anomaly_scores`."""
    predictions: FloatArray | None
    """(N, O) in the user's units, each made before its target was learned."""
    anomaly_scores: FloatArray | None
    """(N,) of forecasts; see `ChunkResult.anomaly_scores`."""
    updates: tuple[UpdateReport, ...]
    """The updates in which one of the lanes took part."""
    members: IntArray
    """(m, 2) int64: pairs of a position in `updates` and one in the K lanes that took part in
    it."""
    refused: tuple[LaneRefused, ...] = ()
    lsn: int = 0
    """Once the record of this number is durable, all steps of the answer are."""


class ModelState(enum.StrEnum):
    """The states of a model. `engine/lifecycle.py` has the transitions."""

    RECOVERING = "recovering"
    """The model is being recovered from the store."""
    RUNNING = "running"
    """The model learns."""
    PAUSED = "paused"
    """Chunks are read and predicted, but not learned: an operator paused the model."""
    DIVERGED = "diverged"
    """Like PAUSED, because too many updates in a row were not finite."""
    STALLED = "stalled"
    """The store refuses commits for now; chunks are refused."""
    RESTORING = "restoring"
    """An operator restores a checkpoint; chunks are refused."""
    ROLLING_BACK = "rolling_back"
    """The model diverged and rolls back to a checkpoint; chunks wait."""
    READ_ONLY = "read_only"
    """The journal is damaged: the model predicts, and refuses chunks."""
    FAILED = "failed"
    """An internal error ended learning, or recovery failed."""
    DRAINING = "draining"
    """Accepted chunks are finished; new ones are refused."""
    STOPPED = "stopped"
    """The model's tasks have ended."""


def state_of(settings: Settings, figures: Figures) -> ModelState:
    """The state of a model that applies chunks: RUNNING, PAUSED or DIVERGED."""
    if settings.paused:
        return ModelState.PAUSED
    return ModelState.DIVERGED if figures.diverged else ModelState.RUNNING


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The current status of a model."""

    definition: ModelDefinition
    parameters: int
    streams: int
    figures: Figures
    state: ModelState
    settings: Settings
    state_reason: str = ""
    """Explanation of the state for people; "" if the state needs none."""

    @property
    def model_id(self) -> str:
        """The model's name."""
        return self.definition.model_id


@dataclass(frozen=True, slots=True)
class UnreadModel:
    """A model of which only the name is known: its checkpoints have not been read."""

    model_id: str
    state: ModelState
    state_reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class RunReport:
    """Result of one run of a model's worker: one or more ticks, then a new snapshot."""

    ticks: Sequence[TickReport]
    figures: Figures


@dataclass(frozen=True, slots=True, eq=False)
class TickReport:
    """One tick that was applied."""

    streams: int
    steps: int
    updates: Sequence[UpdateReport]
    """Each with the prequential loss of its new steps."""
    seconds: float
    batch: Batch | None = None
    """The steps and targets of the tick."""
    result: TickResult | None = None
    """Its result: predictions made before their target was learned, and anomaly scores. Together
    with `batch` they give the prequential error of every step, which a drift detector needs. The
    arrays belong to the learner: copy them to keep them."""


@dataclass(frozen=True, slots=True)
class Gauges:
    """Values that are read at each scrape, and not reported when they change."""

    streams: int
    queue_chunks: int
    snapshot_age_steps: int
    """Accepted steps that the snapshot does not contain yet."""


class ModelSink(Protocol):
    """Receives the reports of one model. Called on the event loop; must not block."""

    def run(self, report: RunReport) -> None:
        """The worker finished a run."""

    def flow(self, flow: GradientFlow | None) -> None:
        """The gradient flow was measured; None: it is unknown."""

    def refused(self, reason: str) -> None:
        """A chunk was refused; `reason` is the error's machine-readable reason."""

    def duplicate(self, steps: int) -> None:
        """This many steps were received again and trimmed."""

    def predicted(self, seconds: float) -> None:
        """A prediction was answered."""

    def saved(self, seconds: float) -> None:
        """A checkpoint was written."""

    def committed(self, seconds: float) -> None:
        """A transaction was committed to the journal."""

    def rolled_back(self) -> None:
        """The model diverged and rolled back to a checkpoint."""

    def recovered(self, seconds: float) -> None:
        """The model was recovered from the store."""


class ReportSink(Protocol):
    """Receives the reports of the engine."""

    def open_model(
        self, model_id: str, figures: Figures, gauges: Callable[[], Gauges]
    ) -> ModelSink:
        """A model is now in memory. `gauges` may be called from any thread."""

    def rest_model(self, model_id: str) -> None:
        """The model has left memory. Its counters stay; its gauges are removed."""

    def close_model(self, model_id: str) -> None:
        """The model was deleted: remove everything reported for it. An unknown name is ignored."""

    def model_state(self, model_id: str, state: ModelState) -> None:
        """The model changed to this state. It need not be in memory."""

    def model_failed(self, model_id: str, reason: str) -> None:
        """The model became FAILED; `reason` is a metric label that names the activity."""


class MethodSink(Protocol):
    """Counts the calls of one RPC method. Called on the event loop."""

    def started(self) -> None:
        """A call began."""

    def received(self) -> None:
        """A message was received."""

    def sent(self) -> None:
        """A message was sent."""

    def handled(self, code: str, seconds: float) -> None:
        """A call ended with this status code, by name, after `seconds`."""


class CallSink(Protocol):
    """Counts calls."""

    def method(self, kind: str, service: str, method: str) -> MethodSink:
        """The counters of one method; `kind` is gRPC's: unary, server_stream, and so on."""
