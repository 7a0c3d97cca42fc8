"""Long short-term memory in PyTorch's form.

Labels are those of `bptt_core/README.md`, where each equation is derived.

Forward, t = 1 … T:
    (L1) i_t = σ(U_i x_t + W_i h_{t-1} + b_i)          input gate
    (L2) f_t = σ(U_f x_t + W_f h_{t-1} + b_f)          forget gate
    (L3) g_t = tanh(U_g x_t + W_g h_{t-1} + b_g)       candidate
    (L4) o_t = σ(U_o x_t + W_o h_{t-1} + b_o)          output gate
    (L5) c_t = f_t ⊙ c_{t-1} + i_t ⊙ g_t
    (L6) h_t = o_t ⊙ tanh(c_t)

Backward, t = T … 1; a_i, a_f, a_g, a_o are what the gates' functions are taken of, a_t all four:
    (L7)  ∂L/∂h_t = ∂L_t/∂h_t + Wᵀ ∂L/∂a_{t+1}
    (L8)  ∂L/∂c_t = ∂L/∂h_t ⊙ o_t ⊙ (1 - tanh²(c_t)) + f_{t+1} ⊙ ∂L/∂c_{t+1}
    (L9)  ∂L/∂a_i = ∂L/∂c_t ⊙ g_t ⊙ i_t ⊙ (1 - i_t)
    (L10) ∂L/∂a_f = ∂L/∂c_t ⊙ c_{t-1} ⊙ f_t ⊙ (1 - f_t)
    (L11) ∂L/∂a_g = ∂L/∂c_t ⊙ i_t ⊙ (1 - g_t²)
    (L12) ∂L/∂a_o = ∂L/∂h_t ⊙ tanh(c_t) ⊙ o_t ⊙ (1 - o_t)
    (L13) ∂L/∂U = Σ_t ∂L/∂a_t x_tᵀ
    (L14) ∂L/∂W = Σ_t ∂L/∂a_t h_{t-1}ᵀ
    (L15) ∂L/∂b = Σ_t ∂L/∂a_t
    (L16) ∂L/∂x_t = Uᵀ ∂L/∂a_t
    (L17) Wᵀ ∂L/∂a_t                                   goes back to step t - 1, into (L7)
    (L18) f_t ⊙ ∂L/∂c_t                                goes back to step t - 1, into (L8)

From c_t straight to c_{t-1} the gradient only passes f_t (L18): where the forget gate is open, it
neither vanishes nor explodes.

Shapes as in `rnn.py`; the four blocks of H rows stand in the order i, f, g, o in U (4H, D), W
(4H, H) and both biases.

Source: Hochreiter and Schmidhuber (1997); the forget gate is Gers, Schmidhuber and Cummins (2000).
"""

from __future__ import annotations

from typing import Any, NamedTuple, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bptt_core.cells.descriptor import Cell, Layer

if TYPE_CHECKING:
    from bptt_core.kernels.dispatch import CellKernels

Array = NDArray[Any]


class Tape(NamedTuple):
    """The values of the forward pass that the backward pass uses."""

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
        i = sigmoid(a_i)  # (L1)
        f = sigmoid(a_f)  # (L2)
        g = np.tanh(a_g)  # (L3)
        o = sigmoid(a_o)  # (L4)
        c[t + 1] = f * c[t] + i * g  # (L5)
        h[t + 1] = o * np.tanh(c[t + 1])  # (L6)
        gates[t] = i, f, g, o
    return Tape(x, h, c, gates)


def step_back(
    layer: Layer, tape: Tape, t: int, dL_dstate: tuple[Array, ...]
) -> tuple[Array, Array, tuple[Array, ...]]:
    """Go back through one step; arguments and answer as in `rnn.step_back`.

    Of `dL_dstate`, the second is what comes to c_t from step t + 1 alone; (L8) adds h_t's share.
    """
    i, f, g, o = tape.gates[t]
    c_before, tanh_c = tape.c[t], np.tanh(tape.c[t + 1])
    dL_dh, dL_dc_later = dL_dstate
    dL_dc = dL_dh * o * (1 - tanh_c * tanh_c) + dL_dc_later  # (L8)
    dL_dai = dL_dc * g * i * (1 - i)  # (L9)
    dL_daf = dL_dc * c_before * f * (1 - f)  # (L10)
    dL_dag = dL_dc * i * (1 - g * g)  # (L11)
    dL_dao = dL_dh * tanh_c * o * (1 - o)  # (L12)
    dL_da = np.concatenate([dL_dai, dL_daf, dL_dag, dL_dao], axis=1)
    return dL_da, dL_da, (dL_da @ layer.W, dL_dc * f)  # (L17), (L18)


def backward(layer: Layer, gradient: Layer, tape: Tape, dh: Array) -> Array:
    """Go back through a window; arguments and answer as in `rnn.backward`."""
    x, h, c, _ = tape
    dx = np.empty_like(x)
    from_later: tuple[Array, ...] = (np.zeros_like(h[0]), np.zeros_like(c[0]))
    for t in reversed(range(len(x))):
        dL_dh = dh[t] + from_later[0]  # (L7)
        dL_da, _, from_later = step_back(layer, tape, t, (dL_dh, from_later[1]))
        gradient.U[:] += dL_da.T @ x[t]  # (L13)
        gradient.W[:] += dL_da.T @ h[t]  # (L14)
        gradient.b[:] += dL_da.sum(axis=0)  # (L15)
        gradient.b_hidden[:] += dL_da.sum(axis=0)
        dx[t] = dL_da @ layer.U  # (L16)
    return dx


def _kernels() -> CellKernels:
    from bptt_core.kernels import lstm

    return lstm.KERNELS


LSTM = Cell(
    name="lstm",
    gates=("i", "f", "g", "o"),
    candidate="g",
    equations="L",
    state_parts=("h", "c"),
    forward=forward,
    step_back=step_back,
    backward=backward,
    kernels=_kernels,
)
