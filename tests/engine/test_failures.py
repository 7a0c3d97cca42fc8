"""Failures of a model: every waiting task is answered, and the model is recovered."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bptt.config import Kept, ServerConfig
from bptt.domain import LaneRefused, ModelDefinition, UnreadModel
from bptt.domain import ModelState as State
from bptt.durability import CheckpointInfo, Command, Record, SqliteStore
from bptt.engine import live, recovery, stalls, supervisor
from bptt.engine.lifecycle import Operation
from bptt.engine.messages import StreamCommand
from bptt.engine.records import apply_record, make_checkpoint, StreamNames
from bptt.engine.recovery import recover
from bptt.engine.registry import Registry
from bptt.errors import (
    ModelExists,
    ModelFailed,
    Recovering,
    ServiceError,
    StorageFailed,
    StorageFull,
    UnknownModel,
)
from bptt.observability.metrics import Metrics
from bptt_core import ChunkResult, Learner
from tests.engine.support import of_one_lane
from tests.engine.test_lifecycle import (
    Breaking,
    HeldStore,
    Host,
    hosting,
    made,
    restoring,
    rolling_back,
    SPEC,
)
from tests.rpc.harness import until
from tests.support.disk import mounted
from tests.support.metrics import above_zero


@pytest.fixture
def store(tmp_path: Path) -> Any:
    held = HeldStore(tmp_path)
    held.open()
    yield held
    held.close()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.0)


def failures(host: Host) -> dict[str, float]:
    """Values of the failure metric by reason."""
    return above_zero(host.metrics, "bptt_model_failures", "reason")


async def came_back(host: Host, before: Any) -> None:
    """Wait until a new trainer has replaced a failed one, and learn a chunk with it."""
    await until(lambda: host.registry.get("m") is not before and host.state is State.RUNNING)
    at = host.registry.get("m").expected_step("s")
    assert (await host.learn(2)).next_step == at + 2
    await host.registry.get("m").durable()


# ---------------------------------------------------------------------- the worker's end


async def test_an_exception_while_a_checkpoint_is_copied_is_not_silent(
    store: HeldStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with hosting(store, checkpoint_records=2, checkpoint_seconds=1000.0) as host:
        await made(host)
        before = host.registry.get("m")

        def broken(*arguments: Any) -> Any:
            monkeypatch.undo()
            monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.0)
            raise MemoryError

        monkeypatch.setattr(live, "make_checkpoint", broken)
        told: list[ServiceError] = []
        before.listeners.add(told.append)
        await host.learn(2)  # the second record: a checkpoint is due
        await came_back(host, before)
        assert [type(each) for each in told] == [Recovering]
        assert failures(host) == {"copying": 1}
        [line] = [each.message for each in caplog.records if "failed while" in each.message]
        assert line == "model m failed while copying"


async def test_a_worker_that_is_cancelled_is_replaced(store: HeldStore) -> None:
    async with hosting(store) as host:
        await made(host)
        before = host.registry.get("m")
        [task] = [each for each in asyncio.all_tasks() if each.get_name() == "worker m"]
        task.cancel()
        await came_back(host, before)
        assert failures(host) == {"learning": 1}


async def test_everything_waiting_for_a_failing_model_is_answered(store: HeldStore) -> None:
    async with hosting(store, Breaking) as host:
        await made(host)
        model = host.registry.get("m")
        host.gate.close()
        broken, behind = host.give(5), host.give(2)
        await until(lambda: not model.waits)
        waiting = [
            asyncio.ensure_future(host.registry.update_model("m", learning_rate=0.5)),
            asyncio.ensure_future(host.registry.save_checkpoint("m")),
            asyncio.ensure_future(host.registry.restore_checkpoint("m", 0)),
        ]
        await until(lambda: host.state is State.RESTORING)
        host.gate.open()
        answers = [of_one_lane(await broken.next()), of_one_lane(await behind.next())]
        assert all(isinstance(each, LaneRefused) for each in answers)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in ends] == [Recovering] * 3
        await came_back(host, model)
        assert not any(isinstance(each.body, Command) for each in store.tail("m", 0))


async def test_no_checkpoint_of_a_half_applied_model_is_saved(store: HeldStore) -> None:
    """The failed run had learned a chunk; a copy would have the last lsn of the journal."""
    async with hosting(store, Breaking) as host:
        await made(host)
        model = host.registry.get("m")
        host.gate.close()
        host.give(5)
        await until(lambda: not model.waits)
        saving = asyncio.ensure_future(host.registry.save_checkpoint("m"))
        await asyncio.sleep(0)
        host.gate.open()
        with pytest.raises(Recovering):
            await saving
        assert [each.lsn for each in store.checkpoints("m")] == [0]
        await came_back(host, model)


async def test_a_model_that_fails_each_time_is_recovered_a_bounded_number_of_times(
    store: HeldStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with hosting(store) as host:
        await made(host)
    monkeypatch.setattr(supervisor, "RETRIES_MAX", 3)
    store.errors["load"] = MemoryError
    async with hosting(store) as host:
        await until(lambda: "stays failed" in caplog.text)
        assert host.state is State.FAILED
        assert failures(host) == {"recovery": 4}
        with pytest.raises(ModelFailed, match="could not be recovered"):
            await host.registry.find("m", Operation.PREDICT)
        assert host.health["m"] is False


async def test_without_a_store_a_model_stays_failed_and_predicts() -> None:
    metrics = Metrics()
    with ThreadPoolExecutor(2) as pool:
        registry = Registry(ServerConfig(), pool, None, metrics, Breaking)
        host = Host(registry, None, None, metrics, {})  # type: ignore[arg-type]
        await registry.create(ModelDefinition("m", SPEC))
        await host.learn(4)
        snapshot = registry.get("m").snapshot
        refused = await host.learn(5)
        assert isinstance(refused, LaneRefused)
        assert isinstance(refused.error, ModelFailed)
        assert host.state is State.FAILED
        assert (await registry.find("m", Operation.PREDICT)).snapshot is snapshot
        await registry.delete("m")
        with pytest.raises(UnknownModel):
            registry.status("m")
        await registry.stop(10.0)


# ---------------------------------------------------------------------- a restore, and what else


async def test_a_failure_during_a_restore_fails_the_model_and_saves_nothing(
    store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 3600.0)
    async with restoring(store) as host:
        store.errors["load"] = lambda: RuntimeError("half-way")
        saved = [each.lsn for each in store.checkpoints("m")]
        store.release.set()
        await host.reach(State.FAILED)
        with pytest.raises(Recovering):
            await host.registry.save_checkpoint("m")
        assert [each.lsn for each in store.checkpoints("m")] == saved
        assert failures(host) == {"administration": 1}


async def test_a_restore_that_comes_during_a_roll_back_refuses_chunks_until_it_is_done(
    store: HeldStore,
) -> None:
    async with rolling_back(store) as host:
        model = host.registry.get("m")
        restore = asyncio.ensure_future(host.registry.restore_checkpoint("m", 0))
        await host.reach(State.RESTORING)
        changes: list[tuple[State, int]] = []
        model.lifecycle.on_change = lambda: changes.append((model.state, model.lsn))
        before = model.lsn
        store.release.set()
        await restore
        assert changes == [(State.RUNNING, before + 2)], "after the roll-back and the restore"


async def test_a_restore_that_was_asked_of_a_worker_that_failed_is_refused(
    store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is back, with another worker, before the disk has listed the checkpoints."""
    async with hosting(store) as host:
        await made(host)
        before, asked, listed = host.registry.get("m"), threading.Event(), threading.Event()

        def slow(model_id: str) -> list[CheckpointInfo]:
            if not asked.is_set():
                asked.set()
                assert listed.wait(60)
            return SqliteStore.checkpoints(store, model_id)

        monkeypatch.setattr(store, "checkpoints", slow)
        restore = asyncio.ensure_future(host.registry.restore_checkpoint("m", 0))
        await until(asked.is_set)
        [task] = [each for each in asyncio.all_tasks() if each.get_name() == "worker m"]
        task.cancel()
        await came_back(host, before)
        listed.set()
        async with asyncio.timeout(20):
            with pytest.raises(Recovering):
                await restore
        assert host.state is State.RUNNING
        await came_back(host, before)


# ---------------------------------------------------------------------- a disk that is full


def full() -> StorageFull:
    return StorageFull("journal.sqlite3 could not be written: No space left on device")


async def test_a_model_with_queued_chunks_is_deleted_on_a_full_disk(
    store: HeldStore,
) -> None:
    async with hosting(store) as host:
        await made(host)
        store.errors["append"] = full
        await host.learn(4)
        model = host.registry.get("m")
        waiting = host.give(4) if model.stalled is None else None
        await until(lambda: host.state is State.STALLED)
        async with asyncio.timeout(20):
            await host.registry.delete("m")
            if waiting is not None:
                assert await waiting.next() is not None
            with pytest.raises(UnknownModel):
                await host.registry.delete("m")
            store.errors.clear()
            await made(host)
            store.errors["append"] = full
            await host.learn(4)
            host.give(4)  # accepted before the first failed commit, and never learned
            await until(lambda: host.registry.get("m").state is State.STALLED)
            await host.registry.delete("m")
            assert await host.registry.stop(10.0) == []


async def test_waits_for_a_full_disk_end_with_an_error(
    store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "STALL_SECONDS", 0.05)
    async with hosting(store) as host:
        await made(host)
        model = host.registry.get("m")
        store.errors["append"] = full
        await host.learn(4)
        done = asyncio.get_running_loop().create_future()
        resetting = asyncio.ensure_future(model.command(StreamCommand("s", "reset", done)))
        waiting = host.give(4)
        durable = asyncio.ensure_future(model.durable())
        answer = of_one_lane(await waiting.next())
        assert isinstance(answer, LaneRefused | ChunkResult)
        with pytest.raises(StorageFull):
            await resetting
        with pytest.raises(StorageFull):
            await durable
        assert host.state is State.STALLED
        store.errors.clear()
        await until(lambda: host.state is State.RUNNING)
        await model.durable()


# ---------------------------------------------------------------------- deletion and creation


async def test_a_deletion_that_fails_keeps_the_name_and_may_be_repeated(
    store: HeldStore,
) -> None:
    async with hosting(store) as host:
        await made(host)
        store.errors["delete"] = lambda: StorageFailed("the folder could not be deleted")
        with pytest.raises(StorageFailed):
            await host.registry.delete("m")
        [shown], _ = host.registry.page("", 10)
        assert (shown.model_id, shown.state) == ("m", State.FAILED)
        assert "delete it again" in shown.state_reason
        with pytest.raises(ModelExists):
            await host.registry.create(ModelDefinition("m", SPEC))
        store.errors.clear()
        await host.registry.delete("m")
        assert store.models() == []
        await made(host)
        assert host.registry.get("m").views["s"].next_step == 4


async def test_a_model_is_never_created_in_another_models_folder(store: HeldStore) -> None:
    async with hosting(store) as host:
        store.save(make_checkpoint(ModelDefinition("m", SPEC), Learner(SPEC), 0))  # unknown to it
        with pytest.raises(ModelExists):
            await host.registry.create(ModelDefinition("m", SPEC))


async def test_the_leftover_of_a_deletion_does_not_block_the_name(
    store: HeldStore, tmp_path: Path
) -> None:
    for name in (".deleted-m", ".new-m"):
        (tmp_path / "models" / name).mkdir()
        (tmp_path / "models" / name / "leftover").write_text("in the way")
    async with hosting(store) as host:
        for _ in range(2):
            await made(host)
            await host.registry.delete("m")
            assert store.models() == []


async def test_one_of_several_concurrent_deletions_deletes_a_damaged_model(
    store: HeldStore, tmp_path: Path
) -> None:
    async with hosting(store) as host:
        await made(host)
    for path in (tmp_path / "models" / "m").glob("checkpoint-*"):
        path.write_bytes(b"nonsense")
    async with hosting(store) as host:
        assert host.state is State.FAILED
        ends = await asyncio.gather(
            *(host.registry.delete("m") for _ in range(5)), return_exceptions=True
        )
        assert [type(each) for each in ends] == [type(None)] + [UnknownModel] * 4
        assert host.health == {"m": None}


async def test_saving_is_answered_even_if_a_newer_checkpoint_pruned_the_saved_one(
    tmp_path: Path,
) -> None:
    store = HeldStore(tmp_path, Kept(checkpoints=1))
    store.open()
    try:
        async with hosting(store, checkpoint_records=1) as host:
            await made(host)
            for _ in range(20):
                saving = [asyncio.ensure_future(host.registry.save_checkpoint("m"))]
                for _ in range(3):
                    await host.learn(1)
                    saving.append(asyncio.ensure_future(host.registry.save_checkpoint("m")))
                for each in saving:
                    assert (await each).lsn > 0
    finally:
        store.close()


# ---------------------------------------------------------------------- the data folder


def test_a_leftover_that_cannot_be_removed_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    with mounted(models / ".deleted-m", "1m"):
        store = SqliteStore(tmp_path)
        store.open()
        assert store.models() == []
        store.close()
    [line] = [each.message for each in caplog.records]
    assert str(models / ".deleted-m") in line


def test_a_model_folder_that_is_a_link_is_deleted_as_a_link(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "data")
    store.open()
    try:
        store.save(make_checkpoint(ModelDefinition("m", SPEC), Learner(SPEC), 0))
        folder = tmp_path / "data" / "models" / "m"
        elsewhere = folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(elsewhere)
        store.delete("m")
        assert store.models() == []
    finally:
        store.close()
    store.open()
    assert list((tmp_path / "data" / "models").iterdir()) == []
    assert elsewhere.is_dir()
    store.close()


@pytest.mark.parametrize("error", [TypeError, UnicodeDecodeError, ValueError, RecursionError])
@pytest.mark.parametrize("where", ["load", "tail"])
async def test_an_unexpected_decoding_error_leaves_other_models_served(
    where: str, error: type[Exception], store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoding() -> Exception:
        if error is UnicodeDecodeError:
            return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        return error("of a flipped bit")

    async with hosting(store) as host:
        await made(host)
        await host.registry.create(ModelDefinition("n", SPEC))

    def damaged(model_id: str, lsn: int) -> Any:
        if model_id == "m":
            raise decoding()
        return getattr(SqliteStore, where)(store, model_id, lsn)

    monkeypatch.setattr(store, where, damaged)
    async with hosting(store) as host:
        assert host.registry.status("n").state is State.RUNNING
        status = host.registry.status("m")
        assert status.state is (State.FAILED if where == "load" else State.READ_ONLY)
        assert isinstance(status, UnreadModel) == (where == "load")


async def test_a_command_of_a_newer_version_makes_a_model_read_only(store: HeldStore) -> None:
    async with hosting(store) as host:
        await made(host)
    lsn = store.last("m")
    store.append("m", [Record(lsn + 1, Command("configure", {"of_a_newer_version": 1}))])
    async with hosting(store) as host:
        assert host.state is State.READ_ONLY
        assert host.registry.get("m").views["s"].next_step == 4
        assert f"record {lsn + 1}" in host.registry.status("m").state_reason


def test_replay_stops_before_a_record_that_breaks_the_learner(
    store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(SPEC)
    store.save(make_checkpoint(ModelDefinition("m", SPEC), learner, 0))
    store.append("m", [Record(1, Command("configure", {"learning_rate": 0.5}))])
    store.append("m", [Record(2, Command("configure", {"learning_rate": 0.25}))])
    apply, calls = apply_record, []

    def breaks(learner: Learner, record: Record, load: Any, names: StreamNames) -> Any:
        calls.append(record.lsn)
        applied = apply(learner, record, load, names)
        if record.lsn == 2:
            raise IndexError("half-way")
        return applied

    monkeypatch.setattr(recovery, "apply_record", breaks)
    found = recover(store, "m")
    assert calls == [1, 2, 1]
    assert (found.lsn, found.learner.settings.learning_rate) == (1, 0.5)
    assert "record 2" in str(found.damage)
