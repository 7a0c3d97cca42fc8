"""The compiled backend against the reference, for every choice of a spec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec, TickResult
from tests.core.support import assert_same_memory, chunk_of, random_steps

SMALL = ModelSpec(input_size=2, hidden_size=5, k1=3, k2=7, dtype="float64", combine="none")
REGRESSION = replace(SMALL, task="regression", output_size=2, loss=None)

SPECS = {
    "network alone": SMALL,
    "mixture": replace(SMALL, combine="mixture"),
    "mixture, horizon": replace(SMALL, combine="mixture", horizon=4, hidden_size=3),
    "mixture, one of three columns": replace(
        SMALL, combine="mixture", input_size=3, target_columns=(2,), horizon=12
    ),
    "mixture, missing inputs": replace(
        SMALL,
        combine="mixture",
        missing_inputs=True,
        input_size=3,
        target_columns=(2, 0),
        horizon=2,
    ),
    "horizon": replace(SMALL, horizon=4, output_size=None),
    "horizon beyond k2": replace(SMALL, horizon=9, k1=2, k2=5, output_size=None),
    "one column": replace(SMALL, input_size=3, target_columns=(2,), horizon=2),
    "k1 = 1": replace(SMALL, k1=1, k2=4),
    "k1 = k2": replace(SMALL, k1=4, k2=4),
    "no scaling": replace(SMALL, scaling=False),
    "squared error": replace(SMALL, loss="squared_error"),
    "sum": replace(SMALL, reduction="sum", clip_threshold=3.0),
    "clip by value": replace(SMALL, clip="value", clip_threshold=0.05),
    "no clip": replace(SMALL, clip="none"),
    "sgd with weight decay": replace(SMALL, optimizer="sgd", weight_decay=0.01),
    "momentum": replace(SMALL, optimizer="momentum"),
    "rmsprop": replace(SMALL, optimizer="rmsprop"),
    "adagrad": replace(SMALL, optimizer="adagrad", learning_rate=0.05),
    "adamw": replace(SMALL, optimizer="adamw", weight_decay=None),
    "relu": replace(SMALL, cell="rnn_relu"),
    "lstm": replace(SMALL, cell="lstm", layers=2),
    "gru": replace(SMALL, cell="gru", layers=2),
    "three layers": replace(SMALL, layers=3),
    "regression": REGRESSION,
    "huber regression": replace(REGRESSION, loss="huber"),
    "bernoulli": replace(REGRESSION, loss="bernoulli"),
    "classification": replace(REGRESSION, task="classification", output_size=3, loss=None),
    "tokens": replace(SMALL, task="next_token", input_size=1, vocabulary_size=7, loss=None),
    "tokens of an lstm": replace(
        SMALL, task="next_token", input_size=1, vocabulary_size=7, loss=None, cell="lstm", layers=2
    ),
    "missing targets": replace(REGRESSION, missing_targets=True),
    "missing classes": replace(
        REGRESSION, task="classification", output_size=3, loss=None, missing_targets=True, k1=1
    ),
    "clip by layer": replace(SMALL, clip="layer_norm", clip_threshold=0.1, layers=2),
    "warm-up and decay": replace(
        SMALL, warmup_updates=8, decay_updates=20, final_learning_rate=1e-4
    ),
    "small batches": replace(SMALL, max_batch_streams=2),
    "missing inputs": replace(SMALL, missing_inputs=True, input_size=3, target_columns=(2, 0)),
    "missing inputs, horizon": replace(SMALL, missing_inputs=True, horizon=4, scaling=False),
    "missing inputs of a regression": replace(REGRESSION, missing_inputs=True),
    "missing inputs, no scaling": replace(REGRESSION, missing_inputs=True, scaling=False),
    "late targets": replace(REGRESSION, label_delay=4, cell="lstm"),
    "late classes": replace(
        REGRESSION, task="classification", output_size=3, loss=None, label_delay=9, k1=2, k2=5
    ),
    "targets one step late": replace(REGRESSION, label_delay=1, k1=1, max_batch_streams=2),
}


def ticks(spec: ModelSpec, seed: int) -> list[list[Chunk]]:
    """Ragged chunks of five streams, some of them ending their sequence."""
    random = np.random.default_rng(seed)
    x, target = random_steps(spec, 60, streams=5, seed=seed)
    at, begun = [0] * 5, [0] * 5
    result = []
    while min(at) < 60:
        tick = []
        for stream in random.permutation(5):
            steps = int(min(random.integers(0, 12), 60 - at[stream]))
            ends = bool(random.random() < 0.2)
            first, name = at[stream], f"s{stream}"
            stop = first + steps
            if spec.label_delay:
                oldest = max(first - spec.label_delay, begun[stream])
                if oldest < stop:
                    labels = np.sort(random.choice(np.arange(oldest, stop + 1), 2, replace=False))
                    some = labels_of(target, stream, int(labels[0]), int(labels[1]), random)
                    inputs = np.ascontiguousarray(x[first:stop, stream])
                    tick.append(Chunk(name, first, inputs, some, ends, int(labels[0])))
                    at[stream], begun[stream] = stop, stop if ends else begun[stream]
            elif steps:
                tick.append(chunk_of(name, first, stop, x, target, stream, ends=ends))
                at[stream] = stop
        if tick:
            result.append(tick)
    return result


def labels_of(target: Any, stream: int, first: int, stop: int, random: Any) -> Any:
    """Labels of some steps; a fifth of them are not known yet."""
    labels = target[first:stop, stream].copy()
    labels[random.random(len(labels)) < 0.2] = -1 if labels.dtype.kind == "i" else np.nan
    return labels


def assert_same_result(a: TickResult, b: TickResult) -> None:
    assert len(a.updates) == len(b.updates)
    for mine, its in zip(a.updates, b.updates, strict=True):
        assert (mine.update, mine.steps, mine.streams) == (its.update, its.steps, its.streams)
        assert (mine.clipped, mine.skipped) == (its.clipped, its.skipped)
        np.testing.assert_allclose(mine.loss, its.loss, 1e-8)
        np.testing.assert_allclose(mine.baseline_loss, its.baseline_loss, 1e-8)
        np.testing.assert_allclose(mine.gradient_norm, its.gradient_norm, 1e-8)
        np.testing.assert_allclose(mine.clipped_gradient_norm, its.clipped_gradient_norm, 1e-8)
    for one, other in zip(a.chunks, b.chunks, strict=True):
        assert (one.stream_id, one.first_step, one.next_step) == (
            other.stream_id,
            other.first_step,
            other.next_step,
        )
        assert [u.update for u in one.updates] == [u.update for u in other.updates]
        assert one.predictions is not None
        assert other.predictions is not None
        np.testing.assert_allclose(one.predictions, other.predictions, 1e-7, 1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_both_backends_give_the_same_results(name: str) -> None:
    spec = SPECS[name]
    compiled, reference = Learner(spec), Learner(spec, backend="reference")
    for tick in ticks(spec, seed=3):
        assert_same_result(compiled.apply(tick), reference.apply(tick))
    assert_same_memory(compiled, reference, 1e-7)
    assert compiled.figures.updates > 20
    for backend_figure, its in zip(
        vars_of(compiled.figures), vars_of(reference.figures), strict=True
    ):
        np.testing.assert_allclose(backend_figure, its, 1e-7, err_msg=name)


def vars_of(figures: Any) -> list[float]:
    numbers = [name for name in figures.__slots__ if name != "expert_weights"]
    return [*(getattr(figures, name) for name in numbers), *figures.expert_weights.values()]


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize("name", SPECS)
def test_a_snapshot_predicts_the_same_as_learning(name: str, backend: Any) -> None:
    """A snapshot predicts what `apply` then predicts for the same steps."""
    # Statistics would take the new steps in, and weights and fits.
    spec = replace(SPECS[name], scaling=False, combine="none")
    learner = Learner(spec, backend=backend)
    x, target = random_steps(spec, 31, streams=1)
    y = [None] * 31 if target is None else [target[t : t + 1, 0] for t in range(31)]
    for t in range(30):
        learner.apply([Chunk("a", t, x[t : t + 1, 0], y[t])])
    snapshot, view = learner.snapshot(), learner.stream_view("a")
    before = learner.state()[0]
    predicted = snapshot.predict(view, x[30:, 0])
    again = snapshot.predict(view, x[30:, 0])
    for key, array in learner.state()[0].items():
        assert array.tobytes() == before[key].tobytes(), f"a prediction changed {key}"
    (chunk,) = learner.apply([Chunk("a", 30, x[30:, 0], y[30])]).chunks
    np.testing.assert_array_equal(predicted, again)
    assert chunk.predictions is not None
    if not chunk.updates:  # a late target may bring an update before the step is read
        np.testing.assert_allclose(predicted, chunk.predictions, 1e-10)


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_forecast_without_inputs_is_the_last_one_given(backend: Any) -> None:
    learner = Learner(replace(SMALL, horizon=3), backend=backend)
    x, _ = random_steps(learner.spec, 40, streams=1)
    (chunk,) = learner.apply([Chunk("a", 0, x[:, 0])]).chunks
    predicted = learner.snapshot().predict(learner.stream_view("a"))
    assert chunk.predictions is not None
    np.testing.assert_allclose(predicted[0], chunk.predictions[-1], 1e-10)


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_loss_that_overflows_is_skipped_and_the_stream_goes_on(backend: Any) -> None:
    spec = replace(REGRESSION, cell="rnn_relu", optimizer="sgd", clip="none", scaling=False)
    spec = replace(spec, k1=3, k2=3, dtype="float32")
    learner = Learner(spec, backend=backend)
    before = learner.parameters()
    with np.errstate(over="ignore"):  # beyond float32: the network sees infinities
        reports = learner.feed(np.full((6, 1, 2), 1e39), np.full((6, 1, 2), -1e39)).updates
    assert [report.skipped for report in reports] == [True, True]
    assert learner.figures.skipped_updates == 2
    for name, array in learner.parameters().items():
        np.testing.assert_array_equal(array, before[name])
    x, target = random_steps(spec, 12, streams=1)
    assert not any(report.skipped for report in learner.feed(x, target).updates)
    assert np.isfinite(learner.figures.loss)
