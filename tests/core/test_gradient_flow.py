"""Gradient flow against the product of Jacobians by finite differences, and in closed form."""

from __future__ import annotations

import doctest
import sys
from typing import Any

import numpy as np
import pytest

from bptt_core import (
    gradient_flow,
    GradientFlow,
    Learner,
    ModelSpec,
    network,
    params,
    spectral_radii,
)
from bptt_core.cells import CELLS
from bptt_core.errors import DtypeError, InvalidArgument, NonFiniteError, ShapeError
from bptt_core.gradient_flow import EXACT_SIZE_MAX, spectral_radius
from bptt_core.specs import CellName

EPSILON = 1e-6


def spec_of(cell: CellName, **more: Any) -> ModelSpec:
    values = {"task": "regression", "input_size": 3, "output_size": 2, "hidden_size": 5}
    return ModelSpec(**{**values, "cell": cell, "dtype": "float64", **more})


def parameters_of(spec: ModelSpec, scale: float = 1.0) -> dict[str, Any]:
    views = params.views(spec, params.initialise(spec) * scale)
    return {name: np.ascontiguousarray(view) for name, view in views.items()}


def window_of(spec: ModelSpec, steps: int, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    state = random.normal(size=(spec.layers, spec.state_parts, spec.hidden_size)) / 3
    return random.normal(size=(steps, spec.features)), state


def states_after(spec: ModelSpec, named: Any, x: Any, state: Any) -> Any:
    """The carried state after a window, as one vector."""
    tape = network.forward(spec, named, x[:, None], state[:, :, None])
    return tape.state_after(len(x)).ravel()


def ratios_by_finite_differences(
    spec: ModelSpec, named: Any, x: Any, state: Any, direction: Any
) -> list[float]:
    """The whole Jacobian of the last state after each earlier one, column by column."""
    vector = np.zeros((spec.layers, spec.state_parts, spec.hidden_size))
    vector[-1, 0] = direction
    found = [1.0]
    for lag in range(1, len(x) + 1):
        first = len(x) - lag
        tape = network.forward(spec, named, x[:, None], state[:, :, None])
        before = tape.state_after(first)[:, :, 0]
        columns = []
        for place in np.ndindex(before.shape):
            change = np.zeros_like(before)
            change[place] = EPSILON
            up = states_after(spec, named, x[first:], before + change)
            down = states_after(spec, named, x[first:], before - change)
            columns.append((up - down) / (2 * EPSILON))
        jacobian = np.stack(columns, axis=1)
        found.append(float(np.linalg.norm(jacobian.T @ vector.ravel())))
    return found


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_ratios_are_those_of_the_product_of_jacobians(cell: CellName, layers: int) -> None:
    spec = spec_of(cell, layers=layers, seed=layers)
    named = parameters_of(spec, 1.5)
    x, state = window_of(spec, 9, seed=7)
    flow = gradient_flow(spec, named, x, state, seed=3)
    expected = ratios_by_finite_differences(spec, named, x, state, flow.direction)
    np.testing.assert_allclose(flow.ratios, expected, rtol=1e-6, atol=1e-9)
    assert flow.ratios[9] > 1e-6, "a curve of zeros would agree with anything"


def relu_in_its_linear_regime(scale: float) -> tuple[ModelSpec, dict[str, Any], Any]:
    """Positive weights, biases and inputs: no activation is ever negative."""
    spec = spec_of("rnn_relu")
    named = {name: np.abs(array) for name, array in parameters_of(spec).items()}
    radius = max(abs(np.linalg.eigvals(named["rnn.weight_hh_l0"])))
    named["rnn.weight_hh_l0"] *= scale / radius
    return spec, named, np.random.default_rng(0).uniform(0.1, 1, (40, 3))


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
def test_a_linear_network_multiplies_by_powers_of_its_matrix(scale: float) -> None:
    spec, named, x = relu_in_its_linear_regime(scale)
    flow = gradient_flow(spec, named, x)
    W, vector = named["rnn.weight_hh_l0"], flow.direction
    expected = [
        np.linalg.norm(np.linalg.matrix_power(W.T, lag) @ vector) for lag in range(len(x) + 1)
    ]
    np.testing.assert_allclose(flow.ratios, expected, rtol=1e-10)
    assert flow.spectral_radius == pytest.approx(scale)
    # Far back every step multiplies by the spectral radius (Gelfand).
    assert flow.ratios[40] / flow.ratios[39] == pytest.approx(scale, rel=1e-6)


def test_an_open_forget_gate_passes_the_gradient_and_a_shut_one_does_not() -> None:
    spec = spec_of("lstm")
    named = {name: array * 0.01 for name, array in parameters_of(spec).items()}
    x, _ = window_of(spec, 50)
    left = []
    for bias in (-9.0, 9.0):
        named["rnn.bias_ih_l0"][5:10] = bias
        left.append(gradient_flow(spec, named, x).memory_horizon)
    assert left == [0, 50]


def test_the_views_of_a_curve() -> None:
    ratios = np.array([1, 0.5, 0.02, 0.005, 0.011, 0.01, 0.001])
    flow = GradientFlow(ratios, np.ones(1), 0.5)
    assert flow.steps == 6
    assert flow.by_lag == {1: 0.5, 2: 0.02, 4: 0.011, 6: 0.001}
    assert flow.memory_horizon == 4  # 1 % itself is not more than 1 %
    assert GradientFlow(np.array([1, 1e-9]), np.ones(1), 0.5).memory_horizon == 0


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_no_lag_is_too_long(scale: float) -> None:
    spec, named, x = relu_in_its_linear_regime(0.5)
    named["rnn.weight_hh_l0"] *= scale
    # The states of 30 steps fit a double; the norm of a longer product would not.
    ratios = gradient_flow(spec, named, x[:30]).ratios
    assert not np.isnan(ratios).any()
    tanh = spec_of("rnn_tanh", hidden_size=1)
    named = {name: np.zeros_like(array) for name, array in parameters_of(tanh).items()}
    named["rnn.weight_hh_l0"][:] = scale
    ratios = gradient_flow(tanh, named, np.zeros((100, 3))).ratios
    assert ratios[1] == pytest.approx(scale)
    assert ratios[100] == (0 if scale < 1 else np.inf)


def test_inactive_relus_pass_no_gradient() -> None:
    spec = spec_of("rnn_relu")
    named = {name: -np.abs(array) for name, array in parameters_of(spec).items()}
    flow = gradient_flow(spec, named, np.ones((4, 3)))
    assert flow.ratios.tolist() == [1, 0, 0, 0, 0]
    assert flow.memory_horizon == 0


@pytest.mark.parametrize("cell", CELLS)
def test_single_precision_is_accepted(cell: CellName) -> None:
    spec = spec_of(cell, dtype="float32")
    named = parameters_of(spec)
    x, state = (array.astype(np.float32) for array in window_of(spec, 6))
    flow = gradient_flow(spec, named, x, state)
    wide = gradient_flow(
        spec, {name: array.astype(np.float64) for name, array in named.items()}, x, state
    )
    np.testing.assert_array_equal(flow.ratios, wide.ratios)
    assert flow.ratios.dtype == np.float64


def test_the_seed_changes_only_the_vector() -> None:
    spec = spec_of("gru")
    named, (x, state) = parameters_of(spec), window_of(spec, 6)
    first, again, other = (gradient_flow(spec, named, x, state, seed) for seed in (0, 0, 1))
    assert first.ratios.tobytes() == again.ratios.tobytes()
    assert np.abs(first.direction - other.direction).max() > 0.1
    assert np.linalg.norm(other.direction) == pytest.approx(1)
    with pytest.raises(ValueError, match="read-only"):
        first.ratios[0] = 2


def test_the_arguments_are_not_changed() -> None:
    spec = spec_of("lstm")
    named, (x, state) = parameters_of(spec), window_of(spec, 6)
    before = [array.copy() for array in (*named.values(), x, state)]
    gradient_flow(spec, named, x, state)
    for old, new in zip(before, (*named.values(), x, state), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_window_of_a_learners_stream() -> None:
    spec = spec_of("gru", k1=4, k2=16)
    random = np.random.default_rng(0)
    learner = Learner(spec, backend="reference")
    learner.feed(random.normal(size=(50, 1, 3)), random.normal(size=(50, 1, 2)))
    flow = gradient_flow(learner.spec, learner.parameters(), *learner.window("0"))
    assert 12 <= flow.steps <= 16


@pytest.mark.parametrize("cell", CELLS)
def test_token_ids_are_read_as_one_hot_vectors(cell: CellName) -> None:
    spec = ModelSpec(task="next_token", vocabulary_size=7, cell=cell, hidden_size=5)
    dense = ModelSpec(task="regression", input_size=7, output_size=7, cell=cell, hidden_size=5)
    named = parameters_of(spec)
    ids = np.random.default_rng(0).integers(0, 7, (12, 1)).astype(np.float32)
    flow = gradient_flow(spec, named, ids)
    same = gradient_flow(dense, named, np.eye(7)[ids[:, 0].astype(int)])
    np.testing.assert_allclose(flow.ratios, same.ratios, rtol=1e-12)
    for bad in (7.0, 0.5, -1.0):
        with pytest.raises(InvalidArgument, match="token ids"):
            gradient_flow(spec, named, np.full((3, 1), bad))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"inputs": np.zeros((0, 3))}, ShapeError, "inputs"),
        ({"inputs": np.zeros((4, 2))}, ShapeError, r"inputs.*\(1 or more, 3\)"),
        ({"inputs": np.zeros((4, 1, 3))}, ShapeError, "inputs"),
        ({"inputs": np.zeros((4, 3), int)}, DtypeError, "inputs"),
        ({"inputs": np.full((4, 3), np.inf)}, NonFiniteError, "inputs"),
        ({"state": np.zeros((1, 5))}, ShapeError, r"state.*\(1, 1, 5\)"),
        ({"state": np.full((1, 1, 5), np.nan)}, NonFiniteError, "state"),
        ({"seed": -1}, InvalidArgument, "seed"),
        ({"parameters": {}}, InvalidArgument, "weight_ih_l0 is missing"),
    ],
)
def test_a_wrong_shape_is_refused_by_name(change: Any, error: type[Exception], words: str) -> None:
    spec = spec_of("rnn_tanh")
    arguments = {"parameters": parameters_of(spec), "inputs": np.zeros((4, 3)), **change}
    with pytest.raises(error, match=words):
        gradient_flow(spec, **arguments)


def test_overflowing_states_are_an_error() -> None:
    spec, named, x = relu_in_its_linear_regime(1e20)
    with pytest.raises(NonFiniteError, match="state"):
        gradient_flow(spec, named, x)


@pytest.mark.parametrize(
    ("cell", "blocks"),
    [("rnn_tanh", "h"), ("rnn_relu", "h"), ("lstm", "ifgo"), ("gru", "rzn")],
)
def test_spectral_radii_are_those_of_the_blocks(cell: CellName, blocks: str) -> None:
    spec = spec_of(cell, layers=2)
    named = parameters_of(spec)
    found = spectral_radii(spec, named)
    assert len(found) == 2
    for index, radii in enumerate(found):
        assert "".join(radii) == blocks
        rows = named[f"rnn.weight_hh_l{index}"].reshape(len(blocks), 5, 5)
        for block, radius in zip(rows, radii.values(), strict=True):
            assert radius == pytest.approx(max(abs(np.linalg.eigvals(block))))
    candidate = {"lstm": "g", "gru": "n"}.get(cell, "h")
    flow = gradient_flow(spec, named, np.zeros((1, 3)))
    assert flow.spectral_radius == max(radii[candidate] for radii in found)


def large_matrix(kind: str, H: int) -> Any:
    random = np.random.default_rng(1)
    if kind == "random":
        return random.normal(size=(H, H)) * H**-0.5
    if kind == "orthogonal":
        return 0.9 * np.linalg.qr(random.normal(size=(H, H)))[0]
    if kind == "diagonal":
        return np.diag(np.linspace(-1.5, 1, H))
    return np.eye(H) * (kind == "identity")


@pytest.mark.parametrize("kind", ["random", "orthogonal", "diagonal", "identity", "zero"])
def test_the_spectral_radius_of_a_large_matrix(kind: str) -> None:
    matrix = large_matrix(kind, EXACT_SIZE_MAX + 44)
    exact = np.abs(np.linalg.eigvals(matrix)).max()
    assert spectral_radius(matrix) == pytest.approx(exact, rel=0.02)


def test_a_matrix_must_be_square() -> None:
    with pytest.raises(ShapeError, match="matrix"):
        spectral_radius(np.zeros((2, 3)))


def test_the_example_in_the_docstring_runs() -> None:
    found = doctest.testmod(sys.modules["bptt_core.gradient_flow"])
    assert found.attempted > 0
    assert found.failed == 0
