"""Shapes for random specs: valid input gives the spec's shapes, invalid input changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bptt_core import Chunk, Learner, ModelSpec, network, params
from bptt_core.errors import InvalidArgument, ShapeError
from tests.core.support import random_steps
from tests.property.support import examples

BLOCKS = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
"""Number of blocks of H rows in PyTorch's weights."""
backends = pytest.mark.parametrize("backend", ["reference", "compiled"])


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    task = draw(st.sampled_from(["forecast", "regression", "classification", "next_token"]))
    k1 = draw(st.integers(1, 6))
    values: dict[str, Any] = {
        "task": task,
        "cell": draw(st.sampled_from(sorted(BLOCKS))),
        "hidden_size": draw(st.integers(1, 9)),
        "layers": draw(st.integers(1, 3)),
        "k1": k1,
        "k2": k1 + draw(st.integers(0, 7)),
        "reduction": draw(st.sampled_from(["mean", "sum"])),
        "optimizer": draw(st.sampled_from(["sgd", "momentum", "rmsprop", "adagrad", "adamw"])),
        "clip": draw(st.sampled_from(["none", "value", "norm", "layer_norm"])),
        "scaling": draw(st.booleans()),
        "dtype": draw(st.sampled_from(["float32", "float64"])),
        "learning_rate": 0.001,
    }
    if task == "next_token":
        return ModelSpec(**values, vocabulary_size=draw(st.integers(2, 11)))
    values["input_size"] = inputs = draw(st.integers(1, 5))
    values["missing_inputs"] = draw(st.booleans())
    if task == "forecast":
        columns = draw(st.sets(st.integers(0, inputs - 1)).map(tuple))
        return ModelSpec(**values, horizon=draw(st.integers(1, 4)), target_columns=columns)
    return ModelSpec(
        **values,
        output_size=draw(st.integers(1, 4)),
        missing_targets=draw(st.booleans()),
        label_delay=draw(st.sampled_from([0, 0, 1, 4])),
    )


def pytorch_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Parameters of `nn.RNN`, `nn.LSTM` or `nn.GRU`, and of a linear head."""
    H, rows = spec.hidden_size, BLOCKS[spec.cell] * spec.hidden_size
    first = spec.vocabulary_size if spec.task == "next_token" else columns(spec)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(spec.layers):
        shapes[f"rnn.weight_ih_l{layer}"] = (rows, H if layer else first)
        shapes[f"rnn.weight_hh_l{layer}"] = (rows, H)
        shapes[f"rnn.bias_ih_l{layer}"] = (rows,)
        shapes[f"rnn.bias_hh_l{layer}"] = (rows,)
    return shapes | {"head.weight": (outputs(spec), H), "head.bias": (outputs(spec),)}


def columns(spec: ModelSpec) -> int:
    """Columns of a step: levels, changes of a forecast, and flags for missing values."""
    return spec.input_size * (1 + (spec.task == "forecast") + spec.missing_inputs)


def outputs(spec: ModelSpec) -> int:
    if spec.task == "forecast":
        return spec.horizon * (len(spec.target_columns) or spec.input_size)
    if spec.task == "next_token":
        return spec.vocabulary_size
    assert spec.output_size is not None
    return spec.output_size


def chunk(spec: ModelSpec, first: int, steps: int, seed: int = 0) -> Chunk:
    x, y = random_steps(spec, steps, streams=1, seed=seed)
    inputs = np.ascontiguousarray(x[:, 0])
    return Chunk("a", first, inputs, None if y is None else np.ascontiguousarray(y[:, 0]))


def memory(learner: Learner) -> dict[str, bytes]:
    arrays, metadata = learner.state()
    return {name: array.tobytes() for name, array in arrays.items()} | {"": repr(metadata).encode()}


@backends
@examples(60)
@given(spec=specs(), steps=st.integers(1, 20))
def test_what_comes_out(backend: Any, spec: ModelSpec, steps: int) -> None:
    learner = Learner(spec, backend=backend)
    (result,) = learner.apply([chunk(spec, 0, steps)]).chunks
    assert result.predictions is not None
    assert result.predictions.shape == (steps, outputs(spec))
    assert result.predictions.dtype == np.float64
    assert np.isfinite(result.predictions).all()
    assert result.next_step == steps
    state = (spec.layers, 2 if spec.cell == "lstm" else 1, spec.hidden_size)
    assert learner.carried_state("a").shape == state
    features, start = learner.window("a")
    assert features.shape[1:] == (columns(spec),)
    assert len(features) < spec.k2 + spec.delay
    assert start.shape == state
    more = chunk(spec, steps, 3, seed=1).inputs
    predicted = learner.snapshot().predict(learner.stream_view("a"), more)
    assert predicted.shape == (3, outputs(spec))
    side_by_side = Learner(spec, backend=backend).feed(*random_steps(spec, steps, streams=3))
    assert side_by_side.predictions is not None
    assert side_by_side.predictions.shape == (steps, 3, outputs(spec))


@examples(60)
@given(spec=specs())
def test_parameters_are_views_of_one_vector(spec: ModelSpec) -> None:
    shapes = pytorch_shapes(spec)
    vector = params.initialise(spec)
    assert vector.dtype == spec.dtype
    assert vector.shape == (sum(int(np.prod(shape)) for shape in shapes.values()),)
    views = params.views(spec, vector)
    assert {name: view.shape for name, view in views.items()} == shapes
    for number, view in enumerate(views.values()):
        assert np.shares_memory(view, vector)
        view[:] = number
    counts = [int(np.prod(shape)) for shape in shapes.values()]
    assert vector.tolist() == np.repeat(np.arange(len(counts)), counts).tolist()
    learner = Learner(spec, backend="reference")
    given_out = learner.parameters()
    assert {name: array.shape for name, array in given_out.items()} == shapes
    before = memory(learner)
    learner.load_parameters(given_out)
    assert memory(learner) == before


@examples(60)
@given(spec=specs(), steps=st.integers(1, 6), streams=st.integers(1, 3))
def test_a_gradient_has_the_shape_of_what_it_changes(
    spec: ModelSpec, steps: int, streams: int
) -> None:
    vector = params.initialise(spec)
    x = np.ones((steps, streams, spec.features), spec.dtype)
    state = np.zeros((spec.layers, spec.state_parts, streams, spec.hidden_size), spec.dtype)
    tape = network.forward(spec, params.views(spec, vector), x, state)
    assert tape.output.shape == (steps, streams, outputs(spec))
    gradient = network.backward(spec, params.views(spec, vector), tape, np.ones_like(tape.output))
    assert (gradient.shape, gradient.dtype) == (vector.shape, vector.dtype)
    shapes = {name: view.shape for name, view in params.views(spec, gradient).items()}
    assert shapes == pytorch_shapes(spec)
    with pytest.raises(ShapeError, match="vector"):
        params.views(spec, np.append(vector, vector[:1]))


WRONG: dict[str, Callable[[Any], Any]] = {
    "none": lambda array: array[:0],
    "an axis more": lambda array: array[..., np.newaxis].copy(),
    "no axis": lambda array: array.reshape(-1)[0],
    "a column more": lambda array: np.concatenate([array, array[..., :1]], axis=-1),
    "flat": lambda array: array.reshape(-1),
}


def wrongs(array: Any, *, none: bool = True, more: bool = False) -> list[Any]:
    """The array in wrong shapes; `none` and `more` add an empty and a longer one."""
    names = ["an axis more", "no axis"]
    names += ["none"] if none else []
    names += ["a column more", "flat"] if array.ndim > 1 else []
    made = [WRONG[name](array) for name in names]
    if more:
        made.append(np.concatenate([array, array[:1]]))
    return made


@backends
@examples(40)
@given(spec=specs(), steps=st.integers(1, 9))
def test_a_wrong_shape_is_named_and_changes_nothing(
    backend: Any, spec: ModelSpec, steps: int
) -> None:
    learner = Learner(spec, backend=backend)
    learner.apply([chunk(spec, 0, 7)])
    before = memory(learner)
    good = chunk(spec, 7, steps, seed=1)
    late = spec.label_delay > 0  # then steps and targets need not be as many
    tries = [
        ("inputs", Chunk("a", 7, each, good.targets)) for each in wrongs(good.inputs, none=not late)
    ]
    if good.targets is not None:
        tries += [
            ("targets", Chunk("a", 7, good.inputs, each))
            for each in wrongs(good.targets, more=not late)
        ]
    other = Chunk("b", 0, good.inputs, good.targets)
    for field, bad in tries:
        with pytest.raises(ShapeError) as caught:
            learner.apply([other, bad])
        assert caught.value.field == field
        assert memory(learner) == before
    for name, array in learner.parameters().items():
        for wrong in (array[None].copy(), np.append(array, array.reshape(-1)[:1])):
            with pytest.raises(ShapeError) as caught:
                learner.load_parameters(learner.parameters() | {name: wrong})
            assert caught.value.field == name
            assert memory(learner) == before


@examples(40)
@given(spec=specs(), steps=st.integers(1, 5), streams=st.integers(1, 3))
def test_a_wrong_shape_side_by_side(spec: ModelSpec, steps: int, streams: int) -> None:
    learner = Learner(spec, backend="reference")
    x, y = random_steps(spec, steps, streams)
    before = memory(learner)
    for field, args in [
        ("x", (x[:0], y)),
        ("x", (x[:, :0].copy(), y)),
        ("x", (x[..., np.newaxis].copy(), y)),
        *([] if y is None else [("targets", (x, y[:, :0].copy())), ("targets", (x, y[:0]))]),
    ]:
        with pytest.raises(ShapeError) as caught:
            learner.feed(*args)
        assert caught.value.field == field
        assert memory(learner) == before


@examples(40)
@given(spec=specs())
def test_a_memory_that_does_not_fit_is_named(spec: ModelSpec) -> None:
    learner = Learner(spec, backend="reference")
    learner.apply([chunk(spec, 0, 5)])
    arrays, metadata = learner.state()
    for name, array in arrays.items():
        with pytest.raises(ShapeError) as caught:
            Learner.from_state(arrays | {name: array[None].copy()}, metadata, backend="reference")
        assert caught.value.field == name
        if not array.size:
            continue  # not used by this spec; states of earlier versions lack it
        rest = {key: each for key, each in arrays.items() if key != name}
        with pytest.raises(InvalidArgument) as missing:
            Learner.from_state(rest, metadata, backend="reference")
        assert missing.value.field == name
