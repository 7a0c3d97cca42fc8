"""The folder store: whole or not at all, one writer, damage named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.durability import Checkpoint, FolderStore
from service.errors import DataDamaged, StaleWriter, StorageFailed


def checkpoint(ticks: int, model_id: str = "m") -> Checkpoint:
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "empty": np.empty((0, 3), np.int64)}
    return Checkpoint(model_id, ticks, arrays, {"ticks": ticks, "names": ["é", "b"]})


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[FolderStore]:
    store = FolderStore(folder)
    store.open()
    try:
        yield store
    finally:
        store.close()


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    with opened(tmp_path / "deep" / "data") as store:
        assert store.models() == []
        store.save(checkpoint(3))
        store.save(checkpoint(1, "n"))
        assert store.models() == ["m", "n"]
        assert [each.ticks for each in store.checkpoints("m")] == [3]
        loaded = store.load("m", 3)
        assert loaded.metadata == {"ticks": 3, "names": ["é", "b"]}
        assert set(loaded.arrays) == {"a", "empty"}
        for name, array in checkpoint(3).arrays.items():
            np.testing.assert_array_equal(loaded.arrays[name], array)
            assert loaded.arrays[name].dtype == array.dtype


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for ticks in (1, 20, 300):
            store.save(checkpoint(ticks))
        assert [each.ticks for each in store.checkpoints("m")] == [20, 300]


def test_a_deleted_model_is_gone(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.save(checkpoint(1))
        store.delete("m")
        store.delete("m")
        assert store.models() == []
        assert list((tmp_path / "models").iterdir()) == []


def test_what_an_interruption_left_is_cleared_away(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.save(checkpoint(1))
    models = tmp_path / "models"
    (models / "m" / "checkpoint-000000000002.safetensors.aside").write_bytes(b"half")
    (models / ".deleted-n").mkdir()
    (models / ".deleted-n" / "checkpoint-000000000002.safetensors").write_bytes(b"")
    (models / "empty").mkdir()
    with opened(tmp_path) as store:
        assert store.models() == ["m"]
        assert [each.ticks for each in store.checkpoints("m")] == [1]
        assert sorted(each.name for each in models.iterdir()) == ["empty", "m"]


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        with pytest.raises(StaleWriter, match=str(tmp_path)):
            FolderStore(tmp_path).open()
        store.save(checkpoint(1))
    with opened(tmp_path):
        pass
    with pytest.raises(StaleWriter):
        store.save(checkpoint(2))


def test_epochs_only_rise(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert store.open() == 1
    store.close()
    assert store.open(7) == 7
    store.close()
    with pytest.raises(StaleWriter, match="above 7"):
        store.open(7)
    assert store.open() == 8
    store.close()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another's"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    with opened(tmp_path) as store:
        store.save(checkpoint(1))
        path = tmp_path / "models" / "m" / "checkpoint-000000000001.safetensors"
        data = path.read_bytes()
        path.write_bytes(
            {
                "cut": data[: len(data) // 2],
                "flipped": data[:20] + b"\xff" + data[21:],
                "empty": b"",
                "another's": data.replace(b'\\"ticks\\": 1', b'\\"ticks\\": 2'),
            }[damage]
        )
        with pytest.raises(DataDamaged, match=str(path)):
            store.load("m", 1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match="file"):
        FolderStore(tmp_path / "file" / "data").open()
    with opened(tmp_path / "data") as store:
        models = tmp_path / "data" / "models"
        models.rmdir()
        models.write_text("in the way")
        with pytest.raises(StorageFailed, match="models"):
            store.save(checkpoint(1))
