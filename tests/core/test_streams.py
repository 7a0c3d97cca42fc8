"""Streams are opened, reset and deleted; the state of the others is complete."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec
from bptt_core.errors import InvalidArgument, UnknownStream
from tests.core.support import assert_same_memory, chunk_of, random_steps, twin

SPEC = ModelSpec(input_size=2, hidden_size=6, horizon=2)


def fed(backend: Any, streams: int = 3) -> Learner:
    learner = Learner(SPEC, backend=backend)
    x, _ = random_steps(SPEC, 40, streams)
    learner.apply([chunk_of(f"s{b}", 0, 20 + b, x, None, b) for b in range(streams)])
    return learner


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_a_saved_learner_goes_on_bit_for_bit(backend: Any) -> None:
    learner = fed(backend)
    copy = twin(learner, backend)
    x, _ = random_steps(SPEC, 30, 4, seed=5)
    for each in (learner, copy):
        lanes = {"s1": x[:, 1], "new": x[:, 3], "s0": x[:9, 0]}
        each.apply(
            [
                Chunk(name, {"s1": 21, "new": 0, "s0": 20}[name], np.ascontiguousarray(lane))
                for name, lane in lanes.items()
            ]
        )
    assert_same_memory(learner, copy, 0)


@pytest.mark.parametrize("streams", [0, 1])
def test_a_saved_learner_of_few_streams_goes_on(streams: int) -> None:
    learner = Learner(SPEC, backend="reference")
    x, _ = random_steps(SPEC, 40, 1)
    if streams:
        learner.feed(x[:20])
    copy = twin(learner, "reference")
    for each in (learner, copy):
        each.feed(x[20:])
    assert_same_memory(learner, copy, 0)


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_end_of_sequence_learns_the_rest_and_begins_anew(backend: Any) -> None:
    learner = Learner(replace(SPEC, horizon=1, k1=8), backend=backend)
    x, _ = random_steps(SPEC, 11, streams=1)
    (result,) = learner.apply([Chunk("a", 0, x[:, 0], end_of_sequence=True)]).chunks
    assert [report.steps for report in result.updates] == [8, 2]  # the 11th step has no target
    assert learner.next_step("a") == 11
    assert not learner.carried_state("a").any()
    (result,) = learner.apply([Chunk("a", 11, x[:8, 0])]).chunks
    assert not result.updates  # the last step of one sequence is no target of the other's


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_reset_forgets_the_state_and_keeps_counting(backend: Any) -> None:
    learner = fed(backend)
    learner.reset_stream("s1")
    assert learner.next_step("s1") == 21
    assert learner.stream_view("s1").sequence_step == 0
    assert not learner.carried_state("s1").any()
    assert learner.carried_state("s0").any()


def test_a_deleted_stream_leaves_nothing_to_its_successor() -> None:
    spec = replace(SPEC, scaling=False, combine=None)
    learner = Learner(spec, backend="reference")
    x, _ = random_steps(spec, 20, streams=3)
    learner.apply([chunk_of(f"s{b}", 0, 20, x, None, b) for b in range(3)])
    learner.delete_stream("s1")
    assert learner.stream_ids() == ["s0", "s2"]
    x, _ = random_steps(SPEC, 40, streams=1)
    learner.apply([Chunk("s9", 0, x[:1, 0])])
    assert learner.next_step("s9") == 1
    fresh = Learner(spec, backend="reference")
    fresh.load_parameters(learner.parameters())
    fresh.apply([Chunk("s9", 0, x[:1, 0])])
    for name in ("inputs", "start_state", "live_state", "recent", "forecasts", "surprise"):
        mine, its = learner.state()[0], fresh.state()[0]
        assert learner.state()[1]["streams"][1] == "s9"
        np.testing.assert_array_equal(mine[f"streams.{name}"][1], its[f"streams.{name}"][0], name)
    assert learner.stream_view("s9").sequence_step == 1


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_steps_that_were_not_forecast_are_not_scored(backend: Any) -> None:
    learner = Learner(replace(SPEC, input_size=1), backend=backend)
    x = 1000 + random_steps(learner.spec, 60, 1)[0]
    learner.feed(x[:50], predictions=False)
    assert np.isnan(learner.figures.skill_ratio)
    learner.feed(x[50:])
    assert 0 < learner._model.naive_error.max() < 0.1  # steps of about 1, a thousandth of each


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize(("loss", "scaling"), [("bernoulli", True), ("squared_error", False)])
def test_the_naive_forecast_of_a_regression_is_the_mean(
    loss: Any, scaling: bool, backend: Any
) -> None:
    spec = ModelSpec(
        task="regression",
        input_size=1,
        output_size=1,
        hidden_size=4,
        loss=loss,
        scaling=scaling,
        learning_rate=1e-6,  # it learns nothing: the test is about the naive forecast
    )
    learner = Learner(spec, backend=backend)
    random = np.random.default_rng(0)
    y = (random.random((3000, 1, 1)) < 0.9).astype(float)
    learner.feed(random.normal(size=(3000, 1, 1)), y)
    mean_error = learner._model.naive_error[0] / (1 - 0.999**3000)
    assert abs(mean_error - 2 * 0.9 * 0.1) < 0.03


def test_an_idle_stream_is_small() -> None:
    spec = ModelSpec(input_size=8, hidden_size=64, k2=32)
    learner = Learner(spec, backend="reference")
    x = np.ones((1, 8))
    learner.apply([Chunk(str(i), 0, x) for i in range(64)], predictions=False)
    arrays, _ = learner.state()
    held = sum(array.nbytes for name, array in arrays.items() if name.startswith("streams."))
    assert held / 64 <= 4096


def test_a_stream_that_is_opened_again_has_another_incarnation() -> None:
    learner = Learner(ModelSpec(input_size=1), backend="reference")
    x = np.zeros((2, 1), np.float32)
    for expected, stream_id in enumerate(["a", "b"], 1):
        learner.apply([Chunk(stream_id, 0, x)])
        assert learner.incarnation(stream_id) == expected
    learner.delete_stream("a")
    learner.apply([Chunk("a", 0, x)])
    assert learner.incarnation("a") == learner.last_incarnation == 3
    with pytest.raises(UnknownStream):
        learner.incarnation("c")


def test_incarnations_go_on_above_a_given_number() -> None:
    """After a restore, streams that the checkpoint does not know must not get numbers again."""
    learner = Learner(ModelSpec(input_size=1), backend="reference")
    for above, expected in ((7, 8), (3, 9)):
        learner.number_streams_above(above)
        stream_id = f"s{above}"
        learner.apply([Chunk(stream_id, 0, np.zeros((2, 1), np.float32))])
        assert learner.incarnation(stream_id) == expected


@pytest.mark.parametrize("last", [0, True, "1", 1.0, None])
def test_a_state_whose_last_incarnation_cannot_be_is_refused(last: Any) -> None:
    learner = Learner(ModelSpec(input_size=1), backend="reference")
    learner.apply([Chunk("a", 0, np.zeros((2, 1), np.float32))])
    arrays, metadata = learner.state()
    with pytest.raises(InvalidArgument) as caught:
        Learner.from_state(arrays, metadata | {"last_incarnation": last}, backend="reference")
    assert caught.value.field == "last_incarnation"
