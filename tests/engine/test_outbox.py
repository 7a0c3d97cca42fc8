"""The outbox: answers leave in order, and what waits is bounded."""

from __future__ import annotations

import asyncio

import pytest

from bptt.engine.outbox import CROWD_MEMORY, Outbox
from bptt.errors import InvalidRequest
from bptt_core import ChunkResult


def answer(number: int) -> ChunkResult:
    return ChunkResult("s", number, number + 1, None, ())


async def test_answers_leave_in_the_order_of_their_tickets() -> None:
    outbox = Outbox(10, 100)
    tickets = [outbox.ticket(1) for _ in range(3)]
    assert [each.index for each in tickets] == [0, 1, 2]
    reading = asyncio.create_task(outbox.next())
    await asyncio.sleep(0)
    tickets[2].fill(answer(2))
    tickets[1].fill(answer(1))
    await asyncio.sleep(0)
    assert not reading.done()
    tickets[0].fill(answer(0))
    assert await reading is tickets[0].answer
    assert await outbox.next() is tickets[1].answer
    assert await outbox.next() is tickets[2].answer


async def test_the_end_comes_after_the_last_answer() -> None:
    outbox = Outbox(10, 100)
    ticket = outbox.ticket(1)
    outbox.end()
    reading = asyncio.create_task(outbox.next())
    await asyncio.sleep(0)
    assert not reading.done()
    ticket.fill(answer(0))
    assert await reading is ticket.answer
    assert await outbox.next() is None


async def test_an_error_takes_the_place_of_a_good_end_and_nothing_its_own() -> None:
    outbox = Outbox(10, 100)
    outbox.end()
    outbox.end(InvalidRequest("first"))
    outbox.end(InvalidRequest("second"))
    outbox.end()
    with pytest.raises(InvalidRequest, match="first"):
        await outbox.next()


@pytest.mark.parametrize(("answers_max", "weight_max"), [(2, 1000), (1000, 20)])
async def test_a_full_outbox_makes_its_filler_wait(answers_max: int, weight_max: int) -> None:
    outbox = Outbox(answers_max, weight_max)
    tickets = []
    while not outbox.full:
        tickets.append(outbox.ticket(10))
    assert len(tickets) == len(outbox) == 2
    waiting = asyncio.create_task(outbox.room())
    await asyncio.sleep(0)
    tickets[0].fill(answer(0))
    await asyncio.sleep(0)
    assert not waiting.done(), "an answer that is not yet sent has its place still"
    await outbox.next()
    await waiting


async def test_a_client_that_sends_on_without_waiting_is_remembered_for_a_while() -> None:
    outbox = Outbox(1000, 1 << 20)
    waits = outbox.ticket(0)
    assert waits.alone
    sent_on = outbox.ticket(0)
    assert not sent_on.alone
    for ticket in (waits, sent_on):
        ticket.fill(answer(0))
        await outbox.next()
    alone = []
    for _ in range(CROWD_MEMORY + 3):
        ticket = outbox.ticket(0)
        alone.append(ticket.alone)
        ticket.fill(answer(0))
        await outbox.next()
    assert alone == [False] * CROWD_MEMORY + [True] * 3
