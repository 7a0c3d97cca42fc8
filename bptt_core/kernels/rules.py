"""The optimizers' rules: the twins of `bptt_core.optimizers.rules`.

All of them are compiled into one kernel, which selects one by number for each update: a model's
kernels then need no compilation of their own for each optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.kernels.dispatch import OptimizerKernel, Tag
from bptt_core.kernels.jit import compiled, inlined
from bptt_core.optimizers.rules import (
    ADAGRAD_EPSILON,
    ADAM_BETA_1,
    ADAM_BETA_2,
    EPSILON,
    MOMENTUM_FACTOR,
    RMSPROP_ALPHA,
)

Array = NDArray[Any]
Rule = Callable[[Array, Array, float, Array, int, float], None]


@compiled
def sgd(
    parameters: Array, gradient: Array, factor: float, moments: Array, update: int, rate: float
) -> None:
    """As `optimizers.rules.sgd`, with `factor` times the gradient."""
    number = parameters.dtype.type
    η, scale = number(rate), number(factor)
    for i in range(parameters.size):
        parameters[i] -= η * (scale * gradient[i])


@compiled
def momentum(
    parameters: Array, gradient: Array, factor: float, moments: Array, update: int, rate: float
) -> None:
    """As `optimizers.rules.momentum`, with `factor` times the gradient."""
    number = parameters.dtype.type
    η, scale = number(rate), number(factor)
    v = moments[0]
    keep = number(MOMENTUM_FACTOR) if update > 1 else number(0)
    for i in range(parameters.size):
        v[i] = keep * v[i] + scale * gradient[i]
        parameters[i] -= η * v[i]


@compiled
def rmsprop(
    parameters: Array, gradient: Array, factor: float, moments: Array, update: int, rate: float
) -> None:
    """As `optimizers.rules.rmsprop`, with `factor` times the gradient."""
    number = parameters.dtype.type
    η, scale = number(rate), number(factor)
    s = moments[0]
    keep, take, tiny = number(RMSPROP_ALPHA), number(1 - RMSPROP_ALPHA), number(EPSILON)
    for i in range(parameters.size):
        g = scale * gradient[i]
        s[i] = keep * s[i] + take * g * g
        parameters[i] -= η * g / (np.sqrt(s[i]) + tiny)


@compiled
def adagrad(
    parameters: Array, gradient: Array, factor: float, moments: Array, update: int, rate: float
) -> None:
    """As `optimizers.rules.adagrad`, with `factor` times the gradient."""
    number = parameters.dtype.type
    η, scale = number(rate), number(factor)
    s = moments[0]
    tiny = number(ADAGRAD_EPSILON)
    for i in range(parameters.size):
        g = scale * gradient[i]
        s[i] += g * g
        parameters[i] -= η * g / (np.sqrt(s[i]) + tiny)


@compiled
def adam(
    parameters: Array, gradient: Array, factor: float, moments: Array, update: int, rate: float
) -> None:
    """As `optimizers.rules.adam`, with `factor` times the gradient."""
    number = parameters.dtype.type
    scale = number(factor)
    m, v = moments[0], moments[1]
    keep_1, take_1 = number(ADAM_BETA_1), number(1 - ADAM_BETA_1)
    keep_2, take_2 = number(ADAM_BETA_2), number(1 - ADAM_BETA_2)
    m_scale = number(rate / (1 - ADAM_BETA_1**update))
    v_scale = number(1 / math.sqrt(1 - ADAM_BETA_2**update))
    tiny = number(EPSILON)
    for i in range(parameters.size):
        g = scale * gradient[i]
        m[i] = keep_1 * m[i] + take_1 * g
        v[i] = keep_2 * v[i] + take_2 * g * g
        parameters[i] -= m_scale * m[i] / (np.sqrt(v[i]) * v_scale + tiny)


def _select(rules: Sequence[Rule], first: int = 0) -> Callable[..., None]:
    """A function with the arguments of `dispatch.rule_step` that calls the rule number `tag.rule`.

    Args:
        rules: compiled functions.
        first: the number of the first one.
    """
    apply = rules[0]
    if len(rules) == 1:

        def last(
            tag: Tag, parameters: Array, gradient: Array, factor: float, moments: Array,
            update: int, rate: float,
        ) -> None:  # fmt: skip
            apply(parameters, gradient, factor, moments, update, rate)

        return last

    others = inlined(_select(rules[1:], first + 1))

    def select(
        tag: Tag, parameters: Array, gradient: Array, factor: float, moments: Array, update: int,
        rate: float,
    ) -> None:  # fmt: skip
        if tag.rule == first:
            apply(parameters, gradient, factor, moments, update, rate)
        else:
            others(tag, parameters, gradient, factor, moments, update, rate)

    return select


_RULES: tuple[Rule, ...] = (sgd, momentum, rmsprop, adagrad, adam)
_STEP = _select(_RULES)
KERNELS = {rule.__name__: OptimizerKernel(_STEP, number) for number, rule in enumerate(_RULES)}
"""By the name of the rule."""
