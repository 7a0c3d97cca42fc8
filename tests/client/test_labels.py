"""Late labels and missing values through sessions, also over broken connections."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt.client import Client, Learned, LearnSession, Refused
from bptt.errors import InvalidRequest, OutOfOrder
from bptt_core import Chunk, Learner, ModelSpec
from tests.client.test_resume import kill, until
from tests.support.proxy import proxy
from tests.support.server import Served, serving

DELAY = 8
NETWORK: Any = {"input_size": 2, "hidden_size": 4, "k1": 2, "k2": 4}
SPEC: Any = {**NETWORK, "task": "regression", "output_size": 1, "label_delay": DELAY}
STEPS = 5

Rows = np.ndarray[Any, np.dtype[np.float32]]


def series(steps: int) -> tuple[Rows, Rows]:
    """Inputs, and a target of each."""
    x = np.random.default_rng(7).normal(size=(steps, 2)).astype(np.float32)
    return x, x[:, :1] - x[:, 1:]


Parts = list[tuple[slice, slice]]


def parts(steps: int) -> Parts:
    """Steps and labels in all shapes: with their steps, STEPS late, and by themselves."""
    found = []
    for first in range(0, steps, 4 * STEPS):
        a, b, c, d, end = (first + i * STEPS for i in range(5))
        found += [
            (slice(a, b), slice(a, b)),
            (slice(b, c), slice(0, 0)),
            (slice(c, d), slice(b, c)),
            (slice(d, d), slice(c, d)),
            (slice(d, end), slice(0, 0)),
            (slice(end, end), slice(d, end)),
        ]
    return found


async def send(session: LearnSession, x: Rows, y: Rows, part: tuple[slice, slice]) -> None:
    steps, labels = part
    targets = y[labels] if labels.stop else None
    await session.send(
        "s",
        x[steps] if steps.stop > steps.start else None,
        targets,
        first_target_step=None if targets is None else labels.start,
    )


def taught(x: Rows, y: Rows, every: Parts) -> float:
    """The last loss of a learner that learned the same steps and labels without a server."""
    learner = Learner(ModelSpec(**SPEC))
    for steps, labels in every:
        targets = y[labels].copy() if labels.stop else None
        first = labels.start if labels.stop else None
        learner.apply([Chunk("s", steps.start, x[steps].copy(), targets, False, first)])
    return learner.figures.loss


async def test_labels_come_late_and_by_themselves(client: Client, name: str) -> None:
    x, y = series(400)
    await client.create_model(name, SPEC)
    async with client.learn(name) as session:
        for part in parts(400):
            await send(session, x, y, part)
            answer = await anext(session)
            assert isinstance(answer, Learned), answer
            assert answer.predictions is not None
            steps = part[0].stop - part[0].start
            assert answer.predictions.shape == (steps, 1, 1)
            assert answer.next_step == part[0].stop
            if not steps:
                assert answer.durable_step == answer.next_step
    model = await client.get_model(name)
    assert model.loss == taught(x, y, parts(400))
    assert model.spec["label_delay"] == DELAY


async def test_broken_connections_lose_and_repeat_no_label(shared: Served, name: str) -> None:
    x, y = series(2000)
    async with proxy(shared.address) as line, Client.connect(line.address) as client:
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            answers: list[Any] = []

            async def read() -> None:
                async for answer in session:
                    answers.append(answer)

            reader = asyncio.create_task(read())
            dropping = asyncio.create_task(drop_three_times(line, session))
            for part in parts(2000):
                await send(session, x, y, part)
            await session.close()
            await reader
            dropping.cancel()
        assert session.reconnections >= 3
        model = await client.get_model(name)
    assert [type(answer) for answer in answers] == [Learned] * len(parts(2000))
    assert model.steps == 2000
    assert model.loss == taught(x, y, parts(2000))


async def drop_three_times(line: Any, session: LearnSession) -> None:
    for place in range(3):
        seen = session.durable_step("s")
        await until(lambda: session.durable_step("s") > seen)  # noqa: B023 - awaited here
        line.drop()
        await until(lambda: session.reconnections > place)  # noqa: B023


@pytest.mark.parametrize("ends", [False, True])
async def test_labels_whose_answer_was_lost_were_taken(
    shared: Served, name: str, ends: bool
) -> None:
    """The client repeats labels without an answer; the server now finds them too late."""
    x, y = series(40)
    async with (
        proxy(shared.address) as line,
        Client.connect(line.address) as client,
        Client.connect(shared.address) as other,
    ):
        await client.create_model(name, SPEC)
        async with client.learn(name) as session:
            await session.send("s", x[:10])
            await session.acknowledged("s")
            line.mute = True
            await session.send("s", None, y[5:10], first_target_step=5)
            await session.send("s", x[10:30], end_of_sequence=ends)
            while (await other.get_stream(name, "s")).next_step < 30:  # noqa: ASYNC110
                await asyncio.sleep(0)
            line.mute = False
            line.drop()
            await session.send("s", x[30:])
            await session.close()
            answers = [answer async for answer in session]
        assert session.reconnections >= 1
        assert [type(answer) for answer in answers] == [Learned] * 4
        assert [answer.next_step for answer in answers if isinstance(answer, Learned)] == [
            10, 30, 30, 40,
        ]  # fmt: skip
        model = await client.get_model(name)
    learner = Learner(ModelSpec(**SPEC))
    learner.apply([Chunk("s", 0, x[:10].copy())])
    learner.apply([Chunk("s", 10, x[:0].copy(), y[5:10].copy(), False, 5)])
    learner.apply([Chunk("s", 10, x[10:30].copy(), None, ends)])
    learner.apply([Chunk("s", 30, x[30:].copy())])
    assert model.loss == learner.figures.loss


async def test_a_killed_server_loses_no_label(tmp_path: Path, name: str) -> None:
    x, y = series(1600)
    options = ("--data", str(tmp_path))
    every = parts(1600)
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(serving(*options))
        async with Client.connect(server.address) as client:
            await client.create_model(name, SPEC)
            async with client.learn(name) as session:
                for place, part in enumerate(every):
                    await send(session, x, y, part)
                    if place in (len(every) // 3, 2 * len(every) // 3):
                        await asyncio.to_thread(kill, server)
                        again = serving(*options, "--address", server.address)
                        server = servers.enter_context(again)
                        before = session.reconnections
                        await until(lambda: session.reconnections > before)  # noqa: B023
                await session.close()
                answers = [answer async for answer in session]
            model = await client.get_model(name)
    assert [type(answer) for answer in answers] == [Learned] * len(every)
    assert model.steps == 1600
    assert model.loss == taught(x, y, every)


async def test_labels_behind_a_refused_chunk_do_not_move_to_other_steps(
    client: Client, name: str
) -> None:
    """Labels name steps by number; chunks behind them have no number, and move up."""
    x, y = series(40)
    await client.create_model(name, SPEC)
    bad = x[10:20].copy()
    bad[3] = np.inf
    async with client.learn(name) as session:
        await session.send("s", x[:10])
        await session.send("s", bad)
        await session.send("s", x[20:30], y[15:30], first_target_step=15)
        await session.send("s", None, y[15:20], first_target_step=15)
        await session.send("s", x[30:])
        await session.close()
        answers = [answer async for answer in session]
    assert [type(each) for each in answers] == [Learned, Refused, Refused, Refused, Learned]
    # If the refusal comes before the later chunks are sent, these begin at the expected step,
    # and their labels name steps beyond them.
    errors = [each.error for each in answers if isinstance(each, Refused)]
    assert all(isinstance(each, OutOfOrder | InvalidRequest) for each in errors[1:]), errors
    last = answers[-1]
    assert isinstance(last, Learned)
    assert (last.first_step, last.next_step) == (10, 20)


async def test_a_label_too_late_is_named(client: Client, name: str) -> None:
    x, y = series(40)
    await client.create_model(name, SPEC)
    async with client.learn(name) as session:
        await session.send("s", x[:30])
        await session.send("s", None, y[20:24], first_target_step=20)
        await session.close()
        answers = [answer async for answer in session]
    refused = answers[1]
    assert isinstance(refused, Refused)
    [violation] = refused.error.violations
    assert (violation.field, violation.value) == ("first_target_step", "20")
    assert violation.bound.startswith("at least 22")


async def test_classes_are_late_too(client: Client, name: str) -> None:
    spec: Any = {**NETWORK, "task": "classification", "output_size": 3, "label_delay": DELAY}
    await client.create_model(name, spec)
    x, _ = series(400)
    classes = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    async with client.learn(name) as session:
        await session.send("s", x[:200], classes[:195])
        await session.send("s", x[200:], np.concatenate([classes[195:390], [-1] * 3]),
                           first_target_step=195)  # fmt: skip
        await session.close()
        answers = [answer async for answer in session]
    assert all(isinstance(answer, Learned) for answer in answers)
    model = await client.get_model(name)
    alone = Learner(ModelSpec(**spec))
    alone.apply([Chunk("s", 0, x, np.concatenate([classes[:390], [-1] * 3]))])
    assert model.accuracy == alone.figures.accuracy
    assert model.cross_entropy_bits == alone.figures.cross_entropy_bits


async def test_missing_values_are_nan(client: Client, name: str) -> None:
    spec: Any = {**NETWORK, "missing_inputs": True}
    await client.create_model(name, spec)
    x, _ = series(300)
    x[np.random.default_rng(0).random(x.shape) < 0.3] = np.nan
    async with client.learn(name) as session:
        await session.send("s", x)
        answer = await anext(session)
    learner = Learner(ModelSpec(**spec))
    [truth] = learner.apply([Chunk("s", 0, x)]).chunks
    assert isinstance(answer, Learned)
    assert answer.predictions is not None
    assert truth.predictions is not None
    rows = truth.predictions.astype(np.float32)
    np.testing.assert_array_equal(answer.predictions.reshape(rows.shape), rows)
    prediction = await client.predict(name, "s", [[np.nan, 1.0], [np.nan, np.nan]])
    assert np.isfinite(prediction.values).all()


async def test_bands_scores_and_state_are_plain_arrays(client: Client, name: str) -> None:
    spec: Any = {**NETWORK, "horizon": 3}
    await client.create_model(name, spec)
    walk = np.random.default_rng(0).normal(size=(1000, 2)).cumsum(axis=0).astype(np.float32)
    walk[900:] += 50
    async with client.learn(name) as session:
        await session.send("s", walk)
        answer = await anext(session)
        await client.update_model(name, paused=True)
        await session.send("s", walk[:4])
        paused = await anext(session)
    learner = Learner(ModelSpec(**spec))
    [truth] = learner.apply([Chunk("s", 0, walk)]).chunks
    low, high = learner.error_band()
    assert isinstance(answer, Learned)
    assert isinstance(paused, Learned)
    assert truth.anomaly_scores is not None
    assert answer.error_low.shape == answer.error_high.shape == (3, 2)
    np.testing.assert_array_equal(answer.error_low.ravel(), low.astype(np.float32))
    np.testing.assert_array_equal(answer.error_high.ravel(), high.astype(np.float32))
    scores = truth.anomaly_scores.astype(np.float32)
    np.testing.assert_array_equal(answer.anomaly_scores, scores)
    assert np.nanargmin(answer.anomaly_scores) == 900
    assert (answer.model_state, paused.model_state) == ("running", "paused")
    prediction = await client.predict(name, "s")
    assert prediction.error_low.shape == (3, 2)
