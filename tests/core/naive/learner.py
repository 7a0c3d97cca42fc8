"""Truncated BPTT(k1, k2) over streams, by its definition.

A sequence is kept whole. `states[s]` is the state before step s, as it was last computed. When k1
targets are complete that were not learned yet, the window from `start` on is unfolded again from
`states[start]`; the next one begins so that k1 more steps make it k2 long, and never before the
sequence does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bptt_core import Chunk, ModelSpec
from tests.core.naive import learning
from tests.core.naive.algebra import add, Matrix, sigmoid, Vector, zeros
from tests.core.naive.network import Named, Network, State, Tape
from tests.core.naive.scaling import fade, Scaler, Step


@dataclass
class Report:
    update: int
    steps: int
    streams: int
    loss: float
    baseline_loss: float
    gradient_norm: float
    clipped_gradient_norm: float


@dataclass
class Stream:
    """A sequence, whole."""

    live: State
    inputs: Matrix = field(default_factory=list)
    """In the user's units."""
    features: Matrix = field(default_factory=list)
    targets: Matrix = field(default_factory=list)
    """Complete ones: of step 0, 1, …"""
    states: list[State] = field(default_factory=list)
    start: int = 0
    learned: int = 0
    made: list[tuple[Vector, Vector]] = field(default_factory=list)
    """Of every step: its forecast, and the values that it started from."""


@dataclass
class Lane:
    """A chunk on its way."""

    stream: Stream
    steps: list[Step]
    ends: bool
    outputs: Matrix = field(default_factory=list)
    predictions: Matrix = field(default_factory=list)


class Learner:
    """One model, and all that it was ever fed."""

    def __init__(self, spec: ModelSpec, parameters: Mapping[str, Any]) -> None:
        self.spec = spec
        self.network = Network(spec, parameters)
        self.scaler = Scaler(spec)
        self.streams: dict[str, Stream] = {}
        self.moments: Matrix | None = None
        self.updates = 0
        self.late = spec.horizon if spec.task in ("forecast", "next_token") else 0
        """Steps from an input until the last of its targets."""
        self.error, self.naive_error = zeros(spec.outputs), zeros(spec.outputs)

    def zero_state(self) -> State:
        parts = 2 if self.spec.cell == "lstm" else 1
        return [
            [zeros(self.spec.hidden_size) for _ in range(parts)] for _ in range(self.spec.layers)
        ]

    def apply(self, tick: Sequence[Chunk]) -> tuple[list[Report], list[Matrix]]:
        """Reports, and every chunk's predictions."""
        lanes = [self._lane(chunk) for chunk in tick]
        reports: list[Report] = []
        for t in range(max(len(lane.steps) for lane in lanes)):
            active = [lane for lane in lanes if len(lane.steps) > t]
            if self.late:
                self._complete(active, t)
                self._update_full(active, max(0, self.late - 1), reports)
            for lane in active:
                self._read(lane, lane.steps[t])
            if not self.late:
                self._complete(active, t)
                self._update_full(active, 0, reports)
            ending = [lane for lane in active if lane.ends and len(lane.steps) == t + 1]
            rest = [lane for lane in ending if len(lane.stream.targets) > lane.stream.learned]
            self._update_groups(rest, self.late, reports)
            for lane in ending:
                self._begin_anew(lane.stream)
        for lane, chunk in zip(lanes, tick, strict=True):
            self._score(lane, chunk)
        return reports, [lane.predictions for lane in lanes]

    # ------------------------------------------------------------------ steps

    def _lane(self, chunk: Chunk) -> Lane:
        stream = self.streams.setdefault(chunk.stream_id, Stream(self.zero_state()))
        steps = []
        for t in range(len(chunk.inputs)):
            x = chunk.inputs[t].tolist()
            if self.spec.task == "next_token":
                token = [float(x)]
                steps.append(Step(token, token if stream.inputs else None, [], [], []))
                x = token
            elif self.spec.task == "forecast":
                steps.append(self.scaler.forecast(stream.inputs, x))
            else:
                assert chunk.targets is not None
                y = chunk.targets[t].tolist()
                if self.spec.task == "classification":
                    y = [float(y) if y >= 0 else math.nan]
                steps.append(self.scaler.step(x, y))
            stream.inputs.append(x)
        return Lane(stream, steps, chunk.end_of_sequence)

    def _complete(self, active: list[Lane], t: int) -> None:
        for lane in active:
            target = lane.steps[t].target
            if target is not None:
                lane.stream.targets.append(target)

    def _read(self, lane: Lane, step: Step) -> None:
        stream = lane.stream
        stream.features.append(step.features)
        stream.states.append(stream.live)
        tape = self.network.forward([step.features], stream.live)
        stream.live = tape.state_after(1)
        lane.outputs.append(tape.outputs[0])

    def _begin_anew(self, stream: Stream) -> None:
        stream.live = self.zero_state()
        stream.inputs, stream.features, stream.targets, stream.states = [], [], [], []
        stream.start = stream.learned = 0

    # ------------------------------------------------------------------ updates

    def _update_full(self, active: list[Lane], pending: int, reports: list[Report]) -> None:
        k1 = self.spec.k1
        full = [lane for lane in active if len(lane.stream.targets) - lane.stream.learned == k1]
        self._update_groups(full, pending, reports)

    def _update_groups(self, lanes: list[Lane], pending: int, reports: list[Report]) -> None:
        """Together learn those whose windows are of one length."""
        waiting = [lane.stream for lane in lanes]
        while waiting:
            size = self._size(waiting[0])
            alike = [each for each in waiting if self._size(each) == size]
            group = alike[: self.spec.max_batch_streams]
            self._update(group, pending, reports)
            waiting = [each for each in waiting if all(each is not one for one in group)]

    def _size(self, stream: Stream) -> tuple[int, int]:
        return len(stream.features) - stream.start, len(stream.targets) - stream.learned

    def _update(self, group: list[Stream], pending: int, reports: list[Report]) -> None:
        spec = self.spec
        held, new = self._size(group[0])
        T = held - pending
        tapes = []
        for stream in group:
            window = stream.features[stream.start : stream.start + T]
            tape = self.network.forward(window, stream.states[stream.start])
            for s in range(T):
                stream.states[stream.start + s] = tape.state_after(s)
            tapes.append(tape)
        targets = [y for each in group for y in each.targets[each.learned : each.learned + new]]
        report = self.learn(tapes, targets, new)
        if report is not None:
            reports.append(report)
        for stream, tape in zip(group, tapes, strict=True):
            stream.live = tape.state_after(T)
            for s in range(stream.start + T, len(stream.features)):
                stream.states[s] = stream.live
                again = self.network.forward([stream.features[s]], stream.live)
                stream.live = again.state_after(1)
            stream.start += max(0, T + spec.k1 - spec.k2)
            stream.learned += new

    def learn(self, tapes: list[Tape], targets: Matrix, new: int) -> Report | None:
        """Learn the last `new` steps of alike windows, whose targets follow stream by stream."""
        spec = self.spec
        outputs = [row for tape in tapes for row in tape.outputs[len(tape.outputs) - new :]]
        loss, baseline, slopes, count = learning.losses_and_slopes(
            str(spec.loss), spec.reduction == "mean", outputs, targets
        )
        if not count:
            return None
        total: Named = {}
        for place, tape in enumerate(tapes):
            none: Matrix = [zeros(spec.outputs) for _ in range(len(tape.outputs) - new)]
            mine = self.network.backward(tape, none + slopes[place * new : (place + 1) * new])
            for name, gradient in mine.items():
                total[name] = _add(total[name], gradient) if name in total else gradient
        self.updates += 1
        norm, clipped = self._step(total)
        return Report(self.updates, new * len(tapes), len(tapes), loss, baseline, norm, clipped)

    def _step(self, gradient: Named) -> tuple[float, float]:
        """Clip and take one optimizer step; the norms before and after the clip."""
        spec = self.spec
        names = list(self.network.named)
        parts: dict[str, list[str]] = {}
        for name in names:
            part = name.rpartition("_")[2] if name.startswith("rnn.") else "head"
            parts.setdefault(part, []).append(name)
        flat = [[g for name in part for g in _flat(gradient[name])] for part in parts.values()]
        norm = learning.global_norm([g for part in flat for g in part])
        clipped = [g for part in learning.clip(spec.clip, flat, spec.clip_threshold) for g in part]
        θ = [value for name in names for value in _flat(self.network.named[name])]
        if self.moments is None:
            kept = {"sgd": 0, "adam": 2, "adamw": 2}.get(spec.optimizer, 1)
            self.moments = [zeros(len(θ)) for _ in range(kept)]
        assert spec.learning_rate is not None
        assert spec.final_learning_rate is not None
        assert spec.decay_updates is not None
        rate = learning.learning_rate_at(
            self.updates,
            spec.learning_rate,
            spec.final_learning_rate,
            spec.warmup_updates,
            spec.decay_updates,
        )
        assert spec.weight_decay is not None
        θ, self.moments = learning.optimizer_step(
            spec.optimizer, θ, clipped, self.moments, self.updates, rate, spec.weight_decay
        )
        values = iter(θ)
        for name in names:
            self.network.named[name] = _filled(self.network.named[name], values)
        return norm, learning.global_norm(clipped)

    # ------------------------------------------------------------------ answers

    def _score(self, lane: Lane, chunk: Chunk) -> None:
        """Predictions in the user's units, and how good the earlier ones were."""
        spec = self.spec
        for t, (step, output) in enumerate(zip(lane.steps, lane.outputs, strict=True)):
            if spec.loss == "cross_entropy":
                odds = [math.exp(each - max(output)) for each in output]
                lane.predictions.append([each / math.fsum(odds) for each in odds])
                continue
            if spec.loss == "bernoulli":
                prediction = [sigmoid(each) for each in output]
            else:
                prediction = [
                    b + u * s for b, u, s in zip(step.base, step.unit, output, strict=True)
                ]
            lane.predictions.append(prediction)
            if spec.task == "regression":
                assert chunk.targets is not None
                self._fade(0, chunk.targets[t].tolist(), prediction, step.naive)
                continue
            now = [chunk.inputs[t].tolist()[i] for i in self.scaler.columns]
            made, n = lane.stream.made, len(now)
            for j in range(1, min(spec.horizon, len(made)) + 1):
                forecast, origin = made[-j]
                self._fade((j - 1) * n, now, forecast[(j - 1) * n : j * n], origin)
            made.append((prediction, now))
        if lane.ends:
            lane.stream.made = []

    def _fade(self, first: int, truth: Vector, prediction: Vector, naive: Vector) -> None:
        if any(math.isnan(value) for value in truth):
            return
        for i in range(len(truth)):
            at = first + i
            self.error[at] = fade(self.error[at], abs(truth[i] - prediction[i]))
            self.naive_error[at] = fade(self.naive_error[at], abs(truth[i] - naive[i]))


def _add(a: Any, b: Any) -> Any:
    """Of two vectors, or two matrices."""
    if isinstance(a[0], list):
        return [add(one, other) for one, other in zip(a, b, strict=True)]
    return add(a, b)


def _flat(values: Any) -> Vector:
    if isinstance(values[0], list):
        return [each for row in values for each in row]
    return list(values)


def _filled(like: Any, values: Any) -> Any:
    if isinstance(like[0], list):
        return [[next(values) for _ in row] for row in like]
    return [next(values) for _ in like]
