"""Predictions for many streams at once equal those for one stream after another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt.client import Client
from bptt.errors import InvalidRequest, UnknownModel, UnknownStream

SPEC: Any = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4, "horizon": 3}
NAMES = ["a", "b", "c"]


async def taught(client: Client, name: str, spec: Any, values: Any) -> None:
    await client.create_model(name, spec)
    async with client.learn(name) as session:
        await session.send_many(NAMES, values)


def walk(*shape: int) -> Any:
    return np.random.default_rng(5).normal(size=shape).cumsum(axis=-2).astype(np.float32)


async def test_predictions_from_live_states(client: Client, name: str) -> None:
    await taught(client, name, SPEC, walk(3, 50, 2))
    found = await client.predict_batch(name, NAMES)
    assert found.values.shape == (3, 3, 2)
    assert found.next_steps.tolist() == [50] * 3
    for place, stream_id in enumerate(NAMES):
        single = await client.predict(name, stream_id)
        np.testing.assert_allclose(found.values[place], single.values[0], rtol=1e-5)
        np.testing.assert_array_equal(found.error_low, single.error_low)
        assert found.update == single.update


async def test_predictions_after_given_steps(client: Client, name: str) -> None:
    await taught(client, name, SPEC, walk(3, 20, 2))
    given = walk(3, 4, 2) + 1
    block = await client.predict_batch(name, NAMES, given)
    assert block.values.shape == (3, 4, 3, 2)
    one = await client.predict_batch(name, NAMES, given[:, 0])
    assert one.values.shape == (3, 3, 2)
    uneven = await client.predict_batch(name, NAMES, given.reshape(12, 2)[:7], steps=[4, 1, 2])
    assert uneven.values.shape == (7, 3, 2)
    for place, stream_id in enumerate(NAMES):
        single = await client.predict(name, stream_id, given[place])
        np.testing.assert_allclose(block.values[place], single.values, rtol=1e-5)
        np.testing.assert_allclose(one.values[place], single.values[0], rtol=1e-5)
    np.testing.assert_allclose(uneven.values[:4], block.values[0], rtol=1e-5)
    assert uneven.next_steps.tolist() == [24, 21, 22]
    assert (await client.get_stream(name, "a")).next_step == 20, "nothing was learned"


async def test_unknown_streams_are_told_by_name(client: Client, name: str) -> None:
    await taught(client, name, SPEC, walk(3, 20, 2))
    found = await client.predict_batch(name, ["a", "nobody", "c"])
    assert list(found.refused) == ["nobody"]
    assert isinstance(found.refused["nobody"], UnknownStream)
    assert np.isnan(found.values[1]).all()
    assert np.isfinite(found.values[[0, 2]]).all()
    assert found.next_steps.tolist() == [20, 0, 20]


async def test_a_bad_value_refuses_its_stream(client: Client, name: str) -> None:
    await taught(client, name, SPEC, walk(3, 20, 2))
    given = walk(3, 2, 2)
    given[1, 1, 0] = np.inf
    found = await client.predict_batch(name, NAMES, given)
    assert list(found.refused) == ["b"]
    assert found.refused["b"].violations[0].field == "inputs"
    assert np.isnan(found.values[1]).all()
    assert np.isfinite(found.values[[0, 2]]).all()


async def test_tokens(client: Client, name: str) -> None:
    spec: Any = {"task": "next_token", "vocabulary_size": 9, "hidden_size": 4, "k1": 2, "k2": 4}
    await taught(client, name, spec, np.arange(30).reshape(3, 10) % 9)
    found = await client.predict_batch(
        name, ["a", "nobody", "c"], tokens=[[1, 2], [3, 4], [5, 6]], top_tokens=4
    )
    assert found.top_tokens.shape == found.top_probabilities.shape == (3, 2, 4)
    assert (found.top_tokens[1] == -1).all()
    single = await client.predict(name, "c", tokens=[5, 6], top_tokens=4)
    np.testing.assert_array_equal(found.top_tokens[2], single.top_tokens)


async def test_bad_arguments(client: Client, name: str) -> None:
    await taught(client, name, SPEC, walk(3, 20, 2))
    with pytest.raises(UnknownModel):
        await client.predict_batch("nothing-" + name, NAMES)
    for arguments, text in (
        ((["a", "a"],), "stream_ids"),
        (([],), "stream_ids"),
        ((NAMES, np.zeros((2, 2))), "inputs"),
        ((NAMES, np.zeros((3, 4, 5))), "inputs"),
    ):
        with pytest.raises(InvalidRequest, match=text):
            await client.predict_batch(name, *arguments)
    with pytest.raises(InvalidRequest, match="steps"):
        await client.predict_batch(name, NAMES, np.zeros((3, 2)), steps=[1, 1])
