"""The gated recurrent unit in PyTorch's form: the reset gate acts after the recurrent product.

r_t = σ(U_r x_t + b_r + W_r h_{t-1} + b'_r)             reset gate
z_t = σ(U_z x_t + b_z + W_z h_{t-1} + b'_z)             update gate
q_t = W_n h_{t-1} + b'_n
n_t = tanh(U_n x_t + b_n + r_t ⊙ q_t)                   candidate
h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1}

The three blocks of H rows stand in this order in U (3H, D), W (3H, H) and both biases (b, and b' =
`b_hidden`). Where z_t is near 1 the state, and with it the gradient, passes unchanged.

Source: Cho et al. (2014), whose form resets h_{t-1} before the product; this variant is PyTorch's
    and cuDNN's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core.cells.lstm import sigmoid
from bptt_core.params import Layer

Array = NDArray[Any]


class Tape(NamedTuple):
    """What the backward pass needs."""

    x: Array
    """(T, B, D) inputs."""
    h: Array
    """(T + 1, B, H); h[0] is the state before the first step."""
    gates: Array
    """(T, 4, B, H): r, z, n and q."""

    @property
    def states(self) -> tuple[Array]:
        """The carried state: (h,)."""
        return (self.h,)


def forward(layer: Layer, x: Array, state: tuple[Array, ...]) -> Tape:
    """Unfold the cell over a window x (T, B, D) from state (h_0,), each (B, H)."""
    U, W, b, b_hidden = layer
    h = np.empty((len(x) + 1, *state[0].shape), dtype=x.dtype)
    gates = np.empty((len(x), 4, *state[0].shape), dtype=x.dtype)
    h[0] = state[0]
    for t in range(len(x)):
        u_r, u_z, u_n = np.split(x[t] @ U.T + b, 3, axis=1)
        w_r, w_z, q = np.split(h[t] @ W.T + b_hidden, 3, axis=1)
        r, z = sigmoid(u_r + w_r), sigmoid(u_z + w_z)
        n = np.tanh(u_n + r * q)
        h[t + 1] = (1 - z) * n + z * h[t]
        gates[t] = r, z, n, q
    return Tape(x, h, gates)


def backward(layer: Layer, gradient: Layer, tape: Tape, dh: Array) -> Array:
    """Go back through a window; arguments and answer as in `rnn.backward`."""
    U, W = layer.U, layer.W
    x, h, gates = tape
    dx = np.empty_like(x)
    from_later = np.zeros_like(h[0])
    for t in reversed(range(len(x))):
        r, z, n, q = gates[t]
        dL_dh = dh[t] + from_later
        dL_dan = dL_dh * (1 - z) * (1 - n * n)
        dL_daz = dL_dh * (h[t] - n) * z * (1 - z)
        dL_dar = dL_dan * q * r * (1 - r)
        dL_da = np.concatenate([dL_dar, dL_daz, dL_dan], axis=1)  # at U x + b
        dL_dw = np.concatenate([dL_dar, dL_daz, dL_dan * r], axis=1)  # at W h + b'
        gradient.U[:] += dL_da.T @ x[t]
        gradient.W[:] += dL_dw.T @ h[t]
        gradient.b[:] += dL_da.sum(axis=0)
        gradient.b_hidden[:] += dL_dw.sum(axis=0)
        dx[t] = dL_da @ U
        from_later = dL_dw @ W + dL_dh * z
    return dx
