"""The lifecycle of a model: its table, and every state × every operation on a real host."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bptt.config import Kept, ServerConfig
from bptt.domain import ModelDefinition
from bptt.domain import ModelState as State
from bptt.durability import Checkpoint, Command, Record, SqliteStore
from bptt.engine import lifecycle, supervisor
from bptt.engine.lifecycle import (
    ADMITS,
    Event,
    IllegalTransition,
    Lifecycle,
    Operation,
    REFUSES_WITH,
    SERVING,
    TRANSITIONS,
)
from bptt.engine.messages import StreamCommand
from bptt.engine.registry import Registry
from bptt.engine.responses import ResponseQueue
from bptt.errors import (
    DataDamaged,
    ModelFailed,
    ReadOnly,
    Recovering,
    ServerStopping,
    ServiceError,
    StorageFailed,
    UnknownModel,
)
from bptt.observability.metrics import Metrics
from bptt_core import Batch, Learner, ModelSpec, TickResult
from tests.engine.support import message, of_one_lane
from tests.engine.test_rollback import SPEC as ROLLS_BACK
from tests.engine.test_rollback import steps, TOO_LARGE
from tests.rpc.harness import Gate, until
from tests.support.metrics import families

SPEC = replace(ROLLS_BACK, on_divergence="stop")

WHY: dict[State, ServiceError] = {
    State.STALLED: StorageFailed("no space left on device"),
    State.FAILED: ModelFailed("a defect"),
    State.READ_ONLY: ReadOnly.of("m", "a flipped bit"),
    State.DRAINING: ServerStopping(),
    State.STOPPED: UnknownModel.of("m"),
}

# ---------------------------------------------------------------------- the table


def reached(state: State) -> Lifecycle:
    """A lifecycle in this state, by the shortest path."""
    ways: dict[State, list[Event]] = {State.RECOVERING: []}
    while state not in ways:
        for begin, way in list(ways.items()):
            for event, target in TRANSITIONS[begin].items():
                ways.setdefault(target, [*way, event])
    found = Lifecycle("m")
    for event in ways[state]:
        found.apply(event, WHY.get(TRANSITIONS[found.state][event]))
    return found


@pytest.mark.parametrize("state", State)
def test_every_event_follows_the_table_or_is_refused(state: State) -> None:
    for event in Event:
        life = reached(state)
        assert life.state is state
        told: list[State] = []
        life.on_change = lambda: told.append(life.state)  # noqa: B023
        target = TRANSITIONS[state].get(event)
        if target is None:
            assert not life.can(event)
            with pytest.raises(IllegalTransition, match=event.value):
                life.apply(event)
            assert (life.state, told) == (state, [])
        else:
            assert life.can(event)
            life.apply(event, WHY.get(target))
            assert life.state is target
            assert told == ([target] if target is not state else [])


@pytest.mark.parametrize("state", State)
def test_a_state_refuses_an_operation_with_its_own_error(state: State) -> None:
    for operation in Operation:
        if operation in ADMITS[state]:
            reached(state).admit(operation)
        else:
            with pytest.raises(REFUSES_WITH[state]) as raised:
                reached(state).admit(operation)
            assert "'m'" in str(raised.value) or "model m" in str(raised.value) or state in WHY


def test_the_table_covers_all_states_and_operations() -> None:
    assert set(TRANSITIONS) == set(ADMITS) == set(State)
    everything = {state for state in State if ADMITS[state] == set(Operation)}
    assert set(REFUSES_WITH) == set(State) - everything
    for state in State:
        assert reached(state).state is state, "no event leads to it"
        if state is not State.STOPPED:
            assert TRANSITIONS[state], "it would be for ever"
    assert set(State) >= SERVING
    assert all(Operation.LEARN in ADMITS[state] for state in SERVING)


def test_a_refusal_that_is_raised_often_does_not_grow() -> None:
    life = reached(State.FAILED)
    depths = []
    for _ in range(3):
        with pytest.raises(ModelFailed) as raised:
            life.admit(Operation.LEARN)
        traceback, depth = raised.value.__traceback__, 0
        while traceback is not None:
            traceback, depth = traceback.tb_next, depth + 1
        depths.append(depth)
    assert len(set(depths)) == 1


def test_the_diagram_and_the_table_are_drawn_from_the_transitions() -> None:
    drawn, table = lifecycle.diagram(), lifecycle.table()
    for state, events in TRANSITIONS.items():
        assert f"| {state.name} |" in table
        for event, target in events.items():
            [line] = [
                each
                for each in drawn.splitlines()
                if each.strip().startswith(f"{state.name} --> {target.name}:")
            ]
            assert event.value in line
    assert len(table.splitlines()) == 2 + len(State)
    assert "| FAILED |" in table
    assert "Recovering or ModelFailed or DataDamaged" in table


# ---------------------------------------------------------------------- a real host


class HeldStore(SqliteStore):
    """A store whose methods can be held back, or made to fail."""

    def __init__(self, folder: Path, kept: Kept | None = None) -> None:
        super().__init__(folder, kept=kept)
        self.errors: dict[str, Callable[[], Exception]] = {}
        self.held: set[str] = set()
        self.release = threading.Event()

    def _at_method(self, name: str) -> None:
        if name in self.held:
            assert self.release.wait(60)
        if name in self.errors:
            raise self.errors[name]()

    def append(self, model_id: str, records: Any) -> None:
        self._at_method("append")
        super().append(model_id, records)

    def load(self, model_id: str, lsn: int) -> Checkpoint:
        self._at_method("load")
        return super().load(model_id, lsn)

    def tail(self, model_id: str, after: int) -> Any:
        self._at_method("tail")
        return super().tail(model_id, after)

    def save(self, checkpoint: Checkpoint) -> None:
        self._at_method("save")
        super().save(checkpoint)

    def delete(self, model_id: str) -> None:
        self._at_method("delete")
        super().delete(model_id)


class Breaking(Learner):
    """A learner that changes and then runs out of memory at a chunk of 5 steps or more."""

    def apply(self, tick: Any, *, predictions: bool = True) -> TickResult:
        result = super().apply(tick, predictions=predictions)
        if (tick if isinstance(tick, Batch) else Batch.of(tick)).lengths.max() >= 5:
            raise MemoryError
        return result


@dataclass(eq=False)
class Host:
    """A registry on a store, with the actions of tests."""

    registry: Registry
    store: HeldStore
    gate: Gate
    metrics: Metrics
    health: dict[str, bool | None]

    def give(self, count: int, *, scale: float = 1.0) -> ResponseQueue:
        """Accept a chunk."""
        trainer, responses = self.registry._models["m"], ResponseQueue(10, 1 << 20)
        x, y = steps(count, trainer.expected_step("s"), scale=scale)
        incoming = message("s", None, x, y, end_of_sequence=False)
        trainer.accept(incoming, responses.pending(0))
        return responses

    async def learn(self, count: int, *, scale: float = 1.0) -> Any:
        """Accept a chunk and wait for its answer."""
        return of_one_lane(await self.give(count, scale=scale).next())

    @property
    def state(self) -> State:
        return self.registry.status("m").state

    async def reach(self, state: State) -> None:
        await until(lambda: self._is_known and self.state is state)

    @property
    def _is_known(self) -> bool:
        return bool(self.registry.page("", 1)[0])


@contextlib.asynccontextmanager
async def hosting(store: HeldStore, make: Any = Learner, **config: Any) -> AsyncIterator[Host]:
    metrics, gate, health = Metrics(), Gate(), dict[str, bool | None]()

    async def tell(model_id: str, is_served: bool | None) -> None:
        health[model_id] = is_served

    with ThreadPoolExecutor(4) as storage:
        configured = ServerConfig(threads=2, **config)
        registry = Registry(configured, gate, store, metrics, make, storage=storage)
        host = Host(registry, store, gate, metrics, health)
        recovering = asyncio.create_task(registry.recover(tell))
        try:
            await asyncio.sleep(0)
            if "load" not in store.held:
                await recovering
            yield host
        finally:
            store.release.set()
            gate.open()
            store.errors.clear()
            await recovering
            registry.begin_stop()
            await registry.stop(10.0)
            gate.shutdown()


Build = Callable[[HeldStore], contextlib.AbstractAsyncContextManager[Host]]


async def made(host: Host, spec: ModelSpec = SPEC) -> None:
    await host.registry.create(ModelDefinition("m", spec))
    await host.learn(4)
    await host.registry.get("m").durable()


@contextlib.asynccontextmanager
async def running(store: HeldStore) -> AsyncIterator[Host]:
    async with hosting(store) as host:
        await made(host)
        yield host


@contextlib.asynccontextmanager
async def paused(store: HeldStore) -> AsyncIterator[Host]:
    async with running(store) as host:
        await host.registry.update_model("m", paused=True)
        yield host


@contextlib.asynccontextmanager
async def diverged(store: HeldStore) -> AsyncIterator[Host]:
    async with running(store) as host:
        await host.learn(8, scale=TOO_LARGE)
        yield host


@contextlib.asynccontextmanager
async def stalled(store: HeldStore) -> AsyncIterator[Host]:
    async with running(store) as host:
        store.errors["append"] = lambda: StorageFailed("no space left on device")
        await host.learn(4)
        await host.reach(State.STALLED)
        yield host


@contextlib.asynccontextmanager
async def restoring(store: HeldStore) -> AsyncIterator[Host]:
    async with running(store) as host:
        store.held.add("load")
        restore = asyncio.create_task(host.registry.restore_checkpoint("m", 0))
        await host.reach(State.RESTORING)
        yield host
        store.release.set()
        await asyncio.gather(restore, return_exceptions=True)


@contextlib.asynccontextmanager
async def rolling_back(store: HeldStore) -> AsyncIterator[Host]:
    async with hosting(store) as host:
        await made(host, ROLLS_BACK)
        store.held.add("load")
        await host.learn(8, scale=TOO_LARGE)
        await host.reach(State.ROLLING_BACK)
        yield host


@contextlib.asynccontextmanager
async def read_only(store: HeldStore) -> AsyncIterator[Host]:
    async with running(store):
        pass
    store.errors["tail"] = lambda: DataDamaged("a flipped bit")
    async with hosting(store) as host:
        yield host


@contextlib.asynccontextmanager
async def failed(store: HeldStore) -> AsyncIterator[Host]:
    async with hosting(store, Breaking) as host:
        await made(host)
        await host.learn(5)
        yield host


@contextlib.asynccontextmanager
async def failed_at_the_start(store: HeldStore) -> AsyncIterator[Host]:
    async with running(store):
        pass
    store.errors["load"] = MemoryError
    async with hosting(store) as host:
        yield host


@contextlib.asynccontextmanager
async def recovering(store: HeldStore) -> AsyncIterator[Host]:
    async with running(store):
        pass
    store.release.clear()  # the end of the first host set it
    store.held.add("load")
    async with hosting(store) as host:
        await host.reach(State.RECOVERING)
        yield host


@contextlib.asynccontextmanager
async def recovering_after_a_failure(store: HeldStore) -> AsyncIterator[Host]:
    async with hosting(store, Breaking) as host:
        await made(host)
        store.held.add("load")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.0)
            await host.learn(5)
        await host.reach(State.RECOVERING)
        yield host


@contextlib.asynccontextmanager
async def draining(store: HeldStore) -> AsyncIterator[Host]:
    async with running(store) as host:
        host.gate.close()
        host.give(4)
        await until(lambda: not host.registry.get("m").waits)
        host.registry.begin_stop()
        stop = asyncio.create_task(host.registry.stop(60.0))
        await host.reach(State.DRAINING)
        yield host
        host.gate.open()
        await stop


@contextlib.asynccontextmanager
async def stopped(store: HeldStore) -> AsyncIterator[Host]:
    async with running(store) as host:
        await host.registry.stop(10.0)
        yield host


HOSTS: list[tuple[State, Build, bool]] = [  # and whether the model has a snapshot
    (State.RECOVERING, recovering, False),
    (State.RECOVERING, recovering_after_a_failure, True),
    (State.RUNNING, running, True),
    (State.PAUSED, paused, True),
    (State.DIVERGED, diverged, True),
    (State.STALLED, stalled, True),
    (State.RESTORING, restoring, True),
    (State.ROLLING_BACK, rolling_back, True),
    (State.READ_ONLY, read_only, True),
    (State.FAILED, failed, True),
    (State.FAILED, failed_at_the_start, False),
    (State.DRAINING, draining, True),
    (State.STOPPED, stopped, True),
]


async def reading(host: Host, operation: Operation) -> None:
    trainer = await host.registry.find("m", operation)
    assert trainer.views["s"].next_step >= 4
    if operation is Operation.PREDICT:
        trainer.snapshot.predict(trainer.views["s"], steps(2)[0])


async def learning(host: Host) -> None:
    host.registry.get("m", Operation.LEARN)
    host.give(1)


async def resetting(host: Host) -> None:
    trainer = await host.registry.find("m", Operation.CHANGE_STREAM)
    done = asyncio.get_running_loop().create_future()
    await trainer.command(StreamCommand("s", "reset", done))


async def showing(host: Host) -> None:
    [listed], _ = host.registry.page("", 10)
    assert listed == host.registry.status("m")


OPERATIONS: dict[Operation, Callable[[Host], Awaitable[Any]]] = {
    Operation.SHOW: showing,
    Operation.PREDICT: lambda host: reading(host, Operation.PREDICT),
    Operation.READ_STREAMS: lambda host: reading(host, Operation.READ_STREAMS),
    Operation.OPEN_CALL: lambda host: host.registry.find("m", Operation.OPEN_CALL),
    Operation.LEARN: learning,
    Operation.CHANGE_STREAM: resetting,
    Operation.CONFIGURE: lambda host: host.registry.update_model("m", learning_rate=0.125),
    Operation.SAVE: lambda host: host.registry.save_checkpoint("m"),
    Operation.RESTORE: lambda host: host.registry.restore_checkpoint("m", 0),
    Operation.LIST_CHECKPOINTS: lambda host: host.registry.list_checkpoints("m"),
    Operation.DELETE: lambda host: host.registry.delete("m"),
}
NEEDS_SNAPSHOT = (Operation.PREDICT, Operation.READ_STREAMS)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    held = HeldStore(tmp_path)
    held.open()
    yield held
    held.close()


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize(("state", "build", "has_snapshot"), HOSTS)
async def test_a_real_model_admits_what_the_table_says_and_shows_its_state(
    state: State,
    build: Build,
    has_snapshot: bool,
    operation: Operation,
    store: HeldStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 3600.0)  # a failed model stays failed
    async with build(store) as host:
        assert host.state is state
        shown = [
            each.labels["state"] for each in families(host.metrics)["bptt_model_state"].samples
        ]
        assert shown == [state.value]
        if state not in (State.DRAINING, State.STOPPED):  # which a server sets for all models
            await until(lambda: host.health.get("m") is (state in SERVING))
        attempt = asyncio.ensure_future(OPERATIONS[operation](host))
        refused = operation not in ADMITS[state]
        if refused or (operation in NEEDS_SNAPSHOT and not has_snapshot):
            await asyncio.wait([attempt])  # while the state is still held
            assert isinstance(attempt.exception(), REFUSES_WITH[state]), attempt.exception()
            assert host.state is state
            return
        for _ in range(5):
            await asyncio.sleep(0)
        store.release.set()
        await attempt


def appended(records: Iterable[Record]) -> int:
    """Steps that the ticks of a journal hold."""
    ticks = [each.body for each in records if not isinstance(each.body, Command)]
    return sum(len(tick.batch.inputs) for tick in ticks)


async def test_a_failed_model_comes_back_by_itself_as_it_was_before(
    store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_SECONDS", 0.0)
    async with hosting(store, Breaking) as host:
        await made(host)
        broken = host.registry.get("m")
        told: list[ServiceError] = []
        broken.listeners.add(told.append)
        refused = await host.learn(5)
        assert isinstance(refused.error, Recovering)
        assert refused.error.code == "UNAVAILABLE", "clients come again"
        assert [type(each) for each in told] == [Recovering]
        await host.reach(State.RUNNING)
        trainer = host.registry.get("m")
        assert trainer is not broken
        assert trainer.views["s"].next_step == 4
        await until(lambda: host.health.get("m") is True)
        assert (await host.learn(4)).next_step == 8  # with a learner that does not fail
        await trainer.durable()
        assert appended(store.tail("m", 0)) == 8
