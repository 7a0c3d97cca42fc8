"""Joined chunks: the same answers, the same model, fewer records."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt.durability import Record
from bptt.engine.joining import groups
from bptt.engine.messages import Outcome, Round, StreamCommand
from bptt.engine.records import apply_record
from bptt.engine.run import run
from bptt_core import Chunk, ChunkResult, Learner, ModelSpec
from tests.engine.support import of_one_lane, queued, rounds

pytestmark = pytest.mark.same_bits

FORECAST = ModelSpec(input_size=2, hidden_size=4, k1=3, k2=7)
SPECS = {
    "forecast": FORECAST,
    "forecast five ahead": replace(FORECAST, horizon=5),
    "regression": replace(FORECAST, task="regression", output_size=1, combine=None),
    "classification": replace(
        FORECAST, task="classification", output_size=3, loss="cross_entropy", combine=None
    ),
    "next token": ModelSpec(task="next_token", vocabulary_size=5, hidden_size=4, k1=2, k2=4),
}
LENGTHS = (1, 1, 4, 3, 1, 9, 2, 2, 17, 1, 1, 1, 6)
ENDS = (5, 9)


def chunks(spec: ModelSpec) -> list[Chunk]:
    generator = np.random.default_rng(3)
    result, first = [], 0
    for place, steps in enumerate(LENGTHS):
        inputs: Any = generator.normal(size=(steps, spec.input_size)).astype(np.float32)
        targets: Any = None
        if spec.task == "next_token":
            inputs = generator.integers(0, 5, steps).astype(np.uint32)
        elif spec.task == "classification":
            targets = generator.integers(0, 3, steps).astype(np.int32)
        elif spec.task == "regression":
            targets = inputs[:, :1] + 1
        result.append(Chunk("s", first, inputs, targets, place in ENDS))
        first += steps
    return result


def batches(given: list[Chunk]) -> list[Round]:
    return rounds(*given)


def learned(outcome: Outcome) -> list[ChunkResult]:
    assert not any(each.errors for each in outcome.answers)
    found = [of_one_lane(part) for each in outcome.answers for part in each.parts]
    return [each for each in found if isinstance(each, ChunkResult)]


def assert_same(mine: ChunkResult, its: ChunkResult) -> None:
    assert (mine.first_step, mine.next_step) == (its.first_step, its.next_step)
    assert mine.updates == its.updates
    np.testing.assert_array_equal(mine.predictions, its.predictions)
    assert (mine.anomaly_scores is None) == (its.anomaly_scores is None)
    if mine.anomaly_scores is not None and its.anomaly_scores is not None:
        np.testing.assert_array_equal(mine.anomaly_scores, its.anomaly_scores)


def assert_same_state(mine: Learner, its: Learner) -> None:
    arrays, metadata = mine.state()
    others, other_metadata = its.state()
    assert metadata == other_metadata
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)


@pytest.mark.parametrize("name", SPECS)
def test_joined_chunks_get_the_answers_of_separate_chunks(name: str) -> None:
    spec = SPECS[name]
    learner, alone = Learner(spec, backend="reference"), Learner(spec, backend="reference")
    given = chunks(spec)
    outcome = run(learner, batches(given))
    expected = [alone.apply([each]).chunks[0] for each in given]
    assert sum(len(each.updates) for each in expected) > 6
    for mine, its in zip(learned(outcome), expected, strict=True):
        assert_same(mine, its)
    assert_same_state(learner, alone)
    assert len(outcome.records) == 3, "one for each sequence"
    replayed = Learner(spec, backend="reference")
    for lsn, (body, _) in enumerate(outcome.records, 1):
        apply_record(replayed, Record(lsn, body))
    assert_same_state(replayed, alone)


def test_joined_chunks_after_earlier_steps_get_the_answers_of_separate_chunks() -> None:
    learner, alone = (Learner(FORECAST, backend="reference") for _ in range(2))
    given = chunks(FORECAST)
    for part in (given[:3], given[3:5], given[5:]):
        outcome = run(learner, batches(part))
        for mine, each in zip(learned(outcome), part, strict=True):
            assert_same(mine, alone.apply([each]).chunks[0])


def test_only_the_bad_one_of_several_joined_chunks_is_refused() -> None:
    learner = Learner(FORECAST, backend="reference")
    given = chunks(FORECAST)[:3]
    bad = given[2].inputs.copy()
    bad[0, 0] = np.nan
    outcome = run(learner, batches([*given[:2], replace(given[2], inputs=bad)]))
    first, second, third = outcome.answers
    assert not first.errors
    assert not second.errors
    assert not third.parts
    [(lane, error)] = third.errors
    assert (lane, error.reason) == (0, "not_finite")
    assert learner.next_step("s") == 2
    assert outcome.failure is None


@pytest.mark.parametrize(
    "spec",
    [
        replace(FORECAST, missing_inputs=True),
        replace(SPECS["regression"], missing_targets=True),
        replace(SPECS["regression"], label_delay=2),
        replace(FORECAST, on_divergence="roll_back"),
    ],
)
def test_chunks_of_some_models_are_not_joined(spec: ModelSpec) -> None:
    waiting = batches(chunks(spec))
    assert [len(each) for each in groups(spec, waiting)] == [1] * len(waiting)


def test_chunks_with_an_entry_between_them_are_not_joined() -> None:
    given = chunks(FORECAST)[:4]
    waiting = batches(given)
    waiting[1].commands.append(StreamCommand("s", "reset", None))  # type: ignore[arg-type]
    other = Chunk("other", 0, given[0].inputs)
    waiting[3].chunks.append(queued(other))
    found = list(groups(FORECAST, waiting))
    assert [len(each) for each in found] == [1, 1, 1, 1]
    assert [each for group in found for each in group] == waiting


def test_a_report_contains_the_inputs_of_the_prequential_errors() -> None:
    """Regression: |target - earlier prediction| of every step, in one tick or in several."""
    spec = ModelSpec(
        task="regression", input_size=2, output_size=1, hidden_size=4, k1=2, k2=4, scaling=False
    )
    x = np.sin(np.arange(24, dtype=np.float32)).reshape(12, 2)
    y = x[:, :1] * 0.5
    errors = []
    for cuts in ((0, 12), (0, 3, 4, 9, 12)):
        chunks = [
            Chunk("s", first, x[first:stop], y[first:stop])
            for first, stop in itertools.pairwise(cuts)
        ]
        outcome = run(Learner(spec, backend="reference"), rounds(*chunks))
        assert outcome.failure is None
        found = []
        for tick in outcome.ticks:
            batch, result = tick.batch, tick.result
            assert batch is not None
            assert result is not None
            assert result.stream_ids == ("s",)
            assert result.first_steps.tolist() == batch.first_steps.tolist()
            assert result.predictions is not None
            found.append(np.abs(batch.targets - result.predictions))
        errors.append(np.concatenate(found))
        assert sum(each.steps for tick in outcome.ticks for each in tick.updates) == len(x)
    assert errors[0].shape == (12, 1)
    np.testing.assert_array_equal(errors[0], errors[1])
