"""Tables of pandas, polars and pyarrow as steps of many streams, and results as tables."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from bptt.client import BatchResult, Client
from bptt.errors import InvalidRequest
from tests.support.server import Served, serving

SPEC: Any = {
    "input_size": 2,
    "hidden_size": 4,
    "k1": 2,
    "k2": 4,
    "input_names": ["level", "flow"],
    "target_columns": [1],
}
ROWS = 40
LIBRARIES = ("pandas", "polars", "pyarrow")


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    with serving() as server:
        yield server


@pytest_asyncio.fixture
async def client(shared: Served) -> AsyncIterator[Client]:
    async with Client.connect(shared.address) as connected:
        yield connected


def data() -> dict[str, Any]:
    """Rows of three sensors, mixed."""
    generator = np.random.default_rng(2)
    sensors = generator.integers(0, 3, ROWS)
    sensors[:3] = [2, 0, 1]
    values = generator.normal(size=(ROWS, 2)).cumsum(axis=0)
    return {
        "flow": values[:, 1],
        "sensor": [f"s{number}" for number in sensors],
        "level": values[:, 0],
    }


def made(library: str, columns: dict[str, Any]) -> Any:
    module = pytest.importorskip(library)
    return module.table(columns) if library == "pyarrow" else module.DataFrame(columns)


def columns_of(table: Any) -> dict[str, list[Any]]:
    if type(table).__module__.startswith("pyarrow"):
        return dict(table.to_pydict())
    return {str(name): table[name].to_numpy().tolist() for name in table.columns}


@pytest.mark.parametrize("library", LIBRARIES)
async def test_a_table_and_back(client: Client, library: Any) -> None:
    await client.create_model(library, SPEC)
    rows = data()
    async with client.learn(library) as session:
        await session.send_table(made(library, rows), "sensor")
        result = await anext(session)
        # The same rows as arrays, stream after stream, as another fleet's.
        order = np.argsort(rows["sensor"], kind="stable")
        values = np.stack([rows["level"], rows["flow"]], axis=1)[order]
        lengths = [rows["sensor"].count(f"s{number}") for number in range(3)]
    assert isinstance(result, BatchResult)
    assert list(result.stream_ids) == ["s2", "s0", "s1"], "in the order of their first rows"
    assert result.predictions is not None
    assert result.predictions.shape == (ROWS, 1, 1)
    await client.create_model(library + "-arrays", SPEC)
    async with client.learn(library + "-arrays") as session:
        places = np.argsort(["s2", "s0", "s1"])
        starts = np.cumsum([0, *lengths])
        pieces = [values[starts[at] : starts[at + 1]] for at in np.argsort(places)]
        await session.send_many(
            ["s2", "s0", "s1"], np.concatenate(pieces), steps=[len(each) for each in pieces]
        )
        other = await anext(session)
    assert isinstance(other, BatchResult)
    assert other.predictions is not None
    taken = {name: iter(other.predictions[at]) for name, at in spans(other).items()}
    expected = [next(taken[name]) for name in rows["sensor"]]
    np.testing.assert_array_equal(result.predictions, expected)

    table = columns_of(result.to_table(library, stream_column="sensor"))
    assert list(table)[:3] == ["sensor", "step", "flow_predicted"]
    assert table["sensor"] == rows["sensor"]
    seen: dict[str, int] = {}
    for name, step in zip(table["sensor"], table["step"], strict=True):
        assert step == seen.get(name, 0)
        seen[name] = step + 1
    np.testing.assert_allclose(table["flow_predicted"], result.predictions[:, 0, 0])
    assert len(table["anomaly_score"]) == ROWS


def spans(result: BatchResult) -> dict[str, slice]:
    ends = np.cumsum(result.steps)
    return {
        name: slice(end - steps, end)
        for name, end, steps in zip(result.stream_ids, ends, result.steps, strict=True)
    }


@pytest.mark.parametrize("library", LIBRARIES)
async def test_a_refused_stream_has_no_steps_in_the_table(client: Client, library: Any) -> None:
    name = library + "-refused"
    await client.create_model(name, SPEC)
    rows = {"sensor": ["a", "b", "a"], "level": [1.0, np.nan, 2.0], "flow": [1.0, 2.0, 3.0]}
    async with client.learn(name) as session:
        await session.send_table(made(library, rows), "sensor")
        result = await anext(session)
    assert isinstance(result, BatchResult)
    assert list(result.refused) == ["b"]
    steps = columns_of(result.to_table(library))["step"]
    assert steps[0] == 0
    assert steps[2] == 1
    assert steps[1] is None or steps[1] != steps[1] or "NA" in repr(steps[1])


async def test_columns_that_are_wrong(client: Client) -> None:
    await client.create_model("wrong", SPEC)
    async with client.learn("wrong") as session:
        for table, stream, named, text in (
            (made("pandas", data()), "nobody", {}, "stream_column"),
            (made("pandas", data()), "sensor", {"input_columns": ["level", "x"]}, "input_columns"),
            (made("polars", data()), "level", {"input_columns": ["sensor"]}, "input_columns"),
            ({"level": [1.0]}, "level", {}, "table"),
            (made("pandas", {**data(), "sensor": [None] * ROWS}), "sensor", {}, "stream_column"),
        ):
            with pytest.raises(InvalidRequest, match=text):
                await session.send_table(table, stream, **named)
    assert await client.list_streams("wrong") == []


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    empty = np.zeros(0, np.int64)
    band = np.zeros((0, 0), np.float32)
    result = BatchResult(
        [], empty, empty, None, None, band, band, None, None, (), {}, "running", empty
    )
    with pytest.raises(InvalidRequest, match="pandas"):
        result.to_table("pandas")
