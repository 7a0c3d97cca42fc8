"""Long short-term memory in PyTorch's form.

i_t = σ(U_i x_t + W_i h_{t-1} + b_i)      input gate
f_t = σ(U_f x_t + W_f h_{t-1} + b_f)      forget gate
g_t = tanh(U_g x_t + W_g h_{t-1} + b_g)   candidate
o_t = σ(U_o x_t + W_o h_{t-1} + b_o)      output gate
c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t
h_t = o_t ⊙ tanh(c_t)

The four blocks of H rows stand in this order in U (4H, D), W (4H, H) and both biases. From c_t back
to c_{t-1} the gradient only passes f_t: where the forget gate is open, it neither vanishes nor
explodes.

Source: Hochreiter and Schmidhuber (1997); the forget gate is Gers, Schmidhuber and Cummins (2000).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core.params import Layer

Array = NDArray[Any]


class Tape(NamedTuple):
    """What the backward pass needs."""

    x: Array
    """(T, B, D) inputs."""
    h: Array
    """(T + 1, B, H); h[0] is the state before the first step."""
    c: Array
    """(T + 1, B, H)."""
    gates: Array
    """(T, 4, B, H): i, f, g, o."""

    @property
    def states(self) -> tuple[Array, Array]:
        """The carried state: (h, c)."""
        return (self.h, self.c)


def sigmoid(a: Array) -> Array:
    """σ(a) = 1 / (1 + exp(-a)), written with tanh so that no exponential overflows."""
    return np.asarray(0.5 * (np.tanh(0.5 * a) + 1))


def forward(layer: Layer, x: Array, state: tuple[Array, ...]) -> Tape:
    """Unfold the cell over a window x (T, B, D) from state (h_0, c_0), each (B, H)."""
    U, W, b = layer.U, layer.W, layer.b + layer.b_hidden
    h = np.empty((len(x) + 1, *state[0].shape), dtype=x.dtype)
    c = np.empty_like(h)
    gates = np.empty((len(x), 4, *state[0].shape), dtype=x.dtype)
    h[0], c[0] = state
    for t in range(len(x)):
        a_i, a_f, a_g, a_o = np.split(x[t] @ U.T + h[t] @ W.T + b, 4, axis=1)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        c[t + 1] = f * c[t] + i * g
        h[t + 1] = o * np.tanh(c[t + 1])
        gates[t] = i, f, g, o
    return Tape(x, h, c, gates)


def backward(layer: Layer, gradient: Layer, tape: Tape, dh: Array) -> Array:
    """Go back through a window; arguments and answer as in `rnn.backward`."""
    U, W = layer.U, layer.W
    x, h, c, gates = tape
    dx = np.empty_like(x)
    h_from_later = np.zeros_like(h[0])
    c_from_later = np.zeros_like(c[0])
    for t in reversed(range(len(x))):
        i, f, g, o = gates[t]
        tanh_c = np.tanh(c[t + 1])
        dL_dh = dh[t] + h_from_later
        dL_dc = dL_dh * o * (1 - tanh_c * tanh_c) + c_from_later
        dL_da = np.concatenate(
            [
                dL_dc * g * i * (1 - i),
                dL_dc * c[t] * f * (1 - f),
                dL_dc * i * (1 - g * g),
                dL_dh * tanh_c * o * (1 - o),
            ],
            axis=1,
        )
        gradient.U[:] += dL_da.T @ x[t]
        gradient.W[:] += dL_da.T @ h[t]
        gradient.b[:] += dL_da.sum(axis=0)
        gradient.b_hidden[:] += dL_da.sum(axis=0)
        dx[t] = dL_da @ U
        h_from_later = dL_da @ W
        c_from_later = dL_dc * f
    return dx
