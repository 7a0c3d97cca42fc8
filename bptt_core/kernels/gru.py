"""GRU over a window: the twin of `bptt_core.cells.gru`."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from bptt_core.kernels.dispatch import CellKernels, Tag
from bptt_core.kernels.jit import compiled
from bptt_core.kernels.linear import (
    add_rows_times,
    add_rows_times_transpose,
    copy,
    sigmoid_in_place,
    tanh_into,
)

Array = NDArray[Any]


@compiled
def gru_forward(
    W: Array, b_hidden: Array, states: Array, tape: Array, q: Array, w: Array, turned: Array
) -> None:
    """Unfold over a window.

    Args:
        W: (3H, H).
        b_hidden: (3H,) the bias inside the reset gate's reach.
        states: (1, T + 1, B, H); row 0 is given, the others are filled.
        tape: (T, B, 3H) U x_t + b on entry; r, z, n on return.
        q: (T, B, H) filled with W_n h_{t-1} + b'_n.
        w: (B, 3H); overwritten.
        turned: (H, 3H) W transposed, or (0, 3H).
    """
    T, B, H3 = tape.shape
    H = H3 // 3
    one = tape.dtype.type(1)
    for t in range(T):
        for b in range(B):
            copy(b_hidden, w[b])
        add_rows_times_transpose(states[0, t], W, t % 2 == 1, turned, w)
        for b in range(B):
            gates, w_b, q_b = tape[t, b], w[b], q[t, b]
            for i in range(2 * H):
                gates[i] += w_b[i]
            sigmoid_in_place(gates[: 2 * H])
            n = gates[2 * H :]
            for i in range(H):
                q_b[i] = w_b[2 * H + i]
                n[i] += gates[i] * q_b[i]
            tanh_into(n, n)
            h, h_before = states[0, t + 1, b], states[0, t, b]
            for i in range(H):
                z = gates[H + i]
                h[i] = (one - z) * n[i] + z * h_before[i]


@compiled
def gru_backward(
    W: Array, states: Array, tape: Array, q: Array, dh: Array, da: Array, dw: Array
) -> None:
    """Go back through a window.

    Args:
        W: (3H, H).
        states: (1, T + 1, B, H) of the forward pass.
        tape: (T, B, 3H) gates of the forward pass.
        q: (T, B, H) of the forward pass.
        dh: (T, B, H) ∂L_t/∂h_t on entry, ∂L/∂h_t on return.
        da: (T, B, 3H) filled with the gradient at U x_t + b.
        dw: (T, B, 3H) filled with the gradient at W h_{t-1} + b'.
    """
    T, B, H3 = da.shape
    H = H3 // 3
    one = da.dtype.type(1)
    for t in range(T - 1, -1, -1):
        for b in range(B):
            gates, a, w, dh_b = tape[t, b], da[t, b], dw[t, b], dh[t, b]
            h_before, q_b = states[0, t, b], q[t, b]
            for k in range(H):
                r, z, n = gates[k], gates[H + k], gates[2 * H + k]
                dL_dan = dh_b[k] * (one - z) * (one - n * n)
                dL_daz = dh_b[k] * (h_before[k] - n) * z * (one - z)
                dL_dar = dL_dan * q_b[k] * r * (one - r)
                a[k] = w[k] = dL_dar
                a[H + k] = w[H + k] = dL_daz
                a[2 * H + k] = dL_dan
                w[2 * H + k] = dL_dan * r
        if t > 0:
            for b in range(B):
                for k in range(H):
                    dh[t - 1, b, k] += dh[t, b, k] * tape[t, b, H + k]
            add_rows_times(dw[t], W, t % 2 == 1, dh[t - 1])


def _forward(
    tag: Tag, W: Array, b_hidden: Array, states: Array, tape: Array, extra: Array, turned: Array
) -> None:
    T, B, H3 = tape.shape
    w = extra[T:].reshape(B, H3)
    gru_forward(W, b_hidden, states, tape, extra[:T], w, turned)


def _backward(
    tag: Tag, W: Array, states: Array, tape: Array, extra: Array, dh: Array, da: Array, dw: Array,
) -> None:  # fmt: skip
    T = da.shape[0]
    gru_backward(W, states, tape, extra[:T], dh, da, dw)


KERNELS = CellKernels(_forward, _backward)
