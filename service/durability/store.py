"""What the engine needs of a store, whatever keeps the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model as it was after so many ticks."""

    model_id: str
    ticks: int
    """Ticks in the life of the model; a later checkpoint has more."""
    arrays: dict[str, npt.NDArray[Any]]
    metadata: dict[str, Any]
    """Values for JSON."""


class Store(Protocol):
    """Keeps checkpoints. One thread a model at a time; different models at the same time.

    Every method but `open` raises StaleWriter once another writer has opened the store with a
    later epoch.
    """

    def open(self, epoch: int | None = None) -> int:
        """Become the store's one writer.

        Args:
            epoch: the writer's number, above all before it; None takes the next one.

        Returns:
            The epoch.

        Raises:
            StaleWriter: another writer has it open, or a later epoch was there already.
            StorageFailed: it cannot be read or written.
        """

    def close(self) -> None:
        """Let another writer open it."""

    def models(self) -> list[str]:
        """Names of the models that have a checkpoint, sorted."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint. It is there whole and durable, or not at all.

        Raises:
            StorageFailed: it could not be written; those before it are untouched.
        """

    def checkpoints(self, model_id: str) -> list[int]:
        """The ticks of a model's checkpoints, oldest first."""

    def load(self, model_id: str, ticks: int) -> Checkpoint:
        """The checkpoint after so many ticks.

        Raises:
            DataDamaged: it cannot be read back.
        """

    def delete(self, model_id: str) -> None:
        """Forget all checkpoints of a model.

        Raises:
            StorageFailed: they could not be deleted.
        """
