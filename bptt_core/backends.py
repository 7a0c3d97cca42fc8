"""The interface of a backend, which does the arithmetic of a model, and its implementations.

`reference` is NumPy, one line for each equation. `compiled` is Numba, and the default. Both change
the same arrays in the same order.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bptt_core import network, params, transition
from bptt_core.errors import InvalidArgument
from bptt_core.specs import ModelSpec
from bptt_core.state import Model, Streams
from bptt_core.transition import Steps
from bptt_core.windows import Advanced

Array = NDArray[Any]
BackendName = Literal["compiled", "reference"]


class Backend(Protocol):
    """Arithmetic of one spec. Only `forward` is thread-safe."""

    def run(
        self, model: Model, streams: Streams, steps: Steps, predictions: Array | None
    ) -> Advanced:
        """As `transition.run`; the result is valid until the next call."""
        ...

    def forward(self, parameters: Array, features: Array, state: Array) -> Array:
        """Outputs (T, O) of one stream's features (T, F) from a state; thread-safe."""
        ...

    def forget(self) -> None:
        """Drop all references to the arrays of the last call."""
        ...


class Reference:
    """The equations in NumPy."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec

    def run(
        self, model: Model, streams: Streams, steps: Steps, predictions: Array | None
    ) -> Advanced:
        """As `transition.run`."""
        with np.errstate(all="ignore"):  # non-finite values are detected, and skipped
            return transition.run(self._spec, model, streams, steps, predictions)

    def forward(self, parameters: Array, features: Array, state: Array) -> Array:
        """As `Backend.forward`."""
        named = params.views(self._spec, parameters)
        with np.errstate(all="ignore"):
            tape = network.forward(self._spec, named, features[:, None], state[:, :, None])
        return tape.output[:, 0]

    def forget(self) -> None:
        """As `Backend.forget`; this backend holds no references."""


def make(spec: ModelSpec, name: BackendName) -> Backend:
    """Make the backend of that name.

    Raises:
        InvalidArgument: no such backend, or a package that `compiled` needs is not installed.
    """
    if name == "reference":
        return Reference(spec)
    if name != "compiled":
        raise InvalidArgument("backend", name, "one of compiled, reference")
    try:
        from bptt_core.kernels import Compiled  # Numba takes a second to import
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        bound = (
            f"reference, because {package} is not installed "
            "(pip install 'bptt[server]' installs what compiled needs)"
        )
        raise InvalidArgument("backend", name, bound) from error

    return Compiled(spec)
