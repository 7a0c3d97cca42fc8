"""The recurrent cells, as equations: the reference that the compiled kernels are held to.

A cell is a module of three functions. `forward(layer, x, state)` unfolds it over a window and
returns a tape, which holds its carried states; `step_back(layer, tape, t, dL_dstate)` goes back
through one step; `backward(layer, gradient, tape, dh)` goes back through all of them, adds the
gradients of the shared weights up over time, and returns the gradient of its inputs. The carried
state is always a tuple of arrays: (h,), or (h, c) for LSTM.
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
    """A cell's three functions."""

    forward: Callable[[Layer, Array, tuple[Array, ...]], Any]
    step_back: Callable[
        [Layer, Any, int, tuple[Array, ...]], tuple[Array, Array, tuple[Array, ...]]
    ]
    backward: Callable[[Layer, Layer, Any, Array], Array]


def _relu(a: Array) -> Array:
    return np.maximum(a, 0)


def _tanh_slope(h: Array) -> Array:
    return np.asarray(1 - h * h)


def _relu_slope(h: Array) -> Array:
    return np.asarray(h > 0, dtype=h.dtype)


def _vanilla(g: Callable[[Array], Array], slope: Callable[[Array], Array]) -> CellFunctions:
    return CellFunctions(
        partial(rnn.forward, g), partial(rnn.step_back, slope), partial(rnn.backward, slope)
    )


CELLS: dict[Cell, CellFunctions] = {
    "rnn_tanh": _vanilla(np.tanh, _tanh_slope),
    "rnn_relu": _vanilla(_relu, _relu_slope),
    "lstm": CellFunctions(lstm.forward, lstm.step_back, lstm.backward),
    "gru": CellFunctions(gru.forward, gru.step_back, gru.backward),
}
