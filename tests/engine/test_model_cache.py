"""Models that are unloaded and loaded again: nothing is lost, and clients see no difference."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt.config import Durability, ServerConfig
from bptt.domain import ModelDefinition, ModelStatus, UnreadModel
from bptt.durability import Checkpoint, SqliteStore
from bptt.engine.registry import Registry
from bptt.engine.replay import different
from bptt.engine.responses import ResponseQueue
from bptt.engine.trainer import Trainer
from bptt.errors import (
    DataDamaged,
    ModelExists,
    ServerStopping,
    StorageFailed,
    UnknownModel,
)
from bptt.observability.metrics import Metrics
from bptt_core import Chunk, ChunkResult, Learner, ModelSpec
from tests.engine.support import message, of_one_lane
from tests.support.metrics import families

SPEC = ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4)
NAMES = ("a", "b", "c", "d", "e")
CHUNK = 5
STORED = "checkpoint-000000000000.safetensors"


def values(place: int, turn: int) -> np.ndarray[Any, Any]:
    t = np.arange(CHUNK * turn, CHUNK * (turn + 1))[:, None] + 1000 * place
    return np.asarray(np.sin(t / np.array([5.0, 9.0])), np.float32)


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds; the test's time-out is the bound."""
    while not condition():  # noqa: ASYNC110 - the condition has no event to wait for
        await asyncio.sleep(0)


class Server:
    """A registry on a folder, as in the application."""

    def __init__(self, store: SqliteStore, pool: ThreadPoolExecutor, **config: Any) -> None:
        self.metrics = Metrics()
        self.config = ServerConfig(**({"models_in_memory": 2, "threads": 2} | config))
        self.registry = Registry(self.config, pool, store, self.metrics)
        self.health: dict[str, bool] = {}

    async def tell(self, model_id: str, is_served: bool | None) -> None:
        if is_served is None:
            del self.health[model_id]
        else:
            self.health[model_id] = is_served

    async def create(self, *names: str) -> None:
        for name in names:
            await self.registry.create(ModelDefinition(name, SPEC))

    async def learn(self, model_id: str, turn: int) -> ChunkResult:
        trainer = await self.registry.find(model_id)
        responses = ResponseQueue(10, 10_000)
        x = values(NAMES.index(model_id), turn)
        incoming = message("s", CHUNK * turn, x, None, end_of_sequence=False)
        trainer.accept(incoming, responses.pending(1))
        answer = of_one_lane(await responses.next())
        assert isinstance(answer, ChunkResult), answer
        return answer

    async def in_memory(self, count: int) -> None:
        """Wait until at most this many models are in memory."""
        await until(lambda: len(self.registry._models) <= count)

    def value(self, name: str, model_id: str) -> float | None:
        family = name.removesuffix("_total").removesuffix("_count")
        for each in families(self.metrics)[family].samples:
            if each.name == name and each.labels["model"] == model_id:
                return float(each.value)
        return None


def known(status: ModelStatus | UnreadModel) -> ModelStatus:
    assert isinstance(status, ModelStatus)
    return status


@contextlib.contextmanager
def opened(folder: Path, durability: Durability = "full") -> Iterator[SqliteStore]:
    store = SqliteStore(folder, durability)
    store.open()
    try:
        yield store
    finally:
        store.close()


@contextlib.asynccontextmanager
async def serving(store: SqliteStore, **config: Any) -> AsyncIterator[Server]:
    with ThreadPoolExecutor(2) as pool:
        server = Server(store, pool, **config)
        await server.registry.recover(server.tell)
        try:
            yield server
        finally:
            server.registry.begin_stop()
            assert await server.registry.stop(10.0) == []


def newest(store: SqliteStore, model_id: str) -> Any:
    checkpoint = store.load(model_id, store.checkpoints(model_id)[-1].lsn)
    return checkpoint.arrays, checkpoint.metadata["learner"]


def twin(place: int, turns: int) -> Learner:
    learner = Learner(SPEC)
    for turn in range(turns):
        learner.apply([Chunk("s", CHUNK * turn, values(place, turn))])
    return learner


@pytest.mark.parametrize("durability", ["full", "none"])
async def test_many_models_take_turns_in_little_memory_and_lose_nothing(
    tmp_path: Path, durability: Durability
) -> None:
    with opened(tmp_path, durability) as store:
        async with serving(store, durability=durability) as server:
            await server.create(*NAMES)
            for turn in range(8):
                for name in NAMES:
                    result = await server.learn(name, turn)
                    assert result.next_step == CHUNK * (turn + 1)
            await server.in_memory(2)
            states, _ = server.registry.page("", 100)
            assert [state.model_id for state in states] == sorted(NAMES)
            for state in states:
                assert isinstance(state, ModelStatus)
                assert state.streams == 1
                assert state.figures.steps == 8 * CHUNK
                assert state.state == "running"
        for place, name in enumerate(NAMES):
            assert not different(newest(store, name), twin(place, 8).state())


async def test_every_operation_brings_a_model_back_into_memory(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        async with serving(store, models_in_memory=1) as server:
            registry = server.registry
            await server.create("a", "b")
            await server.in_memory(1)
            await server.learn("a", 0)

            async def away() -> None:
                await registry.find("b")
                await server.in_memory(1)
                assert list(registry._models) == ["b"]

            await away()
            trainer = await registry.update_model("a", learning_rate=0.125)
            assert trainer.settings.learning_rate == 0.125
            await away()
            assert known(registry.status("a")).settings.learning_rate == 0.125
            saved = await registry.save_checkpoint("a")
            await away()
            assert saved in await registry.list_checkpoints("a")
            await away()
            await registry.restore_checkpoint("a", saved.lsn)
            await away()
            assert (await registry.find("a")).views["s"].next_step == CHUNK
            await away()
            with pytest.raises(ModelExists):
                await server.create("a")
            await registry.delete("a")
            assert store.models() == ["b"]
            with pytest.raises(UnknownModel):
                await registry.find("a")
            with pytest.raises(UnknownModel):
                registry.status("a")
            await server.create("a")
            assert (await server.learn("a", 0)).first_step == 0
            assert server.health == {"a": True, "b": True}


async def test_a_model_in_use_stays_and_its_memory_is_free_once_it_has_left(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        async with serving(store, models_in_memory=1) as server:
            await server.create("a")
            trainer = await server.registry.find("a")

            def told(_: Any) -> None:
                raise AssertionError("it was in use")

            trainer.listeners.add(told)  # as an open Learn call does
            await server.create("b", "c")
            await server.in_memory(1)
            assert list(server.registry._models) == ["a"]
            trainer.listeners.discard(told)
            learner = weakref.ref(trainer.learner)
            gc.disable()
            try:
                await server.registry.find("b")
                del trainer
                await until(lambda: learner() is None)  # without the collector of cycles
            finally:
                gc.enable()


async def test_others_do_not_wait_for_a_model_that_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        async with serving(store, models_in_memory=2, threads=2) as server:
            await server.create("a", "b", "c")
            await server.in_memory(2)
            [asleep] = server.registry._model_cache.states
            reading, go_on = asyncio.Event(), threading.Event()
            loop, load = asyncio.get_running_loop(), store.load

            def slow(model_id: str, lsn: int) -> Checkpoint:
                loop.call_soon_threadsafe(reading.set)
                assert go_on.wait(30)
                return load(model_id, lsn)

            monkeypatch.setattr(store, "load", slow)
            asked = [asyncio.create_task(server.registry.find(asleep)) for _ in range(3)]
            await reading.wait()
            for name in sorted(server.registry._models):
                await server.learn(name, 0)
            state = server.registry.status(asleep)
            assert isinstance(state, ModelStatus)
            assert state.figures.steps == 0
            assert not any(task.done() for task in asked)
            asked[0].cancel()
            go_on.set()
            _, one, other = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(one, Trainer)
            assert one is other, "it was loaded once"
            assert (await server.learn(asleep, 0)).next_step == CHUNK


async def test_a_model_that_cannot_be_saved_stays_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bptt.engine.model_cache.PAUSE_SECONDS", 0.0)
    with opened(tmp_path, "none") as store:
        async with serving(store, models_in_memory=1, durability="none") as server:
            await server.create("a")
            await server.learn("a", 0)
            # Its call has ended, or model b would be the one that was used longest ago.
            await until(lambda: not server.registry.get("a").stays)
            save, failing = store.save, True

            def full(checkpoint: Checkpoint) -> None:
                if failing and checkpoint.model_id == "a":
                    raise StorageFailed("no space left on device")
                save(checkpoint)

            monkeypatch.setattr(store, "save", full)
            await server.create("b")
            await until(lambda: "model a stays in memory: no space left" in caplog.text)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert "a" in server.registry._models
            assert (await server.learn("a", 1)).first_step == CHUNK
            failing = False
            await server.in_memory(1)
            assert (await server.learn("a", 2)).first_step == 2 * CHUNK
        assert not different(newest(store, "a"), twin(0, 3).state())


async def test_counters_stay_and_gauges_vanish_while_a_model_is_not_in_memory(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        async with serving(store, models_in_memory=1) as server:
            await server.create("a")
            await server.learn("a", 0)
            await (await server.registry.find("a")).durable()  # until then it stays
            assert server.value("bptt_streams", "a") == 1
            await server.create("b")
            await server.in_memory(1)
            assert server.value("bptt_streams", "a") is None
            assert server.value("bptt_loss", "a") is None
            assert server.value("bptt_steps_total", "a") == CHUNK
            assert server.value("bptt_update_seconds_count", "a") > 0  # type: ignore[operator]
            await server.learn("a", 1)
            assert server.value("bptt_steps_total", "a") == 2 * CHUNK
            assert server.value("bptt_streams", "a") == 1
            assert server.value("bptt_recovery_seconds", "a") is not None
            await server.registry.find("b")
            await server.in_memory(1)
            await server.registry.delete("a")
            assert server.value("bptt_steps_total", "a") is None


async def test_a_start_leaves_models_beyond_the_limit_in_the_store(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        async with serving(store) as server:
            await server.create(*NAMES)
            for name in NAMES:
                await server.learn(name, 0)
        async with serving(store) as server:
            assert len(server.registry._models) == 2
            assert server.health == dict.fromkeys(NAMES, True)
            states, _ = server.registry.page("", 100)
            assert [known(state).figures.steps for state in states] == [CHUNK] * 5
            with pytest.raises(ModelExists):
                await server.create("e")
            for name in NAMES:
                await server.learn(name, 1)
        for place, name in enumerate(NAMES):
            assert not different(newest(store, name), twin(place, 2).state())


async def test_a_model_whose_files_were_damaged_meanwhile_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as store:
        async with serving(store, models_in_memory=1) as server:
            await server.create("a", "b")
            await server.in_memory(1)
            (tmp_path / "models" / "a" / STORED).write_bytes(b"nonsense")
            for _ in range(2):
                with pytest.raises(DataDamaged, match="model a"):
                    await server.registry.find("a")
            assert caplog.text.count("model a could not be recovered") == 1
            assert server.health["a"] is False
            await server.registry.delete("a")
            assert store.models() == ["b"]


async def test_a_paused_model_is_paused_when_it_is_back(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        async with serving(store, models_in_memory=1) as server:
            await server.create("a")
            await server.registry.update_model("a", paused=True)
            await server.create("b")
            await server.in_memory(1)
            assert server.registry.status("a").state == "paused"
            assert not (await server.learn("a", 0)).updates


def test_the_limit_is_at_least_one() -> None:
    with pytest.raises(Exception, match="models_in_memory is 0"):
        replace(ServerConfig(), models_in_memory=0)


async def test_a_stop_waits_for_a_model_that_is_coming_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as store:
        async with serving(store, models_in_memory=1) as server:
            await server.create("a", "b")
            await server.in_memory(1)
            reading, go_on = asyncio.Event(), threading.Event()
            loop, load = asyncio.get_running_loop(), store.load

            def slow(model_id: str, lsn: int) -> Checkpoint:
                loop.call_soon_threadsafe(reading.set)
                assert go_on.wait(30)
                return load(model_id, lsn)

            monkeypatch.setattr(store, "load", slow)
            asked = asyncio.create_task(server.registry.find("a"))
            await reading.wait()
            server.registry.begin_stop()
            stopping = asyncio.create_task(server.registry.stop(10.0))
            with pytest.raises(ServerStopping):
                await server.registry.find("a")
            assert not stopping.done()
            go_on.set()
            assert await stopping == []
            assert isinstance(await asked, Trainer)
