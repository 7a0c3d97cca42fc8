"""Arguments and results of the client: plain values and NumPy arrays, no protobuf messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from bptt.errors import ServiceError

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]


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

    values: Float32Array
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
    predictions: Float32Array | None
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
    """Number of the chunk in the session, from 0."""
    stream_id: str
    first_step: int | None
    """As it was sent; of a chunk in pieces, that of the piece that was refused first."""
    expected_step: int
    """The step that the stream expects next."""
    error: ServiceError
    """The reason: most often an `InvalidRequest` or an `OutOfOrder`."""


Answer = Learned | Refused
