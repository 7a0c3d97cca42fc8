"""The learner of a model that is in memory, and the threads in which it works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from bptt.domain import ModelDefinition
from bptt.durability import Checkpoint
from bptt.engine.records import make_checkpoint
from bptt_core import Learner

T = TypeVar("T")


class LiveLearner:
    """A learner that one task uses at a time, on the event loop or in a thread.

    Attributes:
        definition: the model as its user asked for it.
        learner: the learner now; a restore puts another in its place.
        parameters: how many the model has.
        settings: how it learns; replaced on the event loop, when no thread has the learner.

    Args:
        definition: the model as its user asked for it.
        learner: of the definition.
        executor: where it learns.
    """

    def __init__(self, definition: ModelDefinition, learner: Learner, executor: Executor) -> None:
        self.definition = definition
        self.learner = learner
        self.parameters = learner.parameter_count
        self.settings = learner.settings
        self._executor = executor

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a learning thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *arguments)

    async def copy(self, lsn: int) -> Checkpoint:
        """A checkpoint of the model after record `lsn`, which must be the last one applied."""
        return await self.in_thread(make_checkpoint, self.definition, self.learner, lsn)
