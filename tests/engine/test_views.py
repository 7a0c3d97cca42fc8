"""`StreamViews` behaves like a dictionary of views and takes little memory."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bptt.engine import views as module
from bptt.engine.views import StreamViews
from bptt_core import Chunk, Learner, memory_shape, ModelSpec, StreamColumns, StreamView

SPEC = ModelSpec(input_size=2, hidden_size=3, layers=2, cell="lstm")
ARRAYS = ("state", "last_input", "memory")


def view(number: int) -> StreamView:
    state = np.full((2, 2, 3), number, np.float32)
    memory = np.full(memory_shape(SPEC), number, np.float32)
    last = np.full(2, number / 3)
    return StreamView(10 * number, number, state, last, number + 1, memory=memory)


def columns(*views: StreamView) -> StreamColumns:
    """The columns that hold these views."""
    return StreamColumns(
        np.array([each.next_step for each in views]),
        np.array([each.sequence_step for each in views]),
        np.array([each.incarnation for each in views]),
        np.stack([each.state for each in views]),
        np.stack([each.last_input for each in views]),
        np.stack([each.memory for each in views]),
        {},
    )


def same(one: StreamView, other: StreamView) -> bool:
    steps = (one.next_step, one.sequence_step) == (other.next_step, other.sequence_step)
    arrays = [(getattr(one, name), getattr(other, name)) for name in ARRAYS]
    return steps and all(a.tobytes() == b.tobytes() and a.dtype == b.dtype for a, b in arrays)


def test_stream_views_behave_like_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are put, replaced and removed over many blocks, as in a Python dictionary."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 300)
    table, twin = StreamViews(SPEC), dict[str, StreamView]()
    generator = np.random.default_rng(0)
    for number in range(500):
        name = str(generator.integers(60))
        if generator.random() < 0.3:
            table.discard(name)
            twin.pop(name, None)
        else:
            twin[name] = view(number)
            table.put_all([name], columns(twin[name]))
        assert len(table) == len(twin)
    assert sorted(table) == sorted(twin)
    for name, expected in twin.items():
        assert same(table[name], expected)
        assert table.next_step(name) == expected.next_step
    assert table._rows < 120, "rows are used again"
    assert table.get("unknown") is None
    assert table.next_step("unknown") == 0
    with pytest.raises(KeyError):
        table["unknown"]


def test_a_view_is_an_immutable_copy() -> None:
    table = StreamViews(SPEC)
    table.put_all(["s"], columns(view(1)))
    given = table["s"]
    table.put_all(["s"], columns(view(2)))
    assert same(given, view(1))
    for array in (getattr(given, name) for name in ARRAYS):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_views_equal_those_of_the_learner() -> None:
    learner = Learner(SPEC, backend="reference")
    values = np.random.default_rng(1).normal(size=(7, 2))
    learner.apply([Chunk(name, 0, values * place) for place, name in enumerate("abc")])
    table = StreamViews.of(learner)
    assert sorted(table) == ["a", "b", "c"]
    for name in table:
        assert same(table[name], learner.stream_view(name))


def test_a_view_takes_little_more_memory_than_its_numbers() -> None:
    spec = ModelSpec(input_size=8, hidden_size=64)
    table, learner = StreamViews(spec), Learner(spec, backend="reference")
    learner.apply([Chunk("s", 0, np.zeros((1, 8)))])
    for place in range(5000):
        table.put_all([str(place)], learner.stream_columns(["s"]))
    held = sum(block.nbytes for block in table._blocks)
    numbers = 336 + 4 * math.prod(memory_shape(spec))
    assert held / 5000 < numbers * 1.25
