"""The learner: a model and its streams behind one transition, `apply`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bptt_core import batches, checks, experts, marshalling, params, scoring, windows
from bptt_core.backends import BackendName, make
from bptt_core.errors import BpttError, InvalidArgument, UnknownStream
from bptt_core.marshalling import Done
from bptt_core.settings import Settings, steered
from bptt_core.snapshot import Snapshot, StreamColumns, StreamView
from bptt_core.specs import Clip, ModelSpec
from bptt_core.state import (
    APPLIED,
    BASELINE_LOSS,
    CLIPPED,
    CLIPPED_GRADIENT_NORM,
    ERRORS,
    GRADIENT_NORM,
    INCARNATION,
    LOSS,
    memory_shape,
    new_model,
    NEXT_STEP,
    ROWS,
    SEQUENCE_STEP,
    SKIPPED,
    SKIPPED_IN_A_ROW,
    STATISTICS,
    STEPS,
    StreamTable,
    UPDATES,
)
from bptt_core.ticks import Batch, Chunk, Figures, offsets_of, TickResult, UpdateReport
from bptt_core.transition import Steps

Array = NDArray[Any]

STATE_FORMAT = 2  # format number of `Learner.state`


@dataclass(frozen=True, slots=True, eq=False)
class FeedResult:
    """Results of steps fed side by side."""

    updates: tuple[UpdateReport, ...]
    predictions: Array | None
    """(T, B, O) in the user's units; None if they were not asked for."""


class Learner:
    """Learns from streams with truncated BPTT. One thread at a time; usable without any server.

    >>> import numpy as np
    >>> from bptt_core import Learner, ModelSpec
    >>> learner = Learner(ModelSpec(input_size=1, hidden_size=8), backend="reference")
    >>> wave = np.sin(np.arange(60) / 5).reshape(60, 1, 1)
    >>> result = learner.feed(wave)
    >>> len(result.updates), result.predictions.shape
    (14, (60, 1, 1))
    """

    def __init__(self, spec: ModelSpec, *, backend: BackendName = "compiled") -> None:
        self.spec = spec
        self.settings = Settings(None, spec.clip, spec.clip_threshold, paused=False)
        """The settings in force; see `configure`."""
        self._steered = spec  # the spec with the settings applied
        # Parameters change only with an update: values computed from them are kept until then.
        self._norm: tuple[int, float] | None = None
        self._published: tuple[int, Array] | None = None
        self._backend_name = backend
        self._backend = make(spec, backend)
        self._model = new_model(spec)
        self._table = StreamTable(spec)

    # ------------------------------------------------------------------ learning

    def apply(self, tick: Batch | Sequence[Chunk], *, predictions: bool = True) -> TickResult:
        """Learn a tick. This is the only transition of the state.

        Args:
            tick: a batch, or chunks to pack into one; their order changes the result.
            predictions: False saves a third of the work, and does not update the figures of merit.

        Raises:
            InvalidArgument: a chunk's shape, type or value is wrong; the subclass says which.
            LabelTooLate: a target's step can no longer be learned.
            LabelTooEarly: a target's step has not been read yet.
            OrderError: a chunk does not begin with its stream's next step.
        If an error is raised, nothing was changed.
        """
        batch = tick if isinstance(tick, Batch) else batches.pack(self.spec, tick)
        rows, checked, errors = self._check(batch)
        if errors:
            raise errors[min(errors)]
        for lane in np.flatnonzero(rows < 0).tolist():
            rows[lane] = self._table.open(batch.stream_ids[lane])
        if checked.earlier is not None:
            assert checked.earlier_lanes is not None
            assert checked.earlier_steps is not None
            self._table.hold_labels(
                rows[checked.earlier_lanes], checked.earlier_steps, checked.earlier
            )
        steps = marshalling.steps_of_batch(rows, batch, checked)
        incarnations = self._table.incarnations[rows]
        done = self._run(steps, predictions)
        next_steps = batch.first_steps + batch.lengths
        self._table.keep_sources(batch, next_steps)
        return TickResult(
            batch.stream_ids,
            batch.first_steps,
            next_steps,
            incarnations,
            offsets_of(batch.lengths),
            done.predictions,
            done.scores,
            done.updates,
            done.members,
        )

    def check(self, batch: Batch) -> dict[int, BpttError]:
        """Check a batch without learning it.

        Returns:
            The error of each lane that `apply` would refuse, by the lane's number.

        Raises:
            InvalidArgument: the batch as a whole is not valid.
        """
        return self._check(batch)[2]

    def _check(self, batch: Batch) -> tuple[Array, batches.Checked, dict[int, BpttError]]:
        """The rows of the batch's streams (-1 for new ones), its values, and errors by lane."""
        rows = self._table.find(batch.stream_ids)
        checked, errors = batches.check(self.spec, batch, *self._positions(rows))
        return rows, checked, errors

    def _positions(self, rows: Array) -> tuple[Array, Array]:
        """Next steps, and steps since the sequence began, of the streams in rows; -1: a new one."""
        counters, known = self._table.arrays.counters, rows >= 0
        next_steps = np.where(known, counters[rows, NEXT_STEP], 0)
        return next_steps, np.where(known, counters[rows, SEQUENCE_STEP], 0)

    def feed(
        self,
        x: Array,
        target: Array | None = None,
        *,
        predictions: bool = True,
        end_of_sequence: bool = False,
    ) -> FeedResult:
        """Learn B sequences side by side: streams named "0" to "B-1".

        Args:
            x: (T, B, D) inputs; (T, B) token ids.
            target: (T, B, O), or (T, B) class ids, of the same steps; None for a forecast.
            predictions: False saves a third of the work, and does not update the figures of merit.
            end_of_sequence: learn the unfinished windows, then reset the states.

        Raises:
            InvalidArgument: a wrong shape, type or value; nothing was changed.
        """
        count = np.shape(x)[1] if np.ndim(x) > 1 else 0
        first_steps, _ = self._positions(self._table.find([str(each) for each in range(count)]))
        batch = batches.pack_side_by_side(self.spec, x, target, first_steps, end_of_sequence)
        result = self.apply(batch, predictions=predictions)
        made = result.predictions
        if made is not None:
            made = made.reshape(count, len(x), -1).swapaxes(0, 1)
        return FeedResult(result.updates, made)

    def _run(self, steps: Steps, predictions: bool) -> Done:
        """Run packed steps."""
        made = np.empty((len(steps.x), self.spec.outputs)) if predictions else None
        steps = steps._replace(paused=self.settings.paused)
        done = self._backend.run(self._model, self._table.arrays, steps, made)
        scores = None
        if predictions and self.spec.task == "forecast":
            scores = done.scores.copy()
        updates = tuple(map(marshalling.report, done.reports.tolist()))
        return Done(made, updates, done.members.copy(), scores)

    def configure(
        self,
        *,
        learning_rate: float | None = None,
        clip: Clip | None = None,
        clip_threshold: float | None = None,
        paused: bool | None = None,
    ) -> None:
        """Change how the model learns from its next update on. The settings are part of its state.

        Args:
            learning_rate: > 0; replaces the spec's learning rate and schedule.
            clip: how the gradient is clipped.
            clip_threshold: the bound of the clip, > 0.
            paused: True stops learning until it is False again. Targets that become due meanwhile,
                and targets that wait for their update, are never learned. False also lets a
                diverged model learn again.

        Raises:
            InvalidArgument: a value is out of its bounds; nothing was changed.
        """
        now = self.settings
        if paused is not None and not isinstance(paused, bool):
            raise InvalidArgument("paused", paused, "true or false")
        settings = Settings(
            now.learning_rate if learning_rate is None else learning_rate,
            now.clip if clip is None else clip,
            now.clip_threshold if clip_threshold is None else clip_threshold,
            now.paused if paused is None else paused,
        )
        self._steered = steered(self.spec, settings)
        self._backend = make(self._steered, self._backend_name)
        if settings.learning_rate is not None:
            self._model.rates[0] = settings.learning_rate
        if settings.paused and not now.paused:
            self._table.arrays.targets[list(self._table.rows.values())] = np.nan
        if paused is False:
            self._model.counters[SKIPPED_IN_A_ROW] = 0
        self.settings = settings

    def roll_back(
        self, arrays: Mapping[str, Array], metadata: Mapping[str, Any], *, learning_rate: float
    ) -> None:
        """Restore what an earlier `state` had learned; the streams keep their position.

        Restores parameters, optimizer, scalers and figures of merit. Streams keep their next step
        and begin a new sequence there. Counters, and settings other than the learning rate, stay.

        Args:
            arrays: of the earlier state.
            metadata: of the earlier state.
            learning_rate: > 0, as for `configure`.

        Raises:
            InvalidArgument: the state has another spec, or is incomplete; nothing was changed.
        """
        spec = checks.state(arrays, metadata, STATE_FORMAT)
        if spec != self.spec:
            raise InvalidArgument("spec", "another model's", "that of this model")
        arrays = checks.complete(spec, arrays, metadata)
        self.configure(learning_rate=learning_rate)
        for name, array in self._model._asdict().items():
            if name not in ("counters", "rates"):
                array[...] = arrays[f"model.{name}"]
        earlier = arrays["model.counters"]
        self._model.counters[[APPLIED, ERRORS]] = earlier[[APPLIED, ERRORS]]
        self._model.counters[SKIPPED_IN_A_ROW] = 0
        for row in self._table.rows.values():
            self._table.reset(row)
        self._norm = self._published = None

    # ------------------------------------------------------------------ streams

    def stream_ids(self) -> list[str]:
        """Names of all streams, sorted."""
        return sorted(self._table.rows)

    def next_step(self, stream_id: str) -> int:
        """The number of the stream's next step.

        Raises:
            UnknownStream: no stream has that name.
        """
        return int(self._table.arrays.counters[self._row(stream_id), NEXT_STEP])

    def incarnation(self, stream_id: str) -> int:
        """The stream's incarnation number, which the model counts from 1 when it opens a stream.

        No two streams have the same number, and a stream that is deleted and opened again gets a
        new one.

        Raises:
            UnknownStream: no stream has that name.
        """
        return int(self._table.incarnations[self._row(stream_id)])

    @property
    def last_incarnation(self) -> int:
        """The highest incarnation number given so far; 0 before the first stream."""
        return self._table.opened

    def number_streams_above(self, incarnation: int) -> None:
        """Number streams opened from now on above this incarnation."""
        self._table.opened = max(self._table.opened, incarnation)

    def reset_stream(self, stream_id: str) -> None:
        """Clear a stream's state and unfinished window; its step numbers continue.

        Raises:
            UnknownStream: no stream has that name.
        """
        self._table.reset(self._row(stream_id))

    def delete_stream(self, stream_id: str) -> None:
        """Delete a stream. What the model learned from it stays.

        Raises:
            UnknownStream: no stream has that name.
        """
        self._row(stream_id)
        self._table.delete(stream_id)

    def _row(self, stream_id: str) -> int:
        if stream_id not in self._table.rows:
            raise UnknownStream(stream_id)
        return self._table.rows[stream_id]

    # ------------------------------------------------------------------ views of the state

    @property
    def parameter_count(self) -> int:
        """Number of the network's parameters, P."""
        return self._model.parameters.size

    @property
    def figures(self) -> Figures:
        """Loss, gradient norms, counters and figures of merit of the model."""
        counters, last = self._model.counters.tolist(), self._model.last.tolist()
        if self._norm is None or self._norm[0] != counters[UPDATES]:
            self._norm = (
                counters[UPDATES],
                math.sqrt(float(np.dot(self._model.parameters, self._model.parameters))),
            )
        accuracy, bits = scoring.of_classes(self._model)
        return Figures(
            steps=counters[STEPS],
            updates=counters[UPDATES],
            clipped_updates=counters[CLIPPED],
            skipped_updates=counters[SKIPPED],
            limited_inputs=int(self._model.limited.sum()),
            loss=last[LOSS],
            baseline_loss=last[BASELINE_LOSS],
            gradient_norm=last[GRADIENT_NORM],
            clipped_gradient_norm=last[CLIPPED_GRADIENT_NORM],
            skill_ratio=scoring.skill_ratio(self._model),
            accuracy=accuracy,
            cross_entropy_bits=bits,
            consecutive_skipped=counters[SKIPPED_IN_A_ROW],
            diverged=windows.diverged(self.spec, self._model),
            parameter_norm=self._norm[1],
            network_skill_ratio=scoring.network_skill_ratio(self._model),
            expert_weights=experts.weights_by_name(self._model),
            learning_rate=windows.learning_rate(self._steered, self._model, counters[APPLIED]),
        )

    def snapshot(self) -> Snapshot:
        """An immutable copy of the parts that predictions need."""
        update = int(self._model.counters[UPDATES])
        if self._published is None or self._published[0] != update:
            self._published = update, _frozen(self._model.parameters.copy())
        none, one = np.empty((0, 0), self.spec.dtype), np.empty(0)
        rest = self._model._replace(
            moments=none, parameters=none, errors=none, class_counts=one, score_ring=one
        )
        model = type(self._model)(*(_frozen(array.copy()) for array in rest))
        model = model._replace(parameters=self._published[1])
        return Snapshot(self.spec, self._backend, model, update)

    def error_band(self) -> tuple[Array, Array]:
        """The error band of predictions, from recent prequential errors.

        Returns:
            low, high: (O,) each, in the user's units: the 0.05 and 0.95 quantiles of each output's
            recent errors, truth - prediction; NaN for an output with too few. Both are empty before
            the first band, and for classes and tokens.
        """
        return scoring.error_band(self._model)

    def stream_view(self, stream_id: str) -> StreamView:
        """An immutable copy of one stream's live state.

        Raises:
            UnknownStream: no stream has that name.
        """
        row, arrays = self._row(stream_id), self._table.arrays
        next_step, sequence_step = arrays.counters[row, :2].tolist()
        if self.spec.task == "forecast":
            last = arrays.recent[row, (sequence_step - 1) % self.spec.horizon].copy()
        else:
            last = np.zeros(self.spec.input_size)
        return StreamView(
            next_step,
            sequence_step,
            _frozen(arrays.live_state[row].copy()),
            _frozen(last),
            int(self._table.incarnations[row]),
            *self._table.sources.get(stream_id, (b"", 0)),
            _frozen(self._memories(np.array([row]))[0]),
        )

    def stream_columns(self, stream_ids: Sequence[str]) -> StreamColumns:
        """Copies of the live states of streams, in their order: `stream_view` as columns.

        Raises:
            UnknownStream: no stream has one of these names.
        """
        rows, arrays = self._table.find(stream_ids), self._table.arrays
        sources = self._table.sources
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            raise UnknownStream(stream_ids[int(unknown[0])])
        sequence_steps = arrays.counters[rows, SEQUENCE_STEP]
        if self.spec.task == "forecast":
            last = arrays.recent[rows, (sequence_steps - 1) % self.spec.horizon]
        else:
            last = np.zeros((len(rows), self.spec.input_size))
        return StreamColumns(
            arrays.counters[rows, NEXT_STEP],
            sequence_steps,
            self._table.incarnations[rows],
            arrays.live_state[rows],
            last,
            self._memories(rows),
            {name: sources[name] for name in stream_ids if name in sources} if sources else {},
        )

    def _memories(self, rows: Array) -> Array:
        """(K, 3 + ORDER, targets) what the experts of these rows' streams remember."""
        arrays, steps = self._table.arrays, self._table.arrays.counters[rows, SEQUENCE_STEP]
        if not self.spec.mixture:
            return np.empty((len(rows), *memory_shape(self.spec)), self.spec.dtype)
        return experts.memories_of(arrays, rows, steps).astype(self.spec.dtype)

    def carried_state(self, stream_id: str) -> Array:
        """A copy of the state after the last step, (L, parts, H); the parts are the cell's.

        Raises:
            UnknownStream: no stream has that name.
        """
        return self.stream_view(stream_id).state.copy()

    def window(self, stream_id: str) -> tuple[Array, Array]:
        """A stream's features (T, F) since its window's start, and the state before them.

        Raises:
            UnknownStream: no stream has that name.
        """
        row, arrays = self._row(stream_id), self._table.arrays
        rows = int(arrays.counters[row, ROWS])
        return arrays.inputs[row, :rows].copy(), arrays.start_state[row].copy()

    def parameters(self) -> dict[str, Array]:
        """Copies of all parameters under PyTorch's names."""
        copy = self._model.parameters.copy()
        views = params.views(self.spec, copy)  # U of a token model is stored transposed
        return {name: np.ascontiguousarray(view) for name, view in views.items()}

    def load_parameters(self, source: Mapping[str, Array]) -> None:
        """Replace all parameters; their names are PyTorch's.

        Raises:
            InvalidArgument: a name or an array does not match; nothing was changed.
        """
        params.load(self.spec, self._model.parameters, source)
        self._norm = self._published = None

    def load_statistics(self, source: Mapping[str, Array]) -> None:
        """Replace the statistics that scale values; see `Snapshot.statistics`.

        Raises:
            InvalidArgument: a name or an array does not match; nothing was changed.
        """
        checks.statistics(self.spec, source)
        for name in STATISTICS:
            if getattr(self._model, name).size:
                getattr(self._model, name)[...] = source[name]

    # ------------------------------------------------------------------ storage

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The whole state of the learner: arrays, and metadata that JSON can hold."""
        names, streams = self._table.compact()
        arrays = {f"model.{name}": array.copy() for name, array in self._model._asdict().items()}
        arrays |= {f"streams.{name}": array for name, array in streams.items()}
        metadata = {
            "format": STATE_FORMAT,
            "spec": self.spec.to_dict(),
            "settings": dataclasses.asdict(self.settings),
            "streams": names,
            "last_incarnation": self.last_incarnation,
        }
        if self._table.sources:
            metadata["sources"] = {
                name: [position.hex(), step]
                for name, (position, step) in sorted(self._table.sources.items())
            }
        return arrays, metadata

    @classmethod
    def from_state(
        cls,
        arrays: Mapping[str, Array],
        metadata: Mapping[str, Any],
        *,
        backend: BackendName = "compiled",
    ) -> Self:
        """Create a learner from the result of `state`.

        Raises:
            InvalidArgument: an entry is missing, or does not match the spec.
        """
        spec = checks.state(arrays, metadata, STATE_FORMAT)
        arrays = checks.complete(spec, arrays, metadata)
        learner = cls(spec, backend=backend)
        learner.configure(**metadata.get("settings", {}))  # older states lack them
        for name, array in learner._model._asdict().items():
            array[...] = arrays[f"model.{name}"]
        streams = {name: arrays[f"streams.{name}"] for name in learner._table.arrays._fields}
        names = list(metadata["streams"])
        numbers = np.arange(1, len(names) + 1)  # for older states, which lack them
        streams[INCARNATION] = arrays.get(f"streams.{INCARNATION}", numbers)
        learner._table.restore(names, streams, int(metadata.get("last_incarnation", len(names))))
        learner._table.sources = checks.sources(metadata)
        return learner

    def warm_up(self) -> None:
        """Compile or load all kernels that this spec uses; compiling takes half a minute."""
        twin = type(self)(self.spec, backend="reference")
        twin._backend = self._backend
        steps = self.spec.k1 + self.spec.delay
        x = np.zeros((steps, 1, self.spec.input_size))
        if self.spec.task == "next_token":
            x = np.zeros((steps, 1), np.int64)
        target: Array | None = None
        if self.spec.task == "classification":
            target = np.zeros((steps, 1), np.int64)
        elif self.spec.task == "regression":
            target = np.zeros((steps, 1, self.spec.outputs))
        twin.feed(x, target)
        twin.snapshot().predict(None, x[:, 0])
        self._backend.forget()  # the twin


def _frozen(array: Array) -> Array:
    """A read-only view of a fresh copy."""
    view = array.view()
    view.flags.writeable = False
    return view
