"""Predict: from a snapshot, whatever the trainer does, and without changing anything."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import numpy as np
import pytest

from bptt_core import Chunk, Learner, ModelSpec
from protos.bptt.v1 import bptt_pb2 as pb
from tests.rpc.harness import failure, Harness, until, violations, wave


async def taught(server: Harness, steps: int = 20, **spec: Any) -> Learner:
    """A model that has learned one stream, and its twin."""
    await server.create(**spec)
    call = await server.learn()
    await call.send("s", wave(steps))
    await call.learned()
    await call.close()
    learner = Learner(ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4, **spec))
    learner.apply([Chunk("s", 0, wave(steps))])
    return learner


async def test_the_next_steps_are_predicted_from_a_streams_live_state(server: Harness) -> None:
    learner = await taught(server, horizon=3)
    response = await server.streams.Predict(pb.PredictRequest(model_id="m", stream_id="s"))
    expected = learner.snapshot().predict(learner.stream_view("s"))
    np.testing.assert_array_equal(response.predictions, expected.astype(np.float32).ravel())
    assert (response.next_step, response.update) == (20, learner.figures.updates)
    assert (response.horizon, response.targets) == (3, 2)


@pytest.mark.parametrize("steps", [1, 16, 17, 500])
@pytest.mark.parametrize("stream_id", ["s", ""])
async def test_given_steps_are_read_after_the_state_but_not_learned(
    server: Harness, steps: int, stream_id: str
) -> None:
    learner = await taught(server)
    before = await server.model()
    inputs = wave(steps, 20)
    request = pb.PredictRequest(model_id="m", stream_id=stream_id, inputs=inputs.ravel().tolist())
    response = await server.streams.Predict(request)
    view = learner.stream_view("s") if stream_id else None
    expected = learner.snapshot().predict(view, inputs)
    np.testing.assert_array_equal(response.predictions, expected.astype(np.float32).ravel())
    assert response.next_step == (20 if stream_id else 0) + steps
    assert await server.streams.Predict(request) == response
    assert await server.model() == before


async def test_predictions_are_answered_while_the_trainer_is_busy(server: Harness) -> None:
    await taught(server)
    before = await server.predict("s")
    call = await server.learn()
    server.gate.close()
    await call.send("s", wave(20, 20))
    trainer = server.registry.get("m")
    await until(lambda: trainer.expected_step("s") == 40)
    request = pb.PredictRequest(model_id="m", stream_id="s", inputs=wave(300, 20).ravel().tolist())
    assert await server.predict("s") == before
    assert len((await server.streams.Predict(request)).predictions) == 600
    assert await server.next_step("s") == 20
    server.gate.open()
    assert (await call.learned()).next_step == 40
    assert await server.predict("s") != before
    await call.close()


async def test_predictions_never_see_half_a_run(server: Harness) -> None:
    """Snapshot and state belong together: what is predicted was the truth after some chunk."""
    await server.create()
    learner = Learner(ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4))
    truths = []
    for first in range(0, 400, 4):
        learner.apply([Chunk("s", first, wave(4, first))])
        rows = learner.snapshot().predict(learner.stream_view("s"))
        truths.append((first + 4, tuple(rows.astype(np.float32).ravel().tolist())))
    call = await server.learn(omit_predictions=True)
    await call.send("s", wave(4), first_step=0)
    await call.learned()

    async def feed() -> None:
        for first in range(4, 400, 4):
            await call.send("s", wave(4, first), first_step=first)
            await call.learned()

    feeding = asyncio.create_task(feed())
    seen = set()
    while not feeding.done():
        response = await server.streams.Predict(pb.PredictRequest(model_id="m", stream_id="s"))
        seen.add((response.next_step, tuple(response.predictions)))
    await feeding
    assert len(seen) > 3
    assert seen <= set(truths)
    await call.close()


BAD: list[tuple[dict[str, Any], grpc.StatusCode, str, str]] = [
    ({"stream_id": "t"}, grpc.StatusCode.NOT_FOUND, "stream_id", "'t'"),
    ({"stream_id": ""}, grpc.StatusCode.INVALID_ARGUMENT, "inputs", "left out"),
    ({"inputs": [1, 2, 3]}, grpc.StatusCode.INVALID_ARGUMENT, "inputs", "3 values"),
    ({"inputs": [1, math.nan]}, grpc.StatusCode.INVALID_ARGUMENT, "inputs", "nan in step 0"),
    ({"inputs": [math.inf, 1]}, grpc.StatusCode.INVALID_ARGUMENT, "inputs", "inf in step 0"),
    ({"inputs": [1, 2] * 16_385}, grpc.StatusCode.INVALID_ARGUMENT, "inputs", "16385 steps"),
]


@pytest.mark.parametrize(("fields", "code", "field", "value"), BAD)
async def test_a_bad_request_is_refused(
    server: Harness, fields: dict[str, Any], code: grpc.StatusCode, field: str, value: str
) -> None:
    await taught(server)
    request = pb.PredictRequest(**({"model_id": "m", "stream_id": "s"} | fields))
    error = await failure(server.streams.Predict(request))
    assert error.code() == code
    [(named, description)] = violations(error)
    assert named == field
    assert value in description


async def test_a_regression_needs_inputs(server: Harness) -> None:
    await server.create(task=pb.TASK_REGRESSION, output_size=1)
    error = await failure(server.streams.Predict(pb.PredictRequest(model_id="m")))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error)[0][0] == "inputs"
    request = pb.PredictRequest(model_id="m", inputs=[1, 2, 3, 4])
    assert len((await server.streams.Predict(request)).predictions) == 2
