"""One suite for every store: what `Store` promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from bptt.config import Durability, Kept
from bptt.durability import (
    Checkpoint,
    fingerprint,
    Record,
    SqliteStore,
    Store,
    Tick,
)
from bptt.errors import DataDamaged, StaleWriter, StorageFailed
from bptt_core import Chunk
from tests.durability.support import (
    checkpoint,
    command,
    numbers,
    same,
    same_bits,
    tick_record,
    tick_records,
)
from tests.support.memory import memory_at, MemoryStore
from tests.support.stores import FailingStore, no_space

Maker = Callable[[Path], Store]


def _sqlite(durability: Durability) -> Maker:
    return lambda folder: SqliteStore(folder, durability, Kept(history_bytes=0))


MAKERS: dict[str, Maker] = {
    "sqlite, full": _sqlite("full"),
    "sqlite, process": _sqlite("process"),
    "in memory": lambda folder: MemoryStore(memory_at(folder)),
    "a store behind another": lambda folder: FailingStore(_sqlite("process")(folder), at="never"),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Maker:
    return MAKERS[request.param]


@pytest.fixture
def store(make: Maker, tmp_path: Path) -> Iterator[Store]:
    made = make(tmp_path / "data")
    made.open()
    try:
        yield made
    finally:
        made.close()


def kept(store: Store, model_id: str = "m") -> list[int]:
    return [each.lsn for each in store.checkpoints(model_id)]


def test_a_new_store_is_empty(store: Store) -> None:
    assert store.models() == []


def test_what_is_appended_is_read_bit_for_bit(store: Store) -> None:
    store.save(checkpoint(0))
    records = [
        *tick_records(1, 3),
        command(4, "reset", stream_id="s"),
        tick_record(5, stream_id="é"),
    ]
    store.append("m", records[:2])
    store.append("m", records[2:])
    store.append("m", [])
    found = list(store.tail("m", 0))
    assert len(found) == 5
    assert all(map(same, found, records))
    assert numbers(store.tail("m", 3)) == [4, 5]
    assert numbers(store.tail("m", 5)) == []


def test_what_is_saved_is_loaded(store: Store) -> None:
    saved = checkpoint(0, loss=0.25, skill_ratio=0.75, steps=7, updates=3)
    store.save(saved)
    store.save(checkpoint(0, "n"))
    assert store.models() == ["m", "n"]
    loaded = store.load("m", 0)
    assert (loaded.model_id, loaded.lsn, loaded.metadata) == ("m", 0, saved.metadata)
    assert loaded.arrays.keys() == saved.arrays.keys()
    assert all(same_bits(loaded.arrays[name], saved.arrays[name]) for name in saved.arrays)
    assert loaded.fingerprint == fingerprint()
    assert (loaded.steps, loaded.updates, loaded.loss, loaded.skill_ratio) == (7, 3, 0.25, 0.75)
    (info,) = store.checkpoints("m")
    assert (info.lsn, info.steps, info.updates, info.loss) == (0, 7, 3, 0.25)
    assert info.skill_ratio == 0.75
    assert info.size_bytes > sum(array.nbytes for array in saved.arrays.values())
    assert info.best
    (other,) = store.checkpoints("n")
    assert np.isnan(other.loss)
    assert not other.best, "whose loss is not known is not the best"


def test_everything_is_there_again_when_it_is_opened_again(make: Maker, tmp_path: Path) -> None:
    for turn in range(3):
        store = make(tmp_path)
        assert store.open() == turn + 1
        if turn == 0:
            store.save(checkpoint(0))
        assert numbers(store.tail("m", 0)) == list(range(1, 4 * turn + 1))
        store.append("m", tick_records(4 * turn + 1, 4 * turn + 4))
        store.close()


def test_models_have_journals_of_their_own(store: Store) -> None:
    for model_id in ("m", "n"):
        store.save(checkpoint(0, model_id))
    store.append("m", tick_records(1, 2))
    store.append("n", tick_records(1, 5))
    assert numbers(store.tail("m", 0)) == [1, 2]
    assert numbers(store.tail("n", 0)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "numbered", [[4], [2], [1], [3, 5], [3, 3], [0]], ids=lambda each: str(each)
)
def test_records_are_numbered_on_or_refused(store: Store, numbered: list[int]) -> None:
    store.save(checkpoint(0))
    store.append("m", tick_records(1, 2))
    with pytest.raises(ValueError, match="lsn"):
        store.append("m", [tick_record(number, steps=1) for number in numbered])
    assert numbers(store.tail("m", 0)) == [1, 2]
    store.append("m", tick_records(3, 3))
    assert numbers(store.tail("m", 0)) == [1, 2, 3]


def test_what_is_there_already_is_passed_over(store: Store) -> None:
    store.save(checkpoint(0))
    store.append("m", tick_records(1, 2))
    store.append("m", tick_records(1, 2))
    store.append("m", tick_records(2, 4))
    assert numbers(store.tail("m", 0)) == [1, 2, 3, 4]


def test_a_checkpoint_ahead_of_the_journal_is_refused(store: Store) -> None:
    store.save(checkpoint(0))
    store.append("m", tick_records(1, 2))
    with pytest.raises(ValueError, match="ahead of the journal"):
        store.save(checkpoint(3))
    assert kept(store) == [0]


def test_a_model_may_begin_at_any_tick(store: Store) -> None:
    store.save(checkpoint(40))
    store.append("m", tick_records(41, 42))
    assert numbers(store.tail("m", 40)) == [41, 42]


def test_the_newest_and_the_best_are_kept_and_the_journal_behind_the_oldest_of_the_newest(
    store: Store,
) -> None:
    losses = {0: 9.0, 10: 0.5, 20: 2.0, 30: 3.0, 40: 4.0, 50: np.nan}
    for number, loss in losses.items():
        if number:
            store.append("m", tick_records(number - 9, number))
        store.save(checkpoint(number, loss=loss))
    assert kept(store) == [10, 30, 40, 50]
    assert [each.lsn for each in store.checkpoints("m") if each.best] == [10]
    assert numbers(store.tail("m", 30)) == list(range(31, 51))
    with pytest.raises(DataDamaged, match="no lsn 11: it begins with 31"):
        next(store.tail("m", 10))


def test_a_better_one_takes_the_place_of_the_best(store: Store) -> None:
    for number, loss in enumerate([5.0, 1.0, 2.0, 2.0, 2.0, 0.5, 2.0, 2.0, 2.0]):
        if number:
            store.append("m", [tick_record(number)])
        store.save(checkpoint(number, loss=loss))
    assert kept(store) == [5, 6, 7, 8]


@pytest.mark.parametrize("name", ["restore", "roll_back"])
def test_what_a_journaled_command_goes_back_to_is_kept_as_long_as_the_command(
    store: Store, name: str
) -> None:
    def learn(last: int) -> None:
        store.append("m", [tick_record(last)])
        store.save(checkpoint(last, loss=float(last)))

    store.save(checkpoint(0, loss=0.0))
    for number in (1, 2, 3):
        learn(number)
    store.append("m", [command(4, name, lsn=1)])
    store.save(checkpoint(4, loss=4.0))
    learn(5)
    assert kept(store) == [0, 1, 3, 4, 5], "replay from 3 on meets the command, which needs 1"
    learn(6)
    assert kept(store) == [0, 4, 5, 6], "the command is behind the oldest from which one replays"


def test_saving_twice_after_the_same_tick_keeps_the_later(store: Store) -> None:
    store.save(checkpoint(0, loss=1.0))
    store.save(checkpoint(0, loss=2.0))
    assert [(each.lsn, each.loss) for each in store.checkpoints("m")] == [(0, 2.0)]


def test_a_deleted_model_is_gone_and_may_come_again(store: Store) -> None:
    store.save(checkpoint(0))
    store.append("m", tick_records(1, 3))
    store.delete("m")
    store.delete("m")
    assert store.models() == []
    store.save(checkpoint(0))
    assert numbers(store.tail("m", 0)) == []


def test_a_checkpoint_that_is_not_there_is_named(store: Store) -> None:
    store.save(checkpoint(0))
    with pytest.raises(DataDamaged, match=r"7.* is missing"):
        store.load("m", 7)


def test_a_second_writer_is_refused_until_the_first_is_gone(make: Maker, tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    first.open()
    with pytest.raises(StaleWriter, match="which another server uses"):
        second.open()
    first.save(checkpoint(0))
    first.append("m", tick_records(1, 1))
    first.close()
    second.open()
    second.append("m", tick_records(2, 2))
    for write in (
        lambda: first.append("m", tick_records(3, 3)),
        lambda: first.save(checkpoint(2)),
        lambda: first.delete("m"),
        lambda: first.tail("m", 0),
    ):
        with pytest.raises(StaleWriter):
            write()
    assert numbers(second.tail("m", 0)) == [1, 2]
    second.close()


def test_epochs_only_rise(make: Maker, tmp_path: Path) -> None:
    store = make(tmp_path)
    assert store.open() == 1
    store.close()
    assert store.open(7) == 7
    store.close()
    for late in (7, 3):
        with pytest.raises(StaleWriter, match="above 7"):
            store.open(late)
    assert store.open() == 8
    store.close()


def test_what_cannot_be_written_down_is_refused_whole(store: Store) -> None:
    store.save(checkpoint(0))
    with pytest.raises(ValueError, match="complex"):
        store.append(
            "m",
            [tick_record(1), Record(2, Tick.of([Chunk("s", 2, np.zeros((1, 1), np.complex64))]))],
        )
    assert numbers(store.tail("m", 0)) == []


def test_all_methods_can_be_made_to_fail(tmp_path: Path) -> None:
    for method in ("append", "save", "tail", "load", "checkpoints", "models", "delete", "open"):
        store = FailingStore(SqliteStore(tmp_path / method), at=method, error=no_space)
        calls: dict[str, Callable[[], object]] = {
            "open": store.open,
            "save": lambda store=store: store.save(checkpoint(0)),  # type: ignore[misc]
            "append": lambda store=store: store.append("m", tick_records(1, 1)),  # type: ignore[misc]
            "tail": lambda store=store: store.tail("m", 0),  # type: ignore[misc]
            "checkpoints": lambda store=store: store.checkpoints("m"),  # type: ignore[misc]
            "load": lambda store=store: store.load("m", 0),  # type: ignore[misc]
            "models": store.models,
            "delete": lambda store=store: store.delete("m"),  # type: ignore[misc]
        }
        for name, call in calls.items():
            if name == method:
                with pytest.raises(StorageFailed, match="No space left"):
                    call()
            call()
        assert store.calls[method] == 2
        store.close()


def test_a_write_may_fail_after_it_was_done(tmp_path: Path) -> None:
    store = FailingStore(SqliteStore(tmp_path), at="append", nth=2, after=True)
    store.open()
    store.save(checkpoint(0))
    store.append("m", tick_records(1, 2))
    with pytest.raises(StorageFailed):
        store.append("m", tick_records(3, 4))
    store.append("m", tick_records(3, 5))
    assert numbers(store.tail("m", 0)) == [1, 2, 3, 4, 5]
    store.close()


def test_each_durability_has_its_name() -> None:
    assert get_args(Durability) == ("full", "process", "none")
    assert Checkpoint("m", 0, {}, {}).fingerprint == fingerprint()
