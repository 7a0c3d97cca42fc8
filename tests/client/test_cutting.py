"""Chunks that are larger than their server takes: sent in pieces, answered as one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt import v1 as pb
from bptt.client import Client, Learned, Refused
from bptt.client.cutting import cut, problem, Whole
from bptt.client.retransmit import RetransmitBuffer
from bptt.errors import InvalidRequest, OutOfOrder, ServiceError, StreamDeleted
from bptt_core import Chunk, ChunkResult, Learner, ModelSpec
from tests.client.test_resume import stop, until
from tests.support.proxy import proxy
from tests.support.server import Served, serving

MESSAGE_BYTES = 65_536
CHUNK_STEPS = 400
ANSWER_VALUES = 600
LIMITS = (
    f"--limits-message-bytes={MESSAGE_BYTES}",
    f"--limits-chunk-steps={CHUNK_STEPS}",
    f"--limits-answer-values={ANSWER_VALUES}",
)
SMALL: Any = {"hidden_size": 4, "k1": 2, "k2": 4}
FORECAST: Any = {"input_size": 2, **SMALL}
STEPS = 3001
"""Eleven pieces of a forecast of two values, because of ANSWER_VALUES; the last one is short."""

Rows = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def strict() -> Iterator[Served]:
    """A server with small limits."""
    with serving(*LIMITS) as server:
        yield server


def walk(steps: int, width: int = 2) -> Rows:
    return np.random.default_rng(7).normal(size=(steps, width)).cumsum(axis=0).astype(np.float32)


def twin(spec: Any, *chunks: Chunk) -> tuple[Learner, list[ChunkResult]]:
    """A learner that gets each chunk as one, and its results."""
    learner = Learner(ModelSpec(**spec))
    return learner, [learner.apply([chunk]).chunks[0] for chunk in chunks]


def check(answer: Any, truth: ChunkResult) -> None:
    """Assert that an answer tells all that the chunk taken as one tells."""
    assert isinstance(answer, Learned), answer
    assert (answer.first_step, answer.next_step) == (truth.first_step, truth.next_step)
    assert [each.update for each in answer.updates] == [each.update for each in truth.updates]
    assert [each.loss for each in answer.updates] == [each.loss for each in truth.updates]
    assert answer.predictions is not None
    assert truth.predictions is not None
    expected = truth.predictions.astype(np.float32)
    if len(answer.predictions):
        np.testing.assert_array_equal(
            answer.predictions, expected.reshape(answer.predictions.shape)
        )
    else:
        assert answer.top_tokens.shape[0] == len(expected)
        np.testing.assert_array_equal(answer.top_tokens[:, 0], expected.argmax(axis=-1).ravel())
    if truth.anomaly_scores is not None:
        np.testing.assert_array_equal(
            answer.anomaly_scores, truth.anomaly_scores.astype(np.float32)
        )


async def test_a_forecasts_chunk_is_answered_as_one(strict: Served, name: str) -> None:
    values = walk(STEPS)
    learner, [truth] = twin(FORECAST, Chunk("s", 0, values))
    async with Client.connect(strict.address) as client:
        await client.create_model(name, FORECAST)
        async with client.learn(name) as session:
            await session.send("s", values)
            assert await session.acknowledged("s") == STEPS
            check(await anext(session), truth)
            await session.close()
            assert [answer async for answer in session] == []
        model = await client.get_model(name)
    assert model.loss == learner.figures.loss
    assert model.steps == STEPS


async def test_a_chunk_larger_than_four_megabytes_is_learned_by_default(
    shared: Served, name: str
) -> None:
    values = walk(17_000, 64)
    assert values.nbytes > 4 << 20
    spec: Any = {"input_size": 64, "hidden_size": 4, "k1": 32, "k2": 32, "target_columns": [0]}
    async with Client.connect(shared.address) as client:
        await client.create_model(name, spec)
        async with client.learn(name) as session:
            await session.send("s", values)
            answer = await anext(session)
    assert isinstance(answer, Learned)
    assert answer.next_step == 17_000
    assert answer.predictions is not None
    assert answer.predictions.shape == (17_000, 1, 1)


def _case(task: str) -> tuple[Any, dict[str, Rows]]:
    draw = np.random.default_rng(3)
    x = walk(STEPS)
    if task == "regression":
        spec = {"input_size": 2, "output_size": 1, "missing_targets": True}
        y = x[:, :1].copy()
        y[::7] = np.nan
        return spec, {"inputs": x, "targets": y}
    if task == "classification":
        spec = {"input_size": 2, "output_size": 3}
        return spec, {"inputs": x, "targets": draw.integers(0, 3, STEPS).astype(np.int32)}
    if task == "next_token":
        return {"vocabulary_size": 9}, {"inputs": draw.integers(0, 9, STEPS).astype(np.uint32)}
    # Rows of 8,000 bytes: eight of them fit into a message.
    return {"input_size": 2000, "target_columns": [0]}, {"inputs": walk(50, 2000)}


@pytest.mark.parametrize("task", ["regression", "classification", "next_token", "forecast"])
async def test_every_task_learns_from_pieces_what_it_learns_from_the_chunk(
    strict: Served, task: str
) -> None:
    name = f"cut-{task}"
    fields, arrays = _case(task)
    spec = {"task": task, **SMALL, **fields}
    chunk = Chunk("s", 0, arrays["inputs"], arrays.get("targets"))
    learner, [truth] = twin(spec, chunk)
    async with Client.connect(strict.address) as client:
        await client.create_model(name, spec)
        async with client.learn(name) as session:
            await session.send("s", arrays["inputs"], arrays.get("targets"))
            check(await anext(session), truth)
        assert (await client.get_model(name)).loss == learner.figures.loss


async def test_late_targets_go_with_their_steps(strict: Served, name: str) -> None:
    delay = 30
    spec = {**FORECAST, "task": "regression", "output_size": 1, "label_delay": delay}
    x = walk(2 * STEPS)
    y = x[:, :1] - x[:, 1:]
    learner = Learner(ModelSpec(**spec))
    learner.apply([Chunk("s", 0, x[:STEPS], y[: STEPS - delay], first_target_step=0)])
    labels = slice(STEPS - delay, 2 * STEPS - 10)
    learner.apply([Chunk("s", STEPS, x[STEPS:], y[labels], first_target_step=labels.start)])
    async with Client.connect(strict.address) as client:
        await client.create_model(name, spec)
        async with client.learn(name) as session:
            await session.send("s", x[:STEPS], y[: STEPS - delay])
            await session.send("s", x[STEPS:], y[labels], first_target_step=labels.start)
            answers = [await anext(session), await anext(session)]
        model = await client.get_model(name)
    assert [each.next_step for each in answers if isinstance(each, Learned)] == [STEPS, 2 * STEPS]
    assert model.loss == learner.figures.loss
    assert model.updates == learner.figures.updates


async def test_the_source_position_goes_with_the_last_piece(strict: Served, name: str) -> None:
    async with Client.connect(strict.address) as client:
        await client.create_model(name, FORECAST)
        async with client.learn(name) as session:
            await session.send("a", walk(STEPS), source_position=b"the end")
        stream = await client.get_stream(name, "a")
    assert (stream.source_position, stream.source_step) == (b"the end", STEPS)


async def test_order_and_numbers_are_those_of_the_chunks(strict: Served, name: str) -> None:
    values = walk(STEPS)
    async with Client.connect(strict.address) as client:
        await client.create_model(name, FORECAST)
        async with client.learn(name) as session:
            await session.send("a", values[:3])
            await session.send("b", values)
            await session.send("a", values)
            await session.send("b", [[np.inf, 0.0]])
            await session.send("b", values[:5], end_of_sequence=True)
            answers = [await anext(session) for _ in range(5)]
            await session.acknowledged("b")
    streams = [each.stream_id for each in answers if isinstance(each, Learned | Refused)]
    assert streams == ["a", "b", "a", "b", "b"]
    refused = answers.pop(3)
    assert isinstance(refused, Refused)
    assert (refused.chunk_index, refused.first_step) == (3, STEPS)
    ends = [each.next_step for each in answers if isinstance(each, Learned)]
    assert ends == [3, STEPS, STEPS + 3, STEPS + 5]


async def test_steps_that_the_stream_has_are_trimmed(strict: Served, name: str) -> None:
    values = walk(STEPS)
    known = 1003  # within the fourth piece
    _, truth = twin(FORECAST, Chunk("s", 0, values[:known]), Chunk("s", known, values[known:]))
    async with Client.connect(strict.address) as client:
        await client.create_model(name, FORECAST)
        async with client.learn(name) as session:
            await session.send("s", values[:known])
            await session.send("s", values, first_step=0)
            await session.send("s", values, first_step=0)
            check(await anext(session), truth[0])
            check(await anext(session), truth[1])
            nothing = await anext(session)
    assert isinstance(nothing, Learned)
    assert (nothing.first_step, nothing.next_step) == (STEPS, STEPS)
    assert nothing.predictions is not None
    assert len(nothing.predictions) == 0


@pytest.mark.parametrize("bad", [0, STEPS - 1])
async def test_a_value_that_is_refused_refuses_the_whole_chunk(strict: Served, bad: int) -> None:
    name = f"bad-{bad}"
    values = walk(STEPS)
    values[bad, 1] = np.nan
    async with Client.connect(strict.address) as client:
        await client.create_model(name, FORECAST)
        async with client.learn(name) as session:
            await session.send("s", walk(1))
            await session.send("s", values)
            await session.send("s", walk(STEPS))
            first, refused, learned = [await anext(session) for _ in range(3)]
    assert isinstance(first, Learned)
    assert isinstance(refused, Refused)
    assert refused.chunk_index == 1
    assert (refused.first_step, refused.expected_step) == (1, 1)
    assert str(refused.error) == (
        f"inputs is nan in step {bad}, column 1, but must be finite numbers"
    )
    assert refused.error.reason == "not_finite"
    assert isinstance(learned, Learned)
    assert (learned.first_step, learned.next_step) == (1, STEPS + 1)


async def test_a_refused_chunk_that_is_not_read_is_raised_at_the_end(
    strict: Served, name: str
) -> None:
    async with Client.connect(strict.address) as client:
        await client.create_model(name, FORECAST)
        with pytest.raises(InvalidRequest, match="inf in step 0, column 0"):
            async with client.learn(name) as session:
                await session.send("s", np.full((STEPS, 2), np.inf))


async def test_a_gap_is_refused_once(strict: Served, name: str) -> None:
    async with Client.connect(strict.address) as client:
        await client.create_model(name, FORECAST)
        async with client.learn(name) as session:
            await session.send("s", walk(STEPS), first_step=5)
            await session.send("s", walk(STEPS))
            refused, learned = await anext(session), await anext(session)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, OutOfOrder)
    assert (refused.first_step, refused.expected_step, refused.chunk_index) == (5, 0, 0)
    assert isinstance(learned, Learned)
    assert (learned.first_step, learned.next_step) == (0, STEPS)


async def test_what_cannot_be_cut_names_the_limit_and_changes_nothing(
    strict: Served, name: str
) -> None:
    spec = {**FORECAST, "task": "regression", "output_size": 1, "label_delay": 1000}
    x = walk(1500)
    async with Client.connect(strict.address) as client:
        await client.create_model(name, spec)
        async with client.learn(name) as session:
            await session.send("s", x[:1000])
            limit = f"at most {CHUNK_STEPS} steps or targets: the server's limits.chunk_steps"
            with pytest.raises(InvalidRequest, match=f"in step 0, but must be {limit}"):
                await session.send("s", x[1000:], x[:1500, :1], first_target_step=0)
            await session.send("s", x[1000:], x[700:, :1], first_target_step=700)
            answers = [await anext(session), await anext(session)]
    assert [each.next_step for each in answers if isinstance(each, Learned)] == [1000, 1500]


async def test_targets_without_steps_are_not_cut_and_name_the_limit(
    strict: Served, name: str
) -> None:
    spec = {**FORECAST, "task": "regression", "output_size": 1, "label_delay": 1000}
    x = walk(1000)
    async with Client.connect(strict.address) as client:
        await client.create_model(name, spec)
        async with client.learn(name) as session:
            await session.send("s", x)
            with pytest.raises(InvalidRequest, match=f"at most {CHUNK_STEPS} .* limits.chunk_step"):
                await session.send("s", None, x[:, :1], first_target_step=0)
            await session.send("s", None, x[:CHUNK_STEPS, :1], first_target_step=0)
            assert isinstance(await anext(session), Learned)
            assert isinstance(await anext(session), Learned)


@pytest.mark.parametrize(
    ("steps", "limit"),
    [
        (CHUNK_STEPS, f"at most {ANSWER_VALUES // 2} steps: .*limits.answer_values is 600"),
        (10_000, "limits.message_bytes"),
    ],
)
async def test_a_prediction_that_is_too_large_names_the_limit(
    strict: Served, steps: int, limit: str
) -> None:
    name = f"too-large-{steps}"
    async with Client.connect(strict.address) as client:
        await client.create_model(name, FORECAST)
        with pytest.raises(ServiceError, match=limit):
            await client.predict(name, inputs=walk(steps))


async def test_without_predictions_the_chunk_is_answered_as_one(strict: Served, name: str) -> None:
    async with Client.connect(strict.address) as client:
        await client.create_model(name, FORECAST)
        async with client.learn(name, predictions=False) as session:
            await session.send("s", walk(STEPS))
            answer = await anext(session)
    assert isinstance(answer, Learned)
    assert answer.predictions is None
    assert (answer.first_step, answer.next_step) == (0, STEPS)
    assert len(answer.updates) == STEPS // 2


async def test_a_session_that_does_not_resume_cuts_as_well(strict: Served, name: str) -> None:
    values = walk(STEPS)
    learner, _ = twin(FORECAST, Chunk("s", 0, np.concatenate([values[:4], values, values])))
    async with Client.connect(strict.address) as client:
        await client.create_model(name, FORECAST)
        async with client.learn(name, resume=False) as session:
            await session.send("s", values[:4])
            await session.send("s", values)
            await session.send("s", values)
            answers = [await anext(session) for _ in range(3)]
        assert (await client.get_model(name)).loss == learner.figures.loss
    assert [each.next_step for each in answers if isinstance(each, Learned)] == [
        4,
        4 + STEPS,
        4 + 2 * STEPS,
    ]


async def test_broken_connections_lose_and_repeat_nothing(strict: Served, name: str) -> None:
    rounds = 3
    values = walk(rounds * STEPS)
    learner, [truth] = twin(FORECAST, Chunk("s", 0, values))
    assert truth.predictions is not None
    async with proxy(strict.address) as line, Client.connect(line.address) as client:
        await client.create_model(name, FORECAST)
        async with client.learn(name) as session:
            for place in range(rounds):
                first, last = place * STEPS, (place + 1) * STEPS
                sending = asyncio.create_task(session.send("s", values[first:last]))
                await until(lambda: session.durable_step("s") > first)  # noqa: B023 - awaited here
                line.drop()
                await until(lambda: session.reconnections > place)  # noqa: B023
                await sending
                answer = await anext(session)
                assert isinstance(answer, Learned)
                assert answer.predictions is not None
                # Those of the last steps; what a lost answer told, and all before, is not there.
                rows = len(answer.predictions)
                assert answer.next_step == last
                assert answer.first_step == last - rows
                expected = truth.predictions[last - rows : last].astype(np.float32)
                np.testing.assert_array_equal(answer.predictions.reshape(rows, 2), expected)
        model = await client.get_model(name)
    assert model.steps == rounds * STEPS
    assert model.loss == learner.figures.loss


async def test_a_server_that_takes_less_after_its_restart_is_named_with_its_limit(
    tmp_path: Path, name: str
) -> None:
    data = ("--data", str(tmp_path), "--checkpoint-seconds", "1000")
    with serving(*data) as first:
        address = first.address
        async with Client.connect(address) as client:
            await client.create_model(name, FORECAST)

            async def go_on() -> None:
                async with client.learn(name) as session:
                    await session.send("s", walk(10))
                    await session.acknowledged("s")
                    await asyncio.to_thread(stop, first)
                    await session.send("s", walk(1000))  # as one chunk: this server takes it
                    with serving(*data, *LIMITS, "--address", address):
                        await session.acknowledged("s")

            limit = "at most 300 steps or targets: the server's limits.chunk_steps"
            with pytest.raises(InvalidRequest, match=limit):
                await go_on()


# ---------------------------------------------------------------------- without a server


def pieces(count: int) -> tuple[RetransmitBuffer, list[Any]]:
    """A buffer with one chunk in pieces of ten steps, written, and a chunk behind it."""
    buffer, whole = RetransmitBuffer(), Whole(count)
    buffer.ends["s"] = 0
    found = []
    for place in range(count + 1):
        chunk = pb.Chunk(stream_id="s", first_step=10 * place)
        last = place == count
        found.append(
            buffer.add(
                pb.LearnRequest(chunk=chunk),
                10,
                0,
                placed=True,
                whole=None if last else whole,
                is_first=place == 0 or last,
            )
        )
        found[-1].written = True
    return buffer, found


def learned(first_step: int) -> Learned:
    none = np.zeros((0, 0), np.float32)
    return Learned(
        "s",
        first_step,
        first_step + 10,
        none.reshape(0, 1, 1),
        (),
        0,
        none,
        none,
        none.astype(np.int64),
        none,
        none.ravel(),
        "running",
    )


def refused(index: int, error: ServiceError) -> Refused:
    return Refused(index, "s", 10, 10, error)


def test_a_refused_piece_gives_up_the_later_ones_and_the_next_chunk_moves_up() -> None:
    buffer, [first, second, third, behind] = pieces(3)
    assert [each.chunk_index for each in (first, second, third, behind)] == [0, 0, 0, 1]
    assert buffer.learned(first, learned(0), 10, 1) == []
    error = OutOfOrder("expected step 10")
    [answer] = buffer.refused(second, refused(0, error))
    assert isinstance(answer, Refused)
    assert "its steps before 10 are learned" in str(answer.error)
    assert str(error) == "expected step 10"
    assert third.given_up
    assert not second.given_up
    assert (buffer.unanswered, buffer.chunks) == (1, 2)
    assert buffer.move_up(second, 10) == [behind]
    assert behind.first_step == 10
    [after] = buffer.learned(behind, learned(10), 20, 1)
    assert isinstance(after, Learned)


def test_a_chunk_that_is_begun_does_not_go_on_in_another_incarnation() -> None:
    buffer, [first, second, _, behind] = pieces(3)
    buffer.learned(first, learned(0), 10, 1)
    second.written = behind.written = False
    opened = pb.LearnOpened(load_id=1, last_incarnation=1)
    again, [answer] = buffer.resume(["s"], opened, same_load=True)
    assert isinstance(answer, Refused)
    assert isinstance(answer.error, StreamDeleted)
    assert not second.moves_up
    assert again == [behind]
    assert behind.first_step == 0


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_pieces_are_the_chunk_and_fit(steps: int) -> None:
    ids = np.random.default_rng(1).integers(0, 1 << 30, 5000).tolist()
    chunk = pb.Chunk(
        stream_id="s", first_step=3, input_tokens=ids, end_of_sequence=True, incarnation=9
    )
    limits = pb.ChunkLimits(message_bytes=300, steps=steps)
    found = cut(chunk, len(ids), 0, limits)
    assert [token for piece, _, _ in found for token in piece.input_tokens] == ids
    assert max(pb.LearnRequest(chunk=piece).ByteSize() for piece, _, _ in found) <= 300
    assert max(count for _, count, _ in found) <= steps
    ends = [piece.first_step + count for piece, count, _ in found]
    assert [piece.first_step for piece, _, _ in found] == [3, *ends[:-1]]
    assert [piece.end_of_sequence for piece, _, _ in found] == [False] * (len(found) - 1) + [True]
    assert {(piece.stream_id, piece.incarnation) for piece, _, _ in found} == {("s", 9)}


def test_one_step_that_is_too_large_names_the_limit() -> None:
    chunk = pb.Chunk(stream_id="s", first_step=0, inputs=[0.5] * 400)
    limits = pb.ChunkLimits(message_bytes=300, steps=400)
    bound = "at most 300 bytes: the server's limits.message_bytes"
    with pytest.raises(InvalidRequest, match=f"bytes in step 0, but must be {bound}"):
        cut(chunk, 4, 0, limits)
    assert len(cut(chunk, 20, 0, limits)) == 10


@pytest.mark.parametrize(
    ("spec", "fields", "told"),
    [
        ({"task": "next_token", "vocabulary_size": 4}, {"input_tokens": [3, 3, 4]}, "4 in step 2"),
        ({"task": "classification", "output_size": 2}, {"target_classes": [0, -1, 1]}, "-1 in st"),
        ({"task": "classification", "output_size": 2}, {"target_classes": [0, 1]}, "2 targets"),
        ({"task": "regression", "missing_targets": True}, {"targets": [0, np.nan, np.inf]}, "inf"),
        (
            {"task": "regression", "label_delay": 2},
            {"targets": [0, 0, 0], "first_step": 9, "first_target_step": 6},
            "first_target_step is 6, but must be from 7 to 9",
        ),
        ({"missing_inputs": True}, {"inputs": [np.nan, 1, 1, 1, 1, -np.inf]}, "-inf in step 2, c"),
    ],
)
def test_what_the_server_would_refuse_is_found_first(
    spec: Any, fields: dict[str, Any], told: str
) -> None:
    model: Any = type("Model", (), {"spec": spec})
    targets = len(fields.get("targets", ())) + len(fields.get("target_classes", ()))
    found = problem(model, pb.Chunk(**fields), 3, targets)
    assert found is not None
    assert told in str(found)
