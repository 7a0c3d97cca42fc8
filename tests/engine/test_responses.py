"""`ResponseQueue`: answers leave in order, and pending responses are bounded."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from bptt.domain import BatchAnswer
from bptt.engine.responses import CROWD_MEMORY, ResponseQueue
from bptt.errors import InvalidRequest


def answer(number: int) -> BatchAnswer:
    one = np.array([number])
    members = np.empty((0, 2), np.int64)
    return BatchAnswer(
        number, one * 0, ("s",), one, one + 1, one, np.arange(2), None, None, (), members
    )


async def test_answers_leave_in_the_order_of_their_chunks() -> None:
    responses = ResponseQueue(10, 100)
    pendings = [responses.pending(1) for _ in range(3)]
    assert [each.index for each in pendings] == [0, 1, 2]
    reading = asyncio.create_task(responses.next())
    await asyncio.sleep(0)
    pendings[2].fill(answer(2))
    pendings[1].fill(answer(1))
    await asyncio.sleep(0)
    assert not reading.done()
    pendings[0].fill(answer(0))
    assert await reading is pendings[0].answer
    assert await responses.next() is pendings[1].answer
    assert await responses.next() is pendings[2].answer


async def test_the_end_comes_after_the_last_answer() -> None:
    responses = ResponseQueue(10, 100)
    pending = responses.pending(1)
    responses.end()
    reading = asyncio.create_task(responses.next())
    await asyncio.sleep(0)
    assert not reading.done()
    pending.fill(answer(0))
    assert await reading is pending.answer
    assert await responses.next() is None


async def test_an_error_replaces_a_good_end_and_is_not_replaced() -> None:
    responses = ResponseQueue(10, 100)
    responses.end()
    responses.end(InvalidRequest("first"))
    responses.end(InvalidRequest("second"))
    responses.end()
    with pytest.raises(InvalidRequest, match="first"):
        await responses.next()


@pytest.mark.parametrize(("answers_max", "weight_max"), [(2, 1000), (1000, 20)])
async def test_a_full_queue_has_room_only_after_an_answer_has_left(
    answers_max: int, weight_max: int
) -> None:
    responses = ResponseQueue(answers_max, weight_max)
    pendings = []
    while not responses.full:
        pendings.append(responses.pending(10))
    assert len(pendings) == len(responses) == 2
    waiting = asyncio.create_task(responses.room())
    await asyncio.sleep(0)
    pendings[0].fill(answer(0))
    await asyncio.sleep(0)
    assert not waiting.done(), "an answer that is not yet sent has its place still"
    await responses.next()
    await waiting


async def test_a_client_that_sends_on_without_waiting_is_remembered_for_a_while() -> None:
    responses = ResponseQueue(1000, 1 << 20)
    waits = responses.pending(0)
    assert waits.alone
    sent_on = responses.pending(0)
    assert not sent_on.alone
    for pending in (waits, sent_on):
        pending.fill(answer(0))
        await responses.next()
    alone = []
    for _ in range(CROWD_MEMORY + 3):
        pending = responses.pending(0)
        alone.append(pending.alone)
        pending.fill(answer(0))
        await responses.next()
    assert alone == [False] * CROWD_MEMORY + [True] * 3
