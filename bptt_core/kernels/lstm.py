"""LSTM over a window: the twin of `bptt_core.cells.lstm`."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from bptt_core.kernels.dispatch import CellKernels, Tag
from bptt_core.kernels.jit import compiled
from bptt_core.kernels.linear import (
    add_rows_times,
    add_rows_times_transpose,
    fill,
    sigmoid_in_place,
    tanh_into,
)

Array = NDArray[Any]


@compiled
def lstm_forward(W: Array, states: Array, tape: Array, turned: Array) -> None:
    """Unfold over a window.

    Args:
        W: (4H, H).
        states: (2, T + 1, B, H) h and c; row 0 is given, the others are filled.
        tape: (T, B, 4H) U x_t + b on entry; i, f, g, o on return.
        turned: (H, 4H) W transposed, or (0, 4H).
    """
    T, B, H4 = tape.shape
    H = H4 // 4
    for t in range(T):
        add_rows_times_transpose(states[0, t], W, t % 2 == 1, turned, tape[t])
        for b in range(B):
            gates = tape[t, b]
            sigmoid_in_place(gates[: 2 * H])
            tanh_into(gates[2 * H : 3 * H], gates[2 * H : 3 * H])
            sigmoid_in_place(gates[3 * H :])
            c, c_before, h = states[1, t + 1, b], states[1, t, b], states[0, t + 1, b]
            for i in range(H):
                c[i] = gates[H + i] * c_before[i] + gates[i] * gates[2 * H + i]
            tanh_into(c, h)
            for i in range(H):
                h[i] *= gates[3 * H + i]


@compiled
def lstm_backward(W: Array, states: Array, tape: Array, dh: Array, da: Array, dc: Array) -> None:
    """Go back through a window.

    Args:
        W: (4H, H).
        states: (2, T + 1, B, H) of the forward pass.
        tape: (T, B, 4H) gates of the forward pass.
        dh: (T, B, H) ∂L_t/∂h_t on entry, ∂L/∂h_t on return.
        da: (T, B, 4H) filled with ∂L/∂a_t.
        dc: (2, B, H) scratch: the gradient at c_t from later steps, and tanh(c_t).
    """
    T, B, H4 = da.shape
    H = H4 // 4
    one = da.dtype.type(1)
    fill(dc[0].reshape(B * H), 0.0)
    for t in range(T - 1, -1, -1):
        for b in range(B):
            gates, a, dc_b, tanh_c = tape[t, b], da[t, b], dc[0, b], dc[1, b]
            c_before, dh_b = states[1, t, b], dh[t, b]
            tanh_into(states[1, t + 1, b], tanh_c)
            for k in range(H):
                i, f, g, o = gates[k], gates[H + k], gates[2 * H + k], gates[3 * H + k]
                dL_dc = dh_b[k] * o * (one - tanh_c[k] * tanh_c[k]) + dc_b[k]
                a[k] = dL_dc * g * i * (one - i)
                a[H + k] = dL_dc * c_before[k] * f * (one - f)
                a[2 * H + k] = dL_dc * i * (one - g * g)
                a[3 * H + k] = dh_b[k] * tanh_c[k] * o * (one - o)
                dc_b[k] = dL_dc * f
        if t > 0:
            add_rows_times(da[t], W, t % 2 == 1, dh[t - 1])


def _forward(
    tag: Tag, W: Array, b_hidden: Array, states: Array, tape: Array, extra: Array, turned: Array
) -> None:
    lstm_forward(W, states, tape, turned)


def _backward(
    tag: Tag, W: Array, states: Array, tape: Array, extra: Array, dh: Array, da: Array, dw: Array,
) -> None:  # fmt: skip
    T = da.shape[0]
    lstm_backward(W, states, tape, dh, da, extra[T : T + 2])


KERNELS = CellKernels(_forward, _backward)
