"""The public learner compared with results recorded from PyTorch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt_core import Learner, ModelSpec

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
LOSSES = {"mse": "squared_error"}


def spec_of(config: dict[str, Any], dtype: str) -> ModelSpec:
    return ModelSpec(
        task="classification" if config["loss"] == "cross_entropy" else "regression",
        input_size=config["input_size"],
        output_size=config["output_size"],
        cell=config["cell"],
        hidden_size=config["hidden_size"],
        layers=config["layers"],
        loss=LOSSES.get(config["loss"], config["loss"]),
        reduction=config["reduction"],
        k1=config["k1"],
        k2=config["k2"],
        optimizer=config["optimizer"],
        learning_rate=config["learning_rate"],
        clip=config["clip"],
        clip_threshold=config["clip_value"],
        scaling=False,
        dtype=dtype,  # type: ignore[arg-type]
    )


def group(data: Any, prefix: str) -> dict[str, Any]:
    return {k.split("/", 1)[1]: data[k] for k in data if k.startswith(prefix + "/")}


def assert_close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    """Relative to the largest element: single elements near zero carry no digits of their own."""
    scale = np.abs(expected).max() + 1e-30
    np.testing.assert_allclose(
        actual / scale, expected / scale, rtol=0, atol=tolerance, err_msg=what
    )


def predicted(loss: str, output: Any) -> Any:
    """The head's raw outputs in the user's units."""
    if loss == "cross_entropy":
        odds = np.exp(output)
        return odds / odds.sum(axis=-1, keepdims=True)
    return 1 / (1 + np.exp(-output)) if loss == "bernoulli" else output


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("clip", ["grad0", "clipped0"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_gradients(
    path: Path, clip: str, dtype: str, tolerance: float, backend: Any
) -> None:
    data = np.load(path)
    config = json.loads(str(data["config"]))
    # A step of SGD at a learning rate of 1 is the gradient itself.
    spec = replace(spec_of(config, dtype), optimizer="sgd", learning_rate=1.0, weight_decay=0.0)
    if clip == "grad0":
        spec = replace(spec, clip="none")
    learner = Learner(spec, backend=backend)
    before = group(data, "param0")
    learner.load_parameters(before)
    learner.feed(data["x"][: config["k1"]], data["target"][: config["k1"]])
    after = learner.parameters()
    moved = {name: before[name].astype(dtype) - after[name] for name in before}
    expected = group(data, clip)
    largest = max(float(np.abs(array).max()) for array in expected.values())
    for name, array in expected.items():
        np.testing.assert_allclose(
            moved[name] / largest, array / largest, rtol=0, atol=tolerance, err_msg=name
        )


@pytest.mark.parametrize("backend", ["reference", "compiled"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden(path: Path, dtype: str, tolerance: float, backend: Any) -> None:
    data = np.load(path)
    config = json.loads(str(data["config"]))
    learner = Learner(spec_of(config, dtype), backend=backend)
    learner.load_parameters(group(data, "param0"))
    x, target, k1 = data["x"], data["target"], config["k1"]
    for window in range(config["windows"]):
        new = slice(window * k1, (window + 1) * k1)
        result = learner.feed(x[new], target[new])
        assert len(result.updates) == 1
        report = result.updates[0]
        assert_close(report.loss, data["loss"][window], tolerance, "loss")
        assert_close(report.gradient_norm, data["grad_norm"][window], tolerance, "norm")
        assert_close(
            report.clipped_gradient_norm, data["clipped_norm"][window], tolerance, "clipped"
        )
        if window == 0:
            for name, expected in group(data, "param1").items():
                assert_close(learner.parameters()[name], expected, tolerance, name)
        # Where k1 < k2 a later window is unfolded again, while a prediction was made as steps came.
        if window == 0 or config["k1"] == config["k2"]:
            expected = predicted(config["loss"], data["output"][new])
            assert_close(result.predictions, expected, tolerance, "output")
    for name, expected in group(data, "param_end").items():
        assert_close(learner.parameters()[name], expected, tolerance, name)
    for part, name in enumerate(["h", "c"][: learner.spec.state_parts]):
        states = [learner.carried_state(str(b))[:, part] for b in range(config["batch"])]
        assert_close(np.stack(states, axis=1), data[f"state_end/{name}"], tolerance, name)
