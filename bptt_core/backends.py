"""The one interface behind which the arithmetic is done, and its two implementations.

`reference` is NumPy, a line an equation; `compiled` is Numba, what runs. Both change the same
arrays in the same order.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bptt_core import network, params, scaling, windows
from bptt_core.errors import InvalidArgument
from bptt_core.scaling import Prepared
from bptt_core.specs import ModelSpec
from bptt_core.state import Model, Streams
from bptt_core.windows import Advanced, Lanes

Array = NDArray[Any]
BackendName = Literal["compiled", "reference"]


class Backend(Protocol):
    """Arithmetic of one spec. Not thread-safe, but for `forward`."""

    def begin(self, steps: int) -> None:
        """A call of the learner begins, which brings so many steps over all its streams.

        What `prepare` and `empty` gave before is not used any more.
        """
        ...

    def empty(self, name: str, shape: tuple[int, ...]) -> Array:
        """Room of the spec's dtype and of any values, one of each name between two `begin`."""
        ...

    def prepare(
        self, model: Model, streams: Streams, row: int, x: Array, y: Array | None
    ) -> Prepared:
        """As `scaling.prepare`."""
        ...

    def score(
        self,
        model: Model,
        streams: Streams,
        row: int,
        first: int,
        predictions: Array,
        naive: Array,
        truth: Array,
    ) -> None:
        """As `scaling.score`."""
        ...

    def advance(
        self, model: Model, streams: Streams, lanes: Lanes, outputs: Array | None
    ) -> Advanced:
        """As `windows.advance`."""
        ...

    def forward(self, parameters: Array, features: Array, state: Array) -> Array:
        """Outputs (T, O) of one stream's features (T, F) from a state; thread-safe."""
        ...


class Reference:
    """The equations as they are written."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec

    def begin(self, steps: int) -> None:
        """As `Backend.begin`."""

    def empty(self, name: str, shape: tuple[int, ...]) -> Array:
        """As `Backend.empty`."""
        return np.empty(shape, self._spec.dtype)

    def prepare(
        self, model: Model, streams: Streams, row: int, x: Array, y: Array | None
    ) -> Prepared:
        """As `scaling.prepare`."""
        return scaling.prepare(self._spec, model, streams, row, x, y)

    def score(
        self,
        model: Model,
        streams: Streams,
        row: int,
        first: int,
        predictions: Array,
        naive: Array,
        truth: Array,
    ) -> None:
        """As `scaling.score`."""
        scaling.score(self._spec, model, streams, row, first, predictions, naive, truth)

    def advance(
        self, model: Model, streams: Streams, lanes: Lanes, outputs: Array | None
    ) -> Advanced:
        """As `windows.advance`."""
        with np.errstate(all="ignore"):  # what is not finite is looked for, and skipped
            return windows.advance(self._spec, model, streams, lanes, outputs)

    def forward(self, parameters: Array, features: Array, state: Array) -> Array:
        """As `Backend.forward`."""
        named = params.views(self._spec, parameters)
        with np.errstate(all="ignore"):
            tape = network.forward(self._spec, named, features[:, None], state[:, :, None])
        return tape.output[:, 0]


def make(spec: ModelSpec, name: BackendName) -> Backend:
    """The backend of that name."""
    if name == "reference":
        return Reference(spec)
    if name != "compiled":
        raise InvalidArgument("backend", name, "one of compiled, reference")
    from bptt_core.kernels import Compiled  # Numba takes a second to import

    return Compiled(spec)
