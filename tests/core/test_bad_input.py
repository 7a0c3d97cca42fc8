"""Bad input gets an error that names the argument, its value and its bound, and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bptt_core import Chunk, clipping, gradient_flow, Learner, ModelSpec
from bptt_core.errors import (
    DtypeError,
    InvalidArgument,
    LayoutError,
    NonFiniteError,
    OrderError,
    ShapeError,
    UnknownField,
    UnknownStream,
)
from tests.core.support import random_steps

FORECAST = ModelSpec(input_size=2, hidden_size=4)
REGRESSION = ModelSpec(task="regression", input_size=2, output_size=3, hidden_size=4)
CLASSES = ModelSpec(task="classification", input_size=2, output_size=3, hidden_size=4)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("input_size", {"input_size": 0}),
        ("input_size", {"input_size": 4097}),
        ("input_size", {"input_size": 1.5}),
        ("hidden_size", {"hidden_size": 0}),
        ("hidden_size", {"hidden_size": 5000}),
        ("layers", {"layers": 9}),
        ("horizon", {"horizon": 65}),
        ("k2", {"k1": 8, "k2": 4}),
        ("k1", {"k1": 0}),
        ("learning_rate", {"learning_rate": 0.0}),
        ("learning_rate", {"learning_rate": -1.0}),
        ("learning_rate", {"learning_rate": float("nan")}),
        ("clip_threshold", {"clip_threshold": 0.0}),
        ("weight_decay", {"weight_decay": -0.1}),
        ("cell", {"cell": "transformer"}),
        ("loss", {"loss": "cross_entropy"}),
        ("task", {"task": "translate"}),
        ("target_columns", {"target_columns": (5,)}),
        ("target_columns", {"target_columns": (0, 0)}),
        ("output_size", {"output_size": 7}),
        ("output_size", {"task": "regression"}),
        ("horizon", {"task": "regression", "output_size": 1, "horizon": 2}),
        ("seed", {"seed": -1}),
        ("vocabulary_size", {"vocabulary_size": 10}),
        ("vocabulary_size", {"task": "next_token", "input_size": 1}),
        ("vocabulary_size", {"task": "next_token", "input_size": 1, "vocabulary_size": 65537}),
        ("input_size", {"task": "next_token", "vocabulary_size": 10}),
        ("missing_targets", {"missing_targets": True}),
        ("warmup_updates", {"warmup_updates": -1}),
        ("final_learning_rate", {"final_learning_rate": 0.1}),
        ("max_batch_streams", {"max_batch_streams": 0}),
        ("learning_rate", {"learning_rate": "fast"}),
        ("clip_threshold", {"clip_threshold": True}),
        ("target_columns", {"task": "regression", "output_size": 1, "target_columns": (0,)}),
        (
            "output_size",
            {"task": "next_token", "input_size": 1, "vocabulary_size": 10, "output_size": 9},
        ),
    ],
)
def test_spec_names_field_and_value(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ModelSpec(**({"input_size": 2} | values))
    assert caught.value.field == field
    assert field in str(caught.value)
    assert caught.value.bound


def test_spec_survives_json() -> None:
    spec = ModelSpec(input_size=3, target_columns=(0, 2), horizon=2, cell="gru")
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    words = "unknown field 'colour', which is red; known fields: cell, clip, "
    with pytest.raises(UnknownField, match=words) as caught:
        ModelSpec.from_dict({"input_size": 3, "colour": "red"})
    assert caught.value.field == "colour"


BERNOULLI = ModelSpec(
    task="regression", input_size=2, output_size=3, hidden_size=4, loss="bernoulli"
)
X = np.ones((4, 2))
TOKENS = ModelSpec(task="next_token", vocabulary_size=5, hidden_size=4)


@pytest.mark.parametrize(
    ("spec", "inputs", "targets", "error", "named"),
    [
        (FORECAST, np.ones((4, 3)), None, ShapeError, "inputs"),
        (FORECAST, np.ones(4), None, ShapeError, "inputs"),
        (FORECAST, np.ones((0, 2)), None, ShapeError, "inputs"),
        (FORECAST, np.ones((4, 2), int), None, DtypeError, "inputs"),
        (FORECAST, np.ones((4, 2), complex), None, DtypeError, "inputs"),
        (FORECAST, np.array([["a", "b"]]), None, DtypeError, "inputs"),
        (FORECAST, np.array([[1, 2], [3, np.nan]]), None, NonFiniteError, "inputs[1][1]"),
        (FORECAST, np.array([[np.inf, 2.0]]), None, NonFiniteError, "inputs[0][0]"),
        (TOKENS, np.array([1, 5]), None, InvalidArgument, "inputs[1]"),
        (TOKENS, np.array([-1]), None, InvalidArgument, "inputs[0]"),
        (TOKENS, np.array([1.0]), None, DtypeError, "inputs"),
        (TOKENS, np.array([[1]]), None, ShapeError, "inputs"),
        (BERNOULLI, X, np.full((4, 3), 1.5), InvalidArgument, "targets[0][0]"),
        (REGRESSION, X, np.full((4, 3), np.nan), NonFiniteError, "targets[0][0]"),
        (FORECAST, X, X, InvalidArgument, "targets"),
        (REGRESSION, X, None, InvalidArgument, "targets"),
        (REGRESSION, X, np.ones((4, 2)), ShapeError, "targets"),
        (REGRESSION, X, np.ones((3, 3)), ShapeError, "targets"),
        (CLASSES, X, np.ones(4), DtypeError, "targets"),
        (CLASSES, X, np.array([0, 1, 2, 3]), InvalidArgument, "targets"),
        (CLASSES, X, np.array([0, 1, 2, -1]), InvalidArgument, "targets"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_refused_chunk_changes_nothing(
    spec: ModelSpec, inputs: Any, targets: Any, error: type[Exception], named: str, backend: Any
) -> None:
    learner = Learner(spec, backend=backend)
    x, y = random_steps(spec, 9, streams=1)
    learner.apply([Chunk("a", 0, x[:, 0], None if y is None else y[:, 0])])
    before, metadata = learner.state()
    good = Chunk("b", 0, x[:, 0], None if y is None else y[:, 0])
    with pytest.raises(error, match=re.escape(named)):
        learner.apply([good, Chunk("a", 9, inputs, targets)])
    after, its_metadata = learner.state()
    assert metadata == its_metadata
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name


def test_a_chunk_out_of_order_is_refused() -> None:
    learner = Learner(FORECAST, backend="reference")
    learner.apply([Chunk("a", 0, X)])
    with pytest.raises(OrderError, match=r"first_step of stream 'a' is 9, but must be 4") as gap:
        learner.apply([Chunk("a", 9, X)])
    assert gap.value.next_step == 4
    with pytest.raises(OrderError, match="must be 4"):
        learner.apply([Chunk("a", 3, X)])
    with pytest.raises(InvalidArgument, match="at most one chunk a stream"):
        learner.apply([Chunk("a", 4, X), Chunk("a", 8, X)])
    with pytest.raises(InvalidArgument, match="at least one chunk"):
        learner.apply([])
    assert learner.next_step("a") == 4


def test_unknown_stream_is_named() -> None:
    learner = Learner(FORECAST, backend="reference")
    for ask in (learner.next_step, learner.reset_stream, learner.delete_stream):
        with pytest.raises(UnknownStream, match="'nobody'"):
            ask("nobody")


def strided(array: Any) -> Any:
    return np.repeat(array, 2, axis=0)[::2]


def frozen(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view


def foreign(array: Any) -> Any:
    return array.astype(array.dtype.newbyteorder())


LAYOUTS: list[tuple[Any, type[Exception], str]] = [
    (strided, LayoutError, r"not contiguous: .* strides .*, but must be C-contiguous, as np\."),
    (np.asfortranarray, LayoutError, "not contiguous.*but must be C-contiguous"),
    (frozen, LayoutError, r"read-only, but must be writeable, as np\.array"),
    (foreign, DtypeError, r"of dtype >\w+, but must be in the machine's own byte order"),
]
layouts = pytest.mark.parametrize(
    ("layout", "error", "words"), LAYOUTS, ids=["strided", "fortran", "read-only", "big-endian"]
)


def fits(layout: Any, array: Any) -> bool:
    """One column has the same layout in C and Fortran order, and is accepted."""
    return layout is not np.asfortranarray or min(array.shape) > 1 < array.ndim


@layouts
@pytest.mark.parametrize("spec", [FORECAST, REGRESSION, CLASSES, TOKENS], ids=lambda s: s.task)
@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_an_array_of_another_layout_is_refused(
    spec: ModelSpec, layout: Any, error: type[Exception], words: str, backend: Any
) -> None:
    learner = Learner(spec, backend=backend)
    x, y = random_steps(spec, 12, streams=2)
    learner.feed(x, y)
    before, metadata = learner.state()
    one, its = np.ascontiguousarray(x[:, 0]), None if y is None else np.ascontiguousarray(y[:, 0])
    calls: list[tuple[str, Any, Callable[[], Any]]] = []
    calls.append(("x", x, lambda: learner.feed(layout(x), y)))
    if y is not None:
        calls += [
            ("targets", y, lambda: learner.feed(x, layout(y))),
            ("targets", its, lambda: learner.apply([Chunk("0", 12, one, layout(its))])),
        ]
    calls += [
        ("inputs", one, lambda: learner.apply([Chunk("0", 12, layout(one), its)])),
        ("inputs", one, lambda: learner.snapshot().predict(None, layout(one))),
    ]
    for named, array, call in calls:
        if fits(layout, array):
            with pytest.raises(error, match=f"^{named} is {words}"):
                call()
    after, its_metadata = learner.state()
    assert metadata == its_metadata
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name


@layouts
def test_a_saved_memory_lies_as_it_must(layout: Any, error: type[Exception], words: str) -> None:
    learner = Learner(FORECAST, backend="reference")
    x, _ = random_steps(FORECAST, 12, streams=2)
    learner.feed(x)
    arrays, metadata = learner.state()
    good = learner.parameters()
    name = "rnn.weight_hh_l0"
    wrong = layout(arrays["streams.inputs"])
    with pytest.raises(error, match=r"streams\.inputs"):
        Learner.from_state(arrays | {"streams.inputs": wrong}, metadata)
    with pytest.raises(error, match=rf"{name} is .*{words}"):
        learner.load_parameters(good | {name: layout(good[name] + 1)})
    for key, array in learner.parameters().items():
        assert array.tobytes() == good[key].tobytes()


@pytest.mark.parametrize("spec", [FORECAST, TOKENS], ids=lambda s: s.task)
def test_a_learners_own_results_are_valid_input(spec: ModelSpec) -> None:
    learner = Learner(spec, backend="reference")
    x, y = random_steps(spec, 12, streams=1)
    learner.feed(x, y)
    before = learner.parameters()
    learner.load_parameters(before)
    for name, array in learner.parameters().items():
        assert array.tobytes() == before[name].tobytes()
    gradient_flow(spec, before, *learner.window("0"))
    gradient_flow(spec, before, learner.window("0")[0], learner.carried_state("0"))


def test_parameters_are_checked_before_any_is_loaded() -> None:
    learner = Learner(FORECAST, backend="reference")
    good = learner.parameters()
    name = "rnn.weight_hh_l0"
    bad: list[tuple[dict[str, Any], type[Exception]]] = [
        ({name: np.ones((4, 5))}, ShapeError),
        ({name: np.ones((4, 4), int)}, DtypeError),
        ({name: np.full((4, 4), np.nan)}, NonFiniteError),
        ({"rnn.weight_xx": np.ones(3)}, InvalidArgument),
    ]
    for wrong, error in bad:
        changed = {key: array + 1 for key, array in good.items()} | wrong
        with pytest.raises(error, match=next(iter(wrong))):
            learner.load_parameters(changed)
    with pytest.raises(InvalidArgument, match="missing"):
        learner.load_parameters({})
    for key, array in learner.parameters().items():
        np.testing.assert_array_equal(array, good[key])


def test_state_is_checked() -> None:
    learner = Learner(FORECAST, backend="reference")
    learner.apply([Chunk("a", 0, X)])
    arrays, metadata = learner.state()
    with pytest.raises(InvalidArgument, match="format"):
        Learner.from_state(arrays, metadata | {"format": 99})
    with pytest.raises(InvalidArgument, match="streams is a, but must be a list of names"):
        Learner.from_state(arrays, metadata | {"streams": "a"})
    with pytest.raises(InvalidArgument, match=r"model\.moments"):
        Learner.from_state({k: v for k, v in arrays.items() if "moments" not in k}, metadata)
    with pytest.raises(ShapeError, match=r"streams\.inputs"):
        Learner.from_state(arrays | {"streams.inputs": arrays["streams.inputs"][:, :1]}, metadata)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="backend is torch, but must be one of compiled, "):
        Learner(FORECAST, backend="torch")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_not_clipped(wrong: float) -> None:
    clips: list[Callable[[Any], float]] = [
        lambda gradient: clipping.clip_by_global_norm(gradient, 1.0),
        lambda gradient: clipping.clip_by_layer_norm(gradient, [1, 3], 1.0),
        lambda gradient: clipping.clip_by_value(gradient, 1.0),
    ]
    for clip in clips:
        gradient = np.array([3.0, wrong, -5.0])
        with pytest.raises(NonFiniteError, match=r"gradient is of norm (nan|inf), but must be"):
            clip(gradient)
        assert gradient.tolist() == pytest.approx([3.0, wrong, -5.0], nan_ok=True)


def test_a_prediction_without_stream_and_inputs_is_refused() -> None:
    learner = Learner(REGRESSION, backend="reference")
    with pytest.raises(InvalidArgument, match="inputs is left out, but must be given for task"):
        learner.snapshot().predict(None)
    learner = Learner(FORECAST, backend="reference")
    learner.apply([Chunk("a", 0, X, end_of_sequence=True)])
    for view in (None, learner.stream_view("a")):
        with pytest.raises(InvalidArgument, match="for a stream whose sequence has no step yet"):
            learner.snapshot().predict(view)
