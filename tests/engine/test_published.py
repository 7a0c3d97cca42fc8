"""Runs on the event loop: learned before `accept` returns, and visible to every reader."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bptt.config import ServerConfig
from bptt.domain import ModelDefinition
from bptt.engine import worker as worker_module
from bptt.engine.messages import StreamCommand
from bptt.engine.published import BEHIND_RUNS_MAX
from bptt.engine.responses import PendingResponse, ResponseQueue
from bptt.engine.trainer import Trainer
from bptt.errors import ServerStopping
from bptt.observability.metrics import Metrics
from bptt_core import Chunk, ChunkResult, Learner, ModelSpec
from tests.engine.support import message, of_one_lane
from tests.support.metrics import families

SPEC = ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4)


def inputs(steps: int, first: int = 0) -> np.ndarray[Any, Any]:
    t = np.arange(first, first + steps)[:, None]
    return np.asarray(np.sin(t / np.array([5.0, 9.0])), np.float32)


@pytest.fixture(autouse=True)
def _any_run_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "INLINE_SECONDS", 60.0)


class Client:
    """Sends one stream and waits for each answer."""

    def __init__(self, trainer: Trainer, stream_id: str) -> None:
        self.trainer, self.stream_id, self.responses = (
            trainer,
            stream_id,
            ResponseQueue(100, 1 << 20),
        )
        self.sent = 0

    def send(self, steps: int) -> PendingResponse:
        values = inputs(steps, self.sent)
        pending = self.responses.pending(0)
        incoming = message(self.stream_id, None, values, None, end_of_sequence=False)
        self.trainer.accept(incoming, pending, self)
        self.sent += steps
        return pending

    async def first(self, steps: int) -> None:
        """Open the stream, which takes a thread, and wait until the worker is idle."""
        self.send(steps)
        await self.responses.next()
        while not self.trainer.waits:  # noqa: ASYNC110 - a turn of the loop or two
            await asyncio.sleep(0)

    async def now(self, steps: int) -> None:
        """Send steps that are learned before `accept` returns."""
        pending = self.send(steps)
        assert pending.answer is not None, "it was not learned when `accept` returned"
        answer = of_one_lane(pending.answer)
        assert isinstance(answer, ChunkResult)
        assert answer.next_step == self.sent
        await self.responses.next()


@contextlib.asynccontextmanager
async def training(metrics: Metrics) -> AsyncIterator[Trainer]:
    definition, learner = ModelDefinition("m", SPEC), Learner(SPEC, backend="reference")
    with ThreadPoolExecutor(1) as executor:
        trainer = Trainer(
            definition, learner, executor=executor, store=None, sink=metrics, config=ServerConfig()
        )
        trainer.start()
        yield trainer
        await trainer.stop(refusal=ServerStopping(), save=False)


def assert_shows(trainer: Trainer, learner: Learner) -> None:
    mine, its = trainer.snapshot, learner.snapshot()
    assert mine.update == its.update
    for name, array in its.model._asdict().items():
        np.testing.assert_array_equal(getattr(mine.model, name), array, err_msg=name)
    assert trainer.figures == learner.figures
    assert sorted(trainer.views) == learner.stream_ids()
    for stream_id in learner.stream_ids():
        view, expected = trainer.views[stream_id], learner.stream_view(stream_id)
        assert view.next_step == expected.next_step
        assert view.sequence_step == expected.sequence_step
        np.testing.assert_array_equal(view.state, expected.state)
    for one, other in zip(trainer.error_band(), learner.error_band(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("runs", [1, 3, BEHIND_RUNS_MAX + 5])
async def test_every_reader_sees_a_run_on_the_event_loop(runs: int) -> None:
    learner = Learner(SPEC, backend="reference")
    learner.apply([Chunk("s", 0, inputs(40))])
    async with training(Metrics()) as trainer:
        client = Client(trainer, "s")
        await client.first(40)
        for _ in range(runs):
            learner.apply([Chunk("s", client.sent, inputs(3, client.sent))])
            await client.now(3)
            assert trainer.expected_step("s") == client.sent
            assert trainer.durable_step("s") == client.sent
        assert_shows(trainer, learner)
        snapshot = trainer.snapshot
        assert trainer.snapshot is snapshot, "looking again makes no other one"


async def test_catching_up_covers_all_streams_that_are_behind() -> None:
    learner = Learner(SPEC, backend="reference")
    async with training(Metrics()) as trainer:
        one, other = Client(trainer, "one"), Client(trainer, "other")
        for client in (one, other):
            learner.apply([Chunk(client.stream_id, 0, inputs(8))])
            await client.first(8)
            trainer.leave(client, [client.stream_id])
        for client, runs in ((one, 2), (other, BEHIND_RUNS_MAX)):
            for _ in range(runs):
                learner.apply([Chunk(client.stream_id, client.sent, inputs(1, client.sent))])
                await client.now(1)
            trainer.leave(client, [client.stream_id])
        assert_shows(trainer, learner)


async def test_a_scrape_from_another_thread_sees_the_newest_figures() -> None:
    metrics = Metrics()
    learner = Learner(SPEC, backend="reference")
    learner.apply([Chunk("s", 0, inputs(8))])
    async with training(metrics) as trainer:
        client = Client(trainer, "s")
        await client.first(8)
        learner.apply([Chunk("s", 8, inputs(2, 8))])
        await client.now(2)
        shown = await asyncio.to_thread(families, metrics)
        [loss] = shown["bptt_loss"].samples
        assert loss.value == learner.figures.loss
        [steps] = [each for each in shown["bptt_steps"].samples if each.name.endswith("_total")]
        assert steps.value == 10


async def test_two_streams_are_learned_in_one_tick_and_not_inline() -> None:
    async with training(Metrics()) as trainer:
        one, other = Client(trainer, "one"), Client(trainer, "other")
        for client in (one, other):
            await client.first(4)
        before = trainer.lsn
        pendings = [client.send(1) for client in (one, other)]
        assert all(pending.answer is None for pending in pendings)
        for client in (one, other):
            await client.responses.next()
        assert trainer.lsn == before + 1


@pytest.mark.parametrize("stream_id", ["s", "other"])
@pytest.mark.parametrize("action", ["reset", "delete"])
async def test_a_waiting_command_is_applied_before_a_later_chunk(
    stream_id: str, action: Any
) -> None:
    """Within one turn of the loop, after the worker was woken and before it begins."""
    learner = Learner(SPEC, backend="reference")
    for each in ("other", "s"):
        learner.apply([Chunk(each, 0, inputs(10))])
    async with training(Metrics()) as trainer:
        other = Client(trainer, "other")
        await other.first(10)
        trainer.leave(other, ["other"])
        client = Client(trainer, "s")
        await client.first(10)
        loop = asyncio.get_running_loop()
        command = StreamCommand(stream_id, action, loop.create_future())
        asked = asyncio.create_task(trainer.command(command))
        await asyncio.sleep(0)
        assert not asked.done()
        pending = client.send(3)
        assert pending.answer is None, "the command comes first"
        await asked
        answer = of_one_lane(await client.responses.next())
        assert isinstance(answer, ChunkResult)
        getattr(learner, f"{action}_stream")(stream_id)
        first = answer.next_step - 3
        assert first == (0 if (action, stream_id) == ("delete", "s") else 10)
        learner.apply([Chunk("s", first, inputs(3, 10))])
        assert_shows(trainer, learner)
