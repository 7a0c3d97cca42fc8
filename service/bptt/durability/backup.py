"""A consistent copy of a store, made while a server writes to it.

Each model is copied as it is at one moment. The copy contains all that was acknowledged before it
began, and nothing that the server commits later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bptt.durability.store import StoreReader, StoreTools


@dataclass(frozen=True, slots=True)
class Copied:
    """A model in the copy."""

    model_id: str
    checkpoints: tuple[int, ...]
    """The lsn of each, oldest first."""
    last: int
    """Number of the last record in the copy: of the journal, or contained in a checkpoint."""
    size_bytes: int


def back_up(
    source: StoreReader, target: StoreTools, on_copied: Callable[[Copied], None] = lambda _: None
) -> list[Copied]:
    """Copy a store to another, which may be of another kind. The copy is made whole or not at all.

    Args:
        source: a store, with a writer or without.
        target: a store that does not exist yet.
        on_copied: called after each model.

    Raises:
        StorageFailed: something could not be read or written, or `target` exists already.
        DataDamaged: a journal cannot be read; nothing is left at `target`.
    """
    names = source.models()
    done = []
    # The epoch is read first. A server that starts meanwhile takes a later one, which the copy's
    # journals do not have: they are written under epoch 0.
    with target.receiving(source.epoch()) as put:
        for model_id in names:
            with source.copying(model_id) as copy:
                if copy is None:
                    continue
                size = put(copy)
            lsns = tuple(copy.checkpoints)
            copied = Copied(model_id, lsns, max(copy.last, *lsns), size)
            done.append(copied)
            on_copied(copied)
    return done
