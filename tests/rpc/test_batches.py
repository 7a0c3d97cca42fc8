"""Batches over the wire, with messages that no SDK made: lanes, columns, doubles, refusals."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest

from bptt import v1 as pb
from bptt.config import LANES_MAX
from bptt_core import Chunk, Learner, ModelSpec
from tests.rpc.harness import Call, failure, Harness, small, until, violations, wave

SPEC = ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4)


def batch(inputs: Any, **columns: Any) -> pb.ChunkBatch:
    values = np.asarray(inputs, np.float32).ravel().tolist()
    return pb.ChunkBatch(inputs=values, **columns)


async def introduce(call: Call, *stream_ids: str, first_lane: int = 0) -> pb.LanesIntroduced:
    lanes = pb.Lanes(first_lane=first_lane, stream_ids=stream_ids)
    await call.raw.write(pb.LearnRequest(lanes=lanes))
    answer = await call.read()
    assert answer.WhichOneof("message") == "introduced", answer
    introduced: pb.LanesIntroduced = answer.introduced
    return introduced


async def learn(call: Call, message: pb.ChunkBatch) -> pb.BatchLearned:
    await call.raw.write(pb.LearnRequest(batch=message))
    answer = await call.read()
    assert answer.WhichOneof("message") == "batch", answer
    learned: pb.BatchLearned = answer.batch
    return learned


async def refused_whole(call: Call, message: pb.ChunkBatch) -> pb.ChunkRefused:
    """The refusal of a whole message."""
    await call.raw.write(pb.LearnRequest(batch=message))
    return await call.refused()


def same_model(server: Harness, learner: Learner) -> None:
    trainer = server.registry.get("m")
    parameters = trainer.snapshot.model.parameters
    np.testing.assert_array_equal(parameters, learner.snapshot().model.parameters)
    assert {each: trainer.views[each].next_step for each in trainer.views} == {
        each: learner.next_step(each) for each in learner.stream_ids()
    }


async def test_a_batch_is_learned_as_one_tick(server: Harness) -> None:
    await server.create()
    learner = Learner(SPEC)
    call = await server.learn()
    introduced = await introduce(call, "a", "b", "c")
    assert list(introduced.next_steps) == [0, 0, 0]
    assert list(introduced.incarnations) == [0, 0, 0]
    for first in range(0, 12, 3):
        inputs = [wave(3, first) + lane for lane in range(3)]
        answer = await learn(
            call, batch(inputs, lanes=[0, 1, 2], steps=[3], first_steps=[first], tell_members=True)
        )
        result = learner.apply(
            [Chunk(name, first, each) for name, each in zip("abc", inputs, strict=True)]
        )
        assert list(answer.first_steps) == [first] * 3
        assert list(answer.next_steps) == [first + 3] * 3
        assert list(answer.incarnations) == [1, 2, 3]
        assert not answer.refusals
        assert result.predictions is not None
        predicted = np.array(answer.predictions).reshape(9, 2)
        np.testing.assert_array_equal(predicted, result.predictions.astype(np.float32))
        assert len(answer.anomaly_scores) == 9
        assert [each.update for each in answer.updates] == [each.update for each in result.updates]
        told = {*zip(answer.member_updates, answer.member_places, strict=True)}
        assert told == {
            (update, lane) for update in range(len(answer.updates)) for lane in range(3)
        }
    await call.close()
    same_model(server, learner)


async def test_names_in_place_of_lanes(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    answer = await learn(call, batch(wave(3), stream_ids=["x", "y"], steps=[1, 2]))
    assert list(answer.next_steps) == [1, 2]
    answer = await learn(call, batch(wave(2), stream_ids=["y", "x"]))
    assert list(answer.first_steps) == [2, 1]
    await call.close()


async def test_lanes_of_streams_that_exist_tell_where_they_stand(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.send("a", wave(5))
    await call.learned()
    await call.close()
    call = await server.learn()
    introduced = await introduce(call, "new", "a", first_lane=7)
    assert introduced.first_lane == 7
    assert list(introduced.next_steps) == [0, 5]
    assert list(introduced.durable_steps) == [0, 5]
    assert list(introduced.incarnations) == [0, 1]
    assert introduced.last_incarnation == 1
    assert list((await learn(call, batch(wave(1), lanes=[8]))).next_steps) == [6]
    await call.close()


async def test_lanes_may_come_with_the_first_batch(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    lanes = pb.Lanes(stream_ids=["a", "b"])
    await call.raw.write(pb.LearnRequest(lanes=lanes, batch=batch(wave(2), lanes=[0, 1])))
    assert (await call.read()).WhichOneof("message") == "introduced"
    assert list((await call.read()).batch.next_steps) == [1, 1]
    await call.close()


async def test_one_bad_lane_is_refused_and_the_others_are_learned(server: Harness) -> None:
    """Each kind of fault in one lane: its place, lane, field, value, bound and expected step."""
    await server.create()
    learner = Learner(SPEC)
    call = await server.learn()
    await introduce(call, *"abcd")
    inputs = [wave(2) + lane for lane in range(4)]
    await learn(call, batch(inputs, lanes=[0, 1, 2, 3], steps=[2]))
    learner.apply([Chunk(name, 0, each) for name, each in zip("abcd", inputs, strict=True)])

    inputs = [wave(1, 2) + lane for lane in range(4)]
    inputs[2] = np.array([[0.5, np.nan]], np.float32)
    answer = await learn(call, batch(inputs, lanes=[3, 0, 1, 9], first_steps=[2, 5, 2, 2]))
    learner.apply([Chunk("d", 2, inputs[0])])
    gap, nan, unknown = answer.refusals
    assert (gap.place, gap.lane, gap.reason) == (1, 0, "GAP")
    assert (gap.stream_id, gap.first_step, gap.expected_step) == ("a", 5, 2)
    assert (nan.place, nan.lane, nan.stream_id) == (2, 1, "b")
    assert (nan.field, nan.value) == ("inputs", "nan in step 0, column 1")
    assert nan.bound == "finite numbers"
    assert nan.expected_step == 2
    assert (unknown.place, unknown.lane) == (3, 9)
    assert (unknown.field, unknown.value) == ("lanes", "9")
    assert unknown.bound == "a lane that was introduced in this call"
    assert list(answer.next_steps) == [3, 2, 2, 0]
    assert list(answer.first_steps) == [2, 2, 2, 0]
    assert list(answer.incarnations) == [4, 0, 0, 0]
    assert len(answer.predictions) == 2
    same_model(server, learner)

    answer = await learn(call, batch(wave(3, 3), lanes=[0, 1, 0]))
    [twice] = answer.refusals
    assert (twice.place, twice.value) == (2, "0 a second time")
    assert twice.bound == "each stream at most once in a batch"
    assert list(answer.next_steps) == [3, 3, 3]
    await call.close()


FAULTS_OF_THE_WHOLE: dict[str, tuple[dict[str, Any], str, str]] = {
    "no chunks": ({"inputs": []}, "batch.lanes", "at least one chunk"),
    "both": (
        {"inputs": [0.0, 1.0], "lanes": [0], "stream_ids": ["a"]},
        "batch.stream_ids",
        "left out where there are lanes",
    ),
    "half a step": ({"inputs": [0.0], "lanes": [0]}, "batch.inputs", "2"),
    "too few values": (
        {"inputs": [0.0, 1.0], "lanes": [0, 1]},
        "batch.inputs",
        "4 values, 2 for each of 2 steps, one for each chunk",
    ),
    "steps and values": (
        {"inputs": [0.0, 1.0] * 2, "lanes": [0, 1], "steps": [2, 3]},
        "batch.inputs",
        "10 values, 2 for each of 5 steps, as the column steps says",
    ),
    "a short column": (
        {"inputs": [0.0, 1.0] * 3, "lanes": [0, 1, 2], "first_steps": [0, 0]},
        "batch.first_steps",
        "3, one for each chunk, or one for all, or none",
    ),
    "a long column": (
        {"inputs": [0.0, 1.0], "lanes": [0], "ends_of_sequence": [True, False]},
        "batch.ends_of_sequence",
        "1, one for each chunk",
    ),
    "positions": (
        {"inputs": [0.0, 1.0], "lanes": [0], "source_positions": [b"", b""]},
        "batch.source_positions",
        "1, one for each chunk",
    ),
    "targets": (
        {"inputs": [0.0, 1.0], "lanes": [0], "targets": [1.0]},
        "batch.targets",
        "left out",
    ),
    "tokens": (
        {"input_tokens": [1], "lanes": [0]},
        "batch.input_tokens",
        "left out",
    ),
    "floats and doubles": (
        {"inputs": [0.0, 1.0], "input_doubles": [0.0, 1.0], "lanes": [0]},
        "batch.input",
        "",
    ),
}


@pytest.mark.parametrize("case", FAULTS_OF_THE_WHOLE)
async def test_a_fault_of_the_whole_message_learns_nothing(server: Harness, case: str) -> None:
    columns, field, bound = FAULTS_OF_THE_WHOLE[case]
    await server.create()
    call = await server.learn()
    await introduce(call, "a", "b", "c")
    refused = await refused_whole(call, pb.ChunkBatch(**columns))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert refused.field.startswith(field)
    assert bound in refused.bound
    assert refused.chunk_index == 1, "the lanes were the first message"
    assert list((await learn(call, batch(wave(1), lanes=[0]))).next_steps) == [1]
    await call.close()
    assert (await server.model()).steps == 1


@pytest.mark.parametrize(
    ("lanes", "field", "bound"),
    [
        (
            pb.Lanes(stream_ids=["x", "x"], first_lane=5),
            "lanes.stream_ids",
            "streams that have no lane yet",
        ),
        (pb.Lanes(stream_ids=["x", "a"], first_lane=5), "lanes.stream_ids", "have no lane yet"),
        (pb.Lanes(stream_ids=["x"], first_lane=1), "lanes.first_lane", "not in use yet"),
        (pb.Lanes(stream_ids=["x", ""], first_lane=3), "stream_id", "1 to"),
        (pb.Lanes(stream_ids=["x"], first_lane=LANES_MAX), "lanes.first_lane", f"{LANES_MAX}"),
        (pb.Lanes(first_lane=3), "lanes.stream_ids", "at least one name"),
    ],
)
async def test_lanes_that_are_refused_introduce_nothing(
    server: Harness, lanes: pb.Lanes, field: str, bound: str
) -> None:
    await server.create()
    call = await server.learn()
    await introduce(call, "a", "b")
    await call.raw.write(pb.LearnRequest(lanes=lanes))
    refused = await call.refused()
    assert refused.field == field
    assert bound in refused.bound
    await introduce(call, "x", first_lane=2)
    await call.close()


async def test_resent_steps_are_trimmed_lane_by_lane(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await introduce(call, "a", "b")
    await learn(call, batch([wave(4), wave(4)], lanes=[0, 1], steps=[4]))
    again = batch(np.vstack([wave(6), wave(4)]), lanes=[0, 1], steps=[6, 4], first_steps=[0, 0])
    answer = await learn(call, again)
    assert list(answer.first_steps) == [4, 4]
    assert list(answer.next_steps) == [6, 4]
    assert len(answer.predictions) == 2 * 2
    assert not answer.refusals
    await call.close()
    assert (await server.model()).steps == 10


async def test_doubles_keep_their_digits(server: Harness) -> None:
    await server.create(input_size=1, scaling=False)
    call = await server.learn()
    values = 1.7e9 + np.arange(8.0)
    answer = await learn(call, pb.ChunkBatch(input_doubles=values, stream_ids=["s"], steps=[8]))
    assert not answer.predictions
    assert len(answer.prediction_doubles) == 8
    assert np.abs(np.array(answer.prediction_doubles) - values - 1).max() < 2
    await call.raw.write(
        pb.LearnRequest(chunk=pb.Chunk(stream_id="s", input_doubles=[values[-1] + 1]))
    )
    assert len((await call.learned()).prediction_doubles) == 1
    await call.close()
    request = pb.PredictRequest(model_id="m", stream_id="s")
    predicted = (await server.streams.Predict(request)).prediction_doubles
    assert abs(predicted[0] - values[-1] - 2) < 2


async def test_source_positions_of_lanes(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    columns: dict[str, Any] = {"stream_ids": ["a", "b", "c"]}
    positions = [b"one", b"", b"x" * 257]
    answer = await learn(call, batch(wave(3), source_positions=positions, **columns))
    [refused] = answer.refusals
    assert (refused.place, refused.field, refused.value) == (2, "source_position", "257 bytes")
    await call.close()
    listed = await server.streams.ListStreams(pb.ListStreamsRequest(model_id="m"))
    assert {
        (each.stream_id, each.source_position, each.source_step) for each in listed.streams
    } == {
        ("a", b"one", 1),
        ("b", b"", 0),
    }


async def test_classes_tokens_and_late_labels_in_batches(server: Harness) -> None:
    spec = small(task=pb.TASK_CLASSIFICATION, output_size=3, label_delay=2)
    await server.models.CreateModel(pb.CreateModelRequest(model_id="late", spec=spec))
    call = await server.learn("late")
    columns: dict[str, Any] = {"stream_ids": ["a", "b"], "steps": [3, 2]}
    labels = {"target_classes": [0, 1, 2], "target_steps": [1, 2], "first_target_steps": [0, 0]}
    answer = await learn(call, batch(wave(5), **columns, **labels))
    assert not answer.refusals
    late = pb.ChunkBatch(
        stream_ids=["a", "b"],
        steps=[0, 0],
        target_classes=[2, 9],
        target_steps=[1],
        first_target_steps=[1, 1],
    )
    answer = await learn(call, late)
    [refused] = answer.refusals
    assert (refused.place, refused.stream_id) == (1, "b")
    assert "9" in refused.value
    await call.close()

    tokens = pb.ModelSpec(task=pb.TASK_NEXT_TOKEN, vocabulary_size=5, hidden_size=4)
    await server.models.CreateModel(pb.CreateModelRequest(model_id="t", spec=tokens))
    call = await server.learn("t")
    answer = await learn(
        call, pb.ChunkBatch(stream_ids=["a", "b"], steps=[2, 1], input_tokens=[1, 7, 3])
    )
    [refused] = answer.refusals
    assert (refused.place, refused.field) == (0, "input_tokens")
    assert len(answer.top_tokens) == 5
    await call.close()


async def test_durable_answers_count_the_answers_of_the_call(server: Harness) -> None:
    await server.create()
    call = Call(server.streams.Learn())
    await call.raw.write(pb.LearnRequest(open=pb.OpenLearn(model_id="m")))
    assert (await call.raw.read()).WhichOneof("message") == "opened"
    told, answers = 0, 0
    for first in range(5):
        await call.raw.write(
            pb.LearnRequest(batch=batch(wave(1, first), stream_ids=["s"], first_steps=[first]))
        )
    await call.raw.write(pb.LearnRequest(close=pb.CloseLearn()))
    while (answer := await call.raw.read()) is not grpc.aio.EOF:
        kind = answer.WhichOneof("message")
        if kind == "batch":
            answers += 1
            told = max(told, answer.batch.durable_answers)
        elif kind == "acknowledged":
            told = max(told, answer.acknowledged.durable_answers)
        assert told <= answers
    assert answers == 5


async def test_many_streams_are_predicted_in_one_call(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    inputs = [wave(5) + lane for lane in range(3)]
    await learn(call, batch(inputs, stream_ids=[*"abc"], steps=[5]))
    await call.close()
    request = pb.PredictBatchRequest(model_id="m", stream_ids=["c", "nobody", "a"])
    answer = await server.streams.PredictBatch(request)
    single = [await server.predict(each) for each in "ca"]
    np.testing.assert_allclose(np.array(answer.predictions).reshape(2, 2), single, rtol=1e-6)
    assert list(answer.next_steps) == [5, 0, 5]
    [refused] = answer.refusals
    assert (refused.place, refused.stream_id, refused.reason) == (1, "nobody", "UNKNOWN_STREAM")

    read = wave(3, 5)
    request = pb.PredictBatchRequest(
        model_id="m", stream_ids=["a", "b"], steps=[1, 2], inputs=read.ravel().tolist()
    )
    answer = await server.streams.PredictBatch(request)
    assert list(answer.next_steps) == [6, 7]
    one = pb.PredictRequest(model_id="m", stream_id="b", inputs=read[1:].ravel().tolist())
    np.testing.assert_allclose(
        answer.predictions[2:], (await server.streams.Predict(one)).predictions, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "stream_ids"),
        ({"stream_ids": ["a"], "inputs": [1.0]}, "inputs"),
        ({"stream_ids": ["a", "b"], "steps": [1, 2, 3], "inputs": [1.0] * 6}, "steps"),
        ({"stream_ids": ["a"], "input_tokens": [1]}, "input_tokens"),
    ],
)
async def test_a_wrong_predict_batch_is_refused(
    server: Harness, fields: dict[str, Any], field: str
) -> None:
    await server.create()
    call = await server.learn()
    await learn(call, batch([wave(1), wave(1)], stream_ids=["a", "b"]))
    request = pb.PredictBatchRequest(model_id="m", **fields)
    error = await failure(server.streams.PredictBatch(request))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error)[0][0] == field
    await call.close()


async def test_a_value_that_is_not_finite_refuses_one_stream_of_a_prediction(
    server: Harness,
) -> None:
    await server.create()
    call = await server.learn()
    await learn(call, batch([wave(1), wave(1)], stream_ids=["a", "b"]))
    values = [float("nan"), 1.0, 0.5, 0.5]
    request = pb.PredictBatchRequest(model_id="m", stream_ids=["a", "b"], inputs=values)
    answer = await server.streams.PredictBatch(request)
    [refused] = answer.refusals
    assert (refused.place, refused.field) == (0, "inputs")
    assert refused.value == "nan in step 0, column 0"
    assert list(answer.next_steps) == [0, 2]
    assert len(answer.predictions) == 2
    await call.close()


async def test_a_stream_that_another_call_sends_is_refused_in_its_lane(server: Harness) -> None:
    await server.create()
    first, second = await server.learn(), await server.learn()
    await learn(first, batch(wave(1), stream_ids=["a"]))
    answer = await learn(second, batch(wave(2), stream_ids=["a", "b"]))
    [refused] = answer.refusals
    assert (refused.place, refused.reason) == (0, "STREAM_IN_USE")
    assert list(answer.next_steps) == [1, 1]
    await first.close()
    answer = await learn(second, batch(wave(2, 1), stream_ids=["a", "b"]))
    assert not answer.refusals
    await second.close()
    error = await failure(server.streams.PredictBatch(pb.PredictBatchRequest(model_id="no")))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    await until(lambda: not server.learner.open_calls)
