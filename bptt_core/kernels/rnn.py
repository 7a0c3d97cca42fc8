"""The vanilla cell over a window: the twin of `bptt_core.cells.rnn`.

Products that do not depend on another step (with U, and all weight gradients) are one matrix
product over the whole window; only those with W run step by step.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from bptt_core.kernels.dispatch import CellKernels, Tag
from bptt_core.kernels.jit import compiled
from bptt_core.kernels.linear import (
    add_rows_times,
    add_rows_times_transpose,
    tanh_into,
)

Array = NDArray[Any]

RELU_NUMBER = 1  # `CellKernels.number` of the ReLU network; 0 is tanh


@compiled
def rnn_forward(relu: bool, W: Array, states: Array, tape: Array, turned: Array) -> None:
    """Unfold over a window.

    Args:
        relu: g is ReLU; False: tanh.
        W: (H, H).
        states: (1, T + 1, B, H); row 0 is given, the others are filled.
        tape: (T, B, H) U x_t + b with both biases on entry, a_t on return.
        turned: (H, H) W transposed, or (0, H).
    """
    T, B, H = tape.shape
    zero = tape.dtype.type(0)
    for t in range(T):
        add_rows_times_transpose(states[0, t], W, t % 2 == 1, turned, tape[t])
        for b in range(B):
            a, h = tape[t, b], states[0, t + 1, b]
            if relu:
                for i in range(H):
                    h[i] = zero if a[i] < zero else a[i]  # NaN stays NaN
            else:
                tanh_into(a, h)


@compiled
def rnn_backward(relu: bool, W: Array, states: Array, dh: Array, da: Array) -> None:
    """Go back through a window.

    Args:
        relu: g is ReLU; False: tanh.
        W: (H, H).
        states: (1, T + 1, B, H) of the forward pass; the slope of g follows from them.
        dh: (T, B, H) ∂L_t/∂h_t on entry, ∂L/∂h_t on return.
        da: (T, B, H) filled with ∂L/∂a_t.
    """
    T, B, H = da.shape
    one = da.dtype.type(1)
    zero = da.dtype.type(0)
    for t in range(T - 1, -1, -1):
        for b in range(B):
            h, g, a = states[0, t + 1, b], dh[t, b], da[t, b]
            if relu:
                for i in range(H):
                    a[i] = g[i] if h[i] > zero else zero
            else:
                for i in range(H):
                    a[i] = (one - h[i] * h[i]) * g[i]
        if t > 0:
            add_rows_times(da[t], W, t % 2 == 1, dh[t - 1])


def _forward(
    tag: Tag, W: Array, b_hidden: Array, states: Array, tape: Array, extra: Array, turned: Array
) -> None:
    rnn_forward(tag.cell == RELU_NUMBER, W, states, tape, turned)


def _backward(
    tag: Tag, W: Array, states: Array, tape: Array, extra: Array, dh: Array, da: Array, dw: Array,
) -> None:  # fmt: skip
    rnn_backward(tag.cell == RELU_NUMBER, W, states, dh, da)


TANH = CellKernels(_forward, _backward)
RELU = CellKernels(_forward, _backward, RELU_NUMBER)
