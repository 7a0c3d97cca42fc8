"""Stacked layers and their head, forward and back, against the twin, stream by stream."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt_core import ModelSpec, network, params
from bptt_core.kernels import dispatch, linear, sizes, windows
from bptt_core.kernels import network as kernels
from tests.core import naive
from tests.core.support import assert_twin, numbers

T, FIRST = 7, 3
"""Steps of a window, and the first step that has a loss."""
RANDOM = np.random.default_rng(14)
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])
BASE = ModelSpec(task="regression", input_size=3, output_size=2, hidden_size=5)
SPECS = {
    "rnn": BASE,
    "relu, 3 layers": replace(BASE, cell="rnn_relu", layers=3),
    "lstm, 2 layers": replace(BASE, cell="lstm", layers=2),
    "gru, 2 layers": replace(BASE, cell="gru", layers=2),
    "tokens": ModelSpec(task="next_token", vocabulary_size=6, hidden_size=5, layers=2),
    "tokens of a gru": ModelSpec(task="next_token", vocabulary_size=6, hidden_size=5, cell="gru"),
}


@pytest.mark.twin_of("network.project")
@pytest.mark.parametrize("rows", [1, linear.BLAS_ROWS, 6])
@pytest.mark.parametrize("by_row", [False, True])
@dtypes
def test_project(rows: int, by_row: bool, dtype: str) -> None:
    x, matrix = numbers(RANDOM, (rows, 9), dtype), numbers(RANDOM, (5, 9), dtype)
    bias, comp = numbers(RANDOM, (5,), dtype), np.empty((rows, 5), dtype)
    kernels.project(x, matrix, bias, by_row, comp)
    ref = [naive.affine(matrix.tolist(), row, bias.tolist()) for row in x.tolist()]
    assert_twin(comp, ref, dtype)


@pytest.mark.twin_of("network.look_up", "network.scatter")
@dtypes
def test_tokens_look_up_what_one_hot_vectors_multiply(dtype: str) -> None:
    ids = [2, 0, 2, 5]
    one_hot = [[1.0 if i == token else 0.0 for i in range(6)] for token in ids]
    U, bias = numbers(RANDOM, (6, 4), dtype), numbers(RANDOM, (4,), dtype)
    comp = np.empty((4, 4), dtype)
    kernels.look_up(np.array(ids, dtype)[:, None], U, bias, comp)
    ref = [naive.add(bias.tolist(), naive.vector_matrix(row, U.tolist())) for row in one_hot]
    assert_twin(comp, ref, dtype)
    slopes, dU = numbers(RANDOM, (4, 4), dtype), np.zeros((6, 4), dtype)
    kernels.scatter(np.array(ids, dtype), slopes, dU)
    ref = naive.outer_sum(slopes.tolist(), one_hot)  # (m, vocabulary): U as PyTorch holds it
    assert_twin(dU.T, ref, dtype)


@pytest.mark.twin_of("network.layer_size")
@pytest.mark.parametrize("name", SPECS)
def test_layer_size(name: str) -> None:
    spec, told = SPECS[name], sizes.sizes(SPECS[name])
    comp = [kernels.layer_size(told, layer) for layer in range(spec.layers)]
    ref = naive.layer_sizes(spec)
    assert comp == ref
    assert params.layer_ends(spec)[:-1] == [sum(ref[: i + 1]) for i in range(len(ref))]
    assert told.P == params.count(spec) == sum(ref) + spec.outputs * (spec.hidden_size + 1)


@pytest.mark.twin_of("network.layer_states")
def test_layer_states() -> None:
    spec = SPECS["lstm, 2 layers"]
    told, work, B, H = sizes.sizes(spec), sizes.work(spec, T, 2), 2, spec.hidden_size
    work.states[:] = np.arange(work.states.size)
    for layer in range(spec.layers):
        comp = kernels.layer_states(told, T, B, work, layer)
        assert comp.shape == (2, T + 1, B, H)
        for part, t, b, i in [(0, 0, 0, 0), (1, 2, 1, 3), (1, T, B - 1, H - 1)]:
            ref = (((layer * 2 + part) * (T + 1) + t) * B + b) * H + i
            assert comp[part, t, b, i] == ref


def window(spec: ModelSpec, streams: int) -> tuple[Any, Any, Any, Any]:
    """Parameters (P,), inputs (T, B, F), states (L, parts, B, H), slopes (T - FIRST, B, O)."""
    vector = params.initialise(spec)
    if spec.vocabulary_size:
        x = RANDOM.integers(0, spec.vocabulary_size, (T, streams, 1)).astype(spec.dtype)
    else:
        x = numbers(RANDOM, (T, streams, spec.features), spec.dtype)
    shape = (spec.layers, spec.state_parts, streams, spec.hidden_size)
    slopes = numbers(RANDOM, (T - FIRST, streams, spec.outputs), spec.dtype)
    return vector, x, numbers(RANDOM, shape, spec.dtype), slopes


@pytest.mark.twin_of("network.network_forward", "network.head_forward", "network.network_backward")
@pytest.mark.parametrize("streams", [1, 5])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("name", SPECS)
@dtypes
def test_a_window(name: str, by_row: bool, streams: int, dtype: Any) -> None:
    spec = replace(SPECS[name], dtype=dtype)
    vector, x, state, slopes = window(spec, streams)
    named = params.views(spec, vector)
    twin = naive.Network(spec, named)
    before: Any = [[0.0] * spec.outputs] * FIRST
    tapes = [twin.forward(x[:, b].tolist(), state[:, :, b].tolist()) for b in range(streams)]
    refs = [twin.backward(tape, before + slopes[:, b].tolist()) for b, tape in enumerate(tapes)]
    ref = {key: sum(np.array(each[key]) for each in refs) for key in named}

    told, work, tag = sizes.sizes(spec), sizes.work(spec, T, streams), dispatch.tag(spec)
    work.inputs[:] = x.reshape(-1)
    for layer in range(spec.layers):
        kernels.layer_states(told, T, streams, work, layer)[:, 0] = state[layer]
    kernels.network_forward(tag, told, vector, T, streams, by_row, work)
    for layer in range(spec.layers):
        comp = kernels.layer_states(told, T, streams, work, layer)
        for b, tape in enumerate(tapes):
            assert_twin(comp[:, :, b], tape.parts[layer], dtype)
    comp = kernels.head_forward(told, vector, T, streams, FIRST, by_row, work)
    for b, tape in enumerate(tapes):
        assert_twin(comp[:, b], tape.outputs[FIRST:], dtype)
    kernels.network_backward(tag, told, vector, T, streams, FIRST, slopes, work)
    for key, array in params.views(spec, work.gradient).items():
        assert_twin(array, ref[key], dtype)

    its = network.forward(spec, named, x, state)
    for b, tape in enumerate(tapes):
        assert_twin(its.output[:, b], tape.outputs, dtype)
        assert_twin(its.state_after(T)[:, :, b], np.array(tape.state_after(T)), dtype)
    whole = np.concatenate([np.zeros((FIRST, *slopes.shape[1:]), dtype), slopes])
    for key, array in params.views(spec, network.backward(spec, named, its, whole)).items():
        assert_twin(array, ref[key], dtype)


@pytest.mark.twin_of("windows.forward_stream")
@pytest.mark.parametrize("name", SPECS)
def test_forward_stream(name: str) -> None:
    spec = replace(SPECS[name], dtype="float64")
    vector, x, state, _ = window(spec, 1)
    ref = naive.Network(spec, params.views(spec, vector)).forward(
        x[:, 0].tolist(), state[:, :, 0].tolist()
    )
    told, work, tag = sizes.sizes(spec), sizes.work(spec, T, 1, backward=False), dispatch.tag(spec)
    features, start = x[:, 0].copy(), np.ascontiguousarray(state[:, :, 0])
    after, comp = start.copy(), np.zeros((T, spec.outputs))
    windows.forward_stream(tag, told, vector, features, after, work, comp)
    assert_twin(comp, ref.outputs)
    assert_twin(after, ref.state_after(T))
    again, pieces = start.copy(), np.zeros((T, spec.outputs))
    for part in (slice(0, 1), slice(1, 3), slice(3, T)):
        windows.forward_stream(tag, told, vector, features[part], again, work, pieces[part])
    assert pieces.tobytes() == comp.tobytes()
    assert again.tobytes() == after.tobytes()
