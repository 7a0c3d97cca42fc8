"""The descriptor of an optimizer: one `Optimizer` holds all that the rest of the library uses.

To add an optimizer, write a descriptor and register it in `bptt_core.optimizers.OPTIMIZERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TYPE_CHECKING

from numpy.typing import NDArray

from bptt_core.errors import InvalidArgument

if TYPE_CHECKING:  # the kernels import Numba
    from bptt_core.kernels.dispatch import OptimizerKernel

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """An update rule.

    Raises:
        InvalidArgument: `moments` is negative.
    """

    name: str
    """The value of `ModelSpec.optimizer`, a lower-case identifier."""
    moments: int
    """Arrays of P elements that the rule keeps; they begin at zero."""
    rule: Callable[[Array, Array, Array, int, float], None]
    """(θ (P,), g (P,), moments (moments, P), number of the update from 1, learning rate); changes
    θ and the moments in place. Weight decay is applied before it."""
    kernel: Callable[[], OptimizerKernel]
    """Returns the compiled rule. A function, because it imports Numba."""
    weight_decay: float = 0.0
    """Default of `ModelSpec.weight_decay`."""
    decoupled_weight_decay: bool = False
    """Weight decay shrinks θ directly. False: it is added to the gradient."""
    forecast_schedule: tuple[float, int, float] | None = None
    """Learning rate, updates of its decay, and its final value, for a forecast whose spec gives
    none of them. None: the defaults of every other task."""

    def __post_init__(self) -> None:
        """Check the number of moments."""
        if self.moments < 0:
            raise InvalidArgument("moments", self.moments, "a whole number >= 0")
