"""Loss, clip and optimizer: the twins of `bptt_core.losses`, `clipping` and `optimizers.step`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.clipping import NORM_EPSILON
from bptt_core.kernels.dispatch import rule_step, Tag
from bptt_core.kernels.jit import compiled, inlined
from bptt_core.kernels.linear import fill
from bptt_core.kernels.network import layer_size
from bptt_core.kernels.sizes import (
    CLIP_LAYER_NORM,
    CLIP_NONE,
    CLIP_NORM,
    CROSS_ENTROPY,
    HUBER,
    Sizes,
    SQUARED_ERROR,
)
from bptt_core.losses import HUBER_DELTA
from bptt_core.optimizers import learning_rate_at as reference_learning_rate_at

Array = NDArray[Any]

learning_rate_at = inlined(reference_learning_rate_at)


@compiled
def element_loss(loss: int, s: float, y: float) -> float:
    """Loss of one real output s and target y."""
    if loss == SQUARED_ERROR:
        return 0.5 * (s - y) * (s - y)
    if loss == HUBER:
        e = abs(s - y)
        return 0.5 * e * e if e <= HUBER_DELTA else HUBER_DELTA * (e - 0.5 * HUBER_DELTA)
    return max(s, 0.0) + math.log1p(math.exp(-abs(s))) - y * s


@compiled
def element_slope(loss: int, s: float, y: float) -> float:
    """∂loss/∂s of one real output s and target y."""
    if loss == SQUARED_ERROR:
        return s - y
    if loss == HUBER:
        e = s - y
        return HUBER_DELTA if e > HUBER_DELTA else (-HUBER_DELTA if e < -HUBER_DELTA else e)
    return 0.5 * (math.tanh(0.5 * s) + 1) - y


@compiled
def cross_entropy(output: Array, wanted: int) -> float:
    """Loss of one row of logits (O,), which is overwritten with its slope."""
    highest = float(output[0])
    for i in range(output.size):
        highest = max(highest, float(output[i]))
    total = 0.0
    for i in range(output.size):
        total += math.exp(output[i] - highest)
    loss = math.log(total) + highest - output[wanted]
    for i in range(output.size):
        output[i] = math.exp(output[i] - highest) / total
    output[wanted] -= 1
    return float(loss)


@compiled
def losses_and_slopes(
    sizes: Sizes, output: Array, target: Array, count: int
) -> tuple[float, float]:
    """Sum of the losses, and sum of the naive forecast's.

    Args:
        sizes: the loss and the reduction; for a mean, sums and slopes are scaled.
        output: (n, O) raw outputs; overwritten with ∂L/∂output.
        target: (n, width); NaN where missing.
        count: steps with a target in the whole update, at least 1.
    """
    loss = baseline = 0.0
    for r in range(output.shape[0]):
        row, y = output[r], target[r]
        if sizes.loss == CROSS_ENTROPY:
            if math.isnan(y[0]):
                fill(row, 0.0)
                continue
            baseline += math.log(row.size)
            loss += cross_entropy(row, int(y[0]))
            continue
        for i in range(row.size):
            if math.isnan(y[i]):
                row[i] = 0
                continue
            s, want = float(row[i]), float(y[i])
            loss += element_loss(sizes.loss, s, want)
            baseline += element_loss(sizes.loss, 0.0, want)
            row[i] = element_slope(sizes.loss, s, want)
    if not sizes.sum_steps:
        factor = 1.0 / count
        loss *= factor
        baseline *= factor
        slopes = output.reshape(output.size)
        scale = output.dtype.type(factor)
        for i in range(slopes.size):
            slopes[i] *= scale
    return loss, baseline


@compiled
def global_norm(gradient: Array) -> float:
    """L2 norm (P,), summed in float64."""
    total = 0.0
    for i in range(gradient.size):
        g = np.float64(gradient[i])
        total += g * g
    return math.sqrt(total)


@compiled
def scale_of_norm(norm: float, max_norm: float) -> float:
    """The factor that reduces a gradient's norm to at most `max_norm`."""
    return min(1.0, max_norm / (norm + NORM_EPSILON))


@compiled
def clip(sizes: Sizes, gradient: Array, norm: float) -> tuple[float, float]:
    """Clip in place, except for a last factor; return the norm after clipping, and the factor."""
    if sizes.clip == CLIP_NONE:
        return norm, 1.0
    if sizes.clip == CLIP_NORM:
        factor = scale_of_norm(norm, sizes.clip_threshold)
        # PyTorch's epsilon makes the scale slightly smaller than 1 near the bound: a norm within
        # the bound does not count as clipped.
        return norm * factor if norm > sizes.clip_threshold else norm, factor
    if sizes.clip == CLIP_LAYER_NORM:
        start = 0
        for part in range(sizes.L + 1):
            stop = start + layer_size(sizes, part) if part < sizes.L else sizes.P
            piece = gradient[start:stop]
            factor = piece.dtype.type(scale_of_norm(global_norm(piece), sizes.clip_threshold))
            for i in range(piece.size):
                piece[i] *= factor
            start = stop
        return min(norm, global_norm(gradient)), 1.0
    bound = gradient.dtype.type(sizes.clip_threshold)
    for i in range(gradient.size):
        g = gradient[i]
        gradient[i] = bound if g > bound else (-bound if g < -bound else g)
    return global_norm(gradient), 1.0


@compiled
def optimizer_step(
    tag: Tag,
    sizes: Sizes,
    parameters: Array,
    gradient: Array,
    factor: float,
    moments: Array,
    update: int,
    learning_rate: float,
) -> None:
    """One update in place, with `factor` times the gradient; as `bptt_core.optimizers.step`."""
    number = parameters.dtype.type
    decay, scale = number(sizes.weight_decay), number(factor)
    if sizes.decoupled_weight_decay:
        shrink = number(1 - learning_rate * sizes.weight_decay)
        for i in range(parameters.size):
            parameters[i] *= shrink
    elif sizes.weight_decay != 0.0:
        for i in range(parameters.size):
            gradient[i] = scale * gradient[i] + decay * parameters[i]
        factor = 1.0
    rule_step(tag, parameters, gradient, factor, moments, update, learning_rate)
