"""Predict reads a snapshot while the trainer is busy, and changes nothing."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import numpy as np
import pytest

from bptt import v1 as pb
from bptt.domain import RunReport
from bptt.engine.trainer import Trainer
from bptt_core import Chunk, Learner, ModelSpec, Snapshot, StreamView
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


LIVE: dict[str, Any] = {"horizon": 2}
GIVEN = {"nothing": 0, "a few": 3, "what a thread reads": 300}


def answer_of(response: pb.PredictResponse) -> tuple[Any, ...]:
    """The contents of an answer, for a comparison bit for bit."""
    told = (response.predictions, response.error_low, response.error_high)
    return tuple(np.array(each, np.float32).tobytes() for each in told)


def answer_from(snapshot: Snapshot, view: StreamView, steps: int) -> tuple[Any, ...]:
    """A snapshot's prediction for a stream after a number of further steps."""
    rows = snapshot.predict(view, wave(steps) if steps else None)
    told = (rows, *snapshot.error_band())
    return tuple(each.astype(np.float32).tobytes() for each in told)


def asked(stream_id: str, steps: int) -> pb.PredictRequest:
    values = wave(steps).ravel().tolist()
    return pb.PredictRequest(model_id="m", stream_id=stream_id, inputs=values)


async def write_until(server: Harness, streams: list[str], enough: asyncio.Event) -> int:
    """Send chunks of all streams as fast as possible; return the number for each."""
    call = await server.learn(omit_predictions=True)
    sent = 0

    async def drain() -> None:
        while (await call.raw.read()) is not grpc.aio.EOF:
            pass

    draining = asyncio.create_task(drain())
    while not enough.is_set():
        for stream_id in streams:
            await call.send(stream_id, wave(4, 4 * sent), first_step=4 * sent)
        sent += 1
    await call.raw.write(pb.LearnRequest(close=pb.CloseLearn()))
    await draining
    return sent


async def ask_until(
    server: Harness, stream_id: str, steps: int, updates: int
) -> list[pb.PredictResponse]:
    """Predict until the answers are from a number of different snapshots."""
    answers: list[pb.PredictResponse] = []
    seen: set[int] = set()
    while len(seen) < updates:
        response = await server.streams.Predict(asked(stream_id, steps))
        answers.append(response)
        seen.add(response.update)
    return answers


async def test_every_prediction_under_load_is_that_of_the_snapshot_it_names(
    server: Harness,
) -> None:
    """For one stream, a separate learner gives the contents of each snapshot."""
    await server.create(**LIVE)
    call = await server.learn()
    await call.send("s", wave(4), first_step=0)
    await call.learned()
    await call.close()
    enough = asyncio.Event()
    writing = asyncio.create_task(write_until(server, ["s"], enough))
    asking = [ask_until(server, "s", steps, 25) for steps in GIVEN.values()]
    answers = await asyncio.gather(*asking)
    enough.set()
    chunks = await writing

    learner = Learner(ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4, **LIVE))
    truths = {}
    for first in range(0, 4 * chunks, 4):
        learner.apply([Chunk("s", first, wave(4, first))])
        snapshot = learner.snapshot()
        truths[snapshot.update] = snapshot, learner.stream_view("s")
    for steps, told in zip(GIVEN.values(), answers, strict=True):
        for response in told:
            snapshot, view = truths[response.update]
            assert response.next_step == view.next_step + steps
            assert answer_of(response) == answer_from(snapshot, view, steps)
    assert any(response.error_low for told in answers for response in told)


class Recorder:
    """A sink that keeps the published state at each report."""

    def __init__(self, trainer: Trainer) -> None:
        self._sink = trainer.sink
        self._trainer = trainer
        self.published = [(trainer.snapshot, dict(trainer.views))]

    def run(self, report: RunReport) -> None:
        self.published.append((self._trainer.snapshot, dict(self._trainer.views)))
        self._sink.run(report)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink, name)


async def test_every_prediction_of_many_streams_is_that_of_a_published_snapshot(
    server: Harness,
) -> None:
    """Eight streams share updates: state and parameters must be of one moment."""
    await server.create(**LIVE)
    streams = [f"s{place}" for place in range(8)]
    call = await server.learn()
    for stream_id in streams:
        await call.send(stream_id, wave(4), first_step=0)
        await call.learned()
    await call.close()
    trainer = server.registry.get("m")
    recorder: Any = Recorder(trainer)
    trainer._publisher.sink = recorder
    enough = asyncio.Event()
    writing = asyncio.create_task(write_until(server, streams, enough))
    plan = [(stream_id, steps) for stream_id in streams[::3] for steps in GIVEN.values()]
    answers = await asyncio.gather(*(ask_until(server, *each, 12) for each in plan))
    enough.set()
    await writing

    of_update: dict[int, list[Any]] = {}
    for snapshot, views in recorder.published:
        of_update.setdefault(snapshot.update, []).append((snapshot, views))
    for (stream_id, steps), told in zip(plan, answers, strict=True):
        for response in told:
            possible = [
                answer_from(snapshot, views[stream_id], steps)
                for snapshot, views in of_update[response.update]
                if views[stream_id].next_step + steps == response.next_step
            ]
            assert answer_of(response) in possible


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
