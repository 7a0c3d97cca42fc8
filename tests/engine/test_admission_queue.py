"""Waiting for room in the admission queue: order of arrival, and cancelled waiters."""

from __future__ import annotations

import asyncio

import numpy as np

from bptt.config import Limits
from bptt.engine.admission import AdmissionQueue
from bptt.engine.published import PublishedState
from bptt.engine.responses import ResponseQueue
from bptt_core import Learner, ModelSpec
from tests.engine.support import message

SPEC = ModelSpec(input_size=2, hidden_size=4, k1=2, k2=4)


def new_admission() -> AdmissionQueue:
    published = PublishedState(
        Learner(SPEC, backend="reference"), lambda before, figures: None, None
    )
    return AdmissionQueue(
        SPEC,
        Limits(queue_chunks=8, queue_bytes=1000),
        published,
        lambda steps: None,
        lambda reason: None,
    )


async def test_waiters_are_served_in_order_of_arrival_if_each_chunk_fills_the_queue() -> None:
    admission, responses, went = new_admission(), ResponseQueue(100, 1 << 20), []
    large = np.zeros((200, 2), np.float32)

    async def send(name: str) -> None:
        await admission.room()
        incoming = message(name, None, large, None, end_of_sequence=False)
        admission.place(incoming, responses.pending(0), name)
        went.append(name)

    names = list("abcdef")
    senders = [asyncio.create_task(send(name)) for name in names]
    for count in range(1, len(names) + 1):
        while len(went) < count:  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert went == names[:count], "one chunk fills it"
        for each in admission.take(10, 1000):
            [chunk] = each.chunks
            admission.done(chunk)
    await asyncio.gather(*senders)


async def test_a_cancelled_waiter_does_not_block_the_next_one() -> None:
    admission, responses = new_admission(), ResponseQueue(100, 1 << 20)
    large = np.zeros((200, 2), np.float32)
    incoming = message("a", None, large, None, end_of_sequence=False)
    admission.place(incoming, responses.pending(0), "a")
    gone, waits = (asyncio.create_task(admission.room()) for _ in range(2))
    await asyncio.sleep(0)
    admission.take(10, 1000)
    gone.cancel()  # in the moment in which it was its turn
    await waits
    assert gone.cancelled() or gone.done()
