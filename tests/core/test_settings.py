"""`Learner.configure`: what changes from the next update on, what is kept, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec, Settings
from bptt_core.backends import BackendName
from bptt_core.errors import InvalidArgument

SMALL: dict[str, Any] = {"hidden_size": 4, "k1": 2, "k2": 4}
TASKS: dict[str, dict[str, Any]] = {
    "forecast": {"input_size": 2, "task": "forecast"},
    "regression": {"input_size": 2, "task": "regression", "output_size": 1},
    "classification": {"input_size": 2, "task": "classification", "output_size": 3},
    "next_token": {"task": "next_token", "vocabulary_size": 5},
}


def chunk(task: str, first: int, steps: int) -> Chunk:
    """Consecutive steps of one stream of the task."""
    t = np.arange(first, first + steps)
    if task == "next_token":
        return Chunk("s", first, t % 5)
    x = np.sin(t[:, None] / np.array([3.0, 5.0]))
    targets = {"regression": x[:, :1] + x[:, 1:], "classification": t % 3}.get(task)
    return Chunk("s", first, x, targets)


def learner(task: str, backend: BackendName = "compiled", **spec: Any) -> Learner:
    return Learner(ModelSpec(**(TASKS[task] | SMALL | spec)), backend=backend)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("task", TASKS)
def test_a_paused_model_reads_and_predicts_and_changes_no_parameter(
    task: str, backend: BackendName
) -> None:
    model = learner(task, backend)
    model.apply([chunk(task, 0, 13)])  # a target waits for its update
    model.configure(paused=True)
    before, updates = model.parameters(), model.figures.updates
    [result] = model.apply([chunk(task, 13, 20)]).chunks
    assert result.predictions is not None
    assert len(result.predictions) == 20
    assert result.next_step == 33
    assert not result.updates
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, before[name])
    assert model.figures.updates == updates
    model.configure(paused=False)
    resumed = model.apply([chunk(task, 33, 20)])
    assert resumed.updates
    assert any((array != before[name]).any() for name, array in model.parameters().items())


@pytest.mark.parametrize("task", TASKS)
def test_a_pause_does_not_depend_on_how_steps_are_cut(task: str) -> None:
    whole, cut = learner(task), learner(task)
    for model in (whole, cut):
        model.apply([chunk(task, 0, 13)])
        model.configure(paused=True)
    whole.apply([chunk(task, 13, 12)])
    for first in range(13, 25, 3):
        cut.apply([chunk(task, first, 3)])
    for model in (whole, cut):
        model.configure(paused=False)
        model.apply([chunk(task, 25, 20)])
    for name, array in whole.parameters().items():
        np.testing.assert_array_equal(array, cut.parameters()[name])


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_a_learning_rate_takes_the_place_of_the_schedule(backend: BackendName) -> None:
    plain = learner("regression", backend, optimizer="sgd", learning_rate=0.25, clip="none")
    steered = learner(
        "regression", backend, optimizer="sgd", learning_rate=0.01, clip="none",
        warmup_updates=50, decay_updates=50,
    )  # fmt: skip
    steered.configure(learning_rate=0.25)
    for model in (plain, steered):
        model.apply([chunk("regression", 0, 20)])
    assert steered.figures.learning_rate == 0.25
    for name, array in plain.parameters().items():
        np.testing.assert_array_equal(array, steered.parameters()[name])


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_a_clip_takes_the_place_of_the_specs(backend: BackendName) -> None:
    model = learner("regression", backend, clip="norm", clip_threshold=1.0)
    model.configure(clip="value", clip_threshold=1e-3)
    twin = learner("regression", backend, clip="value", clip_threshold=1e-3)
    for each in (model, twin):
        each.apply([chunk("regression", 0, 20)])
    for name, array in twin.parameters().items():
        np.testing.assert_array_equal(array, model.parameters()[name])
    assert model.spec.clip == "norm"


def test_settings_are_part_of_the_state() -> None:
    model = learner("forecast")
    model.apply([chunk("forecast", 0, 13)])
    model.configure(learning_rate=0.125, clip="value", clip_threshold=0.5, paused=True)
    again = Learner.from_state(*model.state())
    assert again.settings == Settings(0.125, "value", 0.5, paused=True) == model.settings
    assert again.spec == model.spec
    for each in (model, again):
        each.apply([chunk("forecast", 13, 7)])
        each.configure(paused=False)
        each.apply([chunk("forecast", 20, 12)])
    assert again.figures == model.figures
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, again.parameters()[name])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"clip": "hard"}, "clip"),
        ({"clip_threshold": -1.0}, "clip_threshold"),
        ({"paused": 1}, "paused"),
        ({"learning_rate": 0.5, "clip_threshold": 0.0}, "clip_threshold"),
    ],
)
def test_what_is_out_of_its_bounds_changes_nothing(changes: dict[str, Any], field: str) -> None:
    model = learner("forecast")
    before = model.settings, model.figures.learning_rate
    with pytest.raises(InvalidArgument) as caught:
        model.configure(**changes)
    assert caught.value.field == field
    assert (model.settings, model.figures.learning_rate) == before
