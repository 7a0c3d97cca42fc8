"""The gated recurrent unit in PyTorch's form: the reset gate acts after the recurrent product.

Labels are those of `bptt_core/README.md`, where each equation is derived.

Forward, t = 1 … T:
    (G1) r_t = σ(U_r x_t + b_r + W_r h_{t-1} + b_r')   reset gate
    (G2) z_t = σ(U_z x_t + b_z + W_z h_{t-1} + b_z')   update gate
    (G3) q_t = W_n h_{t-1} + b_n'                      what of the past is up for reset
    (G4) n_t = tanh(U_n x_t + b_n + r_t ⊙ q_t)         candidate
    (G5) h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_{t-1}

Backward, t = T … 1; a_r, a_z, a_n are what the functions are taken of, u_t = U x_t + b and
w_t = W h_{t-1} + b' the blocks that enter them:
    (G6)  ∂L/∂h_t = ∂L_t/∂h_t + Wᵀ ∂L/∂w_{t+1} + z_{t+1} ⊙ ∂L/∂h_{t+1}
    (G7)  ∂L/∂a_n = ∂L/∂h_t ⊙ (1 - z_t) ⊙ (1 - n_t²)
    (G8)  ∂L/∂a_z = ∂L/∂h_t ⊙ (h_{t-1} - n_t) ⊙ z_t ⊙ (1 - z_t)
    (G9)  ∂L/∂a_r = ∂L/∂a_n ⊙ q_t ⊙ r_t ⊙ (1 - r_t)
    (G10) ∂L/∂u_t = (∂L/∂a_r, ∂L/∂a_z, ∂L/∂a_n)
    (G11) ∂L/∂w_t = (∂L/∂a_r, ∂L/∂a_z, ∂L/∂a_n ⊙ r_t)
    (G12) ∂L/∂U = Σ_t ∂L/∂u_t x_tᵀ
    (G13) ∂L/∂W = Σ_t ∂L/∂w_t h_{t-1}ᵀ
    (G14) ∂L/∂b = Σ_t ∂L/∂u_t
    (G15) ∂L/∂b' = Σ_t ∂L/∂w_t
    (G16) ∂L/∂x_t = Uᵀ ∂L/∂u_t
    (G17) Wᵀ ∂L/∂w_t + z_t ⊙ ∂L/∂h_t                   goes back to step t - 1, into (G6)

Where z_t is near 1 the state, and with it the gradient (G17), passes unchanged.

Shapes as in `rnn.py`; the three blocks of H rows stand in the order r, z, n in U (3H, D), W (3H, H)
and both biases: b, and b', which is `b_hidden`.

Source: Cho et al. (2014), whose form resets h_{t-1} before the product; this variant is PyTorch's
    and cuDNN's.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bptt_core.cells.descriptor import Cell, Layer
from bptt_core.cells.lstm import sigmoid

if TYPE_CHECKING:
    from bptt_core.kernels.dispatch import CellKernels

Array = NDArray[Any]


class Tape(NamedTuple):
    """The values of the forward pass that the backward pass uses."""

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
        w_r, w_z, w_n = np.split(h[t] @ W.T + b_hidden, 3, axis=1)
        r = sigmoid(u_r + w_r)  # (G1)
        z = sigmoid(u_z + w_z)  # (G2)
        q = w_n  # (G3)
        n = np.tanh(u_n + r * q)  # (G4)
        h[t + 1] = (1 - z) * n + z * h[t]  # (G5)
        gates[t] = r, z, n, q
    return Tape(x, h, gates)


def step_back(
    layer: Layer, tape: Tape, t: int, dL_dstate: tuple[Array, ...]
) -> tuple[Array, Array, tuple[Array, ...]]:
    """Go back through one step; arguments and answer as in `rnn.step_back`."""
    r, z, n, q = tape.gates[t]
    h_before = tape.h[t]
    (dL_dh,) = dL_dstate
    dL_dan = dL_dh * (1 - z) * (1 - n * n)  # (G7)
    dL_daz = dL_dh * (h_before - n) * z * (1 - z)  # (G8)
    dL_dar = dL_dan * q * r * (1 - r)  # (G9)
    dL_du = np.concatenate([dL_dar, dL_daz, dL_dan], axis=1)  # (G10)
    dL_dw = np.concatenate([dL_dar, dL_daz, dL_dan * r], axis=1)  # (G11)
    return dL_du, dL_dw, (dL_dw @ layer.W + dL_dh * z,)  # (G17)


def backward(layer: Layer, gradient: Layer, tape: Tape, dh: Array) -> Array:
    """Go back through a window; arguments and answer as in `rnn.backward`."""
    x, h, _ = tape
    dx = np.empty_like(x)
    from_later: tuple[Array, ...] = (np.zeros_like(h[0]),)
    for t in reversed(range(len(x))):
        dL_dh = dh[t] + from_later[0]  # (G6)
        dL_du, dL_dw, from_later = step_back(layer, tape, t, (dL_dh,))
        gradient.U[:] += dL_du.T @ x[t]  # (G12)
        gradient.W[:] += dL_dw.T @ h[t]  # (G13)
        gradient.b[:] += dL_du.sum(axis=0)  # (G14)
        gradient.b_hidden[:] += dL_dw.sum(axis=0)  # (G15)
        dx[t] = dL_du @ layer.U  # (G16)
    return dx


def _kernels() -> CellKernels:
    from bptt_core.kernels import gru

    return gru.KERNELS


GRU = Cell(
    name="gru",
    gates=("r", "z", "n"),
    candidate="n",
    equations="G",
    separate_hidden_bias=True,
    forward=forward,
    step_back=step_back,
    backward=backward,
    kernels=_kernels,
)
