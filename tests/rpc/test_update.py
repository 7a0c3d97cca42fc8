"""UpdateModel: changes, their time, and refusals."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import numpy as np
import pytest

from bptt import v1 as pb
from bptt_core import Chunk, Learner, ModelSpec
from tests.rpc.harness import failure, Harness, until, violations, wave

SPEC: dict[str, Any] = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}


async def update(server: Harness, **changes: Any) -> pb.Model:
    response = await server.models.UpdateModel(pb.UpdateModelRequest(model_id="m", **changes))
    model: pb.Model = response.model
    return model


async def test_settings_change_between_two_chunks_as_they_do_in_the_core(server: Harness) -> None:
    await server.create()
    call, learner = await server.learn(), Learner(ModelSpec(**SPEC))
    await call.send("s", wave(10))
    await call.learned()
    model = await update(server, learning_rate=0.25, clip=pb.CLIP_VALUE, clip_threshold=0.125)
    assert (model.learning_rate, model.clip, model.clip_threshold) == (0.25, pb.CLIP_VALUE, 0.125)
    assert model.spec.clip == pb.CLIP_NORM
    assert model.state == pb.MODEL_STATE_RUNNING
    await call.send("s", wave(10, 10))
    learned = await call.learned()
    learner.apply([Chunk("s", 0, wave(10))])
    learner.configure(learning_rate=0.25, clip="value", clip_threshold=0.125)
    [expected] = learner.apply([Chunk("s", 10, wave(10, 10))]).chunks
    assert [each.loss for each in learned.updates] == [each.loss for each in expected.updates]
    await call.close()


async def test_omitted_settings_stay(server: Harness) -> None:
    before = await server.create()
    await update(server, clip_threshold=7.0)
    model = await update(server)
    assert (model.clip, model.clip_threshold) == (pb.CLIP_NORM, 7.0)
    assert model.learning_rate == before.learning_rate


async def test_a_paused_model_answers_and_learns_nothing_until_it_is_resumed(
    server: Harness,
) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", wave(10))
    await call.learned()
    assert (await update(server, paused=True)).state == pb.MODEL_STATE_PAUSED
    await call.send("s", wave(10, 10))
    learned = await call.learned()
    assert learned.model_state == pb.MODEL_STATE_PAUSED
    assert (learned.next_step, len(learned.predictions), len(learned.updates)) == (20, 20, 0)
    assert await server.predict("s")
    assert (await update(server, paused=False)).state == pb.MODEL_STATE_RUNNING
    await call.send("s", wave(10, 20))
    learned = await call.learned()
    assert learned.model_state == pb.MODEL_STATE_RUNNING
    assert learned.updates
    await call.close()


async def test_an_update_does_not_wait_for_a_client_to_pause(server: Harness) -> None:
    await server.create()
    call = await server.learn(omit_predictions=True)
    sent = 0

    async def send() -> None:
        nonlocal sent
        while True:
            await call.send("s", np.resize(wave(7), (64, 2)))
            sent += 1

    async def read() -> None:
        while True:
            await call.read()

    tasks = [asyncio.create_task(work()) for work in (send, read)]
    await until(lambda: sent > 20)
    assert (await update(server, paused=True)).state == pb.MODEL_STATE_PAUSED
    at = sent
    await until(lambda: sent > at)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"learning_rate": 0.0}, "learning_rate", "0.0"),
        ({"learning_rate": math.nan}, "learning_rate", "nan"),
        ({"clip_threshold": -1.0}, "clip_threshold", "-1.0"),
        ({"clip": 99}, "clip", "99"),
    ],
)
async def test_a_bad_setting_is_refused_by_name_and_changes_nothing(
    server: Harness, changes: dict[str, Any], field: str, value: str
) -> None:
    before = await server.create()
    error = await failure(update(server, paused=True, **changes))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    [(named, description)] = violations(error)
    assert named == field
    assert f"is {value}, but must be" in description
    model = await server.model()
    assert model.state == pb.MODEL_STATE_RUNNING
    assert model.learning_rate == before.learning_rate


async def test_an_unknown_model_cannot_be_updated(server: Harness) -> None:
    error = await failure(update(server, paused=True))
    assert error.code() == grpc.StatusCode.NOT_FOUND
