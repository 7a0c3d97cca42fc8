"""Models and streams for the core's tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from bptt_core import Chunk, Learner, ModelSpec


def random_steps(spec: ModelSpec, steps: int, streams: int, seed: int = 0) -> tuple[Any, Any]:
    """Inputs (T, B, D) and targets that fit the spec, drawn from a seed."""
    random = np.random.default_rng(seed)
    if spec.task == "next_token":
        return random.integers(0, spec.vocabulary_size, (steps, streams)), None
    x = random.normal(size=(steps, streams, spec.input_size))
    if spec.task == "forecast":
        x = x.cumsum(axis=0)
    if spec.missing_inputs:
        x[random.random(x.shape) < 0.3] = np.nan
    if spec.task == "forecast":
        return x, None
    if spec.task == "classification":
        lowest = -1 if spec.missing_targets else 0
        return x, random.integers(lowest, spec.outputs, (steps, streams))
    if spec.loss == "bernoulli":
        return x, random.integers(0, 2, (steps, streams, spec.outputs)).astype(float)
    target = random.normal(size=(steps, streams, spec.outputs))
    if spec.missing_targets:
        target[random.random(target.shape) < 0.4] = np.nan
    return x, target


def chunk_of(
    name: str, first: int, stop: int, x: Any, target: Any, stream: int = 0, *, ends: bool = False
) -> Chunk:
    """Steps first to stop - 1 of one of the streams of `random_steps`."""
    inputs = np.ascontiguousarray(x[first:stop, stream])
    targets = None if target is None else np.ascontiguousarray(target[first:stop, stream])
    return Chunk(name, first, inputs, targets, ends)


def twin(learner: Learner, backend: Any) -> Learner:
    """A learner with the same memory."""
    return Learner.from_state(*learner.state(), backend=backend)


def assert_same_memory(a: Learner, b: Learner, tolerance: float) -> None:
    """All arrays of both learners agree; a tolerance of 0 means bit for bit."""
    mine, its_metadata = a.state()
    theirs, metadata = b.state()
    assert its_metadata == metadata
    for name, array in mine.items():
        if tolerance:
            np.testing.assert_allclose(theirs[name], array, tolerance, tolerance, err_msg=name)
        else:
            assert array.tobytes() == theirs[name].tobytes(), name


def assert_twin(comp: Any, ref: Any, dtype: str = "float64") -> None:
    """Assert that a kernel's array or number equals its scalar twin's, to the digits of its dtype.

    Relative to the largest element: single elements near zero carry no digits of their own.
    """
    tolerance = 1e-12 if dtype == "float64" else 1e-4
    expected = np.asarray(ref, dtype=np.float64)
    largest = float(np.abs(expected).max(initial=0.0, where=np.isfinite(expected)))
    np.testing.assert_allclose(np.asarray(comp), expected, tolerance, tolerance * (largest or 1.0))


def numbers(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    """Normal random numbers."""
    return random.normal(size=shape).astype(dtype)
