"""The client against a real server on loopback."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import numpy as np
import pytest

from bptt import v1 as pb
from bptt.client import Client, Learned, Refused, ServerUnreachable
from bptt.client.session import UNANSWERED_MAX
from bptt.errors import AlreadyExists, InvalidRequest, NotFound, OutOfOrder, Unavailable
from tests.support.server import Served

SINE = np.sin(np.arange(400) / 7).astype(np.float32)[:, None]


async def test_a_model_is_made_shown_listed_and_deleted(client: Client, name: str) -> None:
    made = await client.create_model(name, {"input_size": 2, "k1": 2, "cell": "rnn_relu"})
    assert str(made) == str(await client.get_model(name))  # as text, NaN equals itself
    assert made.spec["k1"] == 2
    assert made.spec["cell"] == "rnn_relu"
    assert made.spec["task"] == "forecast"
    assert made.spec["loss"] == "huber"
    assert made.spec["learning_rate"] == 0.001
    assert (made.steps, made.updates, made.streams) == (0, 0, 0)
    assert np.isnan(made.loss)
    assert name in [model.model_id for model in await client.list_models()]
    await client.delete_model(name)
    assert name not in [model.model_id for model in await client.list_models()]
    with pytest.raises(NotFound):
        await client.get_model(name)


async def test_a_spec_as_a_message_is_taken_too(client: Client, name: str) -> None:
    made = await client.create_model(name, pb.ModelSpec(input_size=3, hidden_size=5))
    assert made.spec["hidden_size"] == 5


async def test_lists_have_all_pages(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bptt.client.client.PAGE_SIZE", 2)
    await client.create_model(name, {"input_size": 1})
    async with client.learn(name) as session:
        for stream in "abcde":
            await session.send(stream, SINE[:3])
    streams = await client.list_streams(name)
    assert [(s.stream_id, s.next_step) for s in streams] == [(s, 3) for s in "abcde"]
    more = [await client.create_model(f"{name}-{i}", {"input_size": 1}) for i in range(3)]
    assert {m.model_id for m in more} <= {m.model_id for m in await client.list_models()}


async def test_steps_are_learned_and_predicted(client: Client, name: str) -> None:
    await client.create_model(name, {"input_size": 1, "horizon": 3})
    answers = []
    async with client.learn(name) as session:
        assert session.model.horizon == 3
        for first in range(0, 400, 50):
            await session.send("a", SINE[first : first + 50], first_step=first)
        await session.close()
        async for answer in session:
            assert isinstance(answer, Learned)
            answers.append(answer)
    assert [(a.first_step, a.next_step) for a in answers] == [
        (first, first + 50) for first in range(0, 400, 50)
    ]
    assert all(a.predictions is not None and a.predictions.shape == (50, 3, 1) for a in answers)
    reports = [report for answer in answers for report in answer.updates]
    assert [report.update for report in reports] == list(range(1, len(reports) + 1))
    assert all(report.gradient_norm > 0 for report in reports)
    model = await client.get_model(name)
    assert (model.steps, model.updates, model.streams) == (400, len(reports), 1)
    prediction = await client.predict(name, "a")
    assert prediction.values.shape == (1, 3, 1)
    assert prediction.values.dtype == np.float32
    assert prediction.next_step == 400
    np.testing.assert_allclose(prediction.values[0, 0], np.sin(400 / 7), atol=0.2)


async def test_predict_reads_steps_and_changes_nothing(client: Client, name: str) -> None:
    await client.create_model(name, {"input_size": 1})
    async with client.learn(name) as session:
        await session.send("a", SINE[:100])
    first = await client.predict(name, "a", SINE[100:105])
    again = await client.predict(name, "a", SINE[100:105])
    assert first.values.shape == (5, 1, 1)
    np.testing.assert_array_equal(first.values, again.values)
    assert (await client.get_stream(name, "a")).next_step == 100


async def test_a_regression_takes_targets(client: Client, name: str) -> None:
    await client.create_model(name, {"task": "regression", "input_size": 1, "output_size": 2})
    targets = np.hstack([2 * SINE, -SINE])
    async with client.learn(name) as session:
        await session.send("a", SINE, targets)
        await session.close()
        answer = await anext(session)
    assert isinstance(answer, Learned)
    assert answer.predictions is not None
    assert answer.predictions.shape == (400, 1, 2)
    assert (await client.predict(name, "a", SINE[:4])).values.shape == (4, 1, 2)


async def test_predictions_can_be_left_out(client: Client, name: str) -> None:
    await client.create_model(name, {"input_size": 1})
    async with client.learn(name, predictions=False) as session:
        await session.send("a", SINE)
        answer = await anext(session)
    assert isinstance(answer, Learned)
    assert answer.predictions is None
    assert answer.updates


async def test_arrays_of_any_number_type_and_lists_are_read_alike(
    client: Client, name: str
) -> None:
    await client.create_model(name, {"input_size": 2})
    values = np.arange(12).reshape(6, 2)
    forms: list[Any] = [values, values.astype(np.float64), values.tolist(), values.ravel()]
    forms.append(np.asfortranarray(values))
    results = []
    for place, form in enumerate(forms):
        results.append((await client.predict(name, "", form)).values)
        async with client.learn(name) as session:
            await session.send(f"s{place}", form)
        assert (await client.get_stream(name, f"s{place}")).next_step == 6
        assert len(results[-1]) == 6
    async with client.learn(name) as session:
        await session.send("one", [1.0, 2.0])
    assert (await client.get_stream(name, "one")).next_step == 1


async def test_leaving_the_block_waits_until_sent_steps_are_learned(
    client: Client, name: str
) -> None:
    await client.create_model(name, {"input_size": 1})
    async with client.learn(name) as session:
        for _ in range(3 * UNANSWERED_MAX):
            await session.send("a", SINE[:1])
    assert (await client.get_stream(name, "a")).next_step == 3 * UNANSWERED_MAX


async def test_a_sequence_ends_and_a_stream_is_reset_and_deleted(client: Client, name: str) -> None:
    await client.create_model(name, {"input_size": 1})
    async with client.learn(name) as session:
        await session.send("a", SINE[:10], end_of_sequence=True)
        await session.send("a", SINE[:10])
    assert (await client.reset_stream(name, "a")).next_step == 20
    await client.delete_stream(name, "a")
    with pytest.raises(NotFound):
        await client.get_stream(name, "a")


async def test_a_gap_is_refused_and_a_repetition_is_trimmed(client: Client, name: str) -> None:
    await client.create_model(name, {"input_size": 1})
    async with client.learn(name) as session:
        await session.send("a", SINE[:10], first_step=0)
        await session.send("a", SINE[20:30], first_step=20)
        await session.send("a", SINE[5:15], first_step=5)
        await session.close()
        learned, refused, trimmed = [answer async for answer in session]
    assert isinstance(learned, Learned)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, OutOfOrder)
    assert (refused.chunk_index, refused.first_step, refused.expected_step) == (1, 20, 10)
    assert refused.error.violations[0].field.endswith("first_step")
    assert isinstance(trimmed, Learned)
    assert (trimmed.first_step, trimmed.next_step) == (10, 15)
    assert trimmed.predictions is not None
    assert len(trimmed.predictions) == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e309])
async def test_an_unread_refusal_is_raised(client: Client, name: str, bad: float) -> None:
    await client.create_model(name, {"input_size": 1})
    with pytest.raises(InvalidRequest, match="inputs"):
        async with client.learn(name) as session:
            await session.send("a", [[bad]])
    assert await client.list_streams(name) == []


async def test_a_wrong_shape_is_refused_before_sending(client: Client, name: str) -> None:
    await client.create_model(name, {"input_size": 3})
    async with client.learn(name) as session:
        for wrong in ([1.0, 2.0], [[1.0, 2.0]], np.zeros((2, 2, 3)), "words"):
            with pytest.raises(InvalidRequest) as caught:
                await session.send("a", wrong)
            assert caught.value.violations[0].field == "inputs"
    assert await client.list_streams(name) == []


async def test_errors_name_field_value_and_bound(client: Client, name: str) -> None:
    await client.create_model(name, {"input_size": 1})
    with pytest.raises(AlreadyExists) as exists:
        await client.create_model(name, {"input_size": 1})
    assert name in exists.value.violations[0].value
    specs: list[tuple[dict[str, Any], str, str]] = [
        ({"input_size": 0}, "input_size", "0"),
        ({}, "input_size", ""),
        ({"input_size": 1, "hidden_size": 5000}, "hidden_size", "5000"),
        ({"input_size": 1, "k1": 9, "k2": 8}, "k2", "8"),
        ({"input_size": 1, "learning_rate": -1.0}, "learning_rate", "-1.0"),
        ({"input_size": -1}, "input_size", "-1"),
        ({"input_size": 1.5}, "input_size", "1.5"),
        ({"input_size": 1, "cell": "cnn"}, "cell", "cnn"),
        ({"input_size": 1, "nonsense": 1}, "nonsense", "1"),
        ({"input_size": 1, "target_columns": [-1]}, "target_columns", "[-1]"),
    ]
    for spec, field, value in specs:
        with pytest.raises(InvalidRequest) as caught:
            await client.create_model(f"{name}-bad", spec)
        violation = caught.value.violations[0]
        assert violation.field.endswith(field), spec
        assert value in violation.value, spec
        assert violation.bound, spec
    with pytest.raises(NotFound):
        await client.get_model(f"{name}-bad")


async def test_a_session_on_an_unknown_model_does_not_open(client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        async with client.learn("nobody-made-this"):
            pass
    assert caught.value.violations[0].field == "model_id"


async def test_nothing_can_be_sent_after_close(client: Client, name: str) -> None:
    await client.create_model(name, {"input_size": 1})
    async with client.learn(name) as session:
        await session.close()
        await session.close()
        with pytest.raises(ValueError, match="closed"):
            await session.send("a", SINE)


async def test_an_exception_in_the_block_ends_the_call(client: Client, name: str) -> None:
    await client.create_model(name, {"input_size": 1})

    async def fail() -> None:
        async with client.learn(name) as session:
            await session.send("a", SINE[:5])
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    async with client.learn(name) as session:
        await session.send("b", SINE[:5])
    assert (await client.get_stream(name, "b")).next_step == 5


async def test_sending_waits_for_answers(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bptt.client.session.UNANSWERED_MAX", 3)
    await client.create_model(name, {"input_size": 1, "hidden_size": 128})
    most = 0
    async with client.learn(name) as session:
        for _ in range(40):
            await session.send("a", SINE[:64])
            most = max(most, session._buffer.unanswered)
    assert most == 3


async def test_answers_that_pile_up_unread_are_an_error_not_a_hang(
    client: Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bptt.client.session.UNREAD_MAX", 20)
    await client.create_model(name, {"input_size": 1})

    async def send_only() -> None:
        async with client.learn(name) as session:
            for _ in range(2000):
                await session.send("a", SINE[:1])

    with pytest.raises(RuntimeError, match="another task"):
        await asyncio.wait_for(send_only(), 20)

    read = 0
    async with client.learn(name) as session:

        async def read_slowly() -> None:
            nonlocal read
            async for _ in session:
                read += 1
                await asyncio.sleep(0)

        reader = asyncio.create_task(read_slowly())
        await asyncio.sleep(0)
        for _ in range(500):
            await session.send("b", SINE[:1])
        await session.close()
        await reader
    assert read == 500


async def test_no_server_is_an_error_that_names_the_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: always refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ServerUnreachable, match=address):
            async with Client.connect(address):
                pass


async def test_another_listener_is_not_taken_for_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bptt.client.client.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServerUnreachable, match=address):
            async with Client.connect(address):
                pass


async def test_a_client_can_wait_for_its_server(shared: Served) -> None:
    async with Client.connect(shared.address, wait_seconds=5) as client:
        assert isinstance(await client.list_models(), list)


async def test_a_killed_server_is_an_error_that_names_it(served: Served) -> None:
    async with Client.connect(served.address) as client:
        await client.create_model("m", {"input_size": 1})

        async def go_on_reading() -> None:
            async with client.learn("m", resume=False) as session:
                await session.send("a", SINE[:5])
                await anext(session)
                served.process.kill()
                async for _ in session:
                    pass

        with pytest.raises(Unavailable, match=served.address):
            await go_on_reading()
        with pytest.raises(Unavailable, match=served.address):
            await client.list_models()
    served.process.wait()
    served.process.returncode = 0  # as meant: the fixture takes any other end for a failure


async def test_a_stopping_server_answers_accepted_chunks_and_reports_the_stop(
    served: Served,
) -> None:
    async with Client.connect(served.address) as client:
        await client.create_model("m", {"input_size": 1})
        async with client.learn("m", resume=False) as session:
            await session.send("a", SINE[:5])
            assert isinstance(await anext(session), Learned)
            served.process.terminate()
            assert [answer async for answer in session] == []
            assert session.server_stopping
            with pytest.raises(Unavailable, match="stopping"):
                await session.send("a", SINE[:5])
