"""Health and metrics of a model that does not learn: diverged, or still recovering."""

from __future__ import annotations

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt.config import ServerConfig
from bptt.domain import ModelDefinition, ModelState, ModelStatus, UnreadModel
from bptt.durability import Checkpoint, Record, SqliteStore, Tick
from bptt.engine import recovery_progress
from bptt.engine.records import make_checkpoint
from bptt.engine.recovery import recover
from bptt.engine.registry import Registry
from bptt.engine.responses import ResponseQueue
from bptt.errors import Recovering
from bptt.observability.metrics import Metrics
from bptt_core import Chunk, ChunkResult, Learner, ModelSpec
from tests.engine.support import message, of_one_lane
from tests.engine.test_rollback import SPEC as DIVERGING
from tests.engine.test_rollback import steps, TOO_LARGE
from tests.support.metrics import families

SPEC = ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4)
TICKS = 30


def gauge(metrics: Metrics, name: str, model_id: str) -> float | None:
    for sample in families(metrics)[name].samples:
        if sample.labels["model"] == model_id:
            return float(sample.value)
    return None


async def test_a_model_that_diverged_is_not_serving_until_it_is_resumed() -> None:
    health: list[tuple[str, bool | None]] = []

    async def tell(model_id: str, is_served: bool | None) -> None:
        health.append((model_id, is_served))

    metrics = Metrics()
    with ThreadPoolExecutor(1) as pool:
        registry = Registry(ServerConfig(), pool, None, metrics)
        await registry.recover(tell)
        spec = replace(DIVERGING, on_divergence="stop")
        trainer = await registry.create(ModelDefinition("m", spec))
        assert health == [("m", True)]
        assert gauge(metrics, "bptt_diverged", "m") == 0
        responses = ResponseQueue(10, 1000)
        x, y = steps(8, scale=TOO_LARGE)
        trainer.accept(message("s", 0, x, y, end_of_sequence=False), responses.pending(0))
        answer = of_one_lane(await responses.next())
        assert isinstance(answer, ChunkResult)
        assert registry.status("m").state == "diverged"
        assert gauge(metrics, "bptt_diverged", "m") == 1
        await registry.update_model("m", paused=False)
        assert health == [("m", True), ("m", False), ("m", True)]
        assert gauge(metrics, "bptt_diverged", "m") == 0
        await registry.delete("m")
        assert health[3:] == [("m", None)]
        await registry.stop(10.0)


def journaled(store: SqliteStore) -> None:
    """A model with only its first checkpoint, and a journal after it."""
    learner = Learner(SPEC)
    store.save(make_checkpoint(ModelDefinition("m", SPEC), learner, 0))
    values = np.sin(np.arange(3 * TICKS, dtype=np.float32))[:, None].repeat(2, axis=1)
    chunks = [Chunk("s", first, values[first : first + 3]) for first in range(0, 3 * TICKS, 3)]
    store.append("m", [Record(lsn, Tick.of([chunk])) for lsn, chunk in enumerate(chunks, start=1)])


def test_a_long_recovery_logs_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recovery_progress, "PROGRESS_SECONDS", 0.0)
    caplog.set_level("INFO")
    store = SqliteStore(tmp_path)
    store.open()
    try:
        journaled(store)
        found = recover(store, "m")
    finally:
        store.close()
    assert found.lsn == TICKS
    told = [each.message for each in caplog.records if "recovering" in each.message]
    pace = r", \d+ records/s, about \d+ s left"
    first, last = (
        f"model m: recovering, {done} of {TICKS} records and {3 * done} steps replayed"
        for done in (1, TICKS)
    )
    assert re.fullmatch(first + pace, told[0])
    assert re.fullmatch(last + pace, told[-1])
    assert told[-1].endswith("about 0 s left")


async def test_models_that_are_being_recovered_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First by name only, then with the status of their checkpoint."""
    store = SqliteStore(tmp_path)
    store.open()
    journaled(store)
    loop = asyncio.get_running_loop()
    points = {"load": asyncio.Event(), "tail": asyncio.Event()}
    go_on = {name: threading.Event() for name in points}

    def held(name: str) -> None:
        method = getattr(store, name)

        def hold(*arguments: Any) -> Any:
            loop.call_soon_threadsafe(points[name].set)
            assert go_on[name].wait(30)
            return method(*arguments)

        monkeypatch.setattr(store, name, hold)

    for name in points:
        held(name)
    try:
        with ThreadPoolExecutor(2) as pool:
            registry = Registry(ServerConfig(), pool, store, Metrics())
            recovering = asyncio.create_task(registry.recover())
            await points["load"].wait()
            assert registry.page("", 10) == ([UnreadModel("m", ModelState.RECOVERING)], "")
            with pytest.raises(Recovering):
                await registry.find("m")
            go_on["load"].set()
            await points["tail"].wait()
            [state], _ = registry.page("", 10)
            assert isinstance(state, ModelStatus)
            assert state.state == "recovering"
            assert state.definition.spec == SPEC
            assert state.figures.steps == 0
            go_on["tail"].set()
            await recovering
            [state], _ = registry.page("", 10)
            assert isinstance(state, ModelStatus)
            assert (state.state, state.figures.steps) == ("running", 3 * TICKS)
            await registry.stop(10.0)
    finally:
        for event in go_on.values():
            event.set()
        store.close()


def test_checkpoints_without_a_count_of_skipped_updates_are_read(tmp_path: Path) -> None:
    """Their metadata has no number of skipped updates."""
    store = SqliteStore(tmp_path)
    store.open()
    try:
        learner = Learner(SPEC)
        whole = make_checkpoint(ModelDefinition("m", SPEC), learner, 0)
        metadata = {k: v for k, v in whole.metadata.items() if k != "consecutive_skipped"}
        store.save(Checkpoint("m", 0, whole.arrays, metadata))
        assert recover(store, "m").lsn == 0
    finally:
        store.close()
