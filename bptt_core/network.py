"""The network: stacked layers of one cell and a linear head, ŷ_t = V h_t + c; the reference."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bptt_core import params
from bptt_core.cells import CELLS, Tape
from bptt_core.specs import ModelSpec

Array = NDArray[Any]


class NetworkTape(NamedTuple):
    """The values of the forward pass that the backward pass uses, and the outputs."""

    layers: list[Tape]
    output: Array
    """(T, B, O) raw outputs of the head."""

    def state_after(self, step: int) -> Array:
        """(L, parts, B, H): the carried state after `step` steps of the window."""
        return np.stack([np.stack([part[step] for part in tape.states]) for tape in self.layers])


def forward(spec: ModelSpec, named: params.Views, x: Array, state: Array) -> NetworkTape:
    """Unfold the network over a window.

    Args:
        spec: the network.
        named: its parameters.
        x: (T, B, F) features; token ids (T, B, 1).
        state: (L, parts, B, H) before the first step.
    """
    cell = CELLS[spec.cell]
    if spec.vocabulary_size:  # the compiled backend looks rows up instead
        x = np.asarray(x == np.arange(spec.vocabulary_size), spec.dtype)
    tapes = []
    for index in range(spec.layers):
        tape = cell.forward(params.layer(named, index), x, tuple(state[index]))
        tapes.append(tape)
        x = tape.states[0][1:]
    return NetworkTape(tapes, x @ named["head.weight"].T + named["head.bias"])


def backward(spec: ModelSpec, named: params.Views, tape: NetworkTape, d_output: Array) -> Array:
    """Gradient of all parameters, a flat vector (P,), from ∂L/∂output (T, B, O)."""
    gradient: Array = np.zeros(params.count(spec), dtype=spec.dtype)
    into = params.views(spec, gradient)
    cell = CELLS[spec.cell]
    h = tape.layers[-1].states[0][1:]
    into["head.weight"][:] = np.einsum("tbo,tbh->oh", d_output, h)  # ∂L/∂V = Σ_t ∂L/∂ŷ_t h_tᵀ
    into["head.bias"][:] = d_output.sum(axis=(0, 1))
    dh = d_output @ named["head.weight"]
    for index in reversed(range(spec.layers)):
        weights, slot = params.layer(named, index), params.layer(into, index)
        dh = cell.backward(weights, slot, tape.layers[index], dh)
    return gradient
