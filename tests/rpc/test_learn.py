"""Learn: results, order of answers, refusals, and ends of calls."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from bptt import v1 as pb
from bptt.config import Limits
from bptt_core import Chunk, Learner, ModelSpec
from tests.rpc.harness import failure, Harness, harness, small, until, violations, wave
from tests.support.metrics import above_zero, families


def twin() -> Learner:
    """The learner of the harness's model, without a server."""
    return Learner(ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4))


@pytest.mark.same_bits
async def test_the_server_learns_the_same_as_the_learner(server: Harness) -> None:
    await server.create()
    call, learner = await server.learn(), twin()
    for first in range(0, 60, 12):
        await call.send("s", wave(12, first), first_step=first)
        learned = await call.learned()
        [expected] = learner.apply([Chunk("s", first, wave(12, first))]).chunks
        assert (learned.stream_id, learned.first_step, learned.next_step) == (
            "s",
            first,
            first + 12,
        )
        assert expected.predictions is not None
        got = np.array(learned.predictions, np.float32)
        np.testing.assert_array_equal(got, expected.predictions.astype(np.float32).ravel())
        assert [each.update for each in learned.updates] == [u.update for u in expected.updates]
        assert [each.loss for each in learned.updates] == [u.loss for u in expected.updates]
        for told, real in zip(learned.updates, expected.updates, strict=True):
            assert told.gradient_norm == real.gradient_norm
            assert told.clipped_gradient_norm == real.clipped_gradient_norm
            assert (told.clipped, told.skipped) == (real.clipped, real.skipped)
            assert (told.steps, told.streams) == (real.steps, real.streams)
    await call.close()
    model = await server.model()
    assert (model.steps, model.streams) == (60, 1)
    assert model.updates == learner.figures.updates
    assert model.skill_ratio == learner.figures.skill_ratio


async def test_regression_learns_from_targets(server: Harness) -> None:
    await server.create(task=pb.TASK_REGRESSION, output_size=1)
    call = await server.learn()
    inputs = wave(10)
    await call.send("s", inputs, targets=inputs.sum(1).tolist())
    learned = await call.learned()
    assert len(learned.predictions) == 10
    assert learned.updates
    await call.close()


async def test_a_forecast_has_a_prediction_a_horizon_and_column(server: Harness) -> None:
    await server.create(horizon=3, target_columns=[1])
    call = await server.learn()
    await call.send("s", wave(7))
    assert len((await call.learned()).predictions) == 7 * 3
    await call.close()


async def test_predictions_are_omitted_on_request(server: Harness) -> None:
    await server.create()
    call = await server.learn(omit_predictions=True)
    await call.send("s", wave(8))
    learned = await call.learned()
    assert not learned.predictions
    assert learned.updates
    await call.close()


async def test_answers_come_in_the_order_of_the_chunks(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    server.gate.close()
    sent = []
    for number in range(60):
        name = f"s{number % 7}"
        if number % 5 == 4:
            await call.send(name, [1.0])  # half a step
            sent.append((name, "refused"))
        else:
            await call.send(name, wave(3))
            sent.append((name, "learned"))
    server.gate.open()
    got = []
    for _ in sent:
        answer = await call.read()
        kind = answer.WhichOneof("message")
        got.append((getattr(answer, kind).stream_id, kind))
    assert got == sent
    await call.close()


async def test_a_sequence_that_ends_is_flushed_and_begins_anew(server: Harness) -> None:
    await server.create()
    call, learner = await server.learn(), twin()
    await call.send("s", wave(5), end_of_sequence=True)
    learned = await call.learned()
    result = learner.apply([Chunk("s", 0, wave(5), None, True)])
    assert len(learned.updates) == len(result.updates)
    await call.send("s", wave(5))
    learned = await call.learned()
    assert learned.first_step == 5
    [expected] = learner.apply([Chunk("s", 5, wave(5))]).chunks
    assert expected.predictions is not None
    got = np.array(learned.predictions, np.float32)
    np.testing.assert_array_equal(got, expected.predictions.astype(np.float32).ravel())
    await call.close()


# ---------------------------------------------------------------------- order


async def test_a_chunk_that_is_sent_again_is_trimmed(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", wave(10), first_step=0)
    await call.send("s", wave(10), first_step=0)
    await call.send("s", wave(10, 5), first_step=5)
    answers = [await call.learned() for _ in range(3)]
    assert [(each.first_step, each.next_step) for each in answers] == [(0, 10), (10, 10), (10, 15)]
    assert [len(each.predictions) for each in answers] == [20, 0, 10]
    await call.close()
    model = await server.model()
    assert model.steps == 15
    [sample] = families(server.metrics)["bptt_duplicate_steps"].samples
    assert sample.value == 15
    learner = twin()
    learner.apply([Chunk("s", 0, wave(10))])
    learner.apply([Chunk("s", 10, wave(5, 10))])
    assert model.loss == learner.figures.loss


async def test_an_end_that_is_sent_again_does_not_reset_a_second_time(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", wave(4), first_step=0, end_of_sequence=True)
    await call.send("s", wave(3, 4), first_step=4)
    await call.learned()
    await call.learned()
    before = await server.predict("s")
    await call.send("s", wave(4), first_step=0, end_of_sequence=True)
    assert (await call.learned()).next_step == 7
    assert await server.predict("s") == before
    await call.close()


async def test_a_gap_is_refused_with_the_step_that_was_expected(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", wave(4))
    await call.learned()
    await call.send("s", wave(4), first_step=6)
    refused = await call.refused()
    assert refused.code == grpc.StatusCode.OUT_OF_RANGE.value[0]
    assert (refused.stream_id, refused.first_step, refused.expected_step) == ("s", 6, 4)
    assert (refused.field, refused.value) == ("first_step", "6")
    assert "at most 4" in refused.bound
    assert refused.chunk_index == 1
    await call.send("s", wave(4, 4), first_step=4)
    assert (await call.learned()).next_step == 8
    await call.close()


async def test_the_first_of_two_calls_keeps_a_stream(server: Harness) -> None:
    await server.create()
    first, second = await server.learn(), await server.learn()
    await first.send("s", wave(4), first_step=0)
    assert (await first.learned()).next_step == 4
    for first_step in (0, 4):  # a resend is refused too: the sender must know of the other call
        await second.send("s", wave(4, first_step), first_step=first_step)
        refused = await second.refused()
        assert refused.code == grpc.StatusCode.ABORTED.value[0]
        assert (refused.field, refused.stream_id, refused.expected_step) == ("stream_id", "s", 4)
    await second.send("t", wave(4))  # its other streams go on
    await second.learned()
    await first.send("s", wave(4, 4))
    assert (await first.learned()).next_step == 8
    await first.close()
    await second.send("s", wave(4), first_step=0)  # the first call has ended
    await second.send("s", wave(4, 8), first_step=8)
    assert [(await second.learned()).next_step for _ in range(2)] == [8, 12]
    await second.close()
    assert (await server.model()).steps == 16


async def test_a_stream_is_free_after_its_client_disconnects(server: Harness) -> None:
    await server.create()
    lost, second = await server.learn(), await server.learn()
    await lost.send("s", wave(4), first_step=0)
    await lost.learned()
    lost.raw.cancel()
    trainer = server.registry.get("m")
    await until(lambda: len(trainer.listeners) == 1)
    await second.send("s", wave(4, 4), first_step=4)
    assert (await second.learned()).next_step == 8
    await second.close()


async def test_a_repeated_chunk_is_answered_only_when_it_is_learned(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    server.gate.close()
    await call.send("s", wave(4), first_step=0)
    await call.send("s", wave(4), first_step=0)
    await call.send("t", [1.0])  # refused at once, yet answered after the chunks before it
    reading = asyncio.ensure_future(call.read())
    await until(lambda: _rejected(server) == 1)
    assert not reading.done()
    server.gate.open()
    assert (await reading).learned.next_step == 4
    assert (await call.learned()).next_step == 4
    await call.refused()
    await call.close()


def _rejected(server: Harness) -> float:
    return sum(above_zero(server.metrics, "bptt_rejected_chunks", "reason").values())


# ---------------------------------------------------------------------- bad input

NAN, INF = float("nan"), float("inf")
BAD_CHUNKS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"stream_id": ""}, "stream_id", "0 bytes", "1 to 256 bytes"),
    ({"stream_id": "s" * 257}, "stream_id", "257 bytes", "1 to 256 bytes"),
    ({"stream_id": "é" * 129}, "stream_id", "258 bytes", "1 to 256 bytes"),
    ({"inputs": []}, "inputs", "empty", "at least one step"),
    ({"inputs": [1, 2, 3]}, "inputs", "3 values", "a multiple of input_size, 2"),
    ({"inputs": [1, 2, 3, NAN]}, "inputs", "nan in step 1, column 1", "finite"),
    ({"inputs": [1, 2, INF, 4]}, "inputs", "inf in step 1, column 0", "finite"),
    ({"inputs": [-INF, 2]}, "inputs", "-inf in step 0, column 0", "finite"),
    ({"inputs": [1, 2] * 16_385}, "inputs", "16385 steps", "at most 16384 steps"),
    ({"inputs": [1, 2], "targets": [1]}, "targets", "1 values", "left out"),
    ({"inputs": [1, 2], "first_step": 1}, "first_step", "1", "at most 0"),
]


@pytest.mark.parametrize(("fields", "field", "value", "bound"), BAD_CHUNKS)
async def test_a_bad_chunk_is_refused_and_the_call_goes_on(
    server: Harness, fields: dict[str, Any], field: str, value: str, bound: str
) -> None:
    await server.create()
    call = await server.learn()
    chunk = pb.Chunk(**({"stream_id": "s", "inputs": [1, 2]} | fields))
    await call.raw.write(pb.LearnRequest(chunk=chunk))
    refused = await call.refused()
    gap = field == "first_step"
    code = grpc.StatusCode.OUT_OF_RANGE if gap else grpc.StatusCode.INVALID_ARGUMENT
    assert refused.code == code.value[0]
    assert refused.field == field
    assert value in refused.value
    assert bound in refused.bound
    assert field in refused.message
    assert refused.value in refused.message
    assert refused.bound in refused.message
    assert refused.expected_step == 0
    model = await server.model()
    assert (model.steps, model.streams) == (0, 0)
    await call.send("s", wave(4), first_step=0)
    assert (await call.learned()).next_step == 4
    await call.close()


@pytest.mark.parametrize(
    ("targets", "value"),
    [([], "0 values"), ([1, 2, 3], "3 values"), ([1, NAN], "nan in step 1, column 0")],
)
async def test_bad_targets_are_refused(server: Harness, targets: list[float], value: str) -> None:
    await server.create(task=pb.TASK_REGRESSION, output_size=1)
    call = await server.learn()
    await call.send("s", wave(2), targets=targets)
    refused = await call.refused()
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert refused.field == "targets"
    assert value in refused.value
    assert (await server.model()).streams == 0
    await call.close()


async def test_a_column_is_named_where_the_model_has_names(server: Harness) -> None:
    await server.create(input_names=["left", "right"])
    call = await server.learn()
    await call.send("s", [1, NAN])
    assert "column 1 (right)" in (await call.refused()).value
    await call.close()


async def test_one_stream_more_than_the_limit_is_refused() -> None:
    async with harness(Limits(streams=2)) as server:
        await server.create()
        call = await server.learn()
        for name in ("a", "b", "c"):
            await call.send(name, wave(2))
        await call.learned()
        await call.learned()
        refused = await call.refused()
        assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert "at most 2" in refused.bound
        await call.send("a", wave(2))
        await call.learned()
        await call.close()


async def test_a_refused_chunk_is_counted_by_reason(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    for inputs in ([1], [1, NAN], [], [NAN, 1]):
        await call.send("s", inputs)
        await call.refused()
    await call.close()
    counts = above_zero(server.metrics, "bptt_rejected_chunks", "reason")
    assert counts == {"wrong_size": 1, "not_finite": 2, "empty": 1}


# ---------------------------------------------------------------------- how calls end


async def test_close_is_answered_after_all_chunks(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    server.gate.close()
    for first in range(0, 20, 2):
        await call.send("s", wave(2, first))
    await call.raw.write(pb.LearnRequest(close=pb.CloseLearn()))
    server.gate.open()
    assert [(await call.learned()).next_step for _ in range(10)] == list(range(2, 22, 2))
    answer = await call.read()
    assert answer.WhichOneof("message") == "closed"
    assert not answer.closed.server_stopping
    assert await call.read() is grpc.aio.EOF
    assert await call.raw.code() == grpc.StatusCode.OK


async def _status(call: Any) -> grpc.aio.AioRpcError:
    """Read answers until the call fails."""
    while True:
        try:
            answer = await call.read()
        except grpc.aio.AioRpcError as error:
            return error
        assert answer is not grpc.aio.EOF


async def test_the_end_without_close_is_an_error_but_what_was_sent_is_learned(
    server: Harness,
) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", wave(4))
    await call.raw.done_writing()
    assert (await call.learned()).next_step == 4
    error = await _status(call)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert violations(error)[0][0] == "message"
    assert "close" in violations(error)[0][1]
    assert await server.next_step("s") == 4


async def test_a_message_after_close_is_an_error_after_all_answers(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    server.gate.close()
    await call.send("s", wave(4))
    await call.raw.write(pb.LearnRequest(close=pb.CloseLearn()))
    await call.send("s", wave(4))
    trainer = server.registry.get("m")
    await until(lambda: _received(server) == 4)
    server.gate.open()
    assert (await call.learned()).next_step == 4
    error = await _status(call)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "close was the last" in str(error.details())
    assert trainer.expected_step("s") == 4


def _received(server: Harness) -> float:
    return sum(
        sample.value
        for sample in families(server.metrics)["grpc_server_msg_received"].samples
        if sample.labels["grpc_method"] == "Learn"
    )


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (pb.LearnRequest(chunk=pb.Chunk(stream_id="s", inputs=[1, 2])), "chunk"),
        (pb.LearnRequest(close=pb.CloseLearn()), "close"),
        (pb.LearnRequest(), "empty"),
        (None, "none"),
    ],
)
async def test_the_first_message_must_open(
    server: Harness, message: pb.LearnRequest | None, named: str
) -> None:
    await server.create()
    raw = server.streams.Learn()
    if message is None:
        await raw.done_writing()
    else:
        await raw.write(message)
    error = await failure(raw.read())
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    [(field, description)] = violations(error)
    assert field == "message"
    assert f"is {named}, but must be open" in description
    assert (await server.model()).steps == 0


async def test_opening_twice_is_an_error(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.raw.write(pb.LearnRequest(open=pb.OpenLearn(model_id="m")))
    error = await _status(call)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("model_id", "code"),
    [("x", grpc.StatusCode.NOT_FOUND), ("", grpc.StatusCode.INVALID_ARGUMENT)],
)
async def test_an_unknown_model_cannot_be_opened(
    server: Harness, model_id: str, code: grpc.StatusCode
) -> None:
    raw = server.streams.Learn()
    await raw.write(pb.LearnRequest(open=pb.OpenLearn(model_id=model_id)))
    error = await failure(raw.read())
    assert error.code() == code
    assert violations(error)[0][0] == "model_id"


@pytest.mark.parametrize("how", ["cancel", "drop the connection"])
async def test_chunks_of_a_lost_client_are_learned_completely(
    server: Harness, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    await server.create()
    channel = grpc.aio.insecure_channel(server.rpc.address, [("grpc.use_local_subchannel_pool", 1)])
    raw = channel.stream_stream(
        "/bptt.v1.LearnerService/Learn",
        request_serializer=pb.LearnRequest.SerializeToString,
        response_deserializer=pb.LearnResponse.FromString,
    )()
    await raw.write(pb.LearnRequest(open=pb.OpenLearn(model_id="m")))
    await raw.read()
    server.gate.close()
    trainer = server.registry.get("m")
    for first in range(0, 20, 4):
        values = wave(4, first).ravel().tolist()
        await raw.write(pb.LearnRequest(chunk=pb.Chunk(stream_id="s", inputs=values)))
    await until(lambda: trainer.expected_step("s") == 20)
    if how == "cancel":
        raw.cancel()
    await channel.close()
    await until(lambda: not server.learner.open_calls)
    server.gate.open()
    await until(lambda: "s" in trainer.views and trainer.views["s"].next_step == 20)
    learner = twin()
    learner.apply([Chunk("s", 0, wave(20))])
    assert (await server.model()).loss == learner.figures.loss
    assert not [each for each in caplog.records if each.levelname in ("ERROR", "WARNING")]


async def test_a_stop_answers_accepted_chunks_and_reports_the_stop(server: Harness) -> None:
    await server.create()
    call, idle = await server.learn(), await server.learn()
    trainer = server.registry.get("m")
    server.gate.close()
    for first in range(0, 20, 4):
        await call.send("s", wave(4, first))
    await until(lambda: trainer.expected_step("s") == 20)
    stopping = asyncio.create_task(server.registry.stop(10.0))
    assert (await idle.read()).closed.server_stopping
    server.gate.open()
    assert [(await call.learned()).next_step for _ in range(5)] == [4, 8, 12, 16, 20]
    assert (await call.read()).closed.server_stopping
    assert await call.read() is grpc.aio.EOF
    assert await stopping == []


async def test_a_stopping_server_refuses_new_work_and_still_predicts(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    await call.send("s", wave(4))
    await call.learned()
    await call.close()
    server.registry.begin_stop()
    names: dict[str, Any] = {"model_id": "m", "stream_id": "s"}
    raw = server.streams.Learn()
    await raw.write(pb.LearnRequest(open=pb.OpenLearn(model_id="m")))
    for refused in (
        server.models.CreateModel(pb.CreateModelRequest(model_id="n", spec=small())),
        server.models.DeleteModel(pb.DeleteModelRequest(model_id="m")),
        server.streams.ResetStream(pb.ResetStreamRequest(**names)),
        server.streams.DeleteStream(pb.DeleteStreamRequest(**names)),
        raw.read(),
    ):
        error = await failure(refused)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert "stopping" in str(error.details())
    assert await server.predict("s")
    assert await server.next_step("s") == 4


async def test_a_message_of_almost_the_limit_is_learned_and_one_above_it_is_refused(
    server: Harness,
) -> None:
    await server.create(input_size=64, target_columns=[0])
    call = await server.learn()
    await call.send("s", np.ones((16_000, 64), np.float32))
    assert (await call.learned()).next_step == 16_000
    await call.send("s", np.ones((16_384, 64), np.float32))
    error = await _status(call)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await server.next_step("s") == 16_000


# ---------------------------------------------------------------------- many, and slow


async def test_a_full_queue_makes_the_client_wait_and_loses_nothing() -> None:
    async with harness(Limits(queue_chunks=4)) as server:
        await server.create(input_size=256)
        call = await server.learn()
        server.gate.close()
        steps, chunks = 16, 400  # 16 KB a chunk: more of them than the connection buffers
        inputs = np.ones((steps, 256), np.float32)

        async def send() -> None:
            for _ in range(chunks):
                await call.send("s", inputs)

        sending = asyncio.create_task(send())
        trainer = server.registry.get("m")
        await until(lambda: trainer.full)
        done, _ = await asyncio.wait([sending], timeout=1.0)
        assert not done, "the client did not wait"
        assert _received(server) <= 1 + 4 + 1 + 256, "the server went on reading"
        server.gate.open()
        for number in range(chunks):
            assert (await call.learned()).next_step == (number + 1) * steps
        await sending
        await call.close()
        assert (await server.model()).steps == chunks * steps


async def test_a_client_that_does_not_read_is_not_read_from() -> None:
    async with harness(Limits(call_answers=4)) as server:
        await server.create()
        call = await server.learn()
        server.gate.close()
        for _ in range(8):
            await call.send("s", wave(2))
        await until(lambda: _received(server) == 1 + 5)
        trainer = server.registry.get("m")
        assert trainer.expected_step("s") == 8
        server.gate.open()
        assert [(await call.learned()).next_step for _ in range(8)] == list(range(2, 18, 2))
        await call.close()


async def test_many_clients_at_once_each_get_their_own_answers(server: Harness) -> None:
    await server.create("m")
    await server.create("n")

    async def client(number: int) -> None:
        call = await server.learn("mn"[number % 2])
        name = f"client {number}"
        for first in range(0, 100, 10):
            await call.send(name, wave(10, first), first_step=first)
            learned = await call.learned()
            assert (learned.stream_id, learned.next_step) == (name, first + 10)
        await call.close()

    await asyncio.gather(*(client(number) for number in range(20)))
    for name in "mn":
        model = await server.model(name)
        assert (model.steps, model.streams) == (1000, 10)


async def test_streams_waiting_together_are_learned_in_one_update(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    server.gate.close()
    await call.send("first", wave(2))
    trainer = server.registry.get("m")
    await until(lambda: trainer.expected_step("first") == 2)
    for name in "abcdefgh":
        await call.send(name, wave(4))
    await until(lambda: trainer.expected_step("h") == 4)
    server.gate.open()
    await call.learned()
    updates = [update for _ in range(8) for update in (await call.learned()).updates]
    assert {each.streams for each in updates} == {8}
    await call.close()


# ---------------------------------------------------------------------- streams


async def test_reset_and_delete_follow_the_accepted_chunks(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    server.gate.close()
    await call.send("s", wave(4))
    trainer = server.registry.get("m")
    await until(lambda: trainer.expected_step("s") == 4)
    request = pb.ResetStreamRequest(model_id="m", stream_id="s")
    reset = asyncio.ensure_future(server.streams.ResetStream(request))
    server.gate.open()
    assert (await call.learned()).next_step == 4
    assert (await reset).stream.next_step == 4
    await call.send("s", wave(4), first_step=4)
    assert (await call.learned()).next_step == 8
    delete = pb.DeleteStreamRequest(model_id="m", stream_id="s")
    await server.streams.DeleteStream(delete)
    error = await failure(server.next_step("s"))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert violations(error)[0][0] == "stream_id"
    assert (await failure(server.streams.DeleteStream(delete))).code() == grpc.StatusCode.NOT_FOUND
    await call.send("s", wave(4), first_step=0)
    assert (await call.learned()).next_step == 4
    await call.close()
    assert (await server.model()).steps == 12


async def test_streams_are_listed_page_by_page(server: Harness) -> None:
    await server.create()
    call = await server.learn()
    for name in ("c", "a", "é", "b", "d"):
        await call.send(name, wave(3))
        await call.learned()
    await call.close()
    pages, token = [], ""
    while True:
        request = pb.ListStreamsRequest(model_id="m", page_size=2, page_token=token)
        response = await server.streams.ListStreams(request)
        pages.append([(each.stream_id, each.next_step) for each in response.streams])
        token = response.next_page_token
        if not token:
            break
    assert pages == [[("a", 3), ("b", 3)], [("c", 3), ("d", 3)], [("é", 3)]]


@pytest.mark.parametrize("stream_id", ["", "s" * 257])
async def test_a_bad_stream_name_is_refused_by_every_method(
    server: Harness, stream_id: str
) -> None:
    await server.create()
    fields: dict[str, Any] = {"model_id": "m", "stream_id": stream_id}
    calls = [
        server.streams.GetStream(pb.GetStreamRequest(**fields)),
        server.streams.ResetStream(pb.ResetStreamRequest(**fields)),
        server.streams.DeleteStream(pb.DeleteStreamRequest(**fields)),
    ]
    if stream_id:
        calls.append(server.streams.Predict(pb.PredictRequest(**fields)))
    for call in calls:
        error = await failure(call)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert violations(error)[0][0] == "stream_id"
        assert "1 to 256 bytes" in violations(error)[0][1]
