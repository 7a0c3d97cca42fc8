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
from tests.core.naive.algebra import add, affine, Matrix, sigmoid, Vector, zeros
from tests.core.naive.calibration import Calibration, sizes_of, Surprise
from tests.core.naive.cells import TWINS
from tests.core.naive.experts import Experts, Remembered
from tests.core.naive.network import Named, Network, State, Tape
from tests.core.naive.scaling import Scaler, Step
from tests.core.naive.scoring import anomaly_scores, Figures


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
    """A whole sequence."""

    live: State
    inputs: Matrix = field(default_factory=list)
    """Inputs in the user's units."""
    features: Matrix = field(default_factory=list)
    targets: Matrix = field(default_factory=list)
    """Complete targets of steps 0, 1, …"""
    states: list[State] = field(default_factory=list)
    start: int = 0
    learned: int = 0
    made: list[tuple[Vector, Vector]] = field(default_factory=list)
    """For every step: its forecast, and the values that it started from."""
    labels: Matrix = field(default_factory=list)
    """The label of every step; NaN where it is not known."""
    errors: Matrix = field(default_factory=list)
    """Errors of the forecasts one step ahead in all sequences, in deviations of changes."""
    surprise: Surprise | None = None
    experts: list[Remembered] = field(default_factory=list)


@dataclass
class Lane:
    """A chunk during a call."""

    stream: Stream
    steps: list[Step]
    ends: bool
    outputs: Matrix = field(default_factory=list)
    predictions: Matrix = field(default_factory=list)
    scores: Vector = field(default_factory=list)
    """Anomaly scores of a forecast's steps."""
    flush: list[tuple[Vector | None, Vector, Vector]] = field(default_factory=list)
    """Late labels of a sequence that ends: targets, naive forecasts, and truths."""


class Learner:
    """One model, with everything that it was fed."""

    def __init__(self, spec: ModelSpec, parameters: Mapping[str, Any]) -> None:
        self.spec = spec
        self.network = Network(spec, parameters)
        self.scaler = Scaler(spec)
        self.streams: dict[str, Stream] = {}
        self.moments: Matrix | None = None
        self.updates = 0
        self.late = spec.horizon if spec.task in ("forecast", "next_token") else spec.label_delay
        """Steps from an input to its last target."""
        ring = max(64, min(512, 65_536 // spec.outputs))
        outputs = 1 if spec.loss == "cross_entropy" else spec.outputs
        targets = spec.target_count if spec.task == "forecast" else outputs
        self.figures = Figures(outputs, ring, targets, spec.robust)
        self.calibration = Calibration()
        self.experts = Experts(targets if spec.mixture else 0, spec.horizon)

    def zero_state(self) -> State:
        parts = TWINS[self.spec.cell].parts
        return [
            [zeros(self.spec.hidden_size) for _ in range(parts)] for _ in range(self.spec.layers)
        ]

    def apply(self, tick: Sequence[Chunk]) -> tuple[list[Report], list[Matrix]]:
        """Reports, and every chunk's predictions."""
        lanes = [self._lane(chunk) for chunk in tick]
        reports: list[Report] = []
        self._end([lane for lane in lanes if not lane.steps], reports)
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
            self._end([lane for lane in active if len(lane.steps) == t + 1], reports)
        for lane in lanes:
            self._score(lane)
        self.scores = [lane.scores for lane in lanes]
        return reports, [lane.predictions for lane in lanes]

    def _end(self, done: list[Lane], reports: list[Report]) -> None:
        ending = [lane for lane in done if lane.ends]
        for i in range(self.spec.label_delay):
            for lane in ending:
                target = lane.flush[i][0]
                if target is not None:
                    lane.stream.targets.append(target)
            complete = [lane for lane in ending if lane.flush[i][0] is not None]
            self._update_full(complete, self.spec.label_delay - 1 - i, reports)
        rest = [lane for lane in ending if len(lane.stream.targets) > lane.stream.learned]
        self._update_groups(rest, self.late - self.spec.label_delay, reports)
        for lane in ending:
            self._begin_anew(lane.stream)

    # ------------------------------------------------------------------ steps

    def _lane(self, chunk: Chunk) -> Lane:
        stream = self.streams.setdefault(chunk.stream_id, Stream(self.zero_state()))
        steps: list[Step] = []
        labels = self._labels(stream, chunk)
        for t in range(len(chunk.inputs)):
            x = chunk.inputs[t].tolist()
            if self.spec.task == "next_token":
                token = [float(x)]
                naive = [self.scaler.entropy(token[0])]
                target = token if stream.inputs else None
                steps.append(Step(token, target, [], [], naive, token))
                if t == 0 and stream.inputs:
                    h = stream.live[-1][0]
                    named = self.network.named
                    output = affine(named["head.weight"], h, named["head.bias"])
                    self.figures.a_class(odds_of(output), token[0], naive[0])
                x = token
            elif self.spec.task == "forecast":
                steps.append(self.scaler.forecast(stream.inputs, x))
            else:
                y = labels[t]
                if self.spec.label_delay:
                    stream.labels.append(y)
                steps.append(self.scaler.step(x, self._complete_label(stream, y)))
            stream.inputs.append(x)
        lane = Lane(stream, steps, chunk.end_of_sequence)
        if chunk.end_of_sequence:
            for i in range(self.spec.label_delay):
                last = self._complete_label(stream, None, i)
                lane.flush.append((*self.scaler.label(last), last or []))
        return lane

    def _complete_label(self, stream: Stream, own: Vector | None, after: int = 0) -> Vector | None:
        """The label that the next step completes, or the one `after` it."""
        if not self.spec.label_delay:
            return own
        place = len(stream.inputs) + after - self.spec.label_delay
        return stream.labels[place] if place >= 0 else None

    def _labels(self, stream: Stream, chunk: Chunk) -> Matrix:
        """Labels of the chunk's own steps; labels of earlier steps are stored."""
        width = self.spec.target_width
        own = [[math.nan] * width for _ in range(len(chunk.inputs))]
        if chunk.targets is None:
            return own
        first = chunk.first_step if chunk.first_target_step is None else chunk.first_target_step
        for step, target in enumerate(chunk.targets.tolist(), start=first):
            label = target if self.spec.task == "regression" else [float(target)]
            if self.spec.task == "classification" and target < 0:
                label = [math.nan]
            after = step - chunk.first_step
            place = own[after] if after >= 0 else stream.labels[len(stream.inputs) + after]
            for i in range(width):
                place[i] = place[i] if math.isnan(label[i]) else label[i]
        return own

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
        stream.labels = []
        stream.start = stream.learned = 0

    # ------------------------------------------------------------------ updates

    def _update_full(self, active: list[Lane], pending: int, reports: list[Report]) -> None:
        k1 = self.spec.k1
        full = [lane for lane in active if len(lane.stream.targets) - lane.stream.learned == k1]
        self._update_groups(full, pending, reports)

    def _update_groups(self, lanes: list[Lane], pending: int, reports: list[Report]) -> None:
        """Learn windows of the same length together."""
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
            self.moments = [zeros(len(θ)) for _ in range(learning.MOMENTS[spec.optimizer])]
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

    def _score(self, lane: Lane) -> None:
        """Convert predictions to the user's units, and score earlier ones."""
        spec, made, late = self.spec, lane.stream.made, self.spec.label_delay
        for t, (step, output) in enumerate(zip(lane.steps, lane.outputs, strict=True)):
            lane.predictions.append(self._prediction(step, output))
            if spec.task == "forecast":
                self._score_forecast(lane, step)
            elif spec.task == "next_token":
                if t:
                    self.figures.a_class(lane.predictions[t - 1], step.truth[0], step.naive[0])
            else:
                made.append((lane.predictions[t], []))
                if len(made) > late:
                    self._score_label(made[-1 - late][0], step.truth, step.naive)
        for i, (target, naive, truth) in enumerate(lane.flush):
            if target is not None:
                self._score_label(made[i - late][0], truth, naive)
        if lane.ends:
            lane.stream.made, lane.stream.experts = [], []

    def _prediction(self, step: Step, output: Vector) -> Vector:
        if self.spec.loss == "cross_entropy":
            return odds_of(output)
        if self.spec.loss == "bernoulli":
            return [sigmoid(each) for each in output]
        return [b + u * s for b, u, s in zip(step.base, step.unit, output, strict=True)]

    def _score_label(self, prediction: Vector, truth: Vector, naive: Vector) -> None:
        if self.spec.task == "classification":
            self.figures.a_class(prediction, truth[0], naive[0])
            return
        errors = [truth[i] - prediction[i] for i in range(len(truth))]
        rivals = [truth[i] - naive[i] for i in range(len(truth))]
        self.figures.numbers(0, errors, rivals, self.figures.sums())
        self.figures.keep(errors)

    def _score_forecast(self, lane: Lane, step: Step) -> None:
        made, n, now = lane.stream.made, len(step.truth), step.truth
        errors = [math.nan] * self.spec.outputs
        for j in range(1, min(self.spec.horizon, len(made)) + 1):
            forecast, seen = made[-j]
            for k in range(n):
                at = (j - 1) * n + k
                errors[at] = math.nan if math.isnan(seen[k]) else now[k] - forecast[at]
            rivals = [now[k] - seen[k] for k in range(n)]
            most = None
            if self.spec.robust and self.spec.scaling:
                most = [16 * unit for unit in step.unit[(j - 1) * n : j * n]]
            self.figures.numbers((j - 1) * n, errors[(j - 1) * n : j * n], rivals, most)
        self.figures.keep(errors)
        if self.spec.robust:
            if lane.stream.surprise is None:
                lane.stream.surprise = Surprise(self.calibration)
            (size,) = sizes_of([errors[:n]], [step.unit[:n]])
            lane.scores.append(lane.stream.surprise.score(size))
        else:
            lane.stream.errors.append([errors[k] / step.unit[k] for k in range(n)])
            lane.scores.append(anomaly_scores(lane.stream.errors)[-1])
        if self.spec.mixture:
            streams = lane.stream.experts
            streams += [Remembered() for _ in range(n - len(streams))]
            lane.predictions[-1] = self.experts.follow(
                streams, now, step.naive, step.unit, lane.predictions[-1]
            )
        made.append((lane.predictions[-1], step.naive))


def odds_of(output: Vector) -> Vector:
    """Softmax."""
    odds = [math.exp(each - max(output)) for each in output]
    return [each / math.fsum(odds) for each in odds]


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
