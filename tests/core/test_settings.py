"""`Learner.configure`: its effect on the next update, stored settings, and refused values."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec, Settings
from bptt_core.backends import BackendName
from bptt_core.errors import InvalidArgument
from tests.core.support import assert_same_memory

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
def test_a_learning_rate_replaces_the_schedule(backend: BackendName) -> None:
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
def test_a_clip_replaces_that_of_the_spec(backend: BackendName) -> None:
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
def test_a_setting_out_of_bounds_is_refused_and_changes_nothing(
    changes: dict[str, Any], field: str
) -> None:
    model = learner("forecast")
    before = model.settings, model.figures.learning_rate
    with pytest.raises(InvalidArgument) as caught:
        model.configure(**changes)
    assert caught.value.field == field
    assert (model.settings, model.figures.learning_rate) == before


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_a_model_stops_learning_after_too_many_skipped_updates_in_a_row(
    backend: BackendName,
) -> None:
    model = exploding(backend)
    model.apply([chunk("regression", 0, 8)])
    assert not model.figures.diverged
    before, updates = model.parameters(), model.figures.updates
    told = []
    for first in range(8, 32, 4):  # two updates each
        with np.errstate(over="ignore"):
            told.append(model.apply([too_large(first, 4)]).updates)
    assert [len(each) for each in told] == [2, 1, 0, 0, 0, 0]
    assert all(report.skipped for each in told for report in each)
    figures = model.figures
    assert (figures.diverged, figures.consecutive_skipped) == (True, 3)
    assert figures.updates == updates + 3
    assert figures.skipped_updates == 3
    [result] = model.apply([chunk("regression", 32, 20)]).chunks
    assert result.predictions is not None
    assert np.isfinite(result.predictions).all()
    assert not result.updates
    assert result.next_step == 52
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, before[name])
    again = Learner.from_state(*model.state(), backend=backend)
    assert again.figures.diverged
    again.configure(learning_rate=0.001)
    assert again.figures.diverged
    again.configure(paused=False)
    assert again.figures.consecutive_skipped == 0
    resumed = again.apply([chunk("regression", 52, 8)]).updates
    assert len(resumed) == 4
    assert not any(report.skipped for report in resumed)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_an_applied_update_resets_the_count_of_skipped_ones(backend: BackendName) -> None:
    model = exploding(backend)
    for first in range(0, 40, 8):
        with np.errstate(over="ignore"):
            model.apply([too_large(first, 4)])
        model.apply([chunk("regression", first + 4, 4)])
        assert model.figures.consecutive_skipped == 0
    assert model.figures.skipped_updates == 10
    assert not model.figures.diverged


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("cut", [1, 3, 24])
def test_where_it_diverged_does_not_depend_on_how_steps_are_cut(
    backend: BackendName, cut: int
) -> None:
    whole, pieces = exploding(backend), exploding(backend)
    with np.errstate(over="ignore"):
        whole.apply([too_large(0, 24)])
        for first in range(0, 24, cut):
            pieces.apply([too_large(first, cut)])
    assert_same_memory(whole, pieces, 0)
    assert whole.figures.updates == 3


def exploding(backend: BackendName) -> Learner:
    """A model whose states grow with its inputs."""
    fields: dict[str, Any] = {"cell": "rnn_relu", "optimizer": "adam", "clip": "none"}
    return learner("regression", backend, **fields, scaling=False, k2=2, divergence_patience=3)


def too_large(first: int, steps: int) -> Chunk:
    """Inputs beyond float32's range: the network's outputs are infinite."""
    return Chunk("s", first, np.full((steps, 2), 1e39), np.full((steps, 1), -1e39))


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("task", TASKS)
def test_a_roll_back_keeps_where_the_streams_are(task: str, backend: BackendName) -> None:
    model = learner(task, backend)
    model.apply([chunk(task, 0, 21)])
    arrays, metadata = model.state()
    model.configure(clip="value", clip_threshold=0.5)
    model.apply([chunk(task, 21, 30)])
    updates = model.figures.updates
    model.roll_back(arrays, metadata, learning_rate=0.125)
    assert model.next_step("s") == 51
    assert model.stream_view("s").sequence_step == 0
    assert not model.carried_state("s").any()
    assert model.settings == Settings(0.125, "value", 0.5, paused=False)
    assert model.figures.updates == updates
    assert model.figures.steps == 51
    now, _ = model.state()
    for name, array in arrays.items():
        if name.startswith("model.") and name not in ("model.counters", "model.rates"):
            np.testing.assert_array_equal(now[name], array, err_msg=name)
    # From here it learns as the earlier one would have, had it begun a new sequence.
    earlier = Learner.from_state(arrays, metadata, backend=backend)
    earlier.reset_stream("s")
    earlier.configure(learning_rate=0.125, clip="value", clip_threshold=0.5)
    moved = dataclasses.replace(chunk(task, 51, 20), first_step=21)
    earlier.apply([moved])
    model.apply([chunk(task, 51, 20)])
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, earlier.parameters()[name])


def test_a_roll_back_resumes_a_diverged_model_and_refuses_another_models_state() -> None:
    model = exploding("reference")
    model.apply([chunk("regression", 0, 8)])
    state = model.state()
    with np.errstate(over="ignore"):
        model.apply([too_large(8, 20)])
    assert model.figures.diverged
    with pytest.raises(InvalidArgument, match="spec is another model's"):
        model.roll_back(*learner("regression").state(), learning_rate=0.1)
    with pytest.raises(InvalidArgument, match="learning_rate"):
        model.roll_back(*state, learning_rate=0.0)
    assert model.figures.diverged
    model.roll_back(*state, learning_rate=0.0005)
    assert not model.figures.diverged
    assert model.apply([chunk("regression", 28, 8)]).updates


def test_a_stream_that_begins_after_a_pause_has_the_bytes_of_one_from_a_checkpoint() -> None:
    """The targets of a row that was free during the pause are overwritten."""
    model = learner("forecast", "reference")
    for name in "abc":  # of four rows
        model.apply([dataclasses.replace(chunk("forecast", 0, 5), stream_id=name)])
    model.configure(paused=True)
    again = Learner.from_state(*model.state(), backend="reference")
    for each in (model, again):
        each.configure(paused=False)
        each.apply([dataclasses.replace(chunk("forecast", 0, 1), stream_id="d")])
    assert_same_memory(model, again, 0)
