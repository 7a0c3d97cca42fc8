"""Losses, clips, optimizers and learning rates against scalar code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt_core import clipping, losses, ModelSpec, optimizers, params
from bptt_core.kernels import dispatch, learning, sizes
from tests.core import naive
from tests.core.support import assert_twin, numbers

RANDOM = np.random.default_rng(13)
REAL = ["squared_error", "huber", "bernoulli"]
OUTPUTS = [-800.0, -3.5, -1.0, -0.25, 0.0, 1e-9, 0.7, 2.0, 33.0]
dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])


def spec_of(loss: Any = "huber", **others: Any) -> ModelSpec:
    task: Any = "classification" if loss == "cross_entropy" else "regression"
    return ModelSpec(task=task, output_size=4, hidden_size=3, layers=2, loss=loss, **others)


@pytest.mark.twin_of("learning.element_loss", "learning.element_slope")
@pytest.mark.parametrize("loss", REAL)
@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_one_output(loss: str, target: float) -> None:
    kind = sizes.sizes(spec_of(loss)).loss
    for s in OUTPUTS:
        if loss == "bernoulli" and abs(s) > 700:
            continue  # the twin takes the logarithm of a probability
        value, (slope,), _ = naive.step_loss(loss, [s], [target])
        assert learning.element_loss(kind, s, target) == pytest.approx(value, rel=1e-12, abs=1e-12)
        assert learning.element_slope(kind, s, target) == pytest.approx(slope, rel=1e-12, abs=1e-12)


@pytest.mark.twin_of("learning.cross_entropy")
@dtypes
def test_cross_entropy_of_large_logits(dtype: str) -> None:
    row = np.array([900.0, 903.0, -40.0, 901.5], dtype)
    value, slope, _ = naive.step_loss("cross_entropy", row.tolist(), [2.0])
    assert learning.cross_entropy(row, 2) == pytest.approx(value, rel=1e-6)
    assert_twin(row, slope, dtype)


def outputs_and_targets(loss: str, dtype: str) -> tuple[Any, Any]:
    """(n, O) and (n, width), some of them missing, one row wholly."""
    output = 2 * numbers(RANDOM, (6, 4), dtype)
    if loss == "cross_entropy":
        target = RANDOM.integers(0, 4, (6, 1)).astype(dtype)
    elif loss == "bernoulli":
        target = RANDOM.integers(0, 2, (6, 4)).astype(dtype)
    else:
        target = 2 * numbers(RANDOM, (6, 4), dtype)
        target[1, 2] = np.nan
    target[3] = np.nan
    return output, target


@pytest.mark.twin_of("learning.losses_and_slopes")
@pytest.mark.parametrize("loss", [*REAL, "cross_entropy"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@dtypes
def test_losses_and_slopes(loss: Any, reduction: Any, dtype: Any) -> None:
    output, target = outputs_and_targets(loss, dtype)
    ref = naive.losses_and_slopes(loss, reduction == "mean", output.tolist(), target.tolist())
    assert ref[3] == 5
    value = losses.value(loss, output, target).sum()
    slopes = losses.gradient(loss, output, target)
    share = 1 / losses.target_count(target[:, None]) if reduction == "mean" else 1.0
    assert_twin(share * value, ref[0], dtype)
    assert_twin(share * slopes, ref[2], dtype)
    told = sizes.sizes(spec_of(loss, reduction=reduction))
    comp = learning.losses_and_slopes(told, output, target, 5)
    assert_twin(comp[0], ref[0], dtype)
    assert_twin(comp[1], ref[1], dtype)
    assert_twin(output, ref[2], dtype)


def test_steps_without_a_target_have_no_loss_and_no_slope() -> None:
    output, target = numbers(RANDOM, (2, 4), "float64"), np.full((2, 4), np.nan)
    ref = naive.losses_and_slopes("huber", True, output.tolist(), target.tolist())
    comp = learning.losses_and_slopes(sizes.sizes(spec_of()), output, target, 3)
    assert comp == (ref[0], ref[1]) == (0.0, 0.0)
    assert output.tolist() == ref[2]


def parts(spec: ModelSpec, gradient: Any) -> list[list[float]]:
    """A flat gradient as lists, layer by layer, and then the head's."""
    split, start = [], 0
    for size in naive.layer_sizes(spec):
        split.append(gradient[start : start + size].tolist())
        start += size
    return [*split, gradient[start:].tolist()]


def clipped_by_reference(spec: ModelSpec, gradient: Any) -> Any:
    gradient = gradient.copy()
    if spec.clip == "norm":
        norm = clipping.clip_by_global_norm(gradient, spec.clip_threshold)
    elif spec.clip == "value":
        norm = clipping.clip_by_value(gradient, spec.clip_threshold)
    else:
        norm = clipping.clip_by_layer_norm(gradient, params.layer_ends(spec), spec.clip_threshold)
    assert norm >= clipping.global_norm(gradient)
    return gradient


@pytest.mark.twin_of("learning.clip", "learning.global_norm", "learning.scale_of_norm")
@pytest.mark.parametrize("clip", ["none", "value", "norm", "layer_norm"])
@pytest.mark.parametrize("threshold", [0.3, 4.0, 1e6])
@dtypes
def test_clips(clip: Any, threshold: float, dtype: Any) -> None:
    spec = spec_of(clip=clip, clip_threshold=threshold, dtype=dtype)
    gradient = numbers(RANDOM, (params.count(spec),), dtype)
    before = naive.global_norm(gradient.tolist())
    ref = [g for part in naive.clip(clip, parts(spec, gradient), threshold) for g in part]
    assert learning.global_norm(gradient) == pytest.approx(before, rel=1e-12)
    assert clipping.global_norm(gradient) == pytest.approx(before, rel=1e-12)
    if clip != "none":
        assert_twin(clipped_by_reference(spec, gradient), ref, dtype)
    comp = gradient.copy()
    norm, factor = learning.clip(sizes.sizes(spec), comp, learning.global_norm(gradient))
    assert_twin(factor * comp, ref, dtype)
    assert norm == pytest.approx(naive.global_norm(ref), rel=1e-5)
    scaled = learning.scale_of_norm(before, threshold) * gradient
    assert_twin(scaled, naive.scale_to_norm(gradient.tolist(), threshold), dtype)


def check_optimizer(name: str, weight_decay: float, factor: float, dtype: Any) -> None:
    """Five updates in both backends, so that moments of earlier updates are used."""
    spec = spec_of(optimizer=name, weight_decay=weight_decay, dtype=dtype)
    told, tag, rate = sizes.sizes(spec), dispatch.tag(spec), 0.05
    comp = params.initialise(spec)
    reference = comp.copy()
    moments = np.zeros((optimizers.OPTIMIZERS[name].moments, comp.size), dtype)
    its, θ, kept = moments.copy(), comp.tolist(), moments.tolist()
    for update in range(1, 6):
        gradient = numbers(RANDOM, comp.shape, dtype)
        θ, kept = naive.optimizer_step(name, θ, gradient.tolist(), kept, update, rate, weight_decay)
        learning.optimizer_step(tag, told, comp, gradient / factor, factor, moments, update, rate)
        optimizers.step(
            name, reference, gradient.copy(), its,
            update=update, learning_rate=rate, weight_decay=weight_decay,
        )  # fmt: skip
        assert_twin(comp, θ, dtype)
        assert_twin(reference, θ, dtype)
        for array in (moments, its):
            assert_twin(array, np.array(kept).reshape(array.shape), dtype)


@pytest.mark.twin_of(
    "learning.optimizer_step", "dispatch.rule_step", "rules.sgd", "rules.momentum", "rules.rmsprop",
    "rules.adagrad", "rules.adam",
)  # fmt: skip
@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("factor", [1.0, 0.25])
@dtypes
def test_optimizers(name: Any, factor: float, weight_decay: float, dtype: Any) -> None:
    check_optimizer(name, weight_decay, factor, dtype)


@pytest.mark.twin_of("learning.learning_rate_at")
@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("decay", [0, 1, 12])
def test_learning_rates(warmup: int, decay: int) -> None:
    for update in range(1, 30):
        ref = naive.learning_rate_at(update, 0.3, 0.02, warmup, decay)
        for comp in (learning.learning_rate_at, optimizers.learning_rate_at):
            assert comp(update, 0.3, 0.02, warmup, decay) == pytest.approx(ref, rel=1e-12)
