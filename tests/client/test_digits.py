"""Numbers keep their digits over the wire: the SDK chooses doubles where floats lose some."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bptt.client import BatchResult, Client, Learned
from bptt.client.digits import number_array

SPEC: Any = {"input_size": 1, "hidden_size": 8, "k1": 4, "k2": 8}
METER = 1.7e9


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([21.5, 21.25, 1013.2], np.float32),
        ([0.1, 0.2, np.nan], np.float32),
        ([1.5e-30, -2.25e20], np.float32),
        ([METER, METER + 1], np.float64),
        ([20.123456, 20.1234561], np.float64),
        ([1e39], np.float64),
        (np.array([METER], np.float32), np.float32),
        ([16_777_216, 16_777_217], np.float64),
        ([1, 2, 3], np.float32),
        ([], np.float32),
    ],
)
def test_doubles_are_chosen_by_the_digits(values: Any, dtype: Any) -> None:
    assert number_array("values", values).dtype == dtype


def meter(steps: int, base: float) -> Any:
    """A meter that grows by about 1 a step."""
    growth = 1 + 0.3 * np.sin(np.arange(steps) / 3)
    return base + np.round(growth.cumsum(), 2)


async def skill(client: Client, name: str, base: float) -> tuple[float, Any]:
    """The model's skill, and the predictions of its last steps."""
    await client.create_model(name, SPEC)
    values = meter(1500, base)
    async with client.learn(name) as session:
        for first in range(0, 1500, 50):
            await session.send("m", values[first : first + 50, None])
        await session.close()
        answers = [answer async for answer in session if isinstance(answer, Learned)]
    model = await client.get_model(name)
    assert answers[-1].predictions is not None
    return model.skill_ratio, answers[-1].predictions[:, 0, 0]


async def test_a_meter_far_from_zero_is_learned_as_one_near_it(client: Client, name: str) -> None:
    near, _ = await skill(client, name + "-near", 0.0)
    far, predictions = await skill(client, name + "-far", METER)
    assert near < 0.6
    assert far == pytest.approx(near, rel=0.01)
    assert predictions.dtype == np.float64
    values = meter(1501, METER)
    assert np.abs(predictions - values[-50:]).mean() < 0.5, "floats have steps of 128 there"


async def test_batches_and_predictions_keep_digits(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    values = np.stack([meter(400, METER), meter(400, 2 * METER)])[:, :, None]
    async with client.learn(name) as session:
        for first in range(0, 400, 20):
            await session.send_many(["a", "b"], values[:, first : first + 20])
        await session.close()
        results = [answer async for answer in session if isinstance(answer, BatchResult)]
    assert results[-1].predictions is not None
    assert results[-1].predictions.dtype == np.float64
    errors = results[-1].predictions[:, :-1, 0, 0] - values[:, -19:, 0]
    assert np.abs(errors).max() < 3, "floats have steps of 128 there"
    single = await client.predict(name, "a")
    both = await client.predict_batch(name, ["a", "b"])
    assert single.values.dtype == both.values.dtype == np.float64
    assert both.values[0, 0, 0] == single.values[0, 0, 0]
    assert abs(both.values[1, 0, 0] - values[1, -1, 0] - 1) < 3
