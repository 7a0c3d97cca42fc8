"""Losses and their gradients, step by step; the reference.

A loss is summed over outputs. Targets are (T, B, O), for cross-entropy one column of class ids. A
NaN target is missing: it has no loss and no gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.specs import Loss

Array = NDArray[Any]

HUBER_DELTA = 1.0  # where Huber's loss turns from square to straight; PyTorch's default


def value(loss: Loss, output: Array, target: Array) -> Array:
    """Loss of every step and stream.

    Args:
        loss: which one.
        output: (T, B, O) raw outputs of the head.
        target: (T, B, O), or for cross-entropy (T, B, 1) class ids; NaN where missing.

    Returns:
        (T, B)
    """
    missing = np.isnan(target)
    target = np.where(missing, 0, target)
    if loss == "squared_error":
        each = 0.5 * np.square(output - target)
    elif loss == "huber":
        e = np.abs(output - target)
        straight = HUBER_DELTA * (e - 0.5 * HUBER_DELTA)
        each = np.where(e <= HUBER_DELTA, 0.5 * np.square(e), straight)
    elif loss == "bernoulli":  # log(1 + exp(s)) - y s, without overflow
        each = np.maximum(output, 0) + np.log1p(np.exp(-np.abs(output))) - target * output
    else:
        highest = output.max(axis=-1, keepdims=True)
        log_sum = np.log(np.exp(output - highest).sum(axis=-1, keepdims=True)) + highest
        each = log_sum - np.take_along_axis(output, target.astype(np.int64), axis=-1)
    return np.asarray(np.where(missing, 0, each).sum(axis=-1))


def gradient(loss: Loss, output: Array, target: Array) -> Array:
    """∂L_t/∂output of every step and stream, (T, B, O); arguments as in `value`."""
    missing = np.isnan(target)
    target = np.where(missing, 0, target)
    if loss == "squared_error":
        each = output - target
    elif loss == "huber":
        each = np.clip(output - target, -HUBER_DELTA, HUBER_DELTA)
    elif loss == "bernoulli":
        each = 0.5 * (np.tanh(0.5 * output) + 1) - target
    else:
        shifted = np.exp(output - output.max(axis=-1, keepdims=True))
        one_hot = np.arange(output.shape[-1]) == target.astype(np.int64)
        each = shifted / shifted.sum(axis=-1, keepdims=True) - one_hot
    return np.asarray(np.where(missing, 0, each), dtype=output.dtype)


def target_count(target: Array) -> int:
    """Number of steps and streams (T, B) with at least one target: the divisor of a mean."""
    return int((~np.isnan(target)).any(axis=-1).sum())
