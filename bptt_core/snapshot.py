"""Predictions from immutable copies of a model, independent of the training thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core import checks, params
from bptt_core.backends import Backend
from bptt_core.errors import InvalidArgument
from bptt_core.scaling import deviation, finish, forecast_columns, levels
from bptt_core.scoring import error_band
from bptt_core.specs import ModelSpec
from bptt_core.state import Model, STATISTICS

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class StreamView:
    """A copy of one stream's live state."""

    next_step: int
    sequence_step: int
    """Steps since the sequence began; 0: a forecast has no value to start from."""
    state: Array
    """(L, parts, H), not writeable."""
    last_input: Array
    """(D,) float64 the newest step of a forecast, in the user's units. A missing value is the last
    one seen, NaN before there is one."""
    incarnation: int = 0
    """Number of the stream's opening; see `Learner.incarnation`."""
    source_position: bytes = b""
    """Of the last chunk that had one."""
    source_step: int = 0
    """The stream's next step after that chunk."""


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A copy of the parts of a model that predictions need."""

    spec: ModelSpec
    backend: Backend
    model: Model
    """Its arrays are not writeable; moments, errors and class counts are left out."""
    update: int
    """Number of updates that the model had made."""

    def predict(self, view: StreamView | None, inputs: Array | None = None) -> Array:
        """Predict from a stream's live state, or from a zero state; may read further steps first.

        Args:
            view: the stream; None begins at a zero state.
            inputs: (T, D) steps to read first, not learned. A forecast may leave them out.

        Returns:
            (T, O) float64 in the user's units, one row a step of `inputs`, or one row without them.

        Raises:
            InvalidArgument: neither `view` nor `inputs` gives a value to predict from.
        """
        spec = self.spec
        if inputs is None or len(inputs) == 0:
            if spec.task not in ("forecast", "next_token"):
                raise InvalidArgument("inputs", "left out", f"given for task {spec.task}")
            if view is None or view.sequence_step == 0:
                raise InvalidArgument(
                    "inputs", "left out", "given for a stream whose sequence has no step yet"
                )
            output = self._head(view.state[-1, 0])[np.newaxis]
            return finish(spec, output, *self._user_scale(view.last_input[np.newaxis]))
        if view is None:
            shape = (spec.layers, spec.state_parts, spec.hidden_size)
            view = StreamView(0, 0, np.zeros(shape, spec.dtype), np.zeros(spec.input_size))
        x = checks.inputs(spec, "inputs", inputs, (None,))
        if spec.task == "next_token":
            outputs = self.backend.forward(self.model.parameters, x.astype(spec.dtype), view.state)
            return finish(spec, outputs, x, x)
        columns = [levels(spec, self.model, x)]
        seen = x
        if spec.task == "forecast":
            before = view.last_input if view.sequence_step else np.full(spec.input_size, np.nan)
            seen = _seen(np.vstack([before, x]))
            change = np.nan_to_num(x - seen[:-1], nan=0.0)
            if spec.scaling:
                change /= deviation(self.model.target_count[0], self.model.target_m2[0])
            columns.append(change)
            seen = seen[1:]
        if spec.missing_inputs:
            columns.append((~np.isnan(x)).astype(float))
        features = np.concatenate(columns, axis=1).astype(spec.dtype)
        outputs = self.backend.forward(self.model.parameters, features, view.state)
        return finish(spec, outputs, *self._user_scale(seen))

    def parameters(self) -> dict[str, Array]:
        """Copies of all parameters under PyTorch's names; see `params`."""
        views = params.views(self.spec, self.model.parameters)
        return {name: np.array(view, order="C") for name, view in views.items()}

    def statistics(self) -> dict[str, Array]:
        """Copies of the statistics that scale values, float64; `Learner.load_statistics`."""
        return {name: getattr(self.model, name).copy() for name in STATISTICS}

    def error_band(self) -> tuple[Array, Array]:
        """As `Learner.error_band`, at the time of the snapshot."""
        return error_band(self.model)

    def _head(self, h: Array) -> Array:
        spec = self.spec
        weight = self.model.parameters[-spec.outputs * (spec.hidden_size + 1) : -spec.outputs]
        bias = self.model.parameters[-spec.outputs :]
        return np.asarray(weight.reshape(spec.outputs, spec.hidden_size) @ h + bias)

    def _user_scale(self, x: Array) -> tuple[Array, Array]:
        """Base and unit (T, O) of predictions after inputs x (T, D), missing ones filled in."""
        spec, model = self.spec, self.model
        base, unit = np.zeros((len(x), spec.outputs)), np.ones((len(x), spec.outputs))
        if spec.task == "forecast":
            columns = forecast_columns(spec)
            x = np.where(np.isnan(x), model.input_mean, x)
            base[:] = np.tile(x[:, columns], spec.horizon)
            if spec.scaling:
                spread = deviation(model.target_count, model.target_m2)
                unit[:] = spread[:, columns].reshape(-1)
        elif spec.scaling and spec.task == "regression" and spec.loss != "bernoulli":
            base[:] = model.target_mean[0]
            unit[:] = deviation(model.target_count[0], model.target_m2[0])
        return base, unit


def _seen(x: Array) -> Array:
    """Replace each missing value in (T, D) steps by the last one seen."""
    if not np.isnan(x[1:]).any():
        return x
    seen = x.copy()
    for t in range(1, len(x)):
        np.copyto(seen[t], seen[t - 1], where=np.isnan(seen[t]))
    return seen
