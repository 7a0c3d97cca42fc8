"""`ModelSpec`, the definition of a model, checked when it is created.

Names of choices are lower-case strings, the same in code, command line, checkpoints and metrics.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args, Literal, Self

from bptt_core.cells import CELLS
from bptt_core.errors import InvalidArgument, UnknownField
from bptt_core.optimizers import OPTIMIZERS

Task = Literal["forecast", "regression", "classification", "next_token"]
CellName = str
"""A name in `bptt_core.cells.CELLS`."""
OptimizerName = str
"""A name in `bptt_core.optimizers.OPTIMIZERS`."""
Loss = Literal["squared_error", "huber", "cross_entropy", "bernoulli"]
Reduction = Literal["mean", "sum"]
Clip = Literal["none", "value", "norm", "layer_norm"]
Dtype = Literal["float32", "float64"]
Divergence = Literal["stop", "roll_back"]
Combine = Literal["mixture", "none"]

INPUT_SIZE_MAX = 4096  # a step of 16 KB in float32, the message size at which the wire is busy
OUTPUT_SIZE_MAX = 4096  # the same, for targets times horizon
HIDDEN_SIZE_MAX = 4096  # W alone is 64 MB in float32; an update then takes about a second
LAYERS_MAX = 8
WINDOW_MAX = 4096  # k2: a window of 512 units then holds 8 MB of states
HORIZON_MAX = 64
LABEL_DELAY_MAX = 1024  # a stream holds as many labels, predictions and steps more
VOCABULARY_MAX = 65_536  # ids stay exact in float32, and fit two bytes
UPDATES_MAX = 10**9  # of a schedule: years, at a thousand updates a second
BATCH_STREAMS_MAX = 16_384  # windows in one update; memory does not depend on it
DIVERGENCE_PATIENCE_MAX = 10**9  # skipped updates in a row: as good as never
SEED_MAX = 2**63 - 1
SCALING_MEMORY_MAX = 10**9  # steps: as good as all

DEFAULT_SCALING_MEMORY = 2000  # steps; chosen in docs/decisions.md

DEFAULT_LEARNING_RATE = 0.001
DEFAULT_LOSS: dict[Task, Loss] = {
    "forecast": "huber",
    "regression": "squared_error",
    "classification": "cross_entropy",
    "next_token": "cross_entropy",
}
LOSSES_OF_TASK: dict[Task, tuple[Loss, ...]] = {
    "forecast": ("squared_error", "huber"),
    "regression": ("squared_error", "huber", "bernoulli"),
    "classification": ("cross_entropy",),
    "next_token": ("cross_entropy",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The network, its task and its training. Immutable, and always valid.

    Raises:
        InvalidArgument: a field is out of its bounds; the error names it.
    """

    input_size: int = 1
    """D, values in a step, 1 to INPUT_SIZE_MAX; 1 for tokens."""
    task: Task = "forecast"
    """The kind of target."""
    output_size: int | None = None
    """Number of values in a target, or of classes. Required for regression and classification; left
    out for forecasts, whose outputs are horizon times target columns."""
    horizon: int = 1
    """Forecast: the number of steps ahead, each with its own outputs; 1 to HORIZON_MAX."""
    target_columns: tuple[int, ...] = ()
    """Forecast: the inputs that are forecast, by index; empty means all."""
    vocabulary_size: int = 0
    """Next token: the number of token ids, 2 to VOCABULARY_MAX; else 0."""
    missing_inputs: bool = False
    """True: an input may be missing, NaN. It is fed as its mean, and each variable has a flag that
    is 1 where it is present. Not for tokens."""
    label_delay: int = 0
    """Regression and classification: a step's target may arrive up to this many steps after it, 0
    to LABEL_DELAY_MAX; windows train that many steps behind."""
    missing_targets: bool = False
    """Regression and classification: a target may be missing, NaN or class -1, and has no loss."""
    cell: CellName = "rnn_tanh"
    """The recurrent cell, a name in `bptt_core.cells.CELLS`."""
    hidden_size: int = 64
    """H, units a layer, 1 to HIDDEN_SIZE_MAX."""
    layers: int = 1
    """L, stacked layers, 1 to LAYERS_MAX."""
    loss: Loss | None = None
    """None: the task's `DEFAULT_LOSS`. Always filled in once the spec exists."""
    reduction: Reduction = "mean"
    """Mean over an update's new steps and streams, or the textbook's sum."""
    k1: int = 4
    """New steps between two updates, 1 to k2."""
    k2: int = 32
    """Steps over which the gradient reaches back, k1 to WINDOW_MAX."""
    optimizer: OptimizerName = "adam"
    """The update rule, a name in `bptt_core.optimizers.OPTIMIZERS`."""
    learning_rate: float | None = None
    """Step size, > 0; the highest one, where it changes with the update's number. None: 0.001, or
    the optimizer's `forecast_schedule` for a forecast that gives no schedule either. Always filled
    in once the spec exists, as are the fields of the schedule."""
    warmup_updates: int = 0
    """Number of updates over which the learning rate grows linearly from 0."""
    decay_updates: int | None = None
    """Number of updates after the warm-up over which it falls to `final_learning_rate` along a half
    cosine. None: 0, it does not fall."""
    final_learning_rate: float | None = None
    """The learning rate after the decay, >= 0 and at most `learning_rate`; unused without a decay.
    None: 0."""
    weight_decay: float | None = None
    """Added to the gradient (AdamW: decoupled), >= 0. None: the optimizer's default, 0.01 for AdamW
    and 0 for all others. Always filled in once the spec exists."""
    clip: Clip = "norm"
    """How the gradient is clipped before the optimizer's step."""
    clip_threshold: float = 1.0
    """The bound of the clip, > 0, in the gradient's unit; for `layer_norm` it applies to each layer
    and to the head separately."""
    scaling: bool = True
    """Standardise inputs and targets with running statistics of the steps so far."""
    scaling_memory: int = DEFAULT_SCALING_MEMORY
    """Steps over which statistics of inputs, targets and errors fade, up to SCALING_MEMORY_MAX.
    What enters them, and what the network reads, is limited (`bptt_core.robust`). 0: statistics
    weigh all steps alike and nothing is limited, as in models of earlier versions."""
    combine: Combine | None = None
    """`mixture`: a forecast is the network's mixed with those of cheap experts, weighed by their
    recent errors (`bptt_core.experts`); `none`: the network's alone. None: a mixture for a forecast
    with `scaling` and `scaling_memory`, else none. Always filled in once the spec exists."""
    max_batch_streams: int = 64
    """Windows in one update, 1 to BATCH_STREAMS_MAX."""
    divergence_patience: int = 10
    """Number of skipped updates in a row after which the model has diverged and stops learning, 1
    to DIVERGENCE_PATIENCE_MAX."""
    on_divergence: Divergence = "stop"
    """What the server then does: leave the model stopped, or call `Learner.roll_back`."""
    dtype: Dtype = "float32"
    """Element type of parameters, states and arithmetic."""
    seed: int = 0
    """Seed of the initial parameters, 0 to SEED_MAX."""

    def __post_init__(self) -> None:
        """Check every field and fill in the defaults that depend on other fields."""
        for field, choices in _CHOICES.items():
            value, allowed = getattr(self, field), tuple(choices)
            if value not in allowed and not (field in ("loss", "combine") and value is None):
                raise InvalidArgument(field, value, "one of " + ", ".join(allowed))
        if self.loss is None:
            object.__setattr__(self, "loss", DEFAULT_LOSS[self.task])
        if self.weight_decay is None:
            object.__setattr__(self, "weight_decay", OPTIMIZERS[self.optimizer].weight_decay)
        self._fill_in_schedule()
        self._fill_in_combine()
        _check_int("input_size", self.input_size, 1, INPUT_SIZE_MAX)
        _check_int("hidden_size", self.hidden_size, 1, HIDDEN_SIZE_MAX)
        _check_int("layers", self.layers, 1, LAYERS_MAX)
        _check_int("horizon", self.horizon, 1, HORIZON_MAX)
        _check_int("k1", self.k1, 1, WINDOW_MAX)
        _check_int("k2", self.k2, 1, WINDOW_MAX)
        if self.k2 < self.k1:
            raise InvalidArgument("k2", self.k2, f"at least k1, which is {self.k1}")
        _check_int("max_batch_streams", self.max_batch_streams, 1, BATCH_STREAMS_MAX)
        _check_int("seed", self.seed, 0, SEED_MAX)
        _check_int("divergence_patience", self.divergence_patience, 1, DIVERGENCE_PATIENCE_MAX)
        _check_int("warmup_updates", self.warmup_updates, 0, UPDATES_MAX)
        _check_int("decay_updates", self.decay_updates, 0, UPDATES_MAX)
        _check_float("final_learning_rate", self.final_learning_rate, positive=False)
        _check_float("learning_rate", self.learning_rate, positive=True)
        _check_float("clip_threshold", self.clip_threshold, positive=True)
        _check_float("weight_decay", self.weight_decay, positive=False)
        assert self.final_learning_rate is not None
        assert self.learning_rate is not None
        if self.final_learning_rate > self.learning_rate:
            bound = f"at most learning_rate, which is {self.learning_rate}"
            raise InvalidArgument("final_learning_rate", self.final_learning_rate, bound)
        _check_int("scaling_memory", self.scaling_memory, 0, SCALING_MEMORY_MAX)
        _check_int("label_delay", self.label_delay, 0, LABEL_DELAY_MAX)
        if self.label_delay and self.task not in ("regression", "classification"):
            raise InvalidArgument("label_delay", self.label_delay, f"0 for task {self.task}")
        if self.missing_inputs and self.task == "next_token":
            raise InvalidArgument("missing_inputs", True, "left out for task next_token")
        if self.missing_targets and self.task not in ("regression", "classification"):
            raise InvalidArgument("missing_targets", True, f"left out for task {self.task}")
        if self.loss not in LOSSES_OF_TASK[self.task]:
            choices = ", ".join(LOSSES_OF_TASK[self.task])
            raise InvalidArgument("loss", self.loss, f"one of {choices} for task {self.task}")
        self._check_outputs()

    def _fill_in_schedule(self) -> None:
        """Fill in the schedule's missing fields; fields that are given stay as they are."""
        given = (self.learning_rate, self.decay_updates, self.final_learning_rate)
        defaults = (DEFAULT_LEARNING_RATE, 0, 0.0)
        none_given = given == (None, None, None) and self.warmup_updates == 0
        tuned = OPTIMIZERS[self.optimizer].forecast_schedule
        if self.task == "forecast" and none_given and tuned is not None:
            defaults = tuned
        names = ("learning_rate", "decay_updates", "final_learning_rate")
        for name, value, default in zip(names, given, defaults, strict=True):
            if value is None:
                object.__setattr__(self, name, default)

    def _fill_in_combine(self) -> None:
        possible = self.task == "forecast" and self.scaling and self.scaling_memory != 0
        if self.combine is None:
            object.__setattr__(self, "combine", "mixture" if possible else "none")
        elif self.combine == "mixture" and not possible:
            bound = "none, but for a forecast with scaling and a scaling_memory above 0"
            raise InvalidArgument("combine", self.combine, bound)

    def _check_outputs(self) -> None:
        if self.task == "next_token":
            self._check_tokens()
        elif self.vocabulary_size:
            bound = f"left out for task {self.task}"
            raise InvalidArgument("vocabulary_size", self.vocabulary_size, bound)
        if self.task != "forecast":
            if self.horizon != 1:
                raise InvalidArgument("horizon", self.horizon, f"left out for task {self.task}")
            if self.target_columns:
                bound = f"left out for task {self.task}"
                raise InvalidArgument("target_columns", self.target_columns, bound)
            if self.task == "next_token":
                return
            if self.output_size is None:
                bound = f"1 to {OUTPUT_SIZE_MAX}, and is required for task {self.task}"
                raise InvalidArgument("output_size", "left out", bound)
            _check_int("output_size", self.output_size, 1, OUTPUT_SIZE_MAX)
            return
        object.__setattr__(self, "target_columns", tuple(self.target_columns))
        for column in self.target_columns:
            _check_int("target_columns", column, 0, self.input_size - 1)
        if len(set(self.target_columns)) != len(self.target_columns):
            raise InvalidArgument("target_columns", self.target_columns, "free of repetition")
        outputs = self.horizon * self.target_count
        if self.output_size not in (None, outputs):
            bound = f"left out, or horizon times target columns, which is {outputs}"
            raise InvalidArgument("output_size", self.output_size, bound)
        _check_int("output_size", outputs, 1, OUTPUT_SIZE_MAX)

    def _check_tokens(self) -> None:
        _check_int("vocabulary_size", self.vocabulary_size, 2, VOCABULARY_MAX)
        if self.input_size != 1:
            raise InvalidArgument("input_size", self.input_size, "1 for task next_token")
        if self.output_size not in (None, self.vocabulary_size):
            bound = f"left out, or vocabulary_size, which is {self.vocabulary_size}"
            raise InvalidArgument("output_size", self.output_size, bound)

    @property
    def target_count(self) -> int:
        """Number of values in a target: the columns that are forecast, or `output_size`."""
        if self.task == "forecast":
            return len(self.target_columns) or self.input_size
        if self.task == "next_token":
            return self.vocabulary_size
        assert self.output_size is not None
        return self.output_size

    @property
    def outputs(self) -> int:
        """O, outputs of the network: horizon times target_count."""
        return self.horizon * self.target_count

    @property
    def robust(self) -> bool:
        """Statistics fade, and what enters them and the network is limited."""
        return self.scaling_memory > 0

    @property
    def mixture(self) -> bool:
        """Forecasts are mixtures."""
        return self.combine == "mixture"

    @property
    def features(self) -> int:
        """F, columns of a step as the network reads it.

        Each variable's level; for a forecast then each variable's change; with `missing_inputs`
        then a flag for each variable, 1 where it is present.
        """
        return self.input_size * (1 + (self.task == "forecast") + self.missing_inputs)

    @property
    def network_inputs(self) -> int:
        """Columns of U: the features, or one column for each token id."""
        return self.vocabulary_size or self.features

    @property
    def delay(self) -> int:
        """Steps between an input and the arrival of its last target."""
        return self.horizon if self.task in ("forecast", "next_token") else self.label_delay

    @property
    def target_width(self) -> int:
        """Columns of a target row: O, or 1 for a class id."""
        return 1 if self.loss == "cross_entropy" else self.outputs

    @property
    def truth_width(self) -> int:
        """Columns of a target in the user's units: target columns, outputs, or 1 for a class id."""
        return self.target_count if self.task == "forecast" else self.target_width

    @property
    def gates(self) -> int:
        """G, blocks of H rows in a layer's weights: RNN 1, GRU 3, LSTM 4."""
        return len(CELLS[self.cell].gates)

    @property
    def state_parts(self) -> int:
        """Number of arrays in the carried state: h, and for LSTM c."""
        return len(CELLS[self.cell].state_parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `ModelSpec.from_dict` restores the spec."""
        return dataclasses.asdict(self) | {"target_columns": list(self.target_columns)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The spec from the values of `to_dict`.

        Raises:
            InvalidArgument: a value is out of its bounds.
            UnknownField: no field has that name.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise UnknownField(name, values[name], ", ".join(sorted(known)))
        values = values | {"target_columns": tuple(values.get("target_columns", ()))}
        return cls(**values)

    @classmethod
    def from_saved(cls, values: dict[str, Any]) -> Self:
        """The spec from a saved state: fields that it lacks get what earlier versions did.

        Raises:
            InvalidArgument: a value is out of its bounds.
            UnknownField: no field has that name.
        """
        return cls.from_dict(EARLIER | values)


EARLIER: dict[str, Any] = {"scaling_memory": 0, "combine": "none"}
"""Values of the fields that specs of earlier versions lack."""

_CHOICES: dict[str, Iterable[str]] = {
    "task": get_args(Task),
    "cell": CELLS,
    "loss": get_args(Loss),
    "reduction": get_args(Reduction),
    "optimizer": OPTIMIZERS,
    "clip": get_args(Clip),
    "dtype": get_args(Dtype),
    "on_divergence": get_args(Divergence),
    "combine": get_args(Combine),
}


def _check_int(field: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidArgument(field, value, f"a whole number from {low} to {high}")


def _check_float(field: str, value: Any, *, positive: bool) -> None:
    bound = "a finite number > 0" if positive else "a finite number >= 0"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgument(field, value, bound)
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise InvalidArgument(field, value, bound)
