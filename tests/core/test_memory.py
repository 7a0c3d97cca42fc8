"""The memory computed from a spec is the memory that its model allocates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt_core import bytes_of_model, bytes_of_stream, Learner, ModelSpec
from bptt_core.kernels.backend import Compiled, FORWARD_STEPS
from tests.core.support import chunk_of, random_steps

REGRESSION = ModelSpec(
    task="regression", input_size=3, output_size=2, hidden_size=9, layers=2, max_batch_streams=3
)
SPECS = {
    "forecast": ModelSpec(input_size=2, hidden_size=8, horizon=3, max_batch_streams=5),
    "long horizon": ModelSpec(input_size=1, hidden_size=4, k1=2, k2=3, horizon=9),
    "missing inputs": ModelSpec(input_size=2, missing_inputs=True, dtype="float64"),
    "regression": REGRESSION,
    "late labels": replace(REGRESSION, label_delay=40, optimizer="momentum"),
    "lstm": replace(REGRESSION, cell="lstm", optimizer="sgd"),
    "gru": replace(REGRESSION, cell="gru", k1=32),
    "classes": replace(REGRESSION, task="classification", loss=None),
    "tokens": ModelSpec(task="next_token", vocabulary_size=50, hidden_size=8, cell="lstm"),
}


def taught(spec: ModelSpec, streams: int) -> Learner:
    """A learner after ticks with this number of streams."""
    learner = Learner(spec)
    steps = 2 * spec.k1 + spec.delay
    x, target = random_steps(spec, steps, streams)
    learner.apply([chunk_of(str(b), 0, steps, x, target, b) for b in range(streams)])
    assert learner.figures.updates > 0
    return learner


def size(*arrays: Any) -> int:
    return sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("streams", [1, 2, 7])
@pytest.mark.parametrize("name", SPECS)
def test_the_computed_memory_is_the_allocated_memory(name: str, streams: int) -> None:
    spec = SPECS[name]
    learner = taught(spec, streams)
    backend, snapshot = learner._backend, learner.snapshot()
    assert isinstance(backend, Compiled)
    held = size(*learner._model, *backend._work, snapshot.model.parameters)
    assert bytes_of_model(spec, streams) == held
    assert size(*learner._table.arrays) == bytes_of_stream(spec) * len(
        learner._table.arrays.counters
    )
    at_most = bytes_of_model(spec)
    assert (at_most >= held) == (streams <= spec.max_batch_streams or at_most == held)


def test_the_memory_of_the_largest_models_is_computed_without_allocating() -> None:
    """Five layers of 2,048 units, windows of 4,096 steps, 64 of them in an update."""
    spec = ModelSpec(input_size=8, hidden_size=2048, layers=5, k2=4096)
    assert bytes_of_model(spec) / 2**30 == pytest.approx(34.7, abs=0.1)
    assert bytes_of_model(spec, tick_streams=1) / 2**30 == pytest.approx(1.24, abs=0.01)
    assert bytes_of_model(replace(spec, cell="lstm")) > 2 * bytes_of_model(spec)


def test_an_idle_stream_of_the_usual_size_is_small() -> None:
    assert bytes_of_stream(ModelSpec(input_size=8, hidden_size=64, k2=32)) <= 4096


def test_a_prediction_keeps_room_for_few_of_the_steps_it_reads() -> None:
    """Longer inputs are read in pieces; no bit of the result changes."""
    spec = SPECS["regression"]
    learner = taught(spec, 1)
    x = np.random.default_rng(0).normal(size=(3 * FORWARD_STEPS + 1, 3))
    snapshot, view = learner.snapshot(), learner.stream_view("0")
    made, before = snapshot.predict(view, x), view.state.tobytes()
    backend = learner._backend
    assert isinstance(backend, Compiled)
    work = backend._predicting.work
    assert work.output.size == FORWARD_STEPS * spec.outputs
    assert work.gradient.size == 0
    assert view.state.tobytes() == before
    for steps in (1, FORWARD_STEPS + 7):
        assert snapshot.predict(view, x[:steps]).tobytes() == made[:steps].tobytes()
    reference = Learner.from_state(*learner.state(), backend="reference").snapshot()
    np.testing.assert_allclose(made, reference.predict(view, x), 1e-4, 1e-5)
