"""Classes and tokens over the wire: inputs, answers and refusals of each task."""

from __future__ import annotations

import math
from typing import Any

import grpc
import numpy as np
import pytest

from bptt import v1 as pb
from bptt_core import Chunk, Learner, ModelSpec
from tests.rpc.harness import Call, failure, Harness, violations, wave

NETWORK: dict[str, Any] = {"hidden_size": 4, "k1": 2, "k2": 4}
TEXT = np.array([int(letter) for letter in "0123012301230123012301230123"], np.int64)


async def send_tokens(call: Call, tokens: Any, **fields: Any) -> None:
    chunk = pb.Chunk(stream_id="s", input_tokens=tokens, **fields)
    await call.raw.write(pb.LearnRequest(chunk=chunk))


async def open_call(server: Harness, **opening: Any) -> Call:
    call = Call(server.streams.Learn())
    await call.raw.write(pb.LearnRequest(open=pb.OpenLearn(model_id="m", **opening)))
    assert (await call.read()).WhichOneof("message") == "opened"
    return call


# ---------------------------------------------------------------------- classification


async def classifier(server: Harness, **spec: Any) -> Learner:
    await server.create(task=pb.TASK_CLASSIFICATION, output_size=3, **spec)
    plain = {"task": "classification", "input_size": 2, "output_size": 3, **NETWORK}
    return Learner(ModelSpec(**(plain | spec)))


async def test_classes_are_learned_and_their_probabilities_answered(server: Harness) -> None:
    learner = await classifier(server)
    call = await server.learn()
    labels = np.arange(10) % 3
    await call.send("s", wave(10), target_classes=labels.tolist())
    learned = await call.learned()
    [expected] = learner.apply([Chunk("s", 0, wave(10), labels)]).chunks
    assert expected.predictions is not None
    got = np.array(learned.predictions, np.float32).reshape(10, 3)
    np.testing.assert_array_equal(got, expected.predictions.astype(np.float32))
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)
    assert [each.loss for each in learned.updates] == [each.loss for each in expected.updates]
    request = pb.PredictRequest(model_id="m", stream_id="s", inputs=[1, 2])
    response = await server.streams.Predict(request)
    assert (len(response.predictions), response.horizon, response.targets) == (3, 1, 3)
    await call.close()


async def test_a_missing_class_is_minus_one_where_the_model_allows_it(server: Harness) -> None:
    learner = await classifier(server, missing_targets=True)
    call = await server.learn()
    labels = np.array([0, -1, 2, -1, 1, 0])
    await call.send("s", wave(6), target_classes=labels.tolist())
    learned = await call.learned()
    [expected] = learner.apply([Chunk("s", 0, wave(6), labels)]).chunks
    assert [each.loss for each in learned.updates] == [each.loss for each in expected.updates]
    await call.close()


BAD_CLASSES: list[tuple[dict[str, Any], str, str, str]] = [
    ({}, "target_classes", "0 classes", "4, one for each step"),
    ({"target_classes": [0, 1]}, "target_classes", "2 classes", "4, one for each step"),
    ({"target_classes": [0, 1, 3, 0]}, "target_classes", "3 in step 2", "ids from 0 to 2"),
    ({"target_classes": [0, -1, 1, 0]}, "target_classes", "-1 in step 1", "ids from 0 to 2"),
    ({"target_classes": [0] * 16_385}, "target_classes", "16385 steps", "at most 16384 steps"),
    ({"targets": [0, 1, 2, 0]}, "targets", "4 values", "give target_classes"),
    (
        {"target_classes": [0] * 4, "first_target_step": 3},
        "first_target_step",
        "3",
        "without label_delay",
    ),
]


@pytest.mark.parametrize(("fields", "field", "value", "bound"), BAD_CLASSES)
async def test_wrong_classes_are_refused_by_name(
    server: Harness, fields: dict[str, Any], field: str, value: str, bound: str
) -> None:
    await classifier(server)
    call = await server.learn()
    await call.send("s", wave(4), **fields)
    refused = await call.refused()
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert (refused.field, refused.value) == (field, value)
    assert bound in refused.bound
    await call.send("s", wave(4), target_classes=[0, 1, 2, 0], first_step=0)
    assert (await call.learned()).next_step == 4
    await call.close()


# ---------------------------------------------------------------------- next token


async def reader(server: Harness, **spec: Any) -> Learner:
    spec = {"vocabulary_size": 8, **NETWORK} | spec
    message = pb.ModelSpec(task=pb.TASK_NEXT_TOKEN, **spec)
    await server.models.CreateModel(pb.CreateModelRequest(model_id="m", spec=message))
    return Learner(ModelSpec(task="next_token", **spec))


@pytest.mark.parametrize("count", [None, 1, 3, 8, 100])
async def test_the_likeliest_tokens_are_named_with_their_probabilities(
    server: Harness, count: int | None
) -> None:
    learner = await reader(server)
    call = await open_call(server, top_tokens=count)
    await send_tokens(call, TEXT)
    learned = await call.learned()
    [expected] = learner.apply([Chunk("s", 0, TEXT)]).chunks
    rows = expected.predictions
    assert rows is not None
    named = min(count or 5, 8)
    tokens = np.array(learned.top_tokens).reshape(len(TEXT), named)
    chances = np.array(learned.top_probabilities, np.float32).reshape(len(TEXT), named)
    np.testing.assert_array_equal(chances, -np.sort(-rows.astype(np.float32))[:, :named])
    chosen = np.take_along_axis(rows, tokens, axis=1)
    np.testing.assert_array_equal(chances, chosen.astype(np.float32))
    assert not learned.predictions
    assert [each.loss for each in learned.updates] == [each.loss for each in expected.updates]
    await call.close()


async def test_the_next_token_is_predicted_from_a_stream_and_after_more_tokens(
    server: Harness,
) -> None:
    learner = await reader(server)
    call = await server.learn(omit_predictions=True)
    await send_tokens(call, TEXT)
    learned = await call.learned()
    assert not learned.top_tokens
    await call.close()
    learner.apply([Chunk("s", 0, TEXT)])
    snapshot, view = learner.snapshot(), learner.stream_view("s")
    for given in ([], [3, 0, 1]):
        request = pb.PredictRequest(model_id="m", stream_id="s", input_tokens=given, top_tokens=2)
        response = await server.streams.Predict(request)
        rows = snapshot.predict(view, np.array(given, np.int64) if given else None)
        order = np.argsort(-rows, axis=1)[:, :2]
        assert list(response.top_tokens) == order.ravel().tolist()
        assert response.next_step == len(TEXT) + len(given)
        assert not response.predictions


@pytest.mark.parametrize(
    ("fields", "field", "value", "bound"),
    [
        ({"input_tokens": [1, 8]}, "input_tokens", "8 in step 1", "ids from 0 to 7"),
        ({"input_tokens": []}, "input_tokens", "empty", "at least one token"),
        ({"inputs": [1.0]}, "inputs", "1 values", "left out for task next_token"),
        ({"input_tokens": [1], "targets": [1.0]}, "targets", "1 values", "left out"),
        ({"input_tokens": [1], "target_classes": [1]}, "target_classes", "1 classes", "left out"),
    ],
)
async def test_wrong_tokens_are_refused_by_name(
    server: Harness, fields: dict[str, Any], field: str, value: str, bound: str
) -> None:
    await reader(server)
    call = await server.learn()
    await call.raw.write(pb.LearnRequest(chunk=pb.Chunk(stream_id="s", **fields)))
    refused = await call.refused()
    assert (refused.field, refused.value) == (field, value)
    assert bound in refused.bound
    await call.close()


async def test_tokens_are_refused_where_steps_are_numbers(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await send_tokens(call, [1, 2])
    refused = await call.refused()
    assert (refused.field, refused.value) == ("input_tokens", "2 tokens")
    await call.close()


@pytest.mark.parametrize(
    ("task", "count"), [("forecast", 3), ("next_token", 0), ("next_token", 101)]
)
async def test_a_number_of_tokens_out_of_its_bounds_is_refused(
    server: Harness, task: str, count: int
) -> None:
    if task == "forecast":
        await server.create()
    else:
        await reader(server)
    raw = server.streams.Learn()
    await raw.write(pb.LearnRequest(open=pb.OpenLearn(model_id="m", top_tokens=count)))
    request = pb.PredictRequest(model_id="m", stream_id="", top_tokens=count)
    for call in (raw.read(), server.streams.Predict(request)):
        error = await failure(call)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert violations(error)[0][0] == "top_tokens"


# ---------------------------------------------------------------------- missing targets


async def test_a_missing_target_is_nan_where_the_model_allows_it(server: Harness) -> None:
    await server.create(task=pb.TASK_REGRESSION, output_size=2, missing_targets=True)
    call = await server.learn()
    targets = np.ones((4, 2))
    targets[1] = np.nan
    await call.send("s", wave(4), targets=targets.ravel().tolist())
    assert (await call.learned()).next_step == 4
    await call.send("s", wave(1), targets=[math.inf, 0])
    refused = await call.refused()
    assert refused.value == "inf in step 0, column 0"
    assert "NaN for what is missing" in refused.bound
    await call.close()


async def test_a_target_that_is_not_finite_is_named_by_its_column(server: Harness) -> None:
    names = ["left", "right"]
    await server.create(task=pb.TASK_REGRESSION, output_size=2, target_names=names)
    call = await server.learn()
    await call.send("s", wave(2), targets=[0, 0, 0, math.nan])
    assert (await call.refused()).value == "nan in step 1, column 1 (right)"
    await call.close()
