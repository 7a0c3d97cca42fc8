"""Arguments and results of the client: plain values and NumPy arrays, no protobuf messages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from bptt.errors import ServiceError

Float32Array = NDArray[np.float32]
FloatArray = NDArray[np.float32] | NDArray[np.float64]
"""float64 where the numbers that were sent have digits that float32 would lose."""
Int64Array = NDArray[np.int64]
TableLibrary = Literal["pandas", "polars", "pyarrow"]


class ModelSpec(TypedDict, total=False):
    """The definition of a model. A field that is left out takes the server's default.

    Required: input_size or, for next_token, vocabulary_size; for regression and classification also
    output_size.

    Meaning, bounds and default of each field: `ModelSpec` in protos/bptt/v1/types.proto.
    """

    task: Literal["forecast", "regression", "classification", "next_token"]
    input_size: int
    output_size: int
    horizon: int
    target_columns: Sequence[int]
    cell: Literal["rnn_tanh", "rnn_relu", "lstm", "gru"]
    hidden_size: int
    layers: int
    loss: Literal["squared_error", "huber", "bernoulli", "cross_entropy"]
    reduction: Literal["mean", "sum"]
    k1: int
    k2: int
    optimizer: Literal["sgd", "momentum", "rmsprop", "adagrad", "adam", "adamw"]
    learning_rate: float
    clip: Literal["none", "value", "norm", "layer_norm"]
    clip_threshold: float
    scaling: bool
    max_batch_streams: int
    input_names: Sequence[str]
    seed: int
    weight_decay: float
    warmup_updates: int
    decay_updates: int
    final_learning_rate: float
    vocabulary_size: int
    missing_inputs: bool
    missing_targets: bool
    label_delay: int
    divergence_patience: int
    on_divergence: Literal["stop", "roll_back"]
    target_names: Sequence[str]
    scaling_memory: int
    combine: Literal["mixture", "none"]


ModelState = Literal[
    "unspecified",
    "running",
    "paused",
    "diverged",
    "read_only",
    "recovering",
    "failed",
    "stalled",
    "restoring",
    "rolling_back",
    "draining",
    "stopped",
]
"""The states of a model; see `ModelState` in protos/bptt/v1/types.proto."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as it is on the server now."""

    model_id: str
    spec: ModelSpec
    """All fields filled in."""
    parameters: int
    steps: int
    updates: int
    clipped_updates: int
    skipped_updates: int
    streams: int
    skill_ratio: float
    """Prequential error relative to the naive forecast; NaN before the first target."""
    loss: float
    """Of the last update; NaN before the first."""
    gradient_norm: float
    """Of the last update, before clipping; NaN before the first."""
    state: ModelState
    learning_rate: float
    """Its present value, as of clip and clip_threshold: `update_model` may have changed them since
    the spec."""
    clip: str
    clip_threshold: float
    accuracy: float
    """Classification and next_token: share of recent targets that were the likeliest class. NaN for
    other tasks."""
    cross_entropy_bits: float
    """Classification and next_token: mean cross-entropy of recent targets. NaN for other tasks."""
    state_reason: str = ""
    """Why it is in its state, for people; empty if the state needs no explanation."""
    limited_inputs: int = 0
    network_skill_ratio: float = math.nan
    """As `skill_ratio`, of the network without the experts beside it."""
    expert_weights: dict[str, float] = field(default_factory=dict)
    """Weights of the network and of each expert in the forecasts, by name, the largest first; empty
    without a mixture."""
    """Inputs so far that were limited for the network: spikes, error codes, shifts of level."""

    @property
    def task(self) -> str:
        """The task, by name."""
        return self.spec.get("task", "forecast")

    @property
    def horizon(self) -> int:
        """Steps ahead in a prediction; 1 for tasks other than forecasts."""
        return self.spec.get("horizon", 1)

    @property
    def targets(self) -> int:
        """Values in a prediction for one step; for classes, their number."""
        if self.task in ("regression", "classification"):
            return self.spec["output_size"]
        if self.task == "next_token":
            return self.spec["vocabulary_size"]
        return len(self.spec.get("target_columns", ())) or self.spec["input_size"]


@dataclass(frozen=True, slots=True)
class Imported:
    """The answer to `Client.import_model`."""

    model: Model
    notes: tuple[str, ...]
    """What was assumed because the file does not tell it, one line each, for people."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved state of a model."""

    lsn: int
    """Number of the last journal record that it includes; `restore_checkpoint` takes it."""
    steps: int
    updates: int
    skill_ratio: float
    loss: float
    """Prequential loss at the time of writing, as is `skill_ratio`."""
    size_bytes: int
    best: bool
    """True: no other checkpoint has a lower prequential error."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Where a stream stands on the server."""

    stream_id: str
    next_step: int
    """Number of the stream's next step."""
    durable_step: int
    """All steps before this one are applied and durable."""
    incarnation: int
    """Number of the stream's opening in the life of the model: another one after a deletion."""
    source_position: bytes = b""
    """That of the last chunk that was sent with one."""
    source_step: int = 0
    """The stream's next step after that chunk."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A prediction from a snapshot of a model."""

    values: FloatArray
    """(T, horizon, targets), in the user's units; one row where no inputs were given.
    Classification: (T, 1, classes) probabilities. Next token: no rows; see `top_tokens`."""
    next_step: int
    """Number of the step that follows the state that was used."""
    update: int
    """Updates that the snapshot includes."""
    error_low: Float32Array
    """Forecast and regression: (horizon, targets) offsets from a prediction to the low end of the
    band that held 90 % of recent targets. No rows before there are errors."""
    error_high: Float32Array
    """The same for the high end."""
    top_tokens: Int64Array
    """Next token: (T, K) likeliest next tokens, likeliest first. No rows for other tasks."""
    top_probabilities: Float32Array
    """Their probabilities."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchPrediction:
    """Predictions for several streams, all from one snapshot of a model."""

    stream_ids: Sequence[str]
    """The B streams, in the order in which they were asked for."""
    values: FloatArray
    """(B, horizon, targets) without inputs, else (B, horizon, targets), (B, T, horizon, targets)
    or (N, horizon, targets), as the inputs were given: a prediction after each given step. In the
    user's units; NaN for streams that were refused. Next token: no rows; see `top_tokens`."""
    next_steps: Int64Array
    """(B,) number of the step that follows the state that was used; 0 of a stream that was
    refused."""
    update: int
    """Updates that the snapshot includes."""
    error_low: Float32Array
    """As in `Prediction`, and so is the next one."""
    error_high: Float32Array
    top_tokens: Int64Array
    """Next token: (…, K) likeliest next tokens, likeliest first; -1 for streams that were refused.
    No rows for other tasks."""
    top_probabilities: Float32Array
    """Their probabilities."""
    refused: dict[str, ServiceError]
    """By stream: why there is no prediction, such as an `UnknownStream`."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """One update of a model: one optimizer step."""

    update: int
    """Counts from 1 in the life of the model."""
    steps: int
    """New steps in the update, over all its streams."""
    streams: int
    """Windows in the update."""
    loss: float
    gradient_norm: float
    """L2 norm of the gradient before clipping."""
    clipped_gradient_norm: float
    clipped: bool
    skipped: bool
    """True: the loss or the gradient was not finite, and nothing was changed."""


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """A chunk was learned."""

    stream_id: str
    first_step: int
    """Number of the first step that was new; the predictions start there."""
    next_step: int
    """All steps before this one are learned or held for the next window."""
    predictions: FloatArray | None
    """(T, horizon, targets), in the user's units, each made before its target was learned. None
    where the session leaves predictions out. Classification: (T, 1, classes) probabilities. Next
    token: no rows; see `top_tokens`."""
    updates: tuple[UpdateReport, ...]
    """The updates this chunk took part in."""
    durable_step: int
    """All steps before this one are as durable as the server's `durability` setting makes them."""
    error_low: Float32Array
    """As in `Prediction`, and so are the next three."""
    error_high: Float32Array
    top_tokens: Int64Array
    top_probabilities: Float32Array
    anomaly_scores: Float32Array
    """Forecast: (T,) probabilities, one a step, of an error at least as large as the step's own,
    judged by the stream's recent errors. Near 0: an anomaly. NaN before there are errors."""
    model_state: ModelState


@dataclass(frozen=True, slots=True)
class Refused:
    """A chunk was refused. The session continues.

    Nothing of it was learned, with two exceptions that the error's message tells. After a
    reconnection, a `StreamDeleted` may mean that the chunk was learned before its stream was
    deleted. A chunk that was sent in pieces, because the server takes no message that large, may
    be learned in part if its stream is deleted, restored or fed by another client meanwhile.
    """

    chunk_index: int
    """Number of the chunk in the session, from 0; a batch of `send_many` counts as one."""
    stream_id: str
    first_step: int | None
    """As it was sent; of a chunk in pieces, that of the piece that was refused first."""
    expected_step: int
    """The step that the stream expects next."""
    error: ServiceError
    """The reason: most often an `InvalidRequest` or an `OutOfOrder`."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchResult:
    """The answer to the streams of one `send_many`, as columns.

    Row i of an array of steps belongs to row i of the values that were sent: arrays of steps have
    the axes (B,) or (B, T) of the values, or (N,) for a table.
    """

    stream_ids: Sequence[str]
    """The B streams, in the order in which they were sent."""
    first_steps: Int64Array
    """(B,) number of the first step of each stream that was new."""
    next_steps: Int64Array
    """(B,) the step after those that are learned or held for the next window. Of a stream that was
    refused: the step that it expects next, in both columns."""
    predictions: FloatArray | None
    """(…, horizon, targets), in the user's units, each made before its target was learned; NaN for
    steps that were refused, were known already, or whose answer was lost with a connection. None
    where the session leaves predictions out, for next_token, where `top_tokens` has them, and where
    every step would be NaN."""
    anomaly_scores: Float32Array | None
    """Forecast: (…) probabilities, one a step, of an error at least as large as the step's own; NaN
    before there are errors. None where there are no predictions."""
    error_low: Float32Array
    """(horizon, targets) as in `Prediction`, and so is the next one."""
    error_high: Float32Array
    top_tokens: Int64Array | None
    """Next token: (…, K) likeliest next tokens; -1 where predictions would be NaN. None for other
    tasks."""
    top_probabilities: Float32Array | None
    """Their probabilities."""
    updates: tuple[UpdateReport, ...]
    """The updates in which streams of the batch took part."""
    refused: dict[str, Refused]
    """By stream: those that were refused. Nothing of them was learned."""
    model_state: ModelState
    steps: Int64Array
    """(B,) number of steps of each stream that were sent."""
    order: Int64Array | None = None
    """Of a table, (N,): the row of each step, one stream after another. None: not of a table."""
    target_names: tuple[str, ...] = ()
    """Names of the targets, for `to_table`."""

    def to_table(self, library: TableLibrary = "pandas", *, stream_column: str = "stream") -> Any:
        """Return the result as a table with one row for each step that was sent.

        Its columns: the stream; `step`, the number of the step, or missing where the stream was
        refused; for each target `NAME_predicted`, `NAME_low` and `NAME_high`, the ends of the
        band, with `_1`, `_2` and so on for the steps of a longer horizon; `anomaly_score`. For
        classes `NAME_predicted` is a probability; for next_token there are `token_1`,
        `probability_1` and so on.

        Args:
            library: that makes the table; it must be installed.
            stream_column: name of the column with the streams.
        """
        from bptt.client.tables import result_table  # only who asks for a table needs it

        return result_table(self, library, stream_column)


Answer = Learned | Refused | BatchResult
