"""The cells over a window of one stream: forward, and backward through time.

`u` is what the inputs bring, u_t = U x_t + b. Lists over time are T long, or T + 1 where they begin
with what was before the first step. `dh` is ∂L_t/∂h_t, what each step's own loss says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.core.naive.algebra import Matrix, sigmoid, tanh, Vector, zeros


def recurrent(W: Matrix, h: Vector, row: int) -> float:
    """Row `row` of W h."""
    total = 0.0
    for j in range(len(h)):
        total += W[row][j] * h[j]
    return total


def from_next(W: Matrix, dL_da: Vector, j: int) -> float:
    """Element j of Wᵀ ∂L/∂a."""
    total = 0.0
    for i in range(len(dL_da)):
        total += W[i][j] * dL_da[i]
    return total


def rnn_forward(W: Matrix, u: Matrix, h0: Vector, relu: bool) -> Matrix:
    """h_0 … h_T with h_t = g(u_t + W h_{t-1})."""
    h = [h0]
    for t in range(len(u)):
        new = []
        for i in range(len(h0)):
            a = u[t][i] + recurrent(W, h[t], i)
            new.append(tanh(a) if not relu else (a if a > 0 else 0.0))
        h.append(new)
    return h


def rnn_backward(W: Matrix, h: Matrix, dh: Matrix, relu: bool) -> tuple[Matrix, Matrix]:
    """∂L/∂a_t and ∂L/∂h_t, each over T steps."""
    T, H = len(dh), len(h[0])
    da: Matrix = [[] for _ in range(T)]
    total: Matrix = [[] for _ in range(T)]
    later = zeros(H)
    for t in reversed(range(T)):
        total[t] = [dh[t][i] + later[i] for i in range(H)]
        for i in range(H):
            out = h[t + 1][i]
            slope = (1.0 if out > 0 else 0.0) if relu else 1 - out * out
            da[t].append(slope * total[t][i])
        later = [from_next(W, da[t], j) for j in range(H)]
    return da, total


def lstm_forward(
    W: Matrix, u: Matrix, h0: Vector, c0: Vector
) -> tuple[Matrix, Matrix, list[tuple[Vector, Vector, Vector, Vector]]]:
    """h_0 … h_T, c_0 … c_T and the gates i, f, g, o of every step."""
    H = len(h0)
    h, c, gates = [h0], [c0], []
    for t in range(len(u)):
        a = [u[t][row] + recurrent(W, h[t], row) for row in range(4 * H)]
        i = [sigmoid(a[k]) for k in range(H)]
        f = [sigmoid(a[H + k]) for k in range(H)]
        g = [tanh(a[2 * H + k]) for k in range(H)]
        o = [sigmoid(a[3 * H + k]) for k in range(H)]
        c.append([f[k] * c[t][k] + i[k] * g[k] for k in range(H)])
        h.append([o[k] * tanh(c[t + 1][k]) for k in range(H)])
        gates.append((i, f, g, o))
    return h, c, gates


def lstm_backward(
    W: Matrix,
    c: Matrix,
    gates: list[tuple[Vector, Vector, Vector, Vector]],
    dh: Matrix,
) -> tuple[Matrix, Matrix]:
    """∂L/∂a_t of all four gates, in the order i, f, g, o, and ∂L/∂h_t."""
    T, H = len(dh), len(dh[0])
    da: Matrix = [[] for _ in range(T)]
    total: Matrix = [[] for _ in range(T)]
    later_h, later_c = zeros(H), zeros(H)
    for t in reversed(range(T)):
        i, f, g, o = gates[t]
        total[t] = [dh[t][k] + later_h[k] for k in range(H)]
        dc = []
        for k in range(H):
            tanh_c = tanh(c[t + 1][k])
            dc.append(total[t][k] * o[k] * (1 - tanh_c**2) + later_c[k])
        da[t] += [dc[k] * g[k] * i[k] * (1 - i[k]) for k in range(H)]
        da[t] += [dc[k] * c[t][k] * f[k] * (1 - f[k]) for k in range(H)]
        da[t] += [dc[k] * i[k] * (1 - g[k] ** 2) for k in range(H)]
        da[t] += [total[t][k] * tanh(c[t + 1][k]) * o[k] * (1 - o[k]) for k in range(H)]
        later_h = [from_next(W, da[t], j) for j in range(H)]
        later_c = [dc[k] * f[k] for k in range(H)]
    return da, total


def gru_forward(
    W: Matrix, u: Matrix, b_hidden: Vector, h0: Vector
) -> tuple[Matrix, list[tuple[Vector, Vector, Vector, Vector]]]:
    """h_0 … h_T, and r, z, n and q = W_n h_{t-1} + b'_n of every step."""
    H = len(h0)
    h, gates = [h0], []
    for t in range(len(u)):
        w = [b_hidden[row] + recurrent(W, h[t], row) for row in range(3 * H)]
        r = [sigmoid(u[t][k] + w[k]) for k in range(H)]
        z = [sigmoid(u[t][H + k] + w[H + k]) for k in range(H)]
        q = w[2 * H :]
        n = [tanh(u[t][2 * H + k] + r[k] * q[k]) for k in range(H)]
        h.append([(1 - z[k]) * n[k] + z[k] * h[t][k] for k in range(H)])
        gates.append((r, z, n, q))
    return h, gates


def gru_backward(
    W: Matrix,
    h: Matrix,
    gates: list[tuple[Vector, Vector, Vector, Vector]],
    dh: Matrix,
) -> tuple[Matrix, Matrix, Matrix]:
    """The gradients at U x_t + b, at W h_{t-1} + b', and ∂L/∂h_t; blocks in the order r, z, n."""
    T, H = len(dh), len(dh[0])
    du: Matrix = [[] for _ in range(T)]
    dw: Matrix = [[] for _ in range(T)]
    total: Matrix = [[] for _ in range(T)]
    later = zeros(H)
    for t in reversed(range(T)):
        r, z, n, q = gates[t]
        total[t] = [dh[t][k] + later[k] for k in range(H)]
        dan = [total[t][k] * (1 - z[k]) * (1 - n[k] ** 2) for k in range(H)]
        daz = [total[t][k] * (h[t][k] - n[k]) * z[k] * (1 - z[k]) for k in range(H)]
        dar = [dan[k] * q[k] * r[k] * (1 - r[k]) for k in range(H)]
        du[t] = dar + daz + dan
        dw[t] = dar + daz + [dan[k] * r[k] for k in range(H)]
        later = [from_next(W, dw[t], j) + z[j] * total[t][j] for j in range(H)]
    return du, dw, total


@dataclass(frozen=True)
class Twin:
    """A cell's twin behind one interface."""

    blocks: int
    """Number of blocks of H rows in U, W and the biases."""
    parts: int
    """Vectors in the carried state."""
    separate_hidden_bias: bool
    """u does not hold b'."""
    forward: Callable[[Matrix, Matrix, Vector, list[Vector]], tuple[list[Matrix], Any]]
    """(W, u, b', state) → each part over time, and what `backward` needs."""
    backward: Callable[[Matrix, list[Matrix], Any, Matrix], tuple[Matrix, Matrix, Matrix]]
    """(W, parts, what `forward` kept, dh) → gradients at U x_t + b and W h_{t-1} + b', ∂L/∂h_t."""


def _rnn_forward(
    relu: bool, W: Matrix, u: Matrix, b_hidden: Vector, state: list[Vector]
) -> tuple[list[Matrix], Any]:
    return [rnn_forward(W, u, state[0], relu)], None


def _rnn_backward(
    relu: bool, W: Matrix, parts: list[Matrix], kept: Any, dh: Matrix
) -> tuple[Matrix, Matrix, Matrix]:
    da, total = rnn_backward(W, parts[0], dh, relu)
    return da, da, total


def _lstm_forward(
    W: Matrix, u: Matrix, b_hidden: Vector, state: list[Vector]
) -> tuple[list[Matrix], Any]:
    h, c, gates = lstm_forward(W, u, *state)
    return [h, c], gates


def _lstm_backward(
    W: Matrix, parts: list[Matrix], kept: Any, dh: Matrix
) -> tuple[Matrix, Matrix, Matrix]:
    da, total = lstm_backward(W, parts[1], kept, dh)
    return da, da, total


def _gru_forward(
    W: Matrix, u: Matrix, b_hidden: Vector, state: list[Vector]
) -> tuple[list[Matrix], Any]:
    h, gates = gru_forward(W, u, b_hidden, state[0])
    return [h], gates


def _gru_backward(
    W: Matrix, parts: list[Matrix], kept: Any, dh: Matrix
) -> tuple[Matrix, Matrix, Matrix]:
    return gru_backward(W, parts[0], kept, dh)


TWINS = {
    "rnn_tanh": Twin(1, 1, False, partial(_rnn_forward, False), partial(_rnn_backward, False)),
    "rnn_relu": Twin(1, 1, False, partial(_rnn_forward, True), partial(_rnn_backward, True)),
    "lstm": Twin(4, 2, False, _lstm_forward, _lstm_backward),
    "gru": Twin(3, 1, True, _gru_forward, _gru_backward),
}
"""By the cell's name; a test that registers a cell adds its twin."""
