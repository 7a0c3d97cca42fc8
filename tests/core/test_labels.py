"""Late labels: which are accepted, what is learned from them, and which errors name them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec
from bptt_core.errors import InvalidArgument, LabelTooEarly, LabelTooLate, OrderError, ShapeError
from tests.core.support import assert_same_memory

REGRESSION = ModelSpec(
    task="regression", input_size=1, output_size=1, hidden_size=4, label_delay=3, k1=2, k2=4
)
CLASSES = replace(REGRESSION, task="classification", output_size=3, loss=None)
backends = pytest.mark.parametrize("backend", ["reference", "compiled"])
X = np.sin(np.arange(40.0)).reshape(-1, 1)
NONE = X[:0]


def some(spec: ModelSpec, *labels: int) -> Any:
    """Labels of consecutive steps; -1: not known yet."""
    ids = np.array(labels)
    if spec.task == "classification":
        return ids
    return np.where(ids < 0, np.nan, ids).astype(float).reshape(-1, 1)


def fed(spec: ModelSpec, backend: Any, steps: int = 5) -> Learner:
    learner = Learner(spec, backend=backend)
    learner.apply([Chunk("a", 0, X[:steps])])
    return learner


@pytest.mark.parametrize("spec", [REGRESSION, CLASSES], ids=lambda spec: spec.task)
@backends
def test_windows_end_label_delay_steps_behind(spec: ModelSpec, backend: Any) -> None:
    learner = Learner(spec, backend=backend)
    learned = []
    for t in range(9):
        labels = None if t < 3 else some(spec, t % 3)
        first = None if t < 3 else t - 3
        (chunk,) = learner.apply([Chunk("a", t, X[t : t + 1], labels, False, first)]).chunks
        learned.append([report.steps for report in chunk.updates])
    assert learned == [[], [], [], [], [2], [], [2], [], [2]]  # with the labels of steps 1, 3, 5
    (chunk,) = learner.apply([Chunk("a", 9, NONE, some(spec, 0, 1), True, 7)]).chunks
    assert [report.steps for report in chunk.updates] == [2, 1]  # steps 6 and 7, and then 8
    assert chunk.predictions is not None
    assert chunk.predictions.shape == (0, spec.outputs)
    assert (chunk.first_step, chunk.next_step) == (9, 9)
    assert learner.stream_view("a").sequence_step == 0


@pytest.mark.parametrize("spec", [REGRESSION, CLASSES], ids=lambda spec: spec.task)
@backends
def test_the_last_label_of_a_step_counts_and_an_unknown_one_erases_nothing(
    spec: ModelSpec, backend: Any
) -> None:
    once, often = fed(spec, backend), fed(spec, backend)
    once.apply([Chunk("a", 5, X[5:9], some(spec, 2, 1, 0), False, 2)])
    often.apply([Chunk("a", 5, NONE, some(spec, 0, 1), False, 2)])
    often.apply([Chunk("a", 5, NONE, some(spec, 2, -1, 1), False, 2)])
    often.apply([Chunk("a", 5, X[5:9], some(spec, -1, 0, -1), False, 3)])
    assert_same_memory(once, often, 0)
    other = fed(spec, backend)
    other.apply([Chunk("a", 5, X[5:9], some(spec, 0, 1, 0), False, 2)])
    assert other.figures.loss != once.figures.loss


@backends
def test_a_step_whose_label_never_comes_has_no_loss(backend: Any) -> None:
    learner = fed(REGRESSION, backend, steps=30)
    assert learner.figures.updates == 0
    assert np.isnan(learner.figures.skill_ratio)
    (chunk,) = learner.apply([Chunk("a", 30, X[30:40], some(REGRESSION, 1), False, 29)]).chunks
    assert [report.loss for report in chunk.updates] == [pytest.approx(0.0, abs=1.0)]


@pytest.mark.parametrize(
    ("first", "labels", "error", "named"),
    [
        (1, 1, LabelTooLate, "first_target_step is 1, but must be at least 2"),
        (-1, 1, LabelTooLate, "first_target_step is -1, but must be at least 0"),
        (5, 1, LabelTooEarly, "first_target_step is 5, but must be at most 4"),
        (2, 4, LabelTooEarly, "first_target_step is 2, but must be at most 1"),
        (None, 1, LabelTooEarly, "first_target_step is 5, but must be at most 4"),
        (2.0, 1, InvalidArgument, "first_target_step is 2.0, but must be a whole number"),
        (2, 0, ShapeError, "targets"),
    ],
)
@pytest.mark.parametrize("spec", [REGRESSION, CLASSES], ids=lambda spec: spec.task)
@backends
def test_a_label_that_cannot_be_learned_is_refused_and_changes_nothing(
    first: Any, labels: int, error: type[Exception], named: str, spec: ModelSpec, backend: Any
) -> None:
    learner = fed(spec, backend)
    before = learner.state()[0]
    targets = some(spec, *[1] * labels)
    if labels == 0:
        targets = targets.astype(int if spec is CLASSES else float)
    with pytest.raises(error, match=re.escape(named)):
        learner.apply([Chunk("a", 5, NONE, targets, False, first)])
    for name, array in learner.state()[0].items():
        assert array.tobytes() == before[name].tobytes(), name


def test_a_label_of_an_earlier_sequence_is_too_late() -> None:
    learner = fed(REGRESSION, "reference")
    learner.apply([Chunk("a", 5, NONE, None, end_of_sequence=True)])
    learner.apply([Chunk("a", 5, X[:1])])
    learner.apply([Chunk("a", 6, NONE, some(REGRESSION, 1), False, 5)])
    with pytest.raises(LabelTooLate, match="at least 5"):
        learner.apply([Chunk("a", 6, NONE, some(REGRESSION, 1), False, 4)])


def test_empty_and_contradictory_chunks_are_refused() -> None:
    learner = fed(REGRESSION, "reference")
    with pytest.raises(ShapeError, match="inputs"):
        learner.apply([Chunk("a", 5, NONE)])
    with pytest.raises(OrderError, match="must be 5"):
        learner.apply([Chunk("a", 4, NONE, some(REGRESSION, 1), False, 3)])
    with pytest.raises(InvalidArgument, match="first_target_step"):
        learner.apply([Chunk("a", 5, X[:1], None, False, 5)])
    on_time = Learner(replace(REGRESSION, label_delay=0), backend="reference")
    with pytest.raises(InvalidArgument, match="first_target_step"):
        on_time.apply([Chunk("a", 0, X[:2], X[:2], False, 1)])
    on_time.apply([Chunk("a", 0, X[:2], X[:2], False, 0)])
    with pytest.raises(ShapeError, match="inputs"):
        on_time.apply([Chunk("a", 2, NONE, NONE, True)])
    for task in ("forecast", "next_token"):
        with pytest.raises(InvalidArgument, match="label_delay is 3, but must be 0"):
            ModelSpec(task=task, vocabulary_size=4 * (task == "next_token"), label_delay=3)


@backends
def test_a_late_label_scores_the_prediction_made_at_its_step(backend: Any) -> None:
    # Equal weights: the naive forecast is the plain mean of the labels so far.
    learner = Learner(replace(REGRESSION, scaling_memory=0), backend=backend)
    made: list[Any] = []
    y = 2 + X[:, 0]
    for t in range(40):
        first = max(0, t - 3)
        labels = y[first : first + 1].reshape(1, 1) if t >= 3 else None
        chunk = Chunk("a", t, X[t : t + 1], labels, False, first if t >= 3 else None)
        made.append(learner.apply([chunk]).chunks[0].predictions)
    error = naive_error = 0.0
    for step in range(37):
        naive = y[:step].mean() if step else 0.0
        error += 1e-3 * (abs(y[step] - float(made[step][0, 0])) - error)
        naive_error += 1e-3 * (abs(y[step] - naive) - naive_error)
    assert learner.figures.skill_ratio == pytest.approx(error / naive_error, rel=1e-5)


@backends
def test_a_copy_keeps_the_labels_that_wait(backend: Any) -> None:
    learner = fed(REGRESSION, backend)
    learner.apply([Chunk("a", 5, NONE, some(REGRESSION, 1, 2, 0), False, 2)])
    copy = Learner.from_state(*learner.state(), backend=backend)
    for each in (learner, copy):
        each.apply([Chunk("a", 5, X[5:20])])
    assert learner.figures.updates == 2
    assert_same_memory(learner, copy, 0)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
@pytest.mark.parametrize("task", ["regression", "classification"])
@backends
def test_late_labels_teach_the_same_as_labels_at_once(task: Any, cell: Any, backend: Any) -> None:
    """The same windows with the same parameters, `label_delay` steps later, to the last bit."""
    late_spec = replace(REGRESSION, label_delay=5, k1=3, k2=8, cell=cell, learning_rate=0.01)
    if task == "classification":
        late_spec = replace(late_spec, task=task, output_size=3, loss=None)
    y = some(late_spec, *(np.arange(40) // 3 % 3))
    at_once = Learner(replace(late_spec, label_delay=0), backend=backend)
    late, labelled = Learner(late_spec, backend=backend), Learner(late_spec, backend=backend)
    for t in range(40):
        step = X[t : t + 1]
        if t < 35:
            at_once.apply([Chunk("a", t, step, y[t : t + 1])])
        due = (y[t - 5 : t - 4], False, t - 5) if t >= 5 else (None, False, None)
        late.apply([Chunk("a", t, step, *due)])
        labelled.apply([Chunk("a", t, step, y[t : t + 1])])  # known at once, learned when due
        for learner in (late, labelled):
            assert learner.figures.updates == max(0, t - 4) // 3
    for learner in (late, labelled):
        for name, array in at_once.parameters().items():
            assert learner.parameters()[name].tobytes() == array.tobytes(), name
        for name in ("loss", "gradient_norm", "baseline_loss", "updates"):
            assert getattr(learner.figures, name) == getattr(at_once.figures, name), name
    at_once.apply([Chunk("a", 35, X[35:], y[35:], end_of_sequence=True)])
    late.apply([Chunk("a", 40, NONE, y[35:], True, 35)])
    for name, array in at_once.parameters().items():
        assert late.parameters()[name].tobytes() == array.tobytes(), name
