"""The descriptor of a recurrent cell: one `Cell` holds all that the rest of the library uses of it.

Specs, parameters, memory, both backends and gradient flow read the descriptor; none of them
branches on a cell's name. To add a cell, write a descriptor and register it in
`bptt_core.cells.CELLS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bptt_core.errors import InvalidArgument

if TYPE_CHECKING:  # the kernels import Numba
    from bptt_core.kernels.dispatch import CellKernels

Array = NDArray[Any]
State = tuple[Array, ...]
"""One array for each of a cell's `state_parts`."""


class Layer(NamedTuple):
    """Views of one recurrent layer, in the letters of its equations. G: number of gates."""

    U: Array
    """(G·H, D) input to hidden; D of a deeper layer is H."""
    W: Array
    """(G·H, H) hidden to hidden."""
    b: Array
    """(G·H,) PyTorch's `bias_ih`. A textbook's b is the sum of the two."""
    b_hidden: Array
    """(G·H,) PyTorch's `bias_hh`; in a GRU it acts inside the reset gate."""


class Tape(Protocol):
    """The values that a cell's forward pass keeps for its backward pass."""

    @property
    def states(self) -> State:
        """Each (T + 1, B, H): the carried state before every step and after the last."""
        ...


def uniform(layer: Layer, random: np.random.Generator) -> None:
    """Fill a layer with PyTorch's initial values, drawn uniformly from -1/√H to 1/√H.

    Args:
        layer: overwritten, array after array, each in the order of its memory.
        random: the source of the values.
    """
    bound = layer.W.shape[1] ** -0.5
    for view in layer:
        held = view if view.flags.c_contiguous else view.T  # a token model stores U transposed
        held[:] = random.uniform(-bound, bound, held.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A recurrent cell.

    Raises:
        InvalidArgument: `gates`, `candidate` or `state_parts` contradict one another.
    """

    name: str
    """The value of `ModelSpec.cell`, a lower-case identifier."""
    gates: tuple[str, ...]
    """The letters of the blocks of H rows in U, W and both biases, in their order."""
    candidate: str
    """The block that computes new content from the old state, as the W of a vanilla network does.
    The other blocks are gates, which scale that path and the direct one. (Can, Krishnamurthy and
    Schwab 2020, "Gating creates slow modes and controls phase-space complexity in GRUs and LSTMs")
    """
    equations: str
    """The letter of the equations' labels: (L1), (L2), … in the module of `forward`."""
    forward: Callable[[Layer, Array, State], Any]
    """(layer, x (T, B, D), state before the first step, each (B, H)) → a `Tape`."""
    step_back: Callable[[Layer, Any, int, State], tuple[Array, Array, State]]
    """(layer, tape, t, gradient at the state after step t) → gradients at U x_t + b and at
    W h_{t-1} + b', each (B, G·H), and at the state before step t."""
    backward: Callable[[Layer, Layer, Any, Array], Array]
    """(layer, its gradient, tape, dh (T, B, H)) → (T, B, D) ∂L/∂x_t; the gradients of U, W and the
    biases are added to the second argument. dh holds each step's own ∂L_t/∂h_t."""
    kernels: Callable[[], CellKernels]
    """Returns the compiled forward and backward pass. A function, because it imports Numba."""
    state_parts: tuple[str, ...] = ("h",)
    """The letters of the arrays in the carried state. The first one is h, which the next layer and
    the head read."""
    separate_hidden_bias: bool = False
    """The equations use b_hidden apart from b, so that the gradients at U x_t + b and at
    W h_{t-1} + b' differ. False: they use the sum of both."""
    initialise: Callable[[Layer, np.random.Generator], None] = uniform
    """Fills a layer with its initial values."""

    def __post_init__(self) -> None:
        """Check the letters."""
        if not self.gates or len(set(self.gates)) != len(self.gates):
            raise InvalidArgument("gates", self.gates, "one or more letters, each of them once")
        if self.candidate not in self.gates:
            raise InvalidArgument("candidate", self.candidate, "one of " + ", ".join(self.gates))
        if self.state_parts[:1] != ("h",):
            raise InvalidArgument("state_parts", self.state_parts, "a tuple that begins with 'h'")
