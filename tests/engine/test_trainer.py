"""The trainer, in cases that cannot be reached through the RPC layer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt.config import ServerConfig
from bptt.domain import LaneRefused, ModelDefinition
from bptt.durability import Checkpoint, SqliteStore, Store
from bptt.engine.records import make_checkpoint
from bptt.engine.recovery import recover
from bptt.engine.registry import page
from bptt.engine.responses import ResponseQueue
from bptt.engine.trainer import Trainer
from bptt.errors import InvalidRequest, ModelFailed, ServerStopping, StorageFailed
from bptt.observability.metrics import Metrics
from bptt_core import Chunk, ChunkResult, Learner, ModelSpec
from tests.engine.support import Answer, message, of_one_lane

SPEC = ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4)


def inputs(steps: int, first: int = 0) -> np.ndarray[Any, Any]:
    t = np.arange(first, first + steps)[:, None]
    return np.asarray(np.sin(t / np.array([5.0, 9.0])), np.float32)


@contextlib.asynccontextmanager
async def training(store: Store | None = None, **config: Any) -> AsyncIterator[Trainer]:
    definition, learner = ModelDefinition("m", SPEC), Learner(SPEC, backend="reference")
    if isinstance(store, SqliteStore):
        SqliteStore.save(store, make_checkpoint(definition, learner, 0))  # as the registry does
    with ThreadPoolExecutor(1) as executor:
        trainer = Trainer(
            definition,
            learner,
            executor=executor,
            store=store,
            sink=Metrics(),
            config=ServerConfig(**config),
        )
        trainer.start()
        yield trainer


def give(
    trainer: Trainer, responses: ResponseQueue, stream_id: str, values: np.ndarray[Any, Any]
) -> None:
    incoming = message(stream_id, None, values, None, end_of_sequence=False)
    trainer.accept(incoming, responses.pending(0))


async def answers(responses: ResponseQueue, count: int) -> list[Answer]:
    return [of_one_lane(await responses.next()) for _ in range(count)]


async def test_a_bad_chunk_does_not_affect_the_others_of_its_tick() -> None:
    async with training() as trainer:
        responses = ResponseQueue(10, 1000)
        bad = inputs(3).copy()
        bad[1, 0] = np.nan  # which the RPC layer refuses
        give(trainer, responses, "a", inputs(3))
        give(trainer, responses, "b", bad)
        give(trainer, responses, "b", inputs(3))
        give(trainer, responses, "c", inputs(3))
        a, b, after, c = await answers(responses, 4)
        assert isinstance(a, ChunkResult)
        assert isinstance(c, ChunkResult)
        assert isinstance(b, LaneRefused)
        assert b.error.reason == "not_finite"
        assert isinstance(after, LaneRefused), "it was placed behind a chunk that was not learned"
        assert after.error.code == "OUT_OF_RANGE"
        assert after.expected_step == 0
        give(trainer, responses, "b", inputs(3))
        [again] = await answers(responses, 1)
        assert isinstance(again, ChunkResult)
        assert again.next_step == 3
        await trainer.stop(refusal=ServerStopping(), save=False)


async def test_a_stop_finishes_accepted_chunks_and_refuses_new_ones() -> None:
    async with training() as trainer:
        responses, told = ResponseQueue(100, 1000), list[Any]()
        trainer.listeners.add(told.append)
        for first in range(0, 40, 4):
            give(trainer, responses, "s", inputs(4, first))
        await trainer.stop(refusal=ServerStopping(), save=False)
        assert [type(each) for each in told] == [ServerStopping]
        assert trainer.views["s"].next_step == 40
        assert all(isinstance(each, ChunkResult) for each in await answers(responses, 10))
        with pytest.raises(ServerStopping):
            give(trainer, responses, "s", inputs(4))


async def test_a_stop_that_runs_out_of_time_refuses_the_rest() -> None:
    async with training() as trainer:
        responses = ResponseQueue(3000, 1000)
        for first in range(0, 3000 * 4, 4):
            give(trainer, responses, "s", inputs(4, first))
        await trainer.stop(refusal=ServerStopping(), save=False, grace=0.0)
        found = await answers(responses, 3000)
        learned = [each for each in found if isinstance(each, ChunkResult)]
        assert 0 < len(learned) < 3000
        assert found[: len(learned)] == learned
        assert trainer.views["s"].next_step == 4 * len(learned)
        last = found[-1]
        assert isinstance(last, LaneRefused)
        assert last.error.code == "UNAVAILABLE"


async def test_splitting_ticks_into_runs_does_not_change_what_is_learned() -> None:
    learner = Learner(SPEC, backend="reference")
    for first in range(0, 40, 4):
        learner.apply([Chunk("s", first, inputs(4, first))])
    async with training() as trainer:
        responses = ResponseQueue(100, 1000)
        for first in range(0, 40, 4):
            give(trainer, responses, "s", inputs(4, first))
        await answers(responses, 10)
        assert trainer.figures == learner.figures
        assert trainer.lsn < 10, "chunks that waited were joined"
        await trainer.stop(refusal=ServerStopping(), save=False)


# ---------------------------------------------------------------------- checkpoints


class WatchedStore(SqliteStore):
    """A store whose writes can be awaited, and made to fail."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.loop = asyncio.get_running_loop()
        self.saved: asyncio.Queue[int] = asyncio.Queue()
        self.failures = 0

    def save(self, checkpoint: Checkpoint) -> None:
        if self.failures:
            self.failures -= 1
            self.loop.call_soon_threadsafe(self.saved.put_nowait, -1)
            raise StorageFailed("no space left on device")
        super().save(checkpoint)
        self.loop.call_soon_threadsafe(self.saved.put_nowait, checkpoint.lsn)


@contextlib.contextmanager
def opened(folder: Path) -> Any:
    store = WatchedStore(folder)
    store.open()
    yield store
    store.close()


async def test_a_model_is_saved_after_a_number_of_records(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        async with training(store, checkpoint_records=5, checkpoint_seconds=1000.0) as trainer:
            responses = ResponseQueue(100, 1000)
            for count in range(1, 6):
                give(trainer, responses, "s", inputs(4))
                await answers(responses, 1)
                assert store.saved.empty() or count == 5
            assert await store.saved.get() == 5
            await trainer.stop(refusal=ServerStopping(), save=True)
            assert store.saved.empty(), "nothing was learned since"
        found = recover(store, "m")
        assert found.lsn == 5
        assert found.learner.figures == trainer.figures


async def test_a_model_is_saved_a_while_after_learning(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        async with training(store, checkpoint_seconds=0.01) as trainer:
            responses = ResponseQueue(100, 1000)
            give(trainer, responses, "s", inputs(4))
            assert await store.saved.get() == 1
            give(trainer, responses, "s", inputs(4))
            assert await store.saved.get() == 2
            await trainer.stop(refusal=ServerStopping(), save=True)


async def test_a_write_that_fails_is_tried_again_and_learning_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as store:
        store.failures = 1
        async with training(store, checkpoint_seconds=0.01) as trainer:
            responses = ResponseQueue(100, 1000)
            give(trainer, responses, "s", inputs(4))
            assert await store.saved.get() == -1
            give(trainer, responses, "s", inputs(4))
            await answers(responses, 2)
            assert await store.saved.get() == 2
            await trainer.stop(refusal=ServerStopping(), save=True)
        assert "no space left" in caplog.text
        assert recover(store, "m").lsn == 2


async def test_a_full_disk_is_tried_again_at_the_next_checkpoint_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        store.failures = 100
        async with training(store, checkpoint_records=5, checkpoint_seconds=1000.0) as trainer:
            responses = ResponseQueue(100, 1000)
            for _ in range(20):
                give(trainer, responses, "s", inputs(4))
                await answers(responses, 1)
            store.failures = 0
            await trainer.stop(refusal=ServerStopping(), save=True)
        tries = [store.saved.get_nowait() for _ in range(store.saved.qsize())]
        assert tries[-1] == 20
        assert 3 <= tries.count(-1) <= 4  # one every 5 ticks; the last may give way to the stop


async def test_an_error_while_publishing_leaves_no_waiting_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with training() as trainer:

        def broken(report: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(trainer.sink, "run", broken)
        responses = ResponseQueue(100, 1000)
        give(trainer, responses, "s", inputs(4))
        give(trainer, responses, "s", inputs(4))
        assert len(await answers(responses, 2)) == 2
        with pytest.raises(ModelFailed):
            give(trainer, responses, "s", inputs(4))
        await trainer.stop(refusal=ServerStopping(), save=True)


async def test_a_failed_last_write_is_reported(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        async with training(store) as trainer:
            responses = ResponseQueue(100, 1000)
            give(trainer, responses, "s", inputs(4))
            await answers(responses, 1)
            store.failures = 1
            with pytest.raises(StorageFailed):
                await trainer.stop(refusal=ServerStopping(), save=True)


def test_a_page_begins_after_a_name() -> None:
    names = ["d", "a", "c", "b"]
    assert page(names, "", 2) == (["a", "b"], "b")
    assert page(names, "b", 2) == (["c", "d"], "")
    assert page(names, "bb", 1) == (["c"], "c")
    assert page(names, "z", 2) == ([], "")
    assert page([], "", 2) == ([], "")


def test_a_definition_is_checked() -> None:
    with pytest.raises(InvalidRequest, match="model_id"):
        ModelDefinition("No", SPEC)


async def test_a_stop_writes_a_requested_checkpoint_that_failed(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        async with training(store, checkpoint_seconds=1000.0) as trainer:
            responses = ResponseQueue(100, 1000)
            give(trainer, responses, "s", inputs(4))
            await answers(responses, 1)
            store.failures = 1
            with pytest.raises(StorageFailed):
                await trainer.save_checkpoint()
            await trainer.stop(refusal=ServerStopping(), save=True)
        assert store.saved.get_nowait() == -1
        assert store.saved.get_nowait() == 1
