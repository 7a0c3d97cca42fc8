"""Optimizers: one descriptor each, the learning rate's schedule, and the reference's update.

`OPTIMIZERS` holds the descriptors by name; see `descriptor.Optimizer` for the fields.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from bptt_core.optimizers import rules
from bptt_core.optimizers.descriptor import Optimizer
from bptt_core.registry import Registry

__all__ = ["OPTIMIZERS", "Optimizer", "learning_rate_at", "step"]

Array = NDArray[Any]

OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")
for _optimizer in (
    rules.SGD, rules.MOMENTUM, rules.RMSPROP, rules.ADAGRAD, rules.ADAM, rules.ADAMW,
):  # fmt: skip
    OPTIMIZERS.register(_optimizer)


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
    name: str,
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
        name: of the optimizer.
        parameters: (P,) θ; overwritten.
        gradient: (P,) g after clipping; overwritten where weight decay is added to it.
        moments: (OPTIMIZERS[name].moments, P); overwritten.
        update: number of this update, from 1.
        learning_rate: η > 0.
        weight_decay: λ >= 0.
    """
    optimizer = OPTIMIZERS[name]
    if optimizer.decoupled_weight_decay:
        parameters *= 1 - learning_rate * weight_decay
    elif weight_decay:
        gradient += weight_decay * parameters
    optimizer.rule(parameters, gradient, moments, update, learning_rate)
