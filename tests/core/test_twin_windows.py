"""An update, and the states it reads and stores, against the twin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt_core import ModelSpec, params
from bptt_core.kernels import dispatch, network, sizes, updates, windows
from bptt_core.memory import TILE
from bptt_core.state import CLIPPED, new_model, new_streams, SKIPPED, UPDATES
from bptt_core.windows import REPORT_COLUMNS
from tests.core import naive
from tests.core.support import assert_twin, numbers

T, B, NEW = 6, 2, 4
"""Steps of a window, streams, and the number of new steps."""
RANDOM = np.random.default_rng(16)
BASE = ModelSpec(
    task="regression", input_size=3, output_size=2, hidden_size=5, layers=2, dtype="float64",
    clip_threshold=0.1, learning_rate=0.01, missing_targets=True,
)  # fmt: skip
SPECS = {
    "squared error": replace(BASE, loss="squared_error"),
    "sum of huber": replace(BASE, loss="huber", reduction="sum"),
    "bernoulli of an lstm": replace(BASE, loss="bernoulli", cell="lstm"),
    "classes of a gru": replace(BASE, task="classification", loss=None, cell="gru"),
    "weight decay": replace(BASE, optimizer="adamw", weight_decay=None, warmup_updates=5),
}


def streams_of(spec: ModelSpec, rows: int) -> Any:
    """States (S, L, parts, H) of so many streams."""
    return numbers(RANDOM, (rows, spec.layers, spec.state_parts, spec.hidden_size), spec.dtype)


@pytest.mark.twin_of("updates.forget", "updates.load_states", "updates.store_states")
def test_states_are_read_and_stored() -> None:
    spec = SPECS["bernoulli of an lstm"]
    told, work = sizes.sizes(spec), sizes.work(spec, T, B)
    source, rows = streams_of(spec, 4), np.array([3, 1])
    work.states[:] = numbers(RANDOM, work.states.shape, "float64")
    updates.load_states(told, source, rows, T, B, work)
    for layer in range(spec.layers):
        comp = network.layer_states(told, T, B, work, layer)
        for part in range(2):
            for b in range(B):
                assert comp[part, 0, b].tolist() == source[rows[b], layer, part].tolist()

    network.layer_states(told, T, B, work, 1)[1, 5, 1, 2] = np.inf
    into = streams_of(spec, 4)
    before = into.copy()
    for step in (2, 5):  # after the fifth, what stream 1 carries is not finite
        updates.store_states(told, into, rows, T, B, step, work)
        for layer in range(spec.layers):
            comp = network.layer_states(told, T, B, work, layer)
            for part in range(2):
                assert into[3, layer, part].tolist() == comp[part, step, 0].tolist()
                ref = [0.0] * spec.hidden_size if step == 5 else comp[part, step, 1].tolist()
                assert into[1, layer, part].tolist() == ref
    assert into[[0, 2]].tobytes() == before[[0, 2]].tobytes()
    updates.forget(told, into[0])
    assert not into[0].any()
    assert into[2].tobytes() == before[2].tobytes()


def held_windows(spec: ModelSpec, B: int, x: Any, y: Any, state: Any) -> Any:
    """Streams in rows B - 1 to 0 that hold windows x (T, B, D) with targets y (NEW, B, width)."""
    streams, rows = new_streams(spec, B), np.arange(B)[::-1].copy()
    streams.inputs[rows, :T] = x.swapaxes(0, 1)
    streams.targets[rows, :NEW] = y.swapaxes(0, 1)
    streams.start_state[rows] = state
    streams.counters[:] = T, T, T, NEW
    return streams, rows


@pytest.mark.twin_of(
    "updates.update",
    "updates.count_targets",
    "updates.load_inputs",
    "updates.learn_tile",
    "updates.take_step",
)
@pytest.mark.parametrize(
    ("name", "streams"), [*((name, 2) for name in SPECS), ("squared error", TILE + 3)]
)
def test_an_update(name: str, streams: int) -> None:
    """Loss, gradient, clip and optimizer step, three times over; also of more than one tile."""
    spec, B = SPECS[name], streams
    told, work, tag = sizes.sizes(spec), sizes.work(spec, T, B), dispatch.tag(spec)
    model, report = new_model(spec), np.zeros(REPORT_COLUMNS)
    twin = naive.Learner(spec, params.views(spec, model.parameters))
    for update in range(1, 4):
        x, state = numbers(RANDOM, (T, B, 3), "float64"), streams_of(spec, B)
        y = numbers(RANDOM, (NEW, B, spec.target_width), "float64")
        if spec.loss in ("bernoulli", "cross_entropy"):
            y = (y > 0).astype(float)
        y[1, 1] = np.nan
        tapes = [twin.network.forward(x[:, b].tolist(), state[b].tolist()) for b in range(B)]
        ref = twin.learn(tapes, [row for b in range(B) for row in y[:, b].tolist()], NEW)
        assert ref is not None

        held, rows = held_windows(spec, B, x, y, state)
        assert updates.count_targets(held.targets, rows, B, NEW) == NEW * B - 1
        assert updates.update(tag, told, model, held, rows, B, 0, work, report)
        figures = [ref.loss, ref.baseline_loss, ref.gradient_norm, ref.clipped_gradient_norm]
        assert report[:3].tolist() == [update, NEW, B]
        assert report[3:7].tolist() == pytest.approx(figures, rel=1e-10)
        assert report[7] == 0.0
        assert model.last.tolist() == report[3:7].tolist()
        for key, array in params.views(spec, model.parameters).items():
            np.testing.assert_allclose(array, twin.network.named[key], 1e-10, 1e-12)
        for b, tape in enumerate(tapes):
            assert_twin(held.live_state[rows[b]], tape.state_after(T))
    assert model.counters[[UPDATES, CLIPPED, SKIPPED]].tolist() == [3, 3, 0]


@pytest.mark.twin_of("updates.read_pending")
def test_steps_after_the_window_are_read_with_the_new_parameters() -> None:
    spec = replace(SPECS["bernoulli of an lstm"], label_delay=2)
    told, work, tag = sizes.sizes(spec), sizes.work(spec, T, B), dispatch.tag(spec)
    model, x, y = new_model(spec), numbers(RANDOM, (T, B, 3), "float64"), np.zeros((NEW, B, 2))
    held, rows = held_windows(spec, B, x, y, streams_of(spec, B))
    state = held.live_state[rows] = streams_of(spec, B)
    twin = naive.Network(spec, params.views(spec, model.parameters))
    updates.read_pending(tag, told, model, held, rows, B, 4, 2, work)
    for b in range(B):
        tape = twin.forward(x[4:, b].tolist(), state[b].tolist())
        assert_twin(held.live_state[rows[b]], tape.state_after(2))


def test_a_window_without_targets_gives_no_update_and_an_overflowing_one_is_skipped() -> None:
    spec = SPECS["squared error"]
    told, work, tag = sizes.sizes(spec), sizes.work(spec, T, B), dispatch.tag(spec)
    model, report = new_model(spec), np.zeros(REPORT_COLUMNS)
    before, x = model.parameters.copy(), numbers(RANDOM, (T, B, 3), "float64")
    held, rows = held_windows(spec, B, x, np.full((NEW, B, 2), np.nan), streams_of(spec, B))
    assert not updates.update(tag, told, model, held, rows, B, 0, work, report)
    assert model.counters[UPDATES] == 0
    assert not report.any()
    held, rows = held_windows(spec, B, x, np.full((NEW, B, 2), 1e300), streams_of(spec, B))
    assert updates.update(tag, told, model, held, rows, B, 0, work, report)
    assert report[7] == 1.0
    assert model.counters[[UPDATES, SKIPPED]].tolist() == [1, 1]
    assert model.parameters.tobytes() == before.tobytes()


@pytest.mark.twin_of("windows.read_steps")
@pytest.mark.parametrize("streams", [1, 5])
def test_reading_steps_does_not_learn_them(streams: int) -> None:
    spec = SPECS["classes of a gru"]
    told, work, tag = sizes.sizes(spec), sizes.work(spec, T, streams), dispatch.tag(spec)
    model, live = new_model(spec), streams_of(spec, streams)
    x, outputs = numbers(RANDOM, (streams, T, 3), "float64"), np.zeros((streams, T, 2))
    twin = naive.Network(spec, params.views(spec, model.parameters))
    tapes = [twin.forward(x[b, 2:5].tolist(), live[b].tolist()) for b in range(streams)]
    every, before = np.arange(streams), model.parameters.copy()
    windows.read_steps(
        tag, told, model.parameters, live, every, T * every, streams, 2, 3,
        x.reshape(-1, 3), outputs.reshape(-1, 2), work,
    )  # fmt: skip
    for b, tape in enumerate(tapes):
        assert_twin(outputs[b, 2:5], tape.outputs)
        assert_twin(live[b], tape.state_after(3))
    assert not outputs[:, :2].any()
    assert not outputs[:, 5:].any()
    assert model.parameters.tobytes() == before.tobytes()
