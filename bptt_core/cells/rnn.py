"""The vanilla recurrent network: h_t = g(U x_t + W h_{t-1} + b), with g = tanh or ReLU.

Labels are those of `bptt_core/README.md`, where each equation is derived.

Forward, t = 1 … T:
    (R1) a_t = U x_t + W h_{t-1} + b
    (R2) h_t = g(a_t)

Backward, t = T … 1:
    (R3) ∂L/∂h_t = ∂L_t/∂h_t + Wᵀ ∂L/∂a_{t+1}          its own loss, and all later ones
    (R4) ∂L/∂a_t = g'(a_t) ⊙ ∂L/∂h_t
    (R5) ∂L/∂U = Σ_t ∂L/∂a_t x_tᵀ                      a sum: all steps share U
    (R6) ∂L/∂W = Σ_t ∂L/∂a_t h_{t-1}ᵀ
    (R7) ∂L/∂b = Σ_t ∂L/∂a_t
    (R8) ∂L/∂x_t = Uᵀ ∂L/∂a_t                          the layer below's ∂L_t/∂h_t
    (R9) Wᵀ ∂L/∂a_t                                    goes back to step t - 1, into (R3)

Shapes: x_t (B, D), h_t and a_t (B, H), U (H, D), W (H, H). The B streams of a batch are rows, so
U x_t is written `x[t] @ U.T`, and Wᵀ ∂L/∂a_t is `dL_da @ W`. Arrays count from the state before the
window: `h[0]` is h_0, and the loop's step `t` reads `x[t]` and `h[t]` and gives `h[t + 1]`. A
textbook's b is PyTorch's two, `b + b_hidden`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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

    @property
    def states(self) -> tuple[Array]:
        """The carried state: (h,)."""
        return (self.h,)


def forward(g: Callable[[Array], Array], layer: Layer, x: Array, state: tuple[Array, ...]) -> Tape:
    """Unfold the cell over a window x (T, B, D) from state (h_0,), each (B, H)."""
    U, W, b = layer.U, layer.W, layer.b + layer.b_hidden
    h = np.empty((len(x) + 1, *state[0].shape), dtype=x.dtype)
    h[0] = state[0]
    for t in range(len(x)):
        a = x[t] @ U.T + h[t] @ W.T + b  # (R1)
        h[t + 1] = g(a)  # (R2)
    return Tape(x, h)


def step_back(
    slope: Callable[[Array], Array], layer: Layer, tape: Tape, t: int, dL_dstate: tuple[Array, ...]
) -> tuple[Array, Array, tuple[Array, ...]]:
    """Go back through one step.

    Args:
        slope: g'(a_t) as a function of h_t = g(a_t).
        layer: the parameters.
        tape: of `forward`.
        t: the step, from 0.
        dL_dstate: (∂L/∂h_t,), each (B, H): of the state after the step.

    Returns:
        ∂L/∂(U x_t + b) and ∂L/∂(W h_{t-1} + b'), each (B, G·H) and here the same; and what goes
        back to the state before the step, (∂h_t/∂h_{t-1})ᵀ ∂L/∂h_t, in the form of `dL_dstate`.
    """
    (dL_dh,) = dL_dstate
    dL_da = slope(tape.h[t + 1]) * dL_dh  # (R4)
    return dL_da, dL_da, (dL_da @ layer.W,)  # (R9)


def backward(
    slope: Callable[[Array], Array], layer: Layer, gradient: Layer, tape: Tape, dh: Array
) -> Array:
    """Go back through a window.

    Args:
        slope: g'(a_t) as a function of h_t = g(a_t).
        layer: the parameters.
        gradient: the same views of the gradient; added to.
        tape: of `forward`.
        dh: (T, B, H) ∂L_t/∂h_t, what each step's loss says of its own state.

    Returns:
        (T, B, D) ∂L/∂x_t.
    """
    x, h = tape
    dx = np.empty_like(x)
    from_later: tuple[Array, ...] = (np.zeros_like(h[0]),)  # Wᵀ ∂L/∂a_{t+1}: nothing after T
    for t in reversed(range(len(x))):
        dL_dh = dh[t] + from_later[0]  # (R3)
        dL_da, _, from_later = step_back(slope, layer, tape, t, (dL_dh,))
        gradient.U[:] += dL_da.T @ x[t]  # (R5)
        gradient.W[:] += dL_da.T @ h[t]  # (R6)
        gradient.b[:] += dL_da.sum(axis=0)  # (R7)
        gradient.b_hidden[:] += dL_da.sum(axis=0)
        dx[t] = dL_da @ layer.U  # (R8)
    return dx


def relu(a: Array) -> Array:
    """g(a) = max(a, 0)."""
    return np.maximum(a, 0)


def tanh_slope(h: Array) -> Array:
    """g'(a) of tanh, from h = g(a)."""
    return np.asarray(1 - h * h)


def relu_slope(h: Array) -> Array:
    """g'(a) of ReLU, from h = g(a)."""
    return np.asarray(h > 0, dtype=h.dtype)


def _kernels(*, relu: bool) -> CellKernels:
    from bptt_core.kernels import rnn

    return rnn.RELU if relu else rnn.TANH


def _vanilla(
    name: str, g: Callable[[Array], Array], slope: Callable[[Array], Array], *, relu: bool
) -> Cell:
    return Cell(
        name=name,
        gates=("h",),
        candidate="h",
        equations="R",
        forward=partial(forward, g),
        step_back=partial(step_back, slope),
        backward=partial(backward, slope),
        kernels=partial(_kernels, relu=relu),
    )


RNN_TANH = _vanilla("rnn_tanh", np.tanh, tanh_slope, relu=False)
RNN_RELU = _vanilla("rnn_relu", relu, relu_slope, relu=True)
