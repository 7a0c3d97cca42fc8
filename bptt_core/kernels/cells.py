"""One interface over the cells' kernels, chosen by type when a caller is compiled.

Who uses an RNN never compiles an LSTM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.extending import overload
from numpy.typing import NDArray

from bptt_core.kernels.gru import gru_backward, gru_forward, GruCell
from bptt_core.kernels.lstm import lstm_backward, lstm_forward, LstmCell
from bptt_core.kernels.rnn import rnn_backward, rnn_forward, RnnCell
from bptt_core.specs import ModelSpec

Array = NDArray[Any]
CellTag = RnnCell | LstmCell | GruCell


def tag(spec: ModelSpec) -> CellTag:
    """What chooses the kernels of a spec's cell."""
    if spec.cell == "lstm":
        return LstmCell(relu=False)
    if spec.cell == "gru":
        return GruCell(relu=False)
    return RnnCell(relu=spec.cell == "rnn_relu")


def _rnn_forward(
    cell: Any, W: Array, b_hidden: Array, states: Array, tape: Array, extra: Array, scratch: Array
) -> None:
    rnn_forward(cell, W, states, tape, scratch)


def _lstm_forward(
    cell: Any, W: Array, b_hidden: Array, states: Array, tape: Array, extra: Array, scratch: Array
) -> None:
    lstm_forward(W, states, tape, scratch)


def _gru_forward(
    cell: Any, W: Array, b_hidden: Array, states: Array, tape: Array, extra: Array, scratch: Array
) -> None:
    T, B, H3 = tape.shape
    w = extra[T:].reshape(B, H3)
    gru_forward(W, b_hidden, states, tape, extra[:T], w, scratch)


def _rnn_backward(
    cell: Any,
    W: Array,
    states: Array,
    tape: Array,
    extra: Array,
    dh: Array,
    da: Array,
    dw: Array,
    scratch: Array,
) -> None:
    rnn_backward(cell, W, states, dh, da, scratch)


def _lstm_backward(
    cell: Any,
    W: Array,
    states: Array,
    tape: Array,
    extra: Array,
    dh: Array,
    da: Array,
    dw: Array,
    scratch: Array,
) -> None:
    T = da.shape[0]
    lstm_backward(W, states, tape, dh, da, scratch, extra[T : T + 2])


def _gru_backward(
    cell: Any,
    W: Array,
    states: Array,
    tape: Array,
    extra: Array,
    dh: Array,
    da: Array,
    dw: Array,
    scratch: Array,
) -> None:
    T = da.shape[0]
    gru_backward(W, states, tape, extra[:T], dh, da, dw, scratch)


_FORWARD: dict[type, Callable[..., None]] = {
    RnnCell: _rnn_forward,
    LstmCell: _lstm_forward,
    GruCell: _gru_forward,
}
_BACKWARD: dict[type, Callable[..., None]] = {
    RnnCell: _rnn_backward,
    LstmCell: _lstm_backward,
    GruCell: _gru_backward,
}


def cell_forward(
    cell: Any, W: Array, b_hidden: Array, states: Array, tape: Array, extra: Array, scratch: Array
) -> None:
    """Unfold a cell over a window.

    Args:
        cell: the tag.
        W: (G·H, H).
        b_hidden: (G·H,).
        states: (parts, T + 1, B, H); row 0 is given, the others are filled.
        tape: (T, B, G·H) U x_t + b on entry (RNN and LSTM: with b_hidden); gates on return.
        extra: (T + 3, B, H): a GRU's q_t, and room for 3H more a row.
        scratch: (B, G·H).
    """
    _FORWARD[type(cell)](cell, W, b_hidden, states, tape, extra, scratch)


def cell_backward(
    cell: Any,
    W: Array,
    states: Array,
    tape: Array,
    extra: Array,
    dh: Array,
    da: Array,
    dw: Array,
    scratch: Array,
) -> None:
    """Go back through a window.

    Args:
        cell: the tag.
        W: (G·H, H).
        states: (parts, T + 1, B, H) of the forward pass.
        tape: (T, B, G·H) of the forward pass.
        extra: (T + 3, B, H) of the forward pass; the last rows are overwritten.
        dh: (T, B, H) ∂L_t/∂h_t on entry, ∂L/∂h_t on return.
        da: (T, B, G·H) filled with the gradient at U x_t + b.
        dw: (T, B, G·H) filled with the gradient at W h_{t-1} + b'; the same array as `da` but for
            GRU.
        scratch: (B, H).
    """
    _BACKWARD[type(cell)](cell, W, states, tape, extra, dh, da, dw, scratch)


# Where Numba compiles, these choose instead of the two functions above.


@overload(cell_forward, strict=False)
def _cell_forward(
    cell: Any, W: Any, b_hidden: Any, states: Any, tape: Any, extra: Any, scratch: Any
) -> Callable[..., None]:
    return _FORWARD[cell.instance_class]


@overload(cell_backward, strict=False)
def _cell_backward(
    cell: Any,
    W: Any,
    states: Any,
    tape: Any,
    extra: Any,
    dh: Any,
    da: Any,
    dw: Any,
    scratch: Any,
) -> Callable[..., None]:
    return _BACKWARD[cell.instance_class]
