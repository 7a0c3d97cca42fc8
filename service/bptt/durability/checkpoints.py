"""Checkpoints as files: one safetensors file each, under a checksum.

    models/NAME/checkpoint-000000001234.safetensors        after 1234 records

A safetensors file has no checksum of its own. Ours is an entry of its `__metadata__`: the SHA-256
of the whole file with zeros in the place of the digest, so it covers every bit of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.durability.files import Piece, storage
from bptt.durability.store import Checkpoint, CheckpointInfo, UNREADABLE
from bptt.errors import DataDamaged

Array = NDArray[Any]

FORMAT = "bptt checkpoint 3"
"""Written. Format 2, which is read too, differs in one name: it calls `lsn` `ticks`."""

Figures = tuple[int, int, float, float]
"""Steps, updates, loss and skill ratio."""

_FILE = re.compile(r"checkpoint-(\d{12,})\.safetensors")
_NO_DIGEST = b"0" * 64
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_HEAD_BYTES_MAX = 100 << 20  # safetensors' own bound; a damaged length must not fill the memory


def path_of(folder: Path, lsn: int) -> Path:
    """The file of the checkpoint of this lsn, in a model's folder."""
    return folder / f"checkpoint-{lsn:012d}.safetensors"


def lsns_in(folder: Path) -> list[int]:
    """The lsn of each checkpoint in a model's folder, oldest first.

    Raises:
        StorageFailed: the folder cannot be read.
    """
    with storage("read", folder):
        names = os.listdir(folder)
    return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))


def encode(checkpoint: Checkpoint) -> list[Piece]:
    """The pieces of a checkpoint's file, in order."""
    head = {
        "format": FORMAT,
        "model_id": checkpoint.model_id,
        "lsn": checkpoint.lsn,
        "steps": checkpoint.steps,
        "updates": checkpoint.updates,
        "loss": _or_none(checkpoint.loss),
        "skill_ratio": _or_none(checkpoint.skill_ratio),
        "fingerprint": checkpoint.fingerprint,
        "metadata": checkpoint.metadata,
    }
    named = {"bptt": json.dumps(head), "sha256": _NO_DIGEST.decode()}
    start, arrays = laid_out(checkpoint.arrays, named)
    data = [array.reshape(-1).view(np.uint8).data for array in arrays]
    digest = hashlib.sha256(start)
    for each in data:
        digest.update(each)
    first, last = _digest_place(start[8:])
    return [start[:first], digest.hexdigest().encode(), start[last:], *data]


def laid_out(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> tuple[bytes, list[Array]]:
    """The beginning of a safetensors file, and the arrays in the order in which they follow.

    The library's own writer copies all of them twice under the interpreter's lock: with 100,000
    streams no prediction was answered for 0.4 s. It still is what reads the file.
    """
    stored = {
        name: np.asarray(each, each.dtype.newbyteorder("<"), order="C")
        for name, each in arrays.items()
    }
    order = sorted(stored, key=lambda name: (-stored[name].itemsize, name))  # keeps them aligned
    described: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name in order:
        array, end = stored[name], at + stored[name].nbytes
        kind = _TYPES[array.dtype.str[1:]]
        described[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (at, end)}
        at = end
    head = json.dumps(described, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head, [stored[name] for name in order]


_TYPES = {"f8": "F64", "f4": "F32", "i8": "I64", "i4": "I32", "u1": "U8", "b1": "BOOL"}
"""The names of NumPy's dtypes in safetensors."""


def load(folder: Path, model_id: str, lsn: int) -> Checkpoint:
    """Read a checkpoint back.

    Raises:
        DataDamaged: it is missing or damaged; the error names the file.
        StorageFailed: it cannot be read.
    """
    path = path_of(folder, lsn)
    with storage("read", path):
        try:
            raw = path.read_bytes()
        except FileNotFoundError as error:
            raise DataDamaged(f"{path} is missing") from error
    try:
        return decode(raw, model_id, lsn)
    except ValueError as error:
        raise DataDamaged(f"{path} is damaged: {error}") from error


def decode(raw: bytes, model_id: str, lsn: int) -> Checkpoint:
    """The checkpoint whose file holds these bytes.

    Raises:
        ValueError: they are damaged; the error says how.
    """
    import safetensors.numpy  # of the server's extra; `bptt backup --help` works without it

    data = memoryview(raw)
    try:
        first, last = _digest_place(_head(data))
        digest = hashlib.sha256(data[:first])
        digest.update(_NO_DIGEST)
        digest.update(data[last:])
        if digest.hexdigest().encode() != data[first:last]:
            raise ValueError("its checksum does not fit")
        head = _metadata(_head(data))
        if (head["model_id"], head["lsn"]) != (model_id, lsn):
            raise ValueError(f"it is of model {head['model_id']!r} after {head['lsn']} records")
        if not isinstance(head["metadata"], dict) or not isinstance(head["fingerprint"], dict):
            raise ValueError("its metadata are not JSON objects")
        arrays = safetensors.numpy.load(raw)
        return Checkpoint(
            model_id,
            lsn,
            arrays,
            head["metadata"],
            *_figures(head),
            fingerprint=head["fingerprint"],
        )
    except (safetensors.SafetensorError, *UNREADABLE) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def infos(folder: Path) -> list[CheckpointInfo]:
    """Describe a model's checkpoints from their heads, oldest first.

    Raises:
        StorageFailed: the folder cannot be read.
    """
    found = []
    for lsn in lsns_in(folder):
        path = path_of(folder, lsn)
        with storage("read", path):
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue  # another thread has just removed it
            found.append((lsn, size, _known(path)))
    return described(found)


def described(found: Sequence[tuple[int, int, Figures]]) -> list[CheckpointInfo]:
    """The infos of a model's checkpoints, with the best one marked.

    Args:
        found: lsn, size in bytes, and figures of each, oldest first.
    """
    # The ratio averages many steps. The loss is of one update, and used only without a ratio.
    rated = any(math.isfinite(figures[3]) for _, _, figures in found)
    merits = {lsn: figures[3] if rated else figures[2] for lsn, _, figures in found}
    best = min(filter(math.isfinite, merits.values()), default=math.nan)
    named = [lsn for lsn, merit in merits.items() if merit == best]
    return [
        CheckpointInfo(lsn, *figures, size, best=lsn in named[-1:]) for lsn, size, figures in found
    ]


def _known(path: Path) -> Figures:
    """Steps, updates, loss and skill ratio; zeros and NaN where the head cannot be read."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = file.read(min(size, _HEAD_BYTES_MAX))
        return _figures(_metadata(head))
    except (OSError, *UNREADABLE):
        return 0, 0, math.nan, math.nan


def _figures(head: dict[str, Any]) -> Figures:
    steps, updates = head["steps"], head["updates"]
    if not all(type(each) is int and 0 <= each < 1 << 63 for each in (steps, updates)):
        raise ValueError("its numbers of steps and updates are not counts")
    return steps, updates, _ratio(head["loss"]), _ratio(head["skill_ratio"])


def _ratio(value: object) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, (int, float)):
        raise ValueError("its loss and skill ratio are not numbers")
    return float(value)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def _head(data: memoryview) -> bytes:
    """The head of a safetensors file: 8 bytes of length, then JSON."""
    return bytes(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _digest_place(head: bytes) -> tuple[int, int]:
    """Where in the file the digest begins and ends."""
    match = _DIGEST.search(head)
    if match is None:
        raise ValueError("it has no checksum")
    return 8 + match.start(1), 8 + match.end(1)


def _metadata(head: bytes) -> dict[str, Any]:
    named: dict[str, Any] = json.loads(json.loads(head)["__metadata__"]["bptt"])
    if named["format"] == _FORMAT_2:
        named["lsn"] = named.pop("ticks")
    elif named["format"] != FORMAT:
        known = f"{_FORMAT_2!r} and {FORMAT!r}"
        raise ValueError(
            f"its format is {named['format']!r}, but this version reads {known}; "
            "use the version of bptt that wrote it, or a later one"
        )
    return named


_FORMAT_2 = "bptt checkpoint 2"


# ---------------------------------------------------------------------- what is kept


@dataclass(frozen=True, slots=True)
class Plan:
    """Which checkpoints of a model stay, and from where its journal is needed."""

    dropped: tuple[int, ...]
    """The lsn of each checkpoint to remove, oldest first."""
    basis: int
    """The lsn of the oldest of the newest few: replay begins there and needs all later records."""


def plan(
    found: Sequence[CheckpointInfo],
    needs: Sequence[tuple[int, int]],
    *,
    keep: int,
    bytes_left: float = math.inf,
) -> Plan:
    """Choose the checkpoints to keep: the newest, the best, and those that commands go back to.

    Args:
        found: the checkpoints, oldest first; at least one.
        needs: (lsn of a command, lsn of the checkpoint that it goes back to).
        keep: how many of the newest; at least 1.
        bytes_left: how much all of them may take. The oldest go first, and never the newest.
    """
    kept = {each.lsn: each.size_bytes for each in found}
    newest = [each.lsn for each in found[-keep:]]
    best = {each.lsn for each in found if each.best}
    while True:
        needed = {checkpoint for lsn, checkpoint in needs if lsn > newest[0]}
        stay = best | needed | set(newest)
        kept = {lsn: size for lsn, size in kept.items() if lsn in stay}
        may_go = [lsn for lsn in kept if lsn != newest[-1] and lsn not in needed]
        if sum(kept.values()) <= bytes_left or not (may_go or len(newest) > 1):
            break
        # A checkpoint that a command needs is freed by giving up what is before that command.
        gone = may_go[0] if may_go else newest[0]
        best.discard(gone)
        newest = [lsn for lsn in newest if lsn != gone]
    return Plan(tuple(each.lsn for each in found if each.lsn not in kept), newest[0])
