"""Losses, clips, optimizers and learning rates, number by number."""

from __future__ import annotations

import math
from collections.abc import Callable

from tests.core.naive.algebra import Matrix, sigmoid, Vector, zeros


def step_loss(loss: str, s: Vector, y: Vector) -> tuple[float, Vector, bool]:
    """Loss of one step, its slope at the outputs s, and whether there is any target."""
    if loss == "cross_entropy":
        return _cross_entropy(s, y[0])
    total, slope, present = 0.0, zeros(len(s)), False
    for i in range(len(s)):
        if math.isnan(y[i]):
            continue
        present = True
        if loss == "squared_error":
            total += (s[i] - y[i]) ** 2 / 2
            slope[i] = s[i] - y[i]
        elif loss == "huber":
            e = abs(s[i] - y[i])
            total += e * e / 2 if e <= 1 else e - 0.5
            slope[i] = s[i] - y[i] if e <= 1 else math.copysign(1.0, s[i] - y[i])
        else:
            p = sigmoid(s[i])
            total += -y[i] * math.log(p) - (1 - y[i]) * math.log(sigmoid(-s[i]))
            slope[i] = p - y[i]
    return total, slope, present


def _cross_entropy(s: Vector, wanted: float) -> tuple[float, Vector, bool]:
    if math.isnan(wanted):
        return 0.0, zeros(len(s)), False
    odds = [math.exp(each - max(s)) for each in s]
    p = [each / math.fsum(odds) for each in odds]
    slope = [p[i] - (1 if i == int(wanted) else 0) for i in range(len(s))]
    return math.log(math.fsum(odds)) + max(s) - s[int(wanted)], slope, True


def losses_and_slopes(
    loss: str, mean: bool, outputs: Matrix, targets: Matrix
) -> tuple[float, float, Matrix, int]:
    """Loss, the loss of outputs of 0, slopes, and the number of steps with a target."""
    total = baseline = 0.0
    slopes, count = [], 0
    for s, y in zip(outputs, targets, strict=True):
        value, slope, present = step_loss(loss, s, y)
        total += value
        baseline += step_loss(loss, zeros(len(s)), y)[0]
        slopes.append(slope)
        count += present
    if mean and count:
        slopes = [[each / count for each in slope] for slope in slopes]
        return total / count, baseline / count, slopes, count
    return total, baseline, slopes, count


def global_norm(gradient: Vector) -> float:
    return math.sqrt(math.fsum(g * g for g in gradient))


def scale_to_norm(gradient: Vector, max_norm: float) -> Vector:
    """Pascanu et al., algorithm 1, with PyTorch's 1e-6."""
    scale = min(1.0, max_norm / (global_norm(gradient) + 1e-6))
    return [scale * g for g in gradient]


def clip(kind: str, parts: Matrix, threshold: float) -> Matrix:
    """Clip a gradient given part by part: each layer's, then the head's."""
    if kind == "none":
        return parts
    if kind == "value":
        return [[max(-threshold, min(threshold, g)) for g in part] for part in parts]
    if kind == "layer_norm":
        return [scale_to_norm(part, threshold) for part in parts]
    clipped = scale_to_norm([g for part in parts for g in part], threshold)
    result, start = [], 0
    for part in parts:
        result.append(clipped[start : start + len(part)])
        start += len(part)
    return result


def optimizer_step(
    name: str,
    θ: Vector,
    g: Vector,
    moments: Matrix,
    update: int,
    learning_rate: float,
    weight_decay: float,
) -> tuple[Vector, Matrix]:
    """Parameters and moments after one update, counted from 1."""
    moments = [list(each) for each in moments]
    after = []
    for i in range(len(θ)):
        old, slope = θ[i], g[i]
        if name in DECOUPLED:
            old -= learning_rate * weight_decay * old
        else:
            slope += weight_decay * old
        own = [each[i] for each in moments]
        after.append(old - learning_rate * DIRECTIONS[name](slope, own, update))
        for each, value in zip(moments, own, strict=True):
            each[i] = value
    return after, moments


def _sgd(g: float, own: Vector, update: int) -> float:
    return g


def _momentum(g: float, own: Vector, update: int) -> float:
    own[0] = 0.9 * own[0] + g
    return own[0]


def _rmsprop(g: float, own: Vector, update: int) -> float:
    own[0] = 0.99 * own[0] + 0.01 * g * g
    return g / (math.sqrt(own[0]) + 1e-8)


def _adagrad(g: float, own: Vector, update: int) -> float:
    own[0] += g * g
    return g / (math.sqrt(own[0]) + 1e-10)


def _adam(g: float, own: Vector, update: int) -> float:
    own[0] = 0.9 * own[0] + 0.1 * g
    own[1] = 0.999 * own[1] + 0.001 * g * g
    m = own[0] / (1 - 0.9**update)
    v = own[1] / (1 - 0.999**update)
    return m / (math.sqrt(v) + 1e-8)


DIRECTIONS: dict[str, Callable[[float, Vector, int], float]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "adam": _adam,
    "adamw": _adam,
}
"""(g, moments of one parameter, update) → the factor of the learning rate; the moments are
overwritten. By the optimizer's name; a test that registers an optimizer adds its own."""
MOMENTS = {"sgd": 0, "momentum": 1, "rmsprop": 1, "adagrad": 1, "adam": 2, "adamw": 2}
"""Numbers that an optimizer keeps of each parameter."""
DECOUPLED = {"adamw"}
"""Optimizers whose weight decay is not added to the gradient."""


def learning_rate_at(
    update: int, highest: float, final: float, warmup_updates: int, decay_updates: int
) -> float:
    """A straight line up, a half cosine down, and then flat."""
    if update <= warmup_updates:
        return highest * update / warmup_updates
    if decay_updates == 0:
        return highest
    if update >= warmup_updates + decay_updates:
        return final
    angle = math.pi * (update - warmup_updates) / decay_updates
    return final + (highest - final) * (1 + math.cos(angle)) / 2
