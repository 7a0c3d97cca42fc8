"""An optimizer defined in this file only: the library takes all it needs from the descriptor.

SGD with Nesterov's momentum, as `torch.optim.SGD(nesterov=True, momentum=0.9)`:
    v ← 0.9 v + g,  θ ← θ - η (g + 0.9 v)

Source: Sutskever, Martens, Dahl and Hinton (2013), "On the importance of initialization and
    momentum in deep learning".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bptt_core import ModelSpec
from bptt_core.errors import InvalidArgument
from bptt_core.kernels.dispatch import OptimizerKernel
from bptt_core.optimizers import Optimizer, OPTIMIZERS
from tests.core.naive import learning
from tests.core.optimizer_contract import OptimizerContract

FACTOR = 0.9


def rule(θ: Any, g: Any, moments: Any, update: int, η: float) -> None:
    v = moments[0]
    v[:] = FACTOR * v + g
    θ -= η * (g + FACTOR * v)


def kernel_step(
    tag: Any, parameters: Any, gradient: Any, factor: float, moments: Any, update: int, rate: float
) -> None:
    number = parameters.dtype.type
    η, scale, keep, v = number(rate), number(factor), number(FACTOR), moments[0]
    for i in range(parameters.size):
        g = scale * gradient[i]
        v[i] = keep * v[i] + g
        parameters[i] -= η * (g + keep * v[i])


NESTEROV = Optimizer(
    name="nesterov",
    moments=1,
    rule=rule,
    kernel=lambda: OptimizerKernel(kernel_step),
    weight_decay=0.02,
    forecast_schedule=(0.01, 50, 0.001),
)


def twin_direction(g: float, own: list[float], update: int) -> float:
    own[0] = 0.9 * own[0] + g
    return g + 0.9 * own[0]


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    OPTIMIZERS.register(NESTEROV)
    learning.DIRECTIONS["nesterov"], learning.MOMENTS["nesterov"] = twin_direction, 1
    yield
    OPTIMIZERS.unregister("nesterov")
    del learning.DIRECTIONS["nesterov"], learning.MOMENTS["nesterov"]


class TestNesterovsMomentum(OptimizerContract):
    @pytest.fixture
    def optimizer(self) -> str:
        return "nesterov"


def test_an_invalid_descriptor_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="moments is -1"):
        replace(NESTEROV, moments=-1)
    with pytest.raises(InvalidArgument, match="optimizer is nesterov, but must be a name that is"):
        OPTIMIZERS.register(NESTEROV)
    with pytest.raises(InvalidArgument, match="optimizer is nadam, but must be one of"):
        ModelSpec(optimizer="nadam")
