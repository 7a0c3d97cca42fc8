"""Inspects one model of a store without changing it: finds the whole and the damaged parts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from bptt.durability.store import StoreReader, UNREADABLE
from bptt.errors import DataDamaged, StorageFailed


@dataclass(frozen=True, slots=True)
class Survey:
    """The findings about a model, apart from its records."""

    model_id: str
    whole: tuple[int, ...]
    """The lsn of each checkpoint that can be loaded, oldest first."""
    damaged: dict[int, str]
    """What is wrong with the others, by their lsn."""
    base: int
    """Number of the journal's first record, less one; 0 where it cannot be read."""
    last: int
    """Number of its last record."""
    committed: int | None
    """Number of the last record that was synced; None: not known."""
    problems: tuple[str, ...]
    """What is wrong with the journal as a whole."""


def survey(store: StoreReader, model_id: str) -> Survey:
    """Load every checkpoint of a model, and check its journal as a whole.

    The records are not read: `StoreReader.records` does that.

    Raises:
        StorageFailed: the checkpoints cannot be listed.
    """
    whole, damaged = [], {}
    for info in store.checkpoints(model_id):
        try:
            store.load(model_id, info.lsn)
            whole.append(info.lsn)
        except (DataDamaged, StorageFailed) as error:
            damaged[info.lsn] = error.message
    base = last = 0
    problems = store.problems(model_id)
    try:
        base, last = store.base(model_id), store.last(model_id)
    except (DataDamaged, StorageFailed) as error:
        if error.message not in problems:
            problems = [error.message, *problems]
    committed = store.committed(model_id)
    return Survey(model_id, tuple(whole), damaged, base, last, committed, tuple(problems))


def stream_names(store: StoreReader, model_id: str) -> dict[int, str]:
    """Names of the streams in the model's whole checkpoints, by incarnation.

    A stream that was deleted before the oldest of them is missing.
    """
    names: dict[int, str] = {}
    for info in store.checkpoints(model_id):
        with contextlib.suppress(DataDamaged, StorageFailed, *UNREADABLE):
            checkpoint = store.load(model_id, info.lsn)
            numbers = checkpoint.arrays["streams.incarnation"].tolist()
            names.update(zip(numbers, checkpoint.metadata["learner"]["streams"], strict=True))
    return names
