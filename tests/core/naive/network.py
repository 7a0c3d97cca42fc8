"""Stacked layers and a linear head over a window of one stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bptt_core import ModelSpec
from tests.core.naive import cells
from tests.core.naive.algebra import add, affine, Matrix, Vector, zeros

State = list[list[Vector]]
"""For each layer its parts: h, and c of an LSTM."""
Named = dict[str, Any]
"""Nested lists under PyTorch's names."""


@dataclass
class Tape:
    """What the backward pass needs."""

    x: list[Matrix] = field(default_factory=list)
    """Each layer's inputs."""
    parts: list[list[Matrix]] = field(default_factory=list)
    """Each layer's h_0 … h_T, and c_0 … c_T."""
    kept: list[Any] = field(default_factory=list)
    """What each layer's cell keeps for its backward pass."""
    outputs: Matrix = field(default_factory=list)

    def state_after(self, step: int) -> State:
        return [[part[step] for part in parts] for parts in self.parts]


def layer_sizes(spec: ModelSpec) -> list[int]:
    """Parameters of each layer, counted matrix by matrix."""
    rows = cells.TWINS[spec.cell].blocks * spec.hidden_size
    sizes = []
    inputs = spec.vocabulary_size or spec.features
    for _ in range(spec.layers):
        sizes.append(rows * inputs + rows * spec.hidden_size + rows + rows)
        inputs = spec.hidden_size
    return sizes


class Network:
    """A spec's network with its parameters."""

    def __init__(self, spec: ModelSpec, named: Mapping[str, Any]) -> None:
        self.spec = spec
        self.named: Named = {name: _lists(array) for name, array in named.items()}

    def layer(self, index: int) -> tuple[Matrix, Matrix, Vector, Vector]:
        """U, W, b and b'."""
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return tuple(self.named[f"rnn.{kind}_l{index}"] for kind in kinds)

    def one_hot(self, x: Matrix) -> Matrix:
        """Token ids as the vectors they stand for."""
        if not self.spec.vocabulary_size:
            return x
        return [
            [1.0 if i == int(row[0]) else 0.0 for i in range(self.spec.vocabulary_size)]
            for row in x
        ]

    def forward(self, x: Matrix, state: State) -> Tape:
        """Unfold over x (T rows) from the state before the first step."""
        tape, cell = Tape(), cells.TWINS[self.spec.cell]
        x = self.one_hot(x)
        for index in range(self.spec.layers):
            U, W, b, b_hidden = self.layer(index)
            tape.x.append(x)
            bias = b if cell.separate_hidden_bias else add(b, b_hidden)
            u = [affine(U, row, bias) for row in x]
            parts, kept = cell.forward(W, u, b_hidden, state[index])
            tape.parts.append(parts)
            tape.kept.append(kept)
            x = parts[0][1:]
        tape.outputs = [
            affine(self.named["head.weight"], row, self.named["head.bias"]) for row in x
        ]
        return tape

    def backward(self, tape: Tape, slopes: Matrix) -> Named:
        """Gradient of every parameter from ∂L/∂output of every step."""
        gradient: Named = {}
        cell = cells.TWINS[self.spec.cell]
        V = self.named["head.weight"]
        gradient["head.weight"] = outer_sum(slopes, tape.parts[-1][0][1:])
        gradient["head.bias"] = _sum(slopes)
        dh = [transpose_times(V, slope) for slope in slopes]
        for index in reversed(range(self.spec.layers)):
            U, W, _, _ = self.layer(index)
            parts = tape.parts[index]
            du, dw, _ = cell.backward(W, parts, tape.kept[index], dh)
            gradient[f"rnn.weight_ih_l{index}"] = outer_sum(du, tape.x[index])
            gradient[f"rnn.weight_hh_l{index}"] = outer_sum(dw, parts[0][:-1])
            gradient[f"rnn.bias_ih_l{index}"] = _sum(du)
            gradient[f"rnn.bias_hh_l{index}"] = _sum(dw)
            dh = [transpose_times(U, slope) for slope in du]
        return gradient


def _lists(array: Any) -> Any:
    return array.tolist() if hasattr(array, "tolist") else array


def _sum(rows: Matrix) -> Vector:
    total = zeros(len(rows[0]))
    for row in rows:
        total = add(total, row)
    return total


def outer_sum(slopes: Matrix, inputs: Matrix) -> Matrix:
    """Σ_t slope_t input_tᵀ."""
    out = [zeros(len(inputs[0])) for _ in slopes[0]]
    for slope, x in zip(slopes, inputs, strict=True):
        for i in range(len(slope)):
            for j in range(len(x)):
                out[i][j] += slope[i] * x[j]
    return out


def transpose_times(matrix: Matrix, v: Vector) -> Vector:
    """Σ_i matrix_ij v_i."""
    return [sum(matrix[i][j] * v[i] for i in range(len(v))) for j in range(len(matrix[0]))]
