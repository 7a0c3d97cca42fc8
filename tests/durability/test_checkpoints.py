"""The file of a checkpoint, which the safetensors library can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from bptt.durability import Checkpoint
from bptt.durability.checkpoints import encode, load


def test_a_checkpoint_is_a_file_that_safetensors_reads(tmp_path: Path) -> None:
    """Covers every dtype of a state, empty arrays and scalars; each array is aligned."""
    arrays: dict[str, NDArray[Any]] = {
        "odd": np.arange(5, dtype=np.uint8),
        "wide": np.linspace(0, 1, 6).reshape(2, 3),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "empty": np.empty((0, 4), np.int64),
        "single": np.array(7.0),
        "flags": np.array([True, False]),
        "counts": np.arange(3, dtype=">i4"),
    }
    data = b"".join(encode(Checkpoint("m", 3, arrays, {"é": "ö"})))
    path = tmp_path / "checkpoint-000000000003.safetensors"
    path.write_bytes(data)
    read = safetensors.numpy.load_file(path)
    assert sorted(read) == sorted(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype.str[1:] == array.dtype.str[1:]
    again = load(tmp_path, "m", 3)
    assert again.metadata == {"é": "ö"}
    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin = 8 + int.from_bytes(data[:8], "little")
    for name, array in arrays.items():
        assert (begin + head[name]["data_offsets"][0]) % array.itemsize == 0
