"""The table of addresses, its readers, and a whole call of the learner."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numba import njit

from bptt_core import Chunk, Learner, ModelSpec
from bptt_core.kernels import addresses, dispatch, sizes, table, transition
from bptt_core.kernels.backend import Compiled
from bptt_core.state import Model, new_model, new_streams, Streams
from bptt_core.transition import Steps
from tests.core.support import assert_same_memory, random_steps

RANDOM = np.random.default_rng(23)
SPEC = ModelSpec(input_size=2, hidden_size=5, layers=2, horizon=3, k1=3, k2=7, combine="none")
SPECS = {
    "forecast": SPEC,
    "mixture": replace(SPEC, combine="mixture"),
    "regression": replace(SPEC, task="regression", output_size=2, horizon=1, loss=None),
    "tokens": replace(
        SPEC, task="next_token", input_size=1, vocabulary_size=7, horizon=1, loss=None
    ),
}


@pytest.mark.twin_of("addresses.array_1d")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_array_is_found_by_its_address(dtype: str) -> None:
    arrays = [RANDOM.normal(size=size).astype(dtype) for size in (7, 1, 0)]
    numbers, like = addresses.table([*arrays, None]), np.zeros(1, dtype)
    assert numbers[-addresses.SLOT :].tolist() == [0] * addresses.SLOT
    for slot, array in enumerate(arrays):
        found = addresses.array_1d(numbers, slot, like)
        assert found.dtype == array.dtype
        assert found.shape == array.shape
        assert found.tobytes() == array.tobytes()
        found[...] = 1  # it is the array, not a copy
        assert (array == 1).all()


def cut(source: Any, start: int, n: int, m: int) -> Any:
    return addresses.cut(source, start, (n, m))


def test_an_array_is_cut_out_of_a_buffer() -> None:
    buffer = RANDOM.normal(size=(5, 6))
    for function in (cut, njit(cut)):
        found = function(buffer, 7, 3, 4)
        assert np.array_equal(found, buffer.reshape(-1)[7:19].reshape(3, 4))
        found[...] = 2
        assert (buffer.reshape(-1)[7:19] == 2).all()
        buffer += RANDOM.normal(size=buffer.shape)


def test_a_non_contiguous_array_has_no_address() -> None:
    with pytest.raises(AssertionError):
        addresses.table([np.zeros((3, 4))[:, 1]])


def fields_of(reader: str, kind: type, arguments: str) -> Any:
    """A compiled function of all fields of the record that a kernel reads."""
    names: dict[str, Any] = vars(table).copy()
    fields = ", ".join(f"record.{field}" for field in kind._fields)  # type: ignore[attr-defined]
    program = f"def read({arguments}):\n record = {reader}({arguments})\n return {fields}"
    exec(program, names)  # noqa: S102 - our own text
    return njit(names["read"])


@functools.cache
def readers() -> dict[type, Any]:
    return {
        kind: fields_of(f"{kind.__name__.lower()}_at", kind, arguments)
        for kind, arguments in (
            (sizes.Sizes, "places"),
            *((kind, "places, like") for kind in (Model, Streams, sizes.Work, sizes.Room)),
        )
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SPECS)
def test_every_field_stands_in_the_table_where_it_is_read(name: str, dtype: Any) -> None:
    spec = replace(
        SPECS[name], dtype=dtype, warmup_updates=3, decay_updates=4, final_learning_rate=1e-5
    )
    told = sizes.sizes(spec)
    tuples: list[Any] = [
        new_model(spec), new_streams(spec, 3), sizes.work(spec, 4, 2), sizes.room(spec, 8, 2, 5)
    ]  # fmt: skip
    arrays = [array for each in tuples for array in each]
    for number, array in enumerate(arrays):
        array[...] = number + 1
    columns, numbers = sizes.columns(spec), np.array(told, np.float64)
    places = addresses.table([*arrays, columns, numbers])
    like = np.zeros(1, dtype)
    assert table.sizes_at(places) == readers()[sizes.Sizes](places) == told
    plain = [table.model_at, table.streams_at, table.work_at, table.room_at]
    for each, function in zip(tuples, plain, strict=True):
        for read in (function, readers()[type(each)]):  # as Python, and as kernels do
            for field, found in zip(each._fields, read(places, like), strict=True):
                expected = getattr(each, field)
                assert found.dtype == expected.dtype, field
                assert found.shape == expected.shape, field
                assert found.tobytes() == expected.tobytes(), field


@pytest.mark.twin_of("transition.finish")
@pytest.mark.parametrize("loss", ["squared_error", "bernoulli", "cross_entropy"])
def test_outputs_in_the_users_units(loss: Any) -> None:
    task: Any = "classification" if loss == "cross_entropy" else "regression"
    spec = ModelSpec(task=task, input_size=1, output_size=3, loss=loss)
    outputs, base, unit = 30 * RANDOM.normal(size=(3, 4, 3))
    made = np.zeros((4, 3))
    transition.finish(sizes.sizes(spec), outputs, base, unit, made)
    for t in range(4):
        odds = [math.exp(s - max(outputs[t])) for s in outputs[t]]
        for i, s in enumerate(outputs[t]):
            ref = base[t, i] + unit[t, i] * s
            if loss == "bernoulli":
                ref = 1 / (1 + math.exp(-s))
            elif loss == "cross_entropy":
                ref = odds[i] / sum(odds)
            assert made[t, i] == pytest.approx(ref, rel=1e-12)


@pytest.mark.twin_of("transition.prepare", "transition.run")
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("paused", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_a_compiled_call_equals_the_reference(name: str, paused: bool, asked: bool) -> None:
    """test_twin compares the reference with the scalar twin."""
    spec = replace(SPECS[name], dtype="float64")
    compiled, reference = Learner(spec), Learner(spec, backend="reference")
    x, y = random_steps(spec, 40, streams=3)
    for learner in (compiled, reference):
        learner.feed(x[:11], None if y is None else y[:11])
        learner.configure(paused=paused)
        learner.feed(x[11:], None if y is None else y[11:], predictions=asked)
    assert_same_memory(compiled, reference, 1e-9)
    assert compiled.figures.updates == reference.figures.updates


def test_buffers_of_a_long_call_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["regression"]
    kept = sum(array.nbytes for array in sizes.room(spec, 50, 1, 50 // spec.k1 + 2))
    monkeypatch.setattr("bptt_core.kernels.backend.ROOM_BYTES_KEPT", kept)
    backend, model, streams = Compiled(spec), new_model(spec), new_streams(spec, 1)
    whole = Learner(spec)
    for steps in (50, 51, 10):
        x, y = (each[:, 0].copy() for each in random_steps(spec, steps, streams=1, seed=steps))
        made = np.zeros((steps, 2))
        lanes = np.array([[0, 0, steps, 0]])
        backend.run(model, streams, Steps(lanes, x, y), made)
        assert (len(backend._room.base) < 2 * steps) == (steps == 51)
        fed = whole.feed(x[:, None], y[:, None])
        assert fed.predictions is not None
        assert made.tobytes() == fed.predictions.tobytes()
    assert dispatch.tag(spec) == backend._tag


def test_room_is_for_the_steps_that_came_and_not_for_the_longest_lane() -> None:
    spec = SPECS["regression"]
    learner = Learner(spec)
    tick = []
    for name, steps in [("long", 100), *((f"short {b}", 1) for b in range(20))]:
        x, y = (each[:, 0].copy() for each in random_steps(spec, steps, streams=1))
        tick.append(Chunk(name, 0, x, y))
    learner.apply(tick)
    backend = learner._backend
    assert isinstance(backend, Compiled)
    assert len(backend._room.scores) == 120
    assert len(backend._room.reports) == 120 // spec.k1 + 2 * 21
