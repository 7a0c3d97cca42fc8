"""A stream that sends continuously does not starve one that sends little."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bptt.config import Limits, ServerConfig
from bptt.domain import ModelDefinition
from bptt.engine.lifecycle import Event
from bptt.engine.responses import ResponseQueue
from bptt.engine.trainer import Trainer
from bptt.errors import ServerStopping
from bptt.observability.metrics import Metrics
from bptt_core import ChunkResult, Learner, ModelSpec
from tests.engine.support import message, of_one_lane

SPEC = ModelSpec(input_size=1, hidden_size=2, k1=2, k2=4)
LIMITS = Limits(queue_chunks=64, run_chunks=4, call_answers=10_000)
STEPS = np.ones((2, 1), np.float32)


async def feed(trainer: Trainer, responses: ResponseQueue, stream_id: str, chunks: int) -> None:
    """Wait for room, then queue a chunk, as a Learn call does."""
    for _ in range(chunks):
        await trainer.room()
        trainer.accept(message(stream_id, None, STEPS, None, False), responses.pending(0))


async def test_one_step_overtakes_the_full_queue_of_another_stream() -> None:
    with ThreadPoolExecutor(1) as executor:
        trainer = Trainer(
            ModelDefinition("m", SPEC),
            Learner(SPEC, backend="reference"),
            executor=executor,
            store=None,
            sink=Metrics(),
            config=ServerConfig(limits=LIMITS),
        )
        trainer.lifecycle.apply(Event.RUN)  # chunks are accepted before the worker begins
        large, small = ResponseQueue(10_000, 1 << 30), ResponseQueue(1, 1)
        sending = asyncio.create_task(feed(trainer, large, "large", 1000))
        while not trainer.full:  # noqa: ASYNC110 - nothing is learned yet: it only takes turns
            await asyncio.sleep(0)
        asked = asyncio.create_task(feed(trainer, small, "small", 1))
        await asyncio.sleep(0)  # it waits for room now, and so does the other
        trainer.start()
        await asked
        answer = of_one_lane(await small.next())
        assert isinstance(answer, ChunkResult)
        learned_before = trainer.views["large"].next_step // len(STEPS)
        assert learned_before <= 3 * LIMITS.run_chunks < LIMITS.queue_chunks
        await sending
        await trainer.stop(refusal=ServerStopping(), save=False)
        assert trainer.views["large"].next_step == 1000 * len(STEPS)
        assert trainer.views["small"].next_step == len(STEPS)
