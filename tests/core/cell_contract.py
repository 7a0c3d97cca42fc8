"""The contract of cells in both backends; a test file that registers a cell runs it too.

A subclass of `CellContract` gives the names of its cells as the fixture `cell`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bptt_core import bytes_of_model, gradient_flow, Learner, ModelSpec, params, spectral_radii
from bptt_core.cells import CELLS
from tests.core import naive
from tests.core.support import assert_same_memory, chunk_of, random_steps, twin
from tests.core.test_gradient_flow import parameters_of, ratios_by_finite_differences, window_of
from tests.core.test_gradients import check_slope, spec_of
from tests.core.test_twin import check_learner
from tests.core.test_twin_cells import check_kernels, check_reference

STEPS = 40
BACKENDS = ["reference", "compiled"]
backends = pytest.mark.parametrize("backend", BACKENDS)


def regression(cell: str, **others: Any) -> ModelSpec:
    values: dict[str, Any] = {
        "task": "regression", "input_size": 3, "output_size": 2, "hidden_size": 5, "layers": 2,
        "k1": 3, "k2": 7, "dtype": "float64",
    }  # fmt: skip
    return ModelSpec(**values | {"cell": cell} | others)


class CellContract:
    """The suite. A subclass supplies the fixture `cell`."""

    @backends
    @pytest.mark.parametrize("kind", ["squared_error", "tokens"])
    def test_the_gradient_is_the_slope_of_the_loss(
        self, cell: str, kind: str, backend: Any
    ) -> None:
        check_slope(spec_of(kind, cell=cell, layers=2, k1=2, k2=6, reduction="sum"), backend)

    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_the_reference_is_its_scalar_twin(self, cell: str, dtype: str) -> None:
        check_reference(cell, dtype)

    @pytest.mark.parametrize("streams", [1, 3, 6])
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_the_kernels_are_their_scalar_twin(self, cell: str, streams: int, dtype: str) -> None:
        check_kernels(cell, streams, dtype)

    @backends
    def test_a_learner_equals_its_scalar_twin(self, cell: str, backend: Any) -> None:
        check_learner(regression(cell), backend)

    def test_the_backends_agree_and_a_batch_is_its_streams(self, cell: str) -> None:
        spec = regression(cell)
        x, y = random_steps(spec, STEPS, streams=6)
        compiled, reference = Learner(spec), Learner(spec, backend="reference")
        for learner in (compiled, reference):
            learner.feed(x, y)
        assert compiled.figures.updates > 0
        assert_same_memory(compiled, reference, 1e-9)

    @backends
    @pytest.mark.parametrize("cuts", [[1], [5, 6, 20], list(range(1, STEPS))])
    def test_chunk_cuts_change_no_bit(self, cell: str, backend: Any, cuts: list[int]) -> None:
        spec = regression(cell)
        x, y = random_steps(spec, STEPS, streams=1)
        whole, cut = Learner(spec, backend=backend), Learner(spec, backend=backend)
        (expected,) = whole.apply([chunk_of("a", 0, STEPS, x, y, ends=True)]).chunks
        made = []
        for start, stop in zip([0, *cuts], [*cuts, STEPS], strict=True):
            chunk = chunk_of("a", start, stop, x, y, ends=stop == STEPS)
            part = cut.apply([chunk]).chunks[0].predictions
            assert part is not None
            made.append(part)
        assert expected.predictions is not None
        assert np.concatenate(made).tobytes() == expected.predictions.tobytes()
        assert_same_memory(whole, cut, 0)

    @pytest.mark.parametrize("layers", [1, 2])
    def test_gradient_flow_is_the_product_of_jacobians(self, cell: str, layers: int) -> None:
        spec = regression(cell, layers=layers)
        named = parameters_of(spec, 1.5)
        x, state = window_of(spec, 9, seed=7)
        flow = gradient_flow(spec, named, x, state, seed=3)
        expected = ratios_by_finite_differences(spec, named, x, state, flow.direction)
        np.testing.assert_allclose(flow.ratios, expected, rtol=1e-6, atol=1e-9)
        assert flow.ratios[9] > 1e-9, "a curve of zeros would agree with anything"
        radii = spectral_radii(spec, named)
        assert all(tuple(each) == CELLS[cell].gates for each in radii)
        assert flow.spectral_radius == max(each[CELLS[cell].candidate] for each in radii)

    @backends
    def test_a_state_goes_out_and_comes_back(self, cell: str, backend: Any) -> None:
        spec = regression(cell)
        x, y = random_steps(spec, STEPS, streams=2)
        learner = Learner(spec, backend=backend)
        learner.feed(x[:25], y[:25])
        again = twin(learner, backend)
        assert again.spec == ModelSpec.from_dict(spec.to_dict()) == spec
        for each in (learner, again):
            each.feed(x[25:], y[25:])
        assert_same_memory(learner, again, 0)
        assert learner.carried_state("0").shape == (2, len(CELLS[cell].state_parts), 5)

    def test_a_prediction_does_not_depend_on_how_its_steps_are_read(self, cell: str) -> None:
        spec = regression(cell)
        x, y = random_steps(spec, STEPS, streams=1)
        learner = Learner(spec)
        learner.feed(x, y)
        snapshot, view = learner.snapshot(), learner.stream_view("0")
        made = snapshot.predict(view, x[:9, 0])
        assert made[:4].tobytes() == snapshot.predict(view, x[:4, 0]).tobytes()
        plain = Learner.from_state(*learner.state(), backend="reference").snapshot()
        np.testing.assert_allclose(made, plain.predict(view, x[:9, 0]), 1e-9, 1e-12)

    def test_parameters_and_memory_follow_from_the_descriptor(self, cell: str) -> None:
        spec, expected = regression(cell), naive.layer_sizes(regression(cell))
        assert spec.gates == naive.TWINS[cell].blocks
        assert spec.state_parts == naive.TWINS[cell].parts
        assert params.count(spec) == sum(expected) + spec.outputs * (spec.hidden_size + 1)
        vector = params.initialise(spec)
        assert np.isfinite(vector).all()
        assert vector.tobytes() == params.initialise(spec).tobytes()
        assert vector.tobytes() != params.initialise(replace(spec, seed=1)).tobytes()
        assert bytes_of_model(spec) > bytes_of_model(replace(spec, hidden_size=4))
