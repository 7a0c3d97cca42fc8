"""Update rules with PyTorch's formulas and defaults; the reference.

Each takes the parameters θ (P,), their gradient g (P,) and up to two moments (2, P), and changes θ
and the moments in place. `update` counts from 1.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.specs import OptimizerName

Array = NDArray[Any]

MOMENTUM = 0.9
RMSPROP_ALPHA = 0.99
ADAM_BETA_1 = 0.9
ADAM_BETA_2 = 0.999
EPSILON = 1e-8
ADAGRAD_EPSILON = 1e-10

MOMENTS: dict[OptimizerName, int] = {
    "sgd": 0,
    "momentum": 1,
    "rmsprop": 1,
    "adagrad": 1,
    "adam": 2,
    "adamw": 2,
}
"""Arrays of P elements that a rule keeps."""


def learning_rate_at(
    update: int, highest: float, final: float, warmup_updates: int, decay_updates: int
) -> float:
    """The learning rate of an update, counted from 1: warm-up, then decay.

    It grows in a straight line to `highest`, which the update `warmup_updates` has, and falls along
    a half cosine to `final`, which it keeps from the update `warmup_updates + decay_updates` on.
    Without a decay it stays at `highest`.

    Source:
        Loshchilov and Hutter (2017), "SGDR: stochastic gradient descent with warm restarts",
        equation 5, without restarts.
    """
    if update < warmup_updates:
        return highest * update / warmup_updates
    if decay_updates == 0:
        return highest
    done = min(1.0, (update - warmup_updates) / decay_updates)
    return final + 0.5 * (highest - final) * (1 + math.cos(math.pi * done))


def step(
    name: OptimizerName,
    parameters: Array,
    gradient: Array,
    moments: Array,
    *,
    update: int,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Apply one update in place.

    Args:
        name: the rule.
        parameters: (P,) θ; overwritten.
        gradient: (P,) g after clipping; overwritten where weight is decayed.
        moments: (MOMENTS[name], P); overwritten.
        update: number of this update, from 1.
        learning_rate: η > 0.
        weight_decay: λ >= 0; decoupled for AdamW, added to the gradient for all others.

    Source:
        torch.optim's documentation of each rule; Kingma and Ba (2015) for Adam, Loshchilov and
        Hutter (2019) for AdamW, Duchi, Hazan and Singer (2011) for Adagrad, Hinton's lecture 6e for
        RMSprop.
    """
    θ, g, η, λ = parameters, gradient, learning_rate, weight_decay
    if name == "adamw":
        θ *= 1 - η * λ
    elif λ:
        g += λ * θ
    if name == "sgd":
        θ -= η * g
    elif name == "momentum":
        v = moments[0]
        v[:] = MOMENTUM * v + g if update > 1 else g
        θ -= η * v
    elif name == "rmsprop":
        s = moments[0]
        s[:] = RMSPROP_ALPHA * s + (1 - RMSPROP_ALPHA) * g * g
        θ -= η * g / (np.sqrt(s) + EPSILON)
    elif name == "adagrad":
        s = moments[0]
        s += g * g
        θ -= η * g / (np.sqrt(s) + ADAGRAD_EPSILON)
    else:
        m, v = moments
        m[:] = ADAM_BETA_1 * m + (1 - ADAM_BETA_1) * g
        v[:] = ADAM_BETA_2 * v + (1 - ADAM_BETA_2) * g * g
        m_scale = η / (1 - ADAM_BETA_1**update)
        v_scale = (1 - ADAM_BETA_2**update) ** 0.5
        θ -= m_scale * m / (np.sqrt(v) / v_scale + EPSILON)
