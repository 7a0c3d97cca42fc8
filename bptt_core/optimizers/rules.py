"""The update rules in NumPy, with PyTorch's formulas and defaults, and their descriptors.

Each rule takes the parameters θ (P,), their gradient g (P,), its moments, the number of the update,
from 1, and the learning rate η. It changes θ and the moments in place.

Source:
    torch.optim's documentation of each rule; Kingma and Ba (2015) for Adam, Loshchilov and Hutter
    (2019) for AdamW, Duchi, Hazan and Singer (2011) for Adagrad, Hinton's lecture 6e for RMSprop.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bptt_core.optimizers.descriptor import Optimizer

if TYPE_CHECKING:
    from bptt_core.kernels.dispatch import OptimizerKernel

Array = NDArray[Any]

MOMENTUM_FACTOR = 0.9
RMSPROP_ALPHA = 0.99
ADAM_BETA_1 = 0.9
ADAM_BETA_2 = 0.999
EPSILON = 1e-8
ADAGRAD_EPSILON = 1e-10

FORECAST_SCHEDULE = (0.001, 4_000, 0.0002)
"""Learning rate, updates of its decay, and its final value, for forecasts with Adam. Tuned once, on
the bundled sea temperature, glucose and cycling series: the first rate is high enough for a file of
a few thousand rows, the last one low enough not to add noise to a long one."""


def sgd(θ: Array, g: Array, moments: Array, update: int, η: float) -> None:
    """θ ← θ - η g."""
    θ -= η * g


def momentum(θ: Array, g: Array, moments: Array, update: int, η: float) -> None:
    """V ← 0.9 v + g, which is g at the first update; θ ← θ - η v."""
    v = moments[0]
    v[:] = MOMENTUM_FACTOR * v + g if update > 1 else g
    θ -= η * v


def rmsprop(θ: Array, g: Array, moments: Array, update: int, η: float) -> None:
    """S ← 0.99 s + 0.01 g²; θ ← θ - η g / (√s + ε)."""
    s = moments[0]
    s[:] = RMSPROP_ALPHA * s + (1 - RMSPROP_ALPHA) * g * g
    θ -= η * g / (np.sqrt(s) + EPSILON)


def adagrad(θ: Array, g: Array, moments: Array, update: int, η: float) -> None:
    """S ← s + g²; θ ← θ - η g / (√s + ε)."""
    s = moments[0]
    s += g * g
    θ -= η * g / (np.sqrt(s) + ADAGRAD_EPSILON)


def adam(θ: Array, g: Array, moments: Array, update: int, η: float) -> None:
    """Means m of g and v of g², both without their bias towards zero; θ ← θ - η m / (√v + ε)."""
    m, v = moments
    m[:] = ADAM_BETA_1 * m + (1 - ADAM_BETA_1) * g
    v[:] = ADAM_BETA_2 * v + (1 - ADAM_BETA_2) * g * g
    m_scale = η / (1 - ADAM_BETA_1**update)
    v_scale = (1 - ADAM_BETA_2**update) ** 0.5
    θ -= m_scale * m / (np.sqrt(v) / v_scale + EPSILON)


def _kernel(name: str) -> OptimizerKernel:
    from bptt_core.kernels import rules

    return rules.KERNELS[name]


SGD = Optimizer(name="sgd", moments=0, rule=sgd, kernel=partial(_kernel, "sgd"))
MOMENTUM = Optimizer(name="momentum", moments=1, rule=momentum, kernel=partial(_kernel, "momentum"))
RMSPROP = Optimizer(name="rmsprop", moments=1, rule=rmsprop, kernel=partial(_kernel, "rmsprop"))
ADAGRAD = Optimizer(name="adagrad", moments=1, rule=adagrad, kernel=partial(_kernel, "adagrad"))
ADAM = Optimizer(
    name="adam",
    moments=2,
    rule=adam,
    kernel=partial(_kernel, "adam"),
    forecast_schedule=FORECAST_SCHEDULE,
)
ADAMW = Optimizer(
    name="adamw",
    moments=2,
    rule=adam,
    kernel=partial(_kernel, "adam"),
    weight_decay=0.01,
    decoupled_weight_decay=True,
)
