"""The recurrent cells, as equations: the reference that the compiled kernels are held to.

A cell is a module of two functions. `forward(layer, x, state)` unfolds it over a window and returns
a tape, whose `h` and `state` are its outputs and carried states; `backward(layer, gradient, tape,
dh)` goes back through it, adds the gradients of the shared weights up over time, and returns the
gradient of its inputs. The carried state is always a tuple of arrays: (h,), or (h, c) for LSTM.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bptt_core.cells import gru, lstm, rnn
from bptt_core.params import Layer
from bptt_core.specs import Cell

Array = NDArray[Any]


class Tape(Protocol):
    """What a cell's forward pass keeps for its backward pass."""

    @property
    def states(self) -> tuple[Array, ...]:
        """Each (T + 1, B, H): the carried state before every step and after the last."""
        ...


class CellFunctions(NamedTuple):
    """A cell's two functions."""

    forward: Callable[[Layer, Array, tuple[Array, ...]], Any]
    backward: Callable[[Layer, Layer, Any, Array], Array]


def _relu(a: Array) -> Array:
    return np.maximum(a, 0)


def _tanh_slope(h: Array) -> Array:
    return np.asarray(1 - h * h)


def _relu_slope(h: Array) -> Array:
    return np.asarray(h > 0, dtype=h.dtype)


CELLS: dict[Cell, CellFunctions] = {
    "rnn_tanh": CellFunctions(partial(rnn.forward, np.tanh), partial(rnn.backward, _tanh_slope)),
    "rnn_relu": CellFunctions(partial(rnn.forward, _relu), partial(rnn.backward, _relu_slope)),
    "lstm": CellFunctions(lstm.forward, lstm.backward),
    "gru": CellFunctions(gru.forward, gru.backward),
}
