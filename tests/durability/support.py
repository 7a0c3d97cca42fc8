"""Records and checkpoints for the tests of stores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bptt.config import Durability, Kept
from bptt.durability import Checkpoint, Command, Record, SqliteStore, Tick
from bptt_core import Batch, Chunk


def tick_record(number: int, *, steps: int = 2, stream_id: str = "s") -> Record:
    """A tick of one chunk whose values encode its lsn."""
    inputs = np.full((steps, 3), number, np.float32)
    return Record(number, Tick.of([Chunk(stream_id, (number - 1) * steps, inputs)]))


def tick_records(first: int, last: int) -> list[Record]:
    """Ticks from one number to another, both included."""
    return [tick_record(number) for number in range(first, last + 1)]


def command(number: int, name: str, **arguments: Any) -> Record:
    """A command as a record."""
    return Record(number, Command(name, arguments))


def checkpoint(number: int, model_id: str = "m", *, size: int = 6, **known: Any) -> Checkpoint:
    """A checkpoint after `lsn` records, with `size` numbers."""
    arrays = {"a": np.arange(float(size)).reshape(2, -1).T, "none": np.empty((0, 3), np.int64)}
    return Checkpoint(model_id, number, arrays, {"lsn": number, "names": ["é", "b"]}, **known)


@contextlib.contextmanager
def opened(
    folder: Path, durability: Durability = "process", kept: Kept | None = None, **more: Any
) -> Iterator[SqliteStore]:
    """A store on a folder, closed at the end of the block."""
    store = SqliteStore(folder, durability, kept, **more)
    store.open()
    try:
        yield store
    finally:
        store.close()


def numbers(records: Iterator[Record]) -> list[int]:
    """The numbers of records."""
    return [record.lsn for record in records]


def same(left: Record, right: Record) -> bool:
    """True if two records are equal bit for bit."""
    if left.lsn != right.lsn or type(left.body) is not type(right.body):
        return False
    if isinstance(left.body, Command) or isinstance(right.body, Command):
        return left.body == right.body
    return same_tick(left.body, right.body)


def same_tick(left: Tick, right: Tick) -> bool:
    """True if two ticks hold the same lanes, bit for bit; a numbered lane may lack its name."""
    one, other = left.batch, right.batch
    named = left.named.tolist()
    return (
        len(one) == len(other)
        and named == right.named.tolist()
        and [one.stream_ids[lane] for lane in named] == [other.stream_ids[lane] for lane in named]
        and same_bits(left.incarnations, right.incarnations)
        and same_bits(one.first_steps, other.first_steps)
        and same_bits(one.lengths, other.lengths)
        and same_bits(one.inputs, other.inputs)
        and same_bits(one.targets, other.targets)
        and same_bits(one.target_lengths, other.target_lengths)
        and same_bits(one.first_target_steps, other.first_target_steps)
        and _ends(one) == _ends(other)
        and _sources(one) == _sources(other)
    )


def _ends(batch: Batch) -> list[bool]:
    return [False] * len(batch) if batch.ends is None else batch.ends.tolist()


def _sources(batch: Batch) -> tuple[bytes, ...]:
    return batch.source_positions or (b"",) * len(batch)


def same_bits(left: Any, right: Any) -> bool:
    """True if two arrays have the same type and bits, also of NaN; both may be None."""
    if left is None or right is None:
        return left is right
    return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())
