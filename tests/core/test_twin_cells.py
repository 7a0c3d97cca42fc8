"""Every cell over a window, forward and back, against the textbook's loops; a stream at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt_core.cells import CELLS
from bptt_core.kernels import cells, gru, lstm, rnn
from bptt_core.params import Layer
from tests.core import naive
from tests.core.support import assert_twin, numbers

T, H = 6, 5
RANDOM = np.random.default_rng(12)
batches = pytest.mark.parametrize("streams", [1, 3, 6])
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])
TAGS = {
    "rnn_tanh": rnn.RnnCell(relu=False),
    "rnn_relu": rnn.RnnCell(relu=True),
    "lstm": lstm.LstmCell(relu=False),
    "gru": gru.GruCell(relu=False),
}


def of_stream(array: Any, b: int) -> Any:
    """(T, B, n) as lists over time of one stream."""
    return array[:, b].tolist()


@pytest.mark.twin_of("rnn.rnn_forward", "rnn.rnn_backward")
@pytest.mark.parametrize("relu", [False, True])
@batches
@dtypes
def test_rnn(relu: bool, streams: int, dtype: str) -> None:
    cell, W = rnn.RnnCell(relu), numbers(RANDOM, (H, H), dtype)
    u, scratch = numbers(RANDOM, (T, streams, H), dtype), numbers(RANDOM, (streams, H), dtype)
    states = numbers(RANDOM, (1, T + 1, streams, H), dtype)
    dh, da = numbers(RANDOM, (T, streams, H), dtype), np.empty((T, streams, H), dtype)
    refs = []
    for b in range(streams):
        h = naive.rnn_forward(W.tolist(), of_stream(u, b), states[0, 0, b].tolist(), relu)
        refs.append((h, *naive.rnn_backward(W.tolist(), h, of_stream(dh, b), relu)))
    rnn.rnn_forward(cell, W, states, u, scratch)
    rnn.rnn_backward(cell, W, states, dh, da, scratch)
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
    lstm.lstm_forward(W, states, tape, np.empty((streams, 4 * H), dtype))
    dc = numbers(RANDOM, (2, streams, H), dtype)
    lstm.lstm_backward(W, states, tape, dh, da, np.empty((streams, H), dtype), dc)
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
    gru.gru_forward(W, b_hidden, states, tape, q, wide, np.empty_like(wide))
    gru.gru_backward(W, states, tape, q, dh, da, dw, np.empty((streams, H), dtype))
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
    if name == "gru":
        u = [naive.affine(U, row, b) for row in x]
        h, gates = naive.gru_forward(W, u, b_hidden, state[0])
        du, dw, _ = naive.gru_backward(W, h, gates, dh)
        states = [h]
    else:
        u = [naive.affine(U, row, naive.add(b, b_hidden)) for row in x]
        if name == "lstm":
            h, c, lstm_gates = naive.lstm_forward(W, u, *state)
            du, _ = naive.lstm_backward(W, c, lstm_gates, dh)
            states = [h, c]
        else:
            h = naive.rnn_forward(W, u, state[0], name == "rnn_relu")
            du, _ = naive.rnn_backward(W, h, dh, name == "rnn_relu")
            states = [h]
        dw = du
    return {
        "states": states,
        "U": naive.outer_sum(du, x),
        "W": naive.outer_sum(dw, h[:-1]),
        "b": naive.column_sums(du),
        "b_hidden": naive.column_sums(dw),
        "dx": [naive.vector_matrix(row, U) for row in du],
    }


@pytest.mark.parametrize("name", CELLS)
@dtypes
def test_the_reference_is_the_textbook(name: Any, dtype: str) -> None:
    """The NumPy cells with their weights' gradients, summed over time and streams."""
    streams, D, G = 2, 3, {"gru": 3, "lstm": 4}.get(name, 1)
    shapes = [(G * H, D), (G * H, H), (G * H,), (G * H,)]
    layer = Layer(*(numbers(RANDOM, shape, dtype) for shape in shapes))
    gradient = Layer(*(np.zeros(shape, dtype) for shape in shapes))
    x, dh = numbers(RANDOM, (T, streams, D), dtype), numbers(RANDOM, (T, streams, H), dtype)
    state = numbers(RANDOM, (2 if name == "lstm" else 1, streams, H), dtype)
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


@pytest.mark.twin_of("cells.cell_forward", "cells.cell_backward")
@pytest.mark.parametrize("name", TAGS)
def test_one_interface(name: str) -> None:
    """Whichever cell it is, the same call reaches its kernels."""
    streams, tag = 2, TAGS[name]
    G, parts = {"gru": 3, "lstm": 4}.get(name, 1), 2 if name == "lstm" else 1
    W, b_hidden = numbers(RANDOM, (G * H, H), "float64"), numbers(RANDOM, (G * H,), "float64")
    tape = numbers(RANDOM, (T, streams, G * H), "float64")
    states = numbers(RANDOM, (parts, T + 1, streams, H), "float64")
    dh, da = numbers(RANDOM, (T, streams, H), "float64"), np.empty((T, streams, G * H))
    extra, wide = np.empty((T + 3, streams, H)), np.empty((streams, G * H))
    refs = []
    for b in range(streams):
        u, state, own = of_stream(tape, b), states[:, 0, b].tolist(), of_stream(dh, b)
        if name == "gru":
            h, gates = naive.gru_forward(W.tolist(), u, b_hidden.tolist(), state[0])
            refs.append(([h], *naive.gru_backward(W.tolist(), h, gates, own)))
        elif name == "lstm":
            h, c, lstm_gates = naive.lstm_forward(W.tolist(), u, *state)
            du, total = naive.lstm_backward(W.tolist(), c, lstm_gates, own)
            refs.append(([h, c], du, du, total))
        else:
            h = naive.rnn_forward(W.tolist(), u, state[0], name == "rnn_relu")
            du, total = naive.rnn_backward(W.tolist(), h, own, name == "rnn_relu")
            refs.append(([h], du, du, total))
    dw = np.empty_like(da) if name == "gru" else da
    cells.cell_forward(tag, W, b_hidden, states, tape, extra, wide)
    cells.cell_backward(tag, W, states, tape, extra, dh, da, dw, np.empty((streams, H)))
    for b, (ref_states, ref_da, ref_dw, ref_dh) in enumerate(refs):
        assert_twin(states[:, :, b], ref_states)
        assert_twin(da[:, b], ref_da)
        assert_twin(dw[:, b], ref_dw)
        assert_twin(dh[:, b], ref_dh)
