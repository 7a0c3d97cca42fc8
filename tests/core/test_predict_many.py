"""Predictions for many streams at once are those of each stream, and columns are their views."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec
from bptt_core.errors import DtypeError, InvalidArgument, UnknownStream

SPECS = {
    "forecast": ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4, horizon=3, layers=2, cell="gru"),
    "unscaled": ModelSpec(input_size=2, hidden_size=4, scaling=False, target_columns=(1,)),
    "gaps": ModelSpec(input_size=2, hidden_size=4, missing_inputs=True, cell="lstm"),
    "regression": ModelSpec(task="regression", input_size=2, output_size=2, hidden_size=4),
    "classes": ModelSpec(task="classification", input_size=2, output_size=3, hidden_size=4),
    "tokens": ModelSpec(task="next_token", vocabulary_size=5, hidden_size=4),
}
NAMES = ("a", "b", "c")


def steps(name: str, count: int, seed: int) -> Any:
    random = np.random.default_rng(seed)
    if name == "tokens":
        return random.integers(0, 5, count)
    x = random.normal(3.0, 2.0, (count, 2))
    if name == "gaps":
        x[random.random((count, 2)) < 0.3] = np.nan
    return x


def learned(name: str, backend: Any) -> Learner:
    """Three streams; of the second a new sequence has just begun."""
    spec = SPECS[name]
    learner = Learner(spec, backend=backend)
    for place, stream_id in enumerate(NAMES):
        x, target = steps(name, 9, place), None
        if spec.task == "regression":
            target = x + 1
        elif spec.task == "classification":
            target = np.arange(9) % 3
        ends = stream_id == "b"
        learner.apply([Chunk(stream_id, 0, x, target, ends, source_position=stream_id.encode())])
    return learner


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("name", SPECS)
def test_many_streams_are_predicted_as_each_of_them(name: str, backend: Any) -> None:
    learner = learned(name, backend)
    snapshot = learner.snapshot()
    views = [learner.stream_view(each) for each in NAMES]
    for counts in ([1, 1, 1], [2, 3, 2], [4, 1, 1]):
        x = steps(name, sum(counts), 8)
        parts = np.split(x, np.cumsum(counts)[:-1])
        found = snapshot.predict_many(views, x, None if counts == [1, 1, 1] else counts)
        each = [snapshot.predict(view, part) for view, part in zip(views, parts, strict=True)]
        np.testing.assert_allclose(found, np.concatenate(each), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["forecast", "unscaled", "gaps", "tokens"])
def test_forecasts_may_leave_steps_out_for_some_streams(name: str) -> None:
    learner = learned(name, "reference")
    snapshot = learner.snapshot()
    views = [learner.stream_view(each) for each in "ac"]
    live = [snapshot.predict(view) for view in views]
    np.testing.assert_allclose(snapshot.predict_many(views), np.concatenate(live), rtol=1e-6)
    x = steps(name, 2, 8)
    found = snapshot.predict_many(views, x, [0, 2])
    mixed = [live[0], snapshot.predict(views[1], x)]
    np.testing.assert_allclose(found, np.concatenate(mixed), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_predicted_is_refused() -> None:
    learner = learned("forecast", "reference")
    snapshot, views = learner.snapshot(), [learner.stream_view(each) for each in NAMES]
    with pytest.raises(InvalidArgument, match="inputs is left out, but must be given for a stream"):
        snapshot.predict_many(views)
    with pytest.raises(InvalidArgument, match="steps is 3, 4 in all, but must be the steps of 3"):
        snapshot.predict_many(views, np.zeros((3, 2)), [1, 1, 2])
    classes = learned("classes", "reference")
    with pytest.raises(InvalidArgument, match="given for task classification"):
        classes.snapshot().predict_many([classes.stream_view("a")])


@pytest.mark.parametrize(
    ("tokens", "error", "told"),
    [
        (np.array([0.0, 1.0]), DtypeError, "whole numbers"),
        (np.array([0, 5]), InvalidArgument, r"inputs\[1\] is 5, but must be an id from 0 to 4"),
    ],
)
def test_tokens_that_cannot_be_are_refused(tokens: Any, error: Any, told: str) -> None:
    snapshot = learned("tokens", "reference").snapshot()
    with pytest.raises(error, match=told):
        snapshot.predict(None, tokens)


@pytest.mark.parametrize("name", SPECS)
def test_columns_of_streams_are_their_views(name: str) -> None:
    learner = learned(name, "reference")
    columns = learner.stream_columns(["c", "a"])
    for place, stream_id in enumerate("ca"):
        view = learner.stream_view(stream_id)
        assert columns.next_steps[place] == view.next_step
        assert columns.sequence_steps[place] == view.sequence_step
        assert columns.incarnations[place] == view.incarnation
        assert columns.sources[stream_id] == (view.source_position, view.source_step)
        np.testing.assert_array_equal(columns.states[place], view.state)
        np.testing.assert_array_equal(columns.last_inputs[place], view.last_input)
    with pytest.raises(UnknownStream):
        learner.stream_columns(["a", "nobody"])
