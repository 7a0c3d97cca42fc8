"""Batches: packing, faults of the whole and of single lanes, and the arrays of `feed`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt_core import Batch, Chunk, Learner, ModelSpec
from bptt_core.errors import DtypeError, InvalidArgument, NonFiniteError, OrderError, ShapeError

FORECAST = ModelSpec(input_size=2, hidden_size=4)
REGRESSION = ModelSpec(task="regression", input_size=2, output_size=3, hidden_size=4)
CLASSES = ModelSpec(task="classification", input_size=2, output_size=3, hidden_size=4)
TOKENS = ModelSpec(task="next_token", vocabulary_size=5, hidden_size=4)
RANDOM = np.random.default_rng(7)


def learner(spec: ModelSpec = FORECAST) -> Learner:
    return Learner(spec, backend="reference")


def batch(**columns: Any) -> Batch:
    """Streams a, b and c with 1, 2 and 3 steps."""
    made = Batch(
        ("a", "b", "c"),
        np.zeros(3, np.int64),
        np.array([1, 2, 3]),
        RANDOM.normal(size=(6, 2)),
    )
    return replace(made, **columns)


@pytest.mark.parametrize(
    ("columns", "error", "said"),
    [
        (
            {"stream_ids": (), "first_steps": np.zeros(0), "lengths": np.zeros(0, np.int64)},
            InvalidArgument,
            "tick is empty",
        ),
        ({"stream_ids": ("a", "b", "a")}, InvalidArgument, "two chunks of one stream"),
        ({"ends": np.zeros(2, bool)}, ShapeError, r"ends is of shape \(2,\)"),
        ({"lengths": np.array([1, 2, 4])}, ShapeError, "inputs is 6 steps, but must be 7"),
        ({"inputs": np.zeros((6, 3))}, ShapeError, r"inputs is of shape \(6, 3\)"),
        ({"inputs": np.zeros((6, 2), int)}, DtypeError, "inputs"),
        (
            {"target_lengths": np.array([1, 2, 2])},
            InvalidArgument,
            "target_lengths is 2 in lane 2, but must be lengths, 3",
        ),
        ({"targets": np.zeros((6, 1))}, InvalidArgument, "targets is given"),
    ],
)
def test_columns_that_do_not_fit_are_refused_as_a_whole(
    columns: dict[str, Any], error: type[Exception], said: str
) -> None:
    model = learner()
    for refuses in (model.check, model.apply):
        with pytest.raises(error, match=said):
            refuses(batch(**columns))
    assert model.stream_ids() == []


def test_faults_of_lanes_are_found_at_once_and_the_others_are_learned() -> None:
    inputs = RANDOM.normal(size=(7, 2))
    inputs[2, 1] = np.nan  # the second step of b
    bad = Batch(
        ("a", "b", "c", "d", "e"),
        np.array([0, 0, 5, 0, 0]),
        np.array([1, 2, 1, 0, 3]),
        inputs,
    )
    model = learner()
    errors = model.check(bad)
    assert sorted(errors) == [1, 2, 3]
    assert isinstance(errors[1], NonFiniteError)
    assert str(errors[1]) == "inputs[1][1] is nan, but must be a finite number (step 1, column 1)"
    assert isinstance(errors[2], OrderError)
    assert isinstance(errors[3], ShapeError)
    with pytest.raises(NonFiniteError, match=r"inputs\[1\]\[1\]"):
        model.apply(bad)
    assert model.stream_ids() == []
    good = bad.select(np.array([0, 4]))
    result, single = model.apply(good), learner()
    expected = single.apply([Chunk("a", 0, inputs[:1]), Chunk("e", 0, inputs[4:])])
    assert result.stream_ids == ("a", "e")
    assert result.next_steps.tolist() == [1, 3]
    assert result.incarnations.tolist() == [1, 2]
    for ours, theirs in zip(result.chunks, expected.chunks, strict=True):
        np.testing.assert_array_equal(ours.predictions, theirs.predictions)
    assert (
        model.parameters()["head.weight"].tobytes() == single.parameters()["head.weight"].tobytes()
    )


def test_selected_lanes_keep_their_targets_places_and_ends() -> None:
    chunks = [
        Chunk("a", 0, RANDOM.normal(size=(1, 2)), RANDOM.normal(size=(1, 3))),
        Chunk("b", 0, RANDOM.normal(size=(3, 2)), None, end_of_sequence=True),
        Chunk("c", 0, RANDOM.normal(size=(2, 2)), RANDOM.normal(size=(1, 3)), False, 1),
    ]
    found = Batch.of(chunks).select(np.array([2, 1]))
    expected = Batch.of([chunks[2], chunks[1]])
    assert found.stream_ids == expected.stream_ids
    for name in ("first_steps", "lengths", "inputs", "targets", "target_lengths"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for name in ("first_target_steps", "ends"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert Batch.of(chunks[1:2]).select(np.array([0])).targets is None
    model = learner(replace(REGRESSION, label_delay=2))
    assert not model.check(Batch.of(chunks))
    assert model.apply(Batch.of(chunks)).next_steps.tolist() == [1, 3, 2]


def test_source_positions_are_kept_with_the_step_after_them() -> None:
    model, inputs = learner(), RANDOM.normal(size=(3, 2))
    model.apply([Chunk("a", 0, inputs, source_position=b"row 3"), Chunk("b", 0, inputs)])
    arrays, metadata = model.state()
    assert metadata["sources"] == {"a": [b"row 3".hex(), 3]}
    again = Learner.from_state(arrays, metadata, backend="reference")
    assert again.state()[1]["sources"] == metadata["sources"]
    for wrong in ({"a": ["xyz", 3]}, {"a": 3}, ["a"]):
        with pytest.raises(InvalidArgument, match="sources"):
            Learner.from_state(arrays, metadata | {"sources": wrong}, backend="reference")
    with pytest.raises(ShapeError, match="source_positions is 2 positions, but must be 3"):
        model.check(batch(source_positions=(b"", b"")))


def test_no_chunk_at_all_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="tick is empty"):
        learner().apply([])


@pytest.mark.parametrize(
    ("spec", "x", "target", "said"),
    [
        (FORECAST, np.full((3, 1, 2), np.inf), None, r"inputs\[0\]\[0\] is inf"),
        (FORECAST, np.zeros((3, 1, 2)), np.zeros((3, 1, 2)), "targets is given"),
        (REGRESSION, np.zeros((3, 1, 2)), None, "targets is left out"),
        (REGRESSION, np.zeros((3, 1, 2)), np.full((3, 1, 3), np.nan), r"targets\[0\]\[0\] is nan"),
        (
            replace(REGRESSION, loss="bernoulli"),
            np.zeros((3, 1, 2)),
            np.full((3, 1, 3), 1.5),
            "a number from 0 to 1",
        ),
        (CLASSES, np.zeros((3, 1, 2)), np.full((3, 1), 3), "an id from 0 to 2"),
        (TOKENS, np.full((3, 1), 5), None, "an id from 0 to 4"),
        (TOKENS, np.zeros((3, 1)), None, "whole numbers"),
        (FORECAST, np.zeros((3, 2)), None, r"x is of shape \(3, 2\)"),
    ],
)
def test_feed_refuses_what_a_chunk_would_not_hold(
    spec: ModelSpec, x: Any, target: Any, said: str
) -> None:
    model = learner(spec)
    with pytest.raises(InvalidArgument, match=said):
        model.feed(x, target)
    assert model.stream_ids() == []


def test_steps_that_a_prediction_reads_are_named() -> None:
    model = learner()
    model.apply([Chunk("s", 0, RANDOM.normal(size=(3, 2)))])
    wrong = np.array([[0.0, 1.0], [0.0, np.nan]])
    with pytest.raises(NonFiniteError, match=r"\(step 1, column 1\)"):
        model.snapshot().predict(model.stream_view("s"), wrong)
