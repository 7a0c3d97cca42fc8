"""The vanilla recurrent network, h_t = g(U x_t + W h_{t-1} + b), with g = tanh or ReLU.

Shapes: x_t (B, D), h_t and a_t (B, H), U (H, D), W (H, H). Rows of a batch stand first, so U x_t is
    written x_t Uᵀ.
"""

from __future__ import annotations

from collections.abc import Callable
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
        h[t + 1] = g(x[t] @ U.T + h[t] @ W.T + b)
    return Tape(x, h)


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
    U, W = layer.U, layer.W
    x, h = tape
    dx = np.empty_like(x)
    from_later = np.zeros_like(h[0])  # (∂h_{t+1}/∂h_t)ᵀ ∂L/∂h_{t+1}
    for t in reversed(range(len(x))):
        dL_dh = dh[t] + from_later
        dL_da = slope(h[t + 1]) * dL_dh
        gradient.U[:] += dL_da.T @ x[t]
        gradient.W[:] += dL_da.T @ h[t]
        gradient.b[:] += dL_da.sum(axis=0)
        gradient.b_hidden[:] += dL_da.sum(axis=0)
        dx[t] = dL_da @ U
        from_later = dL_da @ W
    return dx
