"""Missing inputs over the wire: accepted if the spec allows them, else refused by name."""

from __future__ import annotations

import math
from typing import Any

import grpc
import numpy as np
import pytest

from bptt import v1 as pb
from bptt_core import Chunk, Learner, ModelSpec
from tests.rpc.harness import failure, Harness, violations, wave

NETWORK: dict[str, Any] = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}


def gappy(steps: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A wave of which a third is missing, one column or both."""
    values = wave(steps)
    missing = np.random.default_rng(3).random(values.shape) < 0.3
    return np.where(missing, np.float32(np.nan), values)


async def test_missing_values_are_learned_as_in_the_core(server: Harness) -> None:
    await server.create(missing_inputs=True)
    learner = Learner(ModelSpec(missing_inputs=True, **NETWORK))
    values = gappy(60)
    call = await server.learn()
    for first in range(0, 60, 20):
        await call.send("s", values[first : first + 20])
        learned = await call.learned()
        part = Chunk("s", first, values[first : first + 20])
        [expected] = learner.apply([part]).chunks
        assert expected.predictions is not None
        assert expected.anomaly_scores is not None
        got = np.array(learned.predictions, np.float32)
        np.testing.assert_array_equal(got, expected.predictions.astype(np.float32).ravel())
        assert np.isfinite(got).all(), "a forecast is never missing"
        scores = np.array(learned.anomaly_scores, np.float32)
        np.testing.assert_array_equal(scores, expected.anomaly_scores.astype(np.float32))
        assert [each.loss for each in learned.updates] == [each.loss for each in expected.updates]
    await call.close()
    inputs = [math.nan, 1.0, math.nan, math.nan]
    request = pb.PredictRequest(model_id="m", stream_id="s", inputs=inputs)
    response = await server.streams.Predict(request)
    rows = learner.snapshot().predict(
        learner.stream_view("s"), np.array(inputs, np.float32).reshape(-1, 2)
    )
    np.testing.assert_array_equal(response.predictions, rows.astype(np.float32).ravel())


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
async def test_infinities_are_refused_even_if_values_may_be_missing(
    server: Harness, bad: float
) -> None:
    await server.create(missing_inputs=True, input_names=["left", "right"])
    call = await server.learn()
    await call.send("s", [[1, math.nan], [2, bad]])
    refused = await call.refused()
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert refused.field == "inputs"
    assert refused.value == f"{bad} in step 1, column 1 (right)"
    assert refused.bound == "finite numbers, or NaN for what is missing"
    await call.send("s", [[1, math.nan]], first_step=0)
    assert (await call.learned()).next_step == 1
    await call.close()
    request = pb.PredictRequest(model_id="m", stream_id="s", inputs=[math.nan, bad])
    error = await failure(server.streams.Predict(request))
    assert violations(error)[0][0] == "inputs"


async def test_nan_is_refused_where_the_spec_does_not_allow_it(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", [[1, math.nan]])
    refused = await call.refused()
    assert (refused.field, refused.value) == ("inputs", "nan in step 0, column 1")
    assert refused.bound == "finite numbers"
    await call.close()
    assert (await server.model()).steps == 0


async def test_a_sequence_that_begins_with_nothing_but_missing_values(server: Harness) -> None:
    await server.create(missing_inputs=True)
    call = await server.learn()
    await call.send("s", np.full((12, 2), np.nan))
    learned = await call.learned()
    assert np.isfinite(learned.predictions).all()
    assert not learned.updates, "there is nothing to learn from"
    await call.send("s", wave(12))
    learned = await call.learned()
    assert learned.next_step == 24
    assert learned.updates
    assert not any(update.skipped for update in learned.updates)
    await call.close()
