"""Predictions from immutable copies of a model, independent of the training thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core import checks, experts, network, params
from bptt_core.backends import Backend
from bptt_core.errors import InvalidArgument
from bptt_core.scaling import (
    change_units,
    finish,
    forecast_columns,
    in_units,
    input_mean,
    levels,
    target_units,
)
from bptt_core.scoring import error_band
from bptt_core.specs import ModelSpec
from bptt_core.state import memory_shape, Model, STATISTICS

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
    memory: Array = field(default_factory=lambda: np.empty((0, 0)))
    """(3 + ORDER, targets) what the experts of a mixture remember (`experts.memories_of`); empty at
    the start of a sequence, and without a mixture."""


class StreamColumns(NamedTuple):
    """Copies of the live states of K streams: the fields of `StreamView` as columns."""

    next_steps: Array
    """(K,) int64"""
    sequence_steps: Array
    """(K,) int64"""
    incarnations: Array
    """(K,) int64"""
    states: Array
    """(K, L, parts, H)"""
    last_inputs: Array
    """(K, D) float64"""
    memories: Array
    """(K, 3 + ORDER, targets); 0 targets without a mixture."""
    sources: Mapping[str, tuple[bytes, int]]
    """By stream, for those that have one: the source position, and the next step after it."""


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
            return self._from_live_states([view])
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
            change = in_units(spec, x - seen[:-1], change_units(spec, self.model)[0])
            columns.append(np.nan_to_num(change, nan=0.0))
        if spec.missing_inputs:
            columns.append((~np.isnan(x)).astype(float))
        features = np.concatenate(columns, axis=1).astype(spec.dtype)
        outputs = self.backend.forward(self.model.parameters, features, view.state)
        made = finish(spec, outputs, *self._user_scale(seen[-len(x) :]))
        return self._mixed([view], x[:, np.newaxis], seen[:, np.newaxis], made[:, np.newaxis])[:, 0]

    def predict_many(
        self,
        views: Sequence[StreamView],
        inputs: Array | None = None,
        steps: Sequence[int] | None = None,
    ) -> Array:
        """Predict from the live states of many streams, each as `predict` does up to rounding.

        Streams that read equally many steps go through the network side by side: one matrix product
        a layer and step for all of them.

        Args:
            views: the streams; at least one.
            inputs: (N, D) steps to read first, or (N,) token ids, stream after stream.
            steps: of each stream, its number of rows in `inputs`. None: one each if there are
                inputs, else none.

        Returns:
            (M, O) float64 in the user's units, stream after stream: a row for each step, or one for
            a stream without steps.

        Raises:
            InvalidArgument: as for `predict`; or `steps` and `inputs` do not fit.
        """
        given = 0 if inputs is None else len(inputs)
        if steps is None:
            steps = [1 if inputs is not None else 0] * len(views)
        if len(steps) != len(views) or sum(steps) != given:
            bound = f"the steps of {len(views)} streams, {given} in all"
            raise InvalidArgument("steps", f"{len(steps)}, {sum(steps)} in all", bound)
        lengths = np.asarray(steps)
        starts = np.cumsum(np.maximum(1, lengths)) - np.maximum(1, lengths)
        sources = np.cumsum(lengths) - lengths
        rows = np.empty((int(np.maximum(1, lengths).sum()), self.spec.outputs))
        for length in np.unique(lengths).tolist():
            places = np.flatnonzero(lengths == length)
            group = [views[place] for place in places.tolist()]
            if not length:
                rows[starts[places]] = self._from_live_states(group)
                continue
            assert inputs is not None
            into = starts[places][:, None] + np.arange(length)
            x = inputs[sources[places][:, None] + np.arange(length)]
            if self.spec.task == "next_token":  # one-hot rows of many streams would be large
                made = np.stack([self.predict(v, t) for v, t in zip(group, x, strict=True)])
            else:
                made = self._side_by_side(group, x)
            rows[into] = made
        return rows

    def _from_live_states(self, views: Sequence[StreamView]) -> Array:
        """Predictions (B, O) of streams that read no further steps."""
        spec = self.spec
        if spec.task not in ("forecast", "next_token"):
            raise InvalidArgument("inputs", "left out", f"given for task {spec.task}")
        if any(view.sequence_step == 0 for view in views):
            raise InvalidArgument(
                "inputs", "left out", "given for a stream whose sequence has no step yet"
            )
        output = self._head(np.stack([view.state[-1, 0] for view in views]))
        last = np.stack([view.last_input for view in views])
        made = finish(spec, output, *self._user_scale(last))
        if not spec.mixture:
            return made
        seen = last[:, forecast_columns(spec)]
        return experts.predicted(self.model, self._memory(views), seen, self._unit(), made)

    def _mixed(self, views: Sequence[StreamView], x: Array, seen: Array, made: Array) -> Array:
        """Mixtures (T, B, O) of the network's forecasts after steps x (T, B, D)."""
        if not self.spec.mixture:
            return made
        columns = forecast_columns(self.spec)
        return experts.predicted_steps(
            self.model, self._memory(views), x[..., columns], seen[..., columns], self._unit(), made
        )

    def _memory(self, views: Sequence[StreamView]) -> Array:
        """(3 + ORDER, B, n) what the experts of streams remember."""
        none = np.zeros(memory_shape(self.spec), self.spec.dtype)
        return np.stack([each.memory if each.memory.size else none for each in views], axis=1)

    def _unit(self) -> Array:
        """(O,) units of changes."""
        units = change_units(self.spec, self.model)[:, forecast_columns(self.spec)]
        return units.reshape(-1)

    def _side_by_side(self, views: Sequence[StreamView], x: Array) -> Array:
        """Predictions (B, T, O) of streams that read as many steps x (B, T, D) each."""
        spec, (B, T) = self.spec, x.shape[:2]
        x = checks.inputs(spec, "inputs", np.ascontiguousarray(x), (None, None))
        columns = [levels(spec, self.model, x.reshape(B * T, -1))]
        seen = x
        if spec.task == "forecast":
            none = np.full(spec.input_size, np.nan)
            before = np.stack([v.last_input if v.sequence_step else none for v in views])
            seen = _seen(np.concatenate([before[:, None], x], axis=1).swapaxes(0, 1))
            seen = seen.swapaxes(0, 1)
            change = in_units(spec, x - seen[:, :-1], change_units(spec, self.model)[0])
            columns.append(np.nan_to_num(change, nan=0.0).reshape(B * T, -1))
        if spec.missing_inputs:
            columns.append((~np.isnan(x)).astype(float).reshape(B * T, -1))
        features = np.concatenate(columns, axis=1).astype(spec.dtype).reshape(B, T, -1)
        state = np.stack([view.state for view in views], axis=2)
        named = params.views(spec, self.model.parameters)
        with np.errstate(all="ignore"):
            tape = network.forward(spec, named, features.swapaxes(0, 1), state)
        outputs = np.ascontiguousarray(tape.output.swapaxes(0, 1)).reshape(B * T, -1)
        base, unit = self._user_scale(seen[:, -T:].reshape(B * T, -1))
        made = finish(spec, outputs, base, unit).reshape(B, T, -1)
        turned = (each.swapaxes(0, 1) for each in (x, seen, made))
        return self._mixed(views, *turned).swapaxes(0, 1)

    def parameters(self) -> dict[str, Array]:
        """Copies of all parameters under PyTorch's names; see `params`."""
        views = params.views(self.spec, self.model.parameters)
        return {name: np.array(view, order="C") for name, view in views.items()}

    def statistics(self) -> dict[str, Array]:
        """Copies of the statistics that scale values, float64; empty ones are left out."""
        arrays = {name: getattr(self.model, name).copy() for name in STATISTICS}
        return {name: array for name, array in arrays.items() if array.size}

    def error_band(self) -> tuple[Array, Array]:
        """As `Learner.error_band`, at the time of the snapshot."""
        return error_band(self.model)

    def _head(self, h: Array) -> Array:
        """Raw outputs (O,) or (B, O) of hidden states (H,) or (B, H)."""
        spec = self.spec
        weight = self.model.parameters[-spec.outputs * (spec.hidden_size + 1) : -spec.outputs]
        bias = self.model.parameters[-spec.outputs :]
        return np.asarray((weight.reshape(spec.outputs, spec.hidden_size) @ h.T).T + bias)

    def _user_scale(self, x: Array) -> tuple[Array, Array]:
        """Base and unit (T, O) of predictions after inputs x (T, D), missing ones filled in."""
        spec, model = self.spec, self.model
        base, unit = np.zeros((len(x), spec.outputs)), np.ones((len(x), spec.outputs))
        if spec.task == "forecast":
            columns = forecast_columns(spec)
            x = np.where(np.isnan(x), input_mean(spec, model), x)
            base[:] = np.tile(x[:, columns], spec.horizon)
            unit[:] = self._unit()
        elif spec.scaling and spec.task == "regression" and spec.loss != "bernoulli":
            base[:], unit[:] = target_units(spec, model)
        return base, unit


def _seen(x: Array) -> Array:
    """Replace each missing value in (T, D) steps by the last one seen."""
    if not np.isnan(x[1:]).any():
        return x
    seen = x.copy()
    for t in range(1, len(x)):
        np.copyto(seen[t], seen[t - 1], where=np.isnan(seen[t]))
    return seen
