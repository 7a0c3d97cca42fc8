"""A diverged model stops or rolls back, as its spec says; replay agrees."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bptt.config import Kept, ServerConfig
from bptt.domain import LaneRefused, ModelDefinition
from bptt.durability import Command, Record, SqliteStore, Store
from bptt.engine import replay
from bptt.engine.records import apply_record, make_checkpoint
from bptt.engine.recovery import recover
from bptt.engine.replay import different
from bptt.engine.responses import ResponseQueue
from bptt.engine.trainer import Trainer
from bptt.errors import ServerStopping
from bptt.observability.metrics import Metrics
from bptt_core import Chunk, ChunkResult, Learner, ModelSpec
from tests.engine.support import Answer, message, of_one_lane, Rounds

SPEC = ModelSpec(
    task="regression",
    input_size=2,
    output_size=1,
    cell="rnn_relu",
    hidden_size=4,
    k1=2,
    k2=4,
    clip="none",
    scaling=False,
    learning_rate=0.01,
    divergence_patience=3,
    on_divergence="roll_back",
)
TOO_LARGE = 1e39  # beyond float32
BACK = Kept(checkpoints=100)


@contextlib.contextmanager
def opened(folder: Path, kept: Kept = BACK) -> Iterator[SqliteStore]:
    store = SqliteStore(folder, kept=kept)
    store.open()
    try:
        yield store
    finally:
        store.close()


@contextlib.asynccontextmanager
async def training(store: Store | None, spec: ModelSpec = SPEC) -> AsyncIterator[Trainer]:
    """A new model, or the recovered model of a store."""
    definition = ModelDefinition("m", spec)
    learner, lsn, saved = Learner(spec), 0, 0
    if store is not None and store.models():
        found = recover(store, "m")
        learner, lsn, saved = found.learner, found.lsn, found.saved_lsn
    elif store is not None:
        store.save(make_checkpoint(definition, learner, 0))
    with ThreadPoolExecutor(1) as executor:
        trainer = Trainer(
            definition,
            learner,
            executor=executor,
            store=store,
            sink=Metrics(),
            config=ServerConfig(),
            lsn=lsn,
            saved_lsn=saved,
        )
        trainer.start()
        yield trainer


def steps(count: int, first: int = 0, *, scale: float = 1.0) -> tuple[Any, Any]:
    t = np.arange(first, first + count)[:, None]
    x = np.asarray(np.sin(t / np.array([5.0, 9.0])), np.float32)
    return x.astype(float), scale * (2.0 + x[:, :1].astype(float))


def give(
    trainer: Trainer,
    responses: ResponseQueue,
    count: int,
    *,
    scale: float = 1.0,
    stream_id: str = "s",
) -> None:
    x, y = steps(count, trainer.expected_step(stream_id), scale=scale)
    trainer.accept(message(stream_id, None, x, y, end_of_sequence=False), responses.pending(0))


async def answers(responses: ResponseQueue, count: int) -> list[Answer]:
    found = [of_one_lane(await responses.next()) for _ in range(count)]
    assert all(isinstance(each, ChunkResult) for each in found), [
        getattr(each, "error", None) for each in found
    ]
    return found


async def end(trainer: Trainer) -> None:
    await trainer.durable()
    await trainer.stop(refusal=ServerStopping(), save=False)


def condition(trainer: Trainer) -> str:
    return trainer.state


def journal(store: Store, after: int = 0) -> list[Record]:
    return list(store.tail("m", after))


def commands(store: Store) -> list[tuple[int, Command]]:
    found = journal(store)
    return [(each.lsn, each.body) for each in found if isinstance(each.body, Command)]


def rolled_back(store: Store) -> list[dict[str, Any]]:
    return [each.arguments for _, each in commands(store) if each.name == "roll_back"]


async def test_a_diverged_model_rolls_back_and_its_streams_continue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as store:
        async with training(store) as trainer:
            responses = ResponseQueue(100, 1000)
            give(trainer, responses, 12)
            give(trainer, responses, 12, stream_id="other")
            await answers(responses, 2)
            saved = await trainer.save_checkpoint()
            good = trainer.snapshot.model.parameters.copy()
            give(trainer, responses, 12)
            await answers(responses, 1)
            assert (trainer.snapshot.model.parameters != good).any()
            give(trainer, responses, 7, scale=TOO_LARGE)
            give(trainer, responses, 2)
            [bad, after] = await answers(responses, 2)
            assert isinstance(bad, ChunkResult)
            assert isinstance(after, ChunkResult)
            assert [update.skipped for update in bad.updates] == [True] * 3
            assert [update.skipped for update in after.updates] == [False]
            assert condition(trainer) == "running"
            assert trainer.figures.learning_rate == 0.005
            assert trainer.settings.learning_rate == 0.005
            assert trainer.views["s"].next_step == 33
            assert trainer.views["s"].sequence_step == 2, "a new sequence began behind the bad one"
            assert trainer.views["other"].next_step == 12
            assert trainer.views["other"].sequence_step == 0
            await end(trainer)
        [(lsn, command)] = commands(store)
        assert command.arguments == {"lsn": saved.lsn, "learning_rate": 0.005}
        assert lsn == trainer.lsn - 1
        [line] = [each.message for each in caplog.records if "rolled back" in each.message]
        assert "its state after 24 steps" in line
        assert "3 updates in a row were not finite" in line
        state = trainer.learner.state()
        assert not different(recover(store, "m").learner.state(), state)
    assert replay.verify(SqliteStore(tmp_path), "m").problems == []


async def test_chunks_queued_behind_a_diverging_tick_are_learned_after_the_roll_back(
    tmp_path: Path,
) -> None:
    """The roll-back splits the ticks of one run; replay must see the same order."""
    with opened(tmp_path) as store:
        async with training(store) as trainer:
            responses = ResponseQueue(100, 1000)
            for _ in range(3):
                give(trainer, responses, 4)
                give(trainer, responses, 4, stream_id="other")
            for scale in (TOO_LARGE, 1.0, 1.0, TOO_LARGE, 1.0):
                give(trainer, responses, 6, scale=scale)
                give(trainer, responses, 6, stream_id="other", scale=scale)
            await answers(responses, 16)
            assert trainer.views["s"].next_step == trainer.views["other"].next_step == 42
            assert trainer.figures.skipped_updates >= 3
            await end(trainer)
        records = journal(store)
        twin, diverged = Learner(SPEC), False
        for record in records:
            assert isinstance(record.body, Command) == diverged, "right behind, and only there"
            loaded = apply_record(twin, record, lambda lsn: store.load("m", lsn))
            twin, diverged = loaded.learner, loaded.learner.figures.diverged
        assert sum(isinstance(record.body, Command) for record in records) == 2
        assert not different(twin.state(), trainer.learner.state())
    assert replay.verify(SqliteStore(tmp_path), "m").problems == []


async def test_a_diverged_model_without_a_checkpoint_stops_and_logs_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with training(None) as trainer:
        responses = ResponseQueue(100, 1000)
        give(trainer, responses, 8)
        give(trainer, responses, 8, scale=TOO_LARGE)
        give(trainer, responses, 8)
        [*_, last] = await answers(responses, 3)
        assert isinstance(last, ChunkResult)
        assert last.predictions is not None
        assert np.isfinite(last.predictions).all()
        assert not last.updates
        assert condition(trainer) == "diverged"
        assert "stays diverged, with no good checkpoint" in caplog.text
        await trainer.configure({"paused": False})
        assert condition(trainer) == "running"
        await end(trainer)


async def test_data_that_always_diverge_roll_back_once_for_each_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as store:
        async with training(store) as trainer:
            responses = ResponseQueue(100, 1000)
            for _ in range(2):
                give(trainer, responses, 8)
                await answers(responses, 1)
                await trainer.save_checkpoint()
            for _ in range(6):
                give(trainer, responses, 8, scale=TOO_LARGE)
                await answers(responses, 1)
            assert condition(trainer) == "diverged"
            await trainer.durable()
            back = rolled_back(store)
            assert [each["lsn"] for each in back] == [2, 1, 0]
            assert [each["learning_rate"] for each in back] == [0.005, 0.0025, 0.00125]
            assert caplog.text.count("no good checkpoint") == 1
            await trainer.configure({"paused": False})
            give(trainer, responses, 8)
            [learned] = await answers(responses, 1)
            assert isinstance(learned, ChunkResult)
            assert not any(update.skipped for update in learned.updates)
            give(trainer, responses, 8, scale=TOO_LARGE)
            await answers(responses, 1)
            give(trainer, responses, 2)
            await answers(responses, 1)
            await trainer.durable()
            assert rolled_back(store)[-1]["lsn"] == 2, "it had learned since"
            await end(trainer)
        assert not different(recover(store, "m").learner.state(), trainer.learner.state())


async def test_damaged_and_diverging_checkpoints_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as store:
        async with training(store) as trainer:
            responses = ResponseQueue(100, 1000)
            for size in (8, 8):
                give(trainer, responses, size)
                await answers(responses, 1)
                await trainer.save_checkpoint()
            damaged = tmp_path / "models" / "m" / "checkpoint-000000000002.safetensors"
            damaged.write_bytes(damaged.read_bytes()[:-1])
            give(trainer, responses, 5, scale=TOO_LARGE)
            await answers(responses, 1)
            assert trainer.figures.consecutive_skipped == 2
            assert (await trainer.save_checkpoint()).lsn == 3
            give(trainer, responses, 2, scale=TOO_LARGE)
            give(trainer, responses, 2)
            await answers(responses, 2)
            await trainer.durable()
            assert [each["lsn"] for each in rolled_back(store)] == [1]
            assert "cannot roll back to a checkpoint" in caplog.text
            await end(trainer)


async def test_a_roll_back_lost_in_a_crash_is_repeated_after_the_restart(
    tmp_path: Path,
) -> None:
    with opened(tmp_path) as store:
        async with training(store, replace(SPEC, on_divergence="stop")) as trainer:
            responses = ResponseQueue(100, 1000)
            give(trainer, responses, 8)
            await answers(responses, 1)
            give(trainer, responses, 8, scale=TOO_LARGE)
            await answers(responses, 1)
            await end(trainer)
        records = journal(store)
    with opened(tmp_path / "copy") as store:
        async with training(store) as trainer:
            await end(trainer)
        store.append("m", records)
        async with training(store) as trainer:
            assert trainer.lsn == 2
            responses = ResponseQueue(100, 1000)
            give(trainer, responses, 2)
            [learned] = await answers(responses, 1)
            assert isinstance(learned, ChunkResult)
            assert [update.skipped for update in learned.updates] == [False]
            assert trainer.figures.learning_rate == 0.005
            await end(trainer)
        assert [lsn for lsn, _ in commands(store)] == [3]


async def test_a_checkpoint_that_a_command_names_is_not_pruned_before_the_commit(
    tmp_path: Path,
) -> None:
    """A save that would prune it waits until the command that names it is durable."""
    with opened(tmp_path, Kept(checkpoints=1)) as store:
        async with training(store) as trainer:
            responses = ResponseQueue(100, 1000)
            give(trainer, responses, 8)
            await answers(responses, 1)
            await trainer.save_checkpoint()
            give(trainer, responses, 8)
            await answers(responses, 1)
            async with trainer._checkpointer.naming():
                saving = asyncio.create_task(trainer.save_checkpoint())
                await trainer.durable()
                for _ in range(20):
                    await asyncio.sleep(0)
                assert 2 not in [each.lsn for each in store.checkpoints("m")]
            assert (await saving).lsn == 2
            give(trainer, responses, 8, scale=TOO_LARGE)
            give(trainer, responses, 2)
            await answers(responses, 2)
            await trainer.durable()
            assert rolled_back(store)[0]["lsn"] == 2
            await end(trainer)
        assert not different(recover(store, "m").learner.state(), trainer.learner.state())


async def test_late_labels_of_steps_before_a_roll_back_are_dropped(tmp_path: Path) -> None:
    """Clients do not know of the roll-back and still send them."""
    delay, spec = 3, replace(SPEC, label_delay=3)
    x, y = steps(60)
    y[12:20] *= TOO_LARGE
    with opened(tmp_path) as store:
        async with training(store, spec) as trainer:
            responses, learned = ResponseQueue(100, 1000), []
            for first in range(0, 60, 2):
                begin, end_ = max(0, first - delay), max(0, first + 2 - delay)
                labels = y[begin:end_] if end_ else None
                chunk = message(
                    "s", first, x[first : first + 2], labels, False, begin if end_ else None
                )
                trainer.accept(chunk, responses.pending(0))
                learned += await answers(responses, 1)
            assert trainer.views["s"].next_step == 60
            assert trainer.figures.skipped_updates >= 3
            last = learned[-1]
            assert isinstance(last, ChunkResult)
            assert [update.skipped for update in last.updates] == [False]
            too_late = message("s", 60, x[:1], y[:1], False, 60 - delay - 1)
            trainer.accept(too_late, responses.pending(0))
            refused = of_one_lane(await responses.next())
            assert isinstance(refused, LaneRefused), "what is late for another reason"
            at = 60
            while condition(trainer) == "running":
                labels = y[: delay - 1] * TOO_LARGE
                chunk = message("s", at, x[:2], labels, False, at - delay)
                trainer.accept(chunk, responses.pending(0))
                await answers(responses, 1)
                at += 2
            trainer.accept(message("s", at, x[:0], y[:1], False, at - 1), responses.pending(0))
            [nothing_left] = await answers(responses, 1)
            assert isinstance(nothing_left, ChunkResult)
            assert (nothing_left.next_step, trainer.views["s"].sequence_step) == (at, 0)
            await trainer.durable()
            assert rolled_back(store)
            await end(trainer)
        assert not different(recover(store, "m").learner.state(), trainer.learner.state())
    assert replay.verify(SqliteStore(tmp_path), "m").problems == []


async def test_a_diverged_model_with_policy_stop_stops(caplog: pytest.LogCaptureFixture) -> None:
    async with training(None, replace(SPEC, on_divergence="stop")) as trainer:
        responses, told = ResponseQueue(100, 1000), list[str]()
        trainer.lifecycle.on_change = lambda: told.append(trainer.state)
        give(trainer, responses, 8, scale=TOO_LARGE)
        give(trainer, responses, 8)
        await answers(responses, 2)
        assert told == ["diverged"]
        assert caplog.text.count("has diverged and learns nothing until it is resumed") == 1
        await trainer.configure({"paused": False})
        assert told == ["diverged", "running"]
        assert math.isfinite(trainer.figures.parameter_norm)
        await end(trainer)


def test_rounds_put_back_come_first_and_in_order() -> None:
    """A stream that came meanwhile comes after them."""

    def chunk(stream_id: str, first: int) -> Chunk:
        return Chunk(stream_id, first, *steps(2))

    waiting = Rounds()
    fair_queue = waiting.queue
    for first in (0, 2, 4):
        for stream_id in ("a", "b"):
            waiting.chunk(chunk(stream_id, first))
    before = (fair_queue.chunks, fair_queue.weight)
    taken = fair_queue.take(4, 1000, 100, 1000)
    added = waiting.chunk(chunk("c", 0))
    fair_queue.put_back(taken)
    assert (fair_queue.chunks - 1, fair_queue.weight - added.weight) == before
    names = [
        [(each.batch.stream_ids[0], int(each.batch.first_steps[0])) for each in one.chunks]
        for one in fair_queue.take(100, 1000, 100, 1000)
    ]
    assert names == [
        [("a", 0), ("b", 0)],
        [("a", 2), ("b", 2)],
        [("a", 4), ("b", 4), ("c", 0)],
    ]
    assert (fair_queue.chunks, fair_queue.weight) == (0, 0)
