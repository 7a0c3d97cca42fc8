"""Every cell over a window, forward and back, against scalar loops, stream by stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt_core import ModelSpec
from bptt_core.cells import CELLS, Layer
from bptt_core.kernels import dispatch, gru, lstm, rnn
from tests.core import naive
from tests.core.support import assert_twin, numbers

T, H = 6, 5
RANDOM = np.random.default_rng(12)
batches = pytest.mark.parametrize("streams", [1, 3, 6])
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])


def of_stream(array: Any, b: int) -> Any:
    """(T, B, n) as lists over time of one stream."""
    return array[:, b].tolist()


@pytest.mark.twin_of("rnn.rnn_forward", "rnn.rnn_backward")
@pytest.mark.parametrize("relu", [False, True])
@batches
@dtypes
def test_rnn(relu: bool, streams: int, dtype: str) -> None:
    W = numbers(RANDOM, (H, H), dtype)
    u, turned = numbers(RANDOM, (T, streams, H), dtype), np.ascontiguousarray(W.T)
    states = numbers(RANDOM, (1, T + 1, streams, H), dtype)
    dh, da = numbers(RANDOM, (T, streams, H), dtype), np.empty((T, streams, H), dtype)
    refs = []
    for b in range(streams):
        h = naive.rnn_forward(W.tolist(), of_stream(u, b), states[0, 0, b].tolist(), relu)
        refs.append((h, *naive.rnn_backward(W.tolist(), h, of_stream(dh, b), relu)))
    rnn.rnn_forward(relu, W, states, u, turned)
    rnn.rnn_backward(relu, W, states, dh, da)
    for b, (h, ref_da, ref_dh) in enumerate(refs):
        assert_twin(states[0, :, b], h, dtype)
        assert_twin(da[:, b], ref_da, dtype)
        assert_twin(dh[:, b], ref_dh, dtype)


@pytest.mark.twin_of("lstm.lstm_forward", "lstm.lstm_backward")
@batches
@dtypes
def test_lstm(streams: int, dtype: str) -> None:
    W, tape = numbers(RANDOM, (4 * H, H), dtype), numbers(RANDOM, (T, streams, 4 * H), dtype)
    states = numbers(RANDOM, (2, T + 1, streams, H), dtype)
    dh, da = numbers(RANDOM, (T, streams, H), dtype), np.empty((T, streams, 4 * H), dtype)
    refs = []
    for b in range(streams):
        h0, c0 = states[:, 0, b].tolist()
        h, c, gates = naive.lstm_forward(W.tolist(), of_stream(tape, b), h0, c0)
        back = naive.lstm_backward(W.tolist(), c, gates, of_stream(dh, b))
        refs.append((h, c, gates, *back))
    lstm.lstm_forward(W, states, tape, np.ascontiguousarray(W.T))
    dc = numbers(RANDOM, (2, streams, H), dtype)
    lstm.lstm_backward(W, states, tape, dh, da, dc)
    for b, (h, c, gates, ref_da, ref_dh) in enumerate(refs):
        assert_twin(states[:, :, b], [h, c], dtype)
        assert_twin(tape[:, b], [[x for gate in each for x in gate] for each in gates], dtype)
        assert_twin(da[:, b], ref_da, dtype)
        assert_twin(dh[:, b], ref_dh, dtype)


@pytest.mark.twin_of("gru.gru_forward", "gru.gru_backward")
@batches
@dtypes
def test_gru(streams: int, dtype: str) -> None:
    W, b_hidden = numbers(RANDOM, (3 * H, H), dtype), numbers(RANDOM, (3 * H,), dtype)
    tape, states = (
        numbers(RANDOM, (T, streams, 3 * H), dtype),
        numbers(RANDOM, (1, T + 1, streams, H), dtype),
    )
    dh, da = numbers(RANDOM, (T, streams, H), dtype), np.empty((T, streams, 3 * H), dtype)
    dw, q = np.empty_like(da), np.empty((T, streams, H), dtype)
    refs = []
    for b in range(streams):
        h0 = states[0, 0, b].tolist()
        h, gates = naive.gru_forward(W.tolist(), of_stream(tape, b), b_hidden.tolist(), h0)
        back = naive.gru_backward(W.tolist(), h, gates, of_stream(dh, b))
        refs.append((h, gates, *back))
    wide = numbers(RANDOM, (streams, 3 * H), dtype)
    gru.gru_forward(W, b_hidden, states, tape, q, wide, np.ascontiguousarray(W.T))
    gru.gru_backward(W, states, tape, q, dh, da, dw)
    for b, (h, gates, ref_da, ref_dw, ref_dh) in enumerate(refs):
        assert_twin(states[0, :, b], h, dtype)
        assert_twin(tape[:, b], [[*r, *z, *n] for r, z, n, _ in gates], dtype)
        assert_twin(q[:, b], [each[3] for each in gates], dtype)
        assert_twin(da[:, b], ref_da, dtype)
        assert_twin(dw[:, b], ref_dw, dtype)
        assert_twin(dh[:, b], ref_dh, dtype)


def parts_of(name: str, layer: Layer, x: Any, state: Any, dh: Any) -> dict[str, Any]:
    """The twin's states, gradients and ∂L/∂x of one stream."""
    U, W, b, b_hidden = (each.tolist() for each in layer)
    twin = naive.TWINS[name]
    bias = b if twin.separate_hidden_bias else naive.add(b, b_hidden)
    u = [naive.affine(U, row, bias) for row in x]
    states, kept = twin.forward(W, u, b_hidden, state)
    du, dw, _ = twin.backward(W, states, kept, dh)
    return {
        "states": states,
        "U": naive.outer_sum(du, x),
        "W": naive.outer_sum(dw, states[0][:-1]),
        "b": naive.column_sums(du),
        "b_hidden": naive.column_sums(dw),
        "dx": [naive.vector_matrix(row, U) for row in du],
    }


def check_reference(name: str, dtype: str) -> None:
    """The NumPy cell, with its weights' gradients summed over time and streams, is the twin's."""
    streams, D, twin = 2, 3, naive.TWINS[name]
    rows = twin.blocks * H
    shapes = [(rows, D), (rows, H), (rows,), (rows,)]
    layer = Layer(*(numbers(RANDOM, shape, dtype) for shape in shapes))
    gradient = Layer(*(np.zeros(shape, dtype) for shape in shapes))
    x, dh = numbers(RANDOM, (T, streams, D), dtype), numbers(RANDOM, (T, streams, H), dtype)
    state = numbers(RANDOM, (twin.parts, streams, H), dtype)
    tape = CELLS[name].forward(layer, x, tuple(state))
    dx = CELLS[name].backward(layer, gradient, tape, dh)
    refs = [
        parts_of(name, layer, of_stream(x, b), of_stream(state, b), of_stream(dh, b))
        for b in range(streams)
    ]
    for b, ref in enumerate(refs):
        assert_twin(np.stack(tape.states)[:, :, b], ref["states"], dtype)
        assert_twin(dx[:, b], ref["dx"], dtype)
    for field, comp in gradient._asdict().items():
        assert_twin(comp, sum(np.array(ref[field]) for ref in refs), dtype)


def check_kernels(name: str, streams: int, dtype: str) -> None:
    """The compiled cell, reached through the interface that all cells share, is the twin's."""
    twin = naive.TWINS[name]
    tag, rows = dispatch.tag(ModelSpec(cell=name)), twin.blocks * H
    W, b_hidden = numbers(RANDOM, (rows, H), dtype), numbers(RANDOM, (rows,), dtype)
    tape = numbers(RANDOM, (T, streams, rows), dtype)
    states = numbers(RANDOM, (twin.parts, T + 1, streams, H), dtype)
    dh, da = numbers(RANDOM, (T, streams, H), dtype), np.empty((T, streams, rows), dtype)
    extra, turned = np.empty((T + 3, streams, H), dtype), np.ascontiguousarray(W.T)
    refs = []
    for b in range(streams):
        u, state = of_stream(tape, b), states[:, 0, b].tolist()
        parts, kept = twin.forward(W.tolist(), u, b_hidden.tolist(), state)
        refs.append((parts, *twin.backward(W.tolist(), parts, kept, of_stream(dh, b))))
    dw = np.empty_like(da) if twin.separate_hidden_bias else da
    dispatch.cell_forward(tag, W, b_hidden, states, tape, extra, turned)
    dispatch.cell_backward(tag, W, states, tape, extra, dh, da, dw)
    for b, (ref_states, ref_da, ref_dw, ref_dh) in enumerate(refs):
        assert_twin(states[:, :, b], ref_states, dtype)
        assert_twin(da[:, b], ref_da, dtype)
        assert_twin(dw[:, b], ref_dw, dtype)
        assert_twin(dh[:, b], ref_dh, dtype)


@pytest.mark.parametrize("name", CELLS)
@dtypes
def test_the_reference_is_the_textbook(name: str, dtype: str) -> None:
    check_reference(name, dtype)


@pytest.mark.twin_of("dispatch.cell_forward", "dispatch.cell_backward")
@pytest.mark.parametrize("name", CELLS)
def test_one_interface_reaches_each_cells_kernels(name: str) -> None:
    check_kernels(name, 2, "float64")
