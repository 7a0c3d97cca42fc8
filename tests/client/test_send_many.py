"""Batches of many streams: what `send_many` sends, and what its answers tell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bptt.client import BatchResult, Client, Learned, LearnSession
from bptt.errors import InvalidRequest, OutOfOrder
from bptt_core import Chunk, Learner, ModelSpec
from tests.support.server import Served, serving

SPEC: Any = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}
STREAMS = 5
NAMES = [f"s{number}" for number in range(STREAMS)]

Rows = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def strict() -> Iterator[Served]:
    """A server with small limits."""
    with serving("--limits-chunk-steps=8", "--limits-message-bytes=65536") as server:
        yield server


def walk(*shape: int) -> Rows:
    generator = np.random.default_rng(7)
    return generator.normal(size=shape).cumsum(axis=-2).astype(np.float32)


async def result(session: LearnSession) -> BatchResult:
    found = await anext(session)
    assert isinstance(found, BatchResult), found
    return found


def twin(spec: Any, ticks: list[list[Chunk]]) -> tuple[Learner, list[Rows]]:
    """A learner that gets each tick at once, and the predictions of its chunks."""
    learner = Learner(ModelSpec(**spec))
    rows = []
    for tick in ticks:
        found = [each.predictions for each in learner.apply(tick).chunks]
        rows.append(np.stack([each for each in found if each is not None]))
    return learner, rows


async def test_one_step_of_many_streams(client: Client, name: str) -> None:
    values = walk(STREAMS, 30, 2)
    await client.create_model(name, SPEC)
    results = []
    async with client.learn(name) as session:
        for step in range(30):
            await session.send_many(NAMES, values[:, step])
            results.append(await result(session))
        assert await session.acknowledged("s3") == 30
        assert session.durable_step("s3") == 30
    ticks = [
        [Chunk(each, step, values[place, step : step + 1]) for place, each in enumerate(NAMES)]
        for step in range(30)
    ]
    learner, truth = twin(SPEC, ticks)
    model = await client.get_model(name)
    assert (model.steps, model.updates) == (150, learner.figures.updates)
    assert model.loss == learner.figures.loss
    for step, found in enumerate(results):
        assert list(found.stream_ids) == NAMES
        assert found.first_steps.tolist() == [step] * STREAMS
        assert found.next_steps.tolist() == [step + 1] * STREAMS
        assert not found.refused
        assert found.predictions is not None
        assert found.predictions.shape == (STREAMS, 1, 2)
        expected = truth[step].astype(np.float32).reshape(STREAMS, 1, 2)
        np.testing.assert_array_equal(found.predictions, expected)
        assert found.anomaly_scores is not None
        assert found.anomaly_scores.shape == (STREAMS,)
    assert sum(len(found.updates) for found in results) == learner.figures.updates


async def test_blocks_of_steps_keep_the_shape_of_the_values(client: Client, name: str) -> None:
    values = walk(STREAMS, 12, 2)
    await client.create_model(name, SPEC)
    async with client.learn(name) as session:
        await session.send_many(NAMES, values)
        found = await result(session)
    _, [truth] = twin(SPEC, [[Chunk(each, 0, values[i]) for i, each in enumerate(NAMES)]])
    assert found.predictions is not None
    assert found.predictions.shape == (STREAMS, 12, 1, 2)
    np.testing.assert_array_equal(
        found.predictions, truth.astype(np.float32).reshape(STREAMS, 12, 1, 2)
    )


async def test_streams_of_different_lengths(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    values = walk(9, 2)
    async with client.learn(name) as session:
        await session.send_many(["a", "b", "c"], values, steps=[4, 0, 5])
        found = await result(session)
        assert sorted(found.refused) == ["b"]
        assert found.refused["b"].error.violations[0].field == "inputs"
        assert found.next_steps.tolist() == [4, 0, 5]
        assert found.predictions is not None
        assert found.predictions.shape == (9, 1, 2)
    streams = await client.list_streams(name)
    assert [(each.stream_id, each.next_step) for each in streams] == [("a", 4), ("c", 5)]


async def test_a_refused_stream_is_told_and_the_others_are_learned(
    client: Client, name: str
) -> None:
    await client.create_model(name, SPEC)
    values = walk(STREAMS, 3, 2)
    bad = values.copy()
    bad[2, 1, 1] = np.nan
    async with client.learn(name) as session:
        await session.send_many(NAMES, bad)
        await session.send_many(NAMES, values)
        first, second = await result(session), await result(session)
        assert list(first.refused) == ["s2"]
        refused = first.refused["s2"]
        assert isinstance(refused.error, InvalidRequest)
        [violation] = refused.error.violations
        assert violation.field == "inputs"
        assert "step 1, column 1" in violation.value
        assert (refused.first_step, refused.expected_step) == (0, 0)
        assert first.next_steps.tolist() == [3, 3, 0, 3, 3]
        assert first.predictions is not None
        assert np.isnan(first.predictions[2]).all()
        assert np.isfinite(np.delete(first.predictions, 2, axis=0)).all()
        assert not second.refused
        assert second.next_steps.tolist() == [6, 6, 3, 6, 6], "what followed moved up"
    assert (await client.get_stream(name, "s2")).next_step == 3


async def test_leaving_the_block_raises_an_unread_refusal(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    with pytest.raises(InvalidRequest, match="inputs"):
        async with client.learn(name) as session:
            await session.send_many(["a", "b"], [[1.0, np.inf], [1.0, 2.0]])
    assert (await client.get_stream(name, "b")).next_step == 1


@pytest.mark.parametrize("resume", [True, False])
async def test_explicit_steps_are_trimmed_or_gaps(client: Client, name: str, resume: bool) -> None:
    await client.create_model(name, SPEC)
    values = walk(3, 4, 2)
    async with client.learn(name, resume=resume) as session:
        await session.send_many(["a", "b", "c"], values, first_steps=0)
        await session.send_many(["a", "b", "c"], values, first_steps=[2, 9, 4])
        first, second = await result(session), await result(session)
    assert first.next_steps.tolist() == [4, 4, 4]
    assert list(second.refused) == ["b"]
    assert isinstance(second.refused["b"].error, OutOfOrder)
    assert second.refused["b"].expected_step == 4
    assert second.first_steps.tolist() == [4, 4, 4]
    assert second.next_steps.tolist() == [6, 4, 8]
    assert second.predictions is not None
    known = np.asarray(np.isnan(second.predictions).all(axis=(2, 3)))
    assert known.tolist() == [[True, True, False, False], [True] * 4, [False] * 4]


async def test_a_deleted_stream_is_opened_again(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    values = walk(3, 4, 2)
    async with client.learn(name) as session:
        await session.send_many(["a", "b", "c"], values)
        await session.acknowledged("b")
        await client.delete_stream(name, "b")
        await session.send_many(["a", "b", "c"], values)
        await session.send_many(["a", "b", "c"], values)
        found = [await result(session) for _ in range(3)]
    assert [each.next_steps.tolist() for each in found] == [[4, 4, 4], [8, 4, 8], [12, 8, 12]]
    assert not any(each.refused for each in found)


async def test_late_labels_alone_and_ends_of_sequence(client: Client, name: str) -> None:
    spec: Any = {"task": "regression", "output_size": 1, "label_delay": 3, **SPEC}
    await client.create_model(name, spec)
    values, wanted = walk(2, 6, 2), walk(2, 6, 1)
    async with client.learn(name) as session:
        await session.send_many(["a", "b"], values)
        await session.send_many(
            ["a", "b"], targets=wanted[:, 3:], first_steps=6, first_target_steps=[3, 3]
        )
        await session.send_many(["a", "b"], ends_of_sequence=[True, False])
        found = [await result(session) for _ in range(3)]
        assert await session.acknowledged("a") == 6
    assert [each.next_steps.tolist() for each in found] == [[6, 6]] * 3
    assert "b" in found[2].refused, "a chunk with neither steps nor targets nor an end"
    learner = Learner(ModelSpec(**spec))
    learner.apply([Chunk(each, 0, values[i]) for i, each in enumerate("ab")])
    labels = [
        Chunk(each, 6, values[i, :0], wanted[i, 3:], first_target_step=3)
        for i, each in enumerate("ab")
    ]
    learner.apply(labels)
    learner.apply([Chunk("a", 6, values[0, :0], end_of_sequence=True)])
    model = await client.get_model(name)
    assert (model.updates, model.loss) == (learner.figures.updates, learner.figures.loss)


async def test_classes_tokens_and_source_positions(client: Client, name: str) -> None:
    classes: Any = {"task": "classification", "output_size": 3, **SPEC}
    await client.create_model(name, classes)
    async with client.learn(name) as session:
        await session.send_many(
            ["a", "b"], walk(2, 4, 2), np.array([[0, 1, 2, 0], [2, 1, 0, 1]]),
            source_positions=[b"at 4", b""],
        )  # fmt: skip
        found = await result(session)
        assert found.predictions is not None
        assert found.predictions.shape == (2, 4, 1, 3)
        np.testing.assert_allclose(found.predictions.sum(axis=-1), 1, rtol=1e-5)
    stream = await client.get_stream(name, "a")
    assert (stream.source_position, stream.source_step) == (b"at 4", 4)
    tokens: Any = {"task": "next_token", "vocabulary_size": 7, "hidden_size": 4, "k1": 2, "k2": 4}
    await client.create_model(name + "-t", tokens)
    async with client.learn(name + "-t", top_tokens=3) as session:
        await session.send_many(["a", "b"], [[1, 2, 3], [4, 5, 6]])
        found = await result(session)
    assert found.predictions is None
    assert found.top_tokens is not None
    assert found.top_probabilities is not None
    assert found.top_tokens.shape == found.top_probabilities.shape == (2, 3, 3)


async def test_more_than_a_message_holds_is_answered_once(strict: Served, name: str) -> None:
    """Cut by streams where each fits a message, and by rounds of steps where one does not."""
    values = walk(STREAMS, 21, 2)
    async with Client.connect(strict.address) as client:
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            await session.send_many(NAMES, values[:, :3])
            await session.send_many(NAMES, values[:, 3:])
            bad = values.copy()
            bad[1, 12, 0] = np.nan
            await session.send_many(NAMES, bad)
            found = [await result(session) for _ in range(3)]
    assert found[0].next_steps.tolist() == [3] * STREAMS
    assert (found[1].first_steps.tolist(), found[1].next_steps.tolist()) == (
        [3] * STREAMS,
        [21] * STREAMS,
    )
    assert found[1].predictions is not None
    assert found[1].predictions.shape == (STREAMS, 18, 1, 2)
    assert np.isfinite(found[1].predictions).all()
    assert list(found[2].refused) == ["s1"]
    assert found[2].next_steps.tolist() == [42, 29, 42, 42, 42]
    assert found[2].predictions is not None
    missing = np.asarray(np.isnan(found[2].predictions).all(axis=(2, 3)))
    assert missing[1].tolist() == [False] * 8 + [True] * 13
    assert not np.delete(missing, 1, axis=0).any()


async def test_bad_arguments_send_nothing(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    async with client.learn(name) as session:
        for arguments, text in (
            ((["a", "a"], np.zeros((2, 2))), "stream_ids"),
            (([], np.zeros((0, 2))), "stream_ids"),
            ((["a", ""], np.zeros((2, 2))), "stream_id"),
            ((["a", "b"], np.zeros((3, 2))), "values"),
            ((["a", "b"], np.zeros((2, 3))), "values"),
            ((["a", "b"], [["x", "y"], ["z", "w"]]), "values"),
        ):
            with pytest.raises(InvalidRequest, match=text):
                await session.send_many(*arguments)
        for named, text in (
            ({"steps": [1, 2]}, "values"),
            ({"steps": [1, -1]}, "steps"),
            ({"first_steps": [1]}, "first_steps"),
            ({"ends_of_sequence": [True]}, "ends_of_sequence"),
            ({"source_positions": [b"x"]}, "source_positions"),
            ({"source_positions": [b"x" * 257, b""]}, "source_positions"),
        ):
            with pytest.raises(InvalidRequest, match=text):
                await session.send_many(["a", "b"], np.zeros((2, 2)), **named)
    assert await client.list_streams(name) == []


async def test_a_stream_changes_between_send_and_send_many(client: Client, name: str) -> None:
    values = walk(3, 12, 2)
    await client.create_model(name, SPEC)
    async with client.learn(name) as session:
        await session.send("a", values[0, :2])
        await session.send_many(["a", "b", "c"], values[:, 2:4])
        await session.send("b", values[1, 4:6])
        await session.send("a", values[0, 4:6])
        await session.send_many(["b", "a"], values[:2, 6:8])
        await session.send("c", values[2, 4:6])
        await session.close()
        answers = [answer async for answer in session]
        assert [session.durable_step(each) for each in "abc"] == [8, 6, 4]
    ends = [
        each.next_step if isinstance(each, Learned) else each.next_steps.tolist()
        for each in answers
        if isinstance(each, (Learned, BatchResult))
    ]
    assert ends == [2, [4, 2, 2], 4, 6, [6, 8], 4]


async def test_another_client_that_sends_the_same_stream(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    async with client.learn(name) as session:
        await session.send_many(["a", "b"], np.zeros((2, 2)))
        await result(session)
        async with client.learn(name) as other:
            await other.send_many(["b", "c"], np.zeros((2, 2)))
            found = await result(other)
            assert list(found.refused) == ["b"]
            assert found.refused["b"].error.reason == "stream_in_use"


async def test_a_stream_deleted_while_batches_are_in_flight(client: Client, name: str) -> None:
    await client.create_model(name, SPEC)
    values = walk(STREAMS, 4, 2)
    async with client.learn(name) as session:
        deleting: asyncio.Task[None] | None = None
        for count in range(40):
            await session.send_many(NAMES, values)
            if count == 10:
                await session.acknowledged("s1")
                deleting = asyncio.create_task(client.delete_stream(name, "s1"))
        await session.close()
        found = [answer async for answer in session if isinstance(answer, BatchResult)]
        assert deleting is not None
        await deleting
    assert len(found) == 40
    assert not any(each.refused for each in found), [each.refused for each in found]
    assert [each.next_steps[0] for each in found] == [4 * (count + 1) for count in range(40)]
    streams = {each.stream_id: each for each in await client.list_streams(name)}
    assert streams["s0"].next_step == 160
    learned = sum(int((each.next_steps - each.first_steps)[1]) for each in found)
    assert learned == 160, "each step of the deleted stream is learned once, before or after"
