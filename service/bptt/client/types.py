"""What the client takes and gives: plain values and NumPy arrays, never protobuf messages."""

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
    """What a model is. What is left out takes the server's default.

    Required are input_size or, for next_token, vocabulary_size; and output_size for regression and
    classification.

    Meaning, bound and default of each field: `ModelSpec` in protos/bptt/v1/types.proto.
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


ModelStatus = Literal["unspecified", "learning", "paused", "diverged", "read_only", "recovering"]
"""What a model does with chunks; see `ModelState` in protos/bptt/v1/types.proto."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as it stands on the server."""

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
    """Prequential error over that of the naive forecast; NaN before the first target."""
    loss: float
    """Of the last update; NaN before the first."""
    gradient_norm: float
    """Of the last update, before clipping; NaN before the first."""
    state: ModelStatus
    learning_rate: float
    """As it is now, and so are clip and clip_threshold: `update_model` may have changed the
    spec's."""
    clip: str
    clip_threshold: float
    accuracy: float
    """Classification and next_token: share of recent targets that were the likeliest class."""
    cross_entropy_bits: float
    """The same: mean cross-entropy of recent targets, in bits."""

    @property
    def task(self) -> str:
        """The task, by name."""
        return self.spec.get("task", "forecast")

    @property
    def horizon(self) -> int:
        """Steps ahead in a prediction; 1 for all tasks but forecasts."""
        return self.spec.get("horizon", 1)

    @property
    def targets(self) -> int:
        """Values in a prediction for one step; of classes one each."""
        if self.task in ("regression", "classification"):
            return self.spec["output_size"]
        if self.task == "next_token":
            return self.spec["vocabulary_size"]
        return len(self.spec.get("target_columns", ())) or self.spec["input_size"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state of a model that was kept."""

    lsn: int
    """Its place in the model's life; `restore_checkpoint` takes it."""
    steps: int
    updates: int
    skill_ratio: float
    loss: float
    """Prequential, when it was written, as is `skill_ratio`."""
    size_bytes: int
    best: bool
    """No other has a lower prequential error."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream as it stands on the server."""

    stream_id: str
    next_step: int
    """The number that the stream's next step will have."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a snapshot of a model predicts."""

    values: Float32Array
    """(T, horizon, targets), in the user's units; one row where no inputs were given.
    Classification: (T, 1, classes) probabilities. Next token: no rows; see `top_tokens`."""
    next_step: int
    """Number of the step after the state that was used."""
    update: int
    """Updates the snapshot had seen."""
    error_low: Float32Array
    """Forecast and regression: what to add to a prediction for the band that held nine of ten
    recent targets: (horizon, targets) at its low end ..."""
    error_high: Float32Array
    """... and at its high end; without rows before there are errors."""
    top_tokens: Int64Array
    """Next token: (T, K) likeliest next tokens, likeliest first. Else without rows."""
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
    """The loss or the gradient was not finite: nothing was changed."""


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """A chunk was learned."""

    stream_id: str
    first_step: int
    """Number of the first step that was new; the predictions begin with it."""
    next_step: int
    """All steps before this one are learned or held for the next window."""
    predictions: Float32Array | None
    """(T, horizon, targets), in the user's units, each made before its target was learned. None
    where the session leaves predictions out. Classification: (T, 1, classes) probabilities. Next
    token: no rows; see `top_tokens`."""
    updates: tuple[UpdateReport, ...]
    """The updates this chunk took part in."""
    durable_step: int
    """All steps before this one are on disk, as far as the server is set up to write them."""
    error_low: Float32Array
    """As in `Prediction`, and so are the next three."""
    error_high: Float32Array
    top_tokens: Int64Array
    top_probabilities: Float32Array
    anomaly_scores: Float32Array
    """Forecast: (T,) probabilities, of each step, of an error as large as its own or larger, by the
    stream's recent errors; near 0: an anomaly. NaN before there are errors."""
    model_state: ModelStatus


@dataclass(frozen=True, slots=True)
class Refused:
    """A chunk was refused. Nothing of it was learned; the session goes on."""

    chunk_index: int
    """Place of the chunk in the session, from 0."""
    stream_id: str
    first_step: int | None
    """As it was sent."""
    expected_step: int
    """The step the stream expects next."""
    error: ServiceError
    """Why; mostly an `InvalidRequest` or an `OutOfOrder`."""


Answer = Learned | Refused
