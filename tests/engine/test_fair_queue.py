"""`FairQueue`: order within a stream, fairness among streams, bounds."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bptt.domain import IncomingBatch
from bptt.engine.messages import LANE_BYTES, QueuedBatch, StreamCommand, weight
from bptt.engine.replies import MessageReplies
from bptt.engine.responses import ResponseQueue
from bptt_core import Batch, Chunk
from tests.engine.support import Rounds


def chunk(stream_id: str, first_step: int = 0, steps: int = 1) -> Chunk:
    return Chunk(stream_id, first_step, np.zeros((steps, 2), np.float32))


def command(stream_id: str) -> StreamCommand:
    return StreamCommand(stream_id, "reset", cast(asyncio.Future[int], None))


def names(
    waiting: Rounds, chunks_max: int = 100, steps_max: int = 100, tick_chunks: int = 100
) -> list[list[str]]:
    taken = waiting.queue.take(chunks_max, steps_max, tick_chunks, steps_max)
    return [[name for each in one.chunks for name in each.batch.stream_ids] for one in taken]


def test_a_round_has_at_most_one_chunk_of_each_stream() -> None:
    waiting = Rounds()
    for name in "aababc":
        waiting.chunk(chunk(name))
    assert names(waiting) == [["a", "b", "c"], ["a", "b"], ["a"]]
    assert not waiting.queue


def test_a_round_that_is_taken_in_parts_is_finished_before_the_next_one() -> None:
    waiting = Rounds()
    for name in "aaabbbccc":
        waiting.chunk(chunk(name))
    assert names(waiting, 2, tick_chunks=2) == [["a", "b"]]
    waiting.chunk(chunk("d"))  # a stream that has nothing queued joins the round
    assert names(waiting, 2, tick_chunks=2) == [["c", "d"]]
    assert names(waiting, 3, tick_chunks=2) == [["a", "b"], ["c"]]
    assert names(waiting, 3) == [["a", "b", "c"]]
    assert not waiting.queue


def test_a_run_is_bounded_in_steps_but_takes_at_least_one_chunk() -> None:
    waiting = Rounds()
    for _ in range(3):
        waiting.chunk(chunk("a", steps=60))
    assert names(waiting, steps_max=100) == [["a"], ["a"]]
    assert names(waiting, steps_max=1) == [["a"]]


def test_the_weight_of_the_queue_is_that_of_its_chunks() -> None:
    waiting = Rounds()
    waiting.chunk(chunk("a", steps=3))
    waiting.put("a", command("a"))
    queue = waiting.queue
    assert (queue.chunks, queue.weight) == (1, 3 * 2 * 4 + LANE_BYTES)
    queue.take(10, 10, 10, 10)
    assert (queue.chunks, queue.weight) == (0, 0)


def test_a_command_keeps_its_place_in_its_stream() -> None:
    waiting, reset = Rounds(), command("a")
    before = waiting.chunk(chunk("a", 0))
    waiting.put("a", reset)
    after = waiting.chunk(chunk("a", 1))
    first, second, third = waiting.queue.take(10, 10, 10, 10)
    assert first.chunks == [before]
    assert second.commands == [reset]
    assert not second.chunks
    assert third.chunks == [after]


def of_many(count: int, steps: int = 1) -> QueuedBatch:
    """A message of many lanes."""
    lanes = np.arange(count)
    batch = Batch(
        tuple(f"s{lane}" for lane in range(count)),
        lanes * 0,
        np.full(count, steps),
        np.repeat(lanes, steps)[:, None].astype(np.float32),
    )
    incoming = IncomingBatch(
        batch.stream_ids, batch.first_steps, batch.lengths, batch.inputs, None, lanes < 0
    )
    replies = MessageReplies(incoming, ResponseQueue(1, 1).pending(0))
    return QueuedBatch(batch, lanes, lanes, replies, len(batch.inputs), weight(batch))


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))
def test_a_large_batch_is_taken_in_parts_of_a_tick(
    count: int, steps: int, tick_chunks: int, tick_steps: int
) -> None:
    queue = Rounds().queue
    queue.put(of_many(count, steps), 1)
    lanes: list[int] = []
    while queue:
        [taken] = queue.take(1, 1, tick_chunks, tick_steps)
        [part] = taken.chunks
        assert 1 <= len(part.lanes) <= tick_chunks
        assert part.steps - steps < tick_steps
        assert part.batch.inputs[:, 0].tolist() == np.repeat(part.lanes, steps).tolist()
        assert part.slots.tolist() == part.lanes.tolist()
        assert queue.chunks == count - len(lanes) - len(part.lanes)
        lanes += part.lanes.tolist()
    assert lanes == list(range(count))
    assert (queue.chunks, queue.weight) == (0, 0)


entries = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), max_size=40)


@given(entries, st.integers(1, 10), st.integers(1, 10))
def test_entries_are_taken_once_in_order_and_at_most_one_of_each_stream(
    put: list[tuple[str, int]], chunks_max: int, steps_max: int
) -> None:
    waiting = Rounds()
    given_in: dict[str, list[Any]] = {}
    for name, steps in put:
        given_in.setdefault(name, []).append(waiting.chunk(chunk(name, steps=steps)))
    out: dict[str, list[Any]] = {}
    while waiting.queue:
        before = waiting.queue.chunks
        for one in waiting.queue.take(chunks_max, steps_max, chunks_max, steps_max):
            taken = one.chunks + one.duplicates
            ids = [each.batch.stream_ids[0] for each in taken]
            assert len(set(ids)) == len(ids) <= chunks_max
            assert all(each.steps for each in one.chunks)
            for name, each in zip(ids, taken, strict=True):
                out.setdefault(name, []).append(each)
        assert 1 <= before - waiting.queue.chunks < 2 * chunks_max
    assert out == given_in


@given(st.integers(1, 6), st.integers(1, 20))
def test_a_stream_waits_for_at_most_one_chunk_of_each_other_stream(
    others: int, chunks_max: int
) -> None:
    waiting = Rounds()
    for number in range(others):
        for _ in range(50):
            waiting.chunk(chunk(f"busy {number}"))
    waiting.chunk(chunk("late"))
    served: list[str] = []
    while "late" not in served:
        served += [name for one in names(waiting, chunks_max) for name in one]
    assert served.index("late") <= others
