"""`FairQueue`: order within a stream, fairness among streams, bounds."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bptt.engine.fair_queue import FairQueue
from bptt.engine.messages import Entry, ENTRY_BYTES, QueuedChunk, StreamCommand
from bptt.engine.responses import ResponseQueue
from bptt_core import Chunk


def chunk(stream_id: str, first_step: int = 0, steps: int = 1) -> QueuedChunk:
    pending = ResponseQueue(1, 1).pending(0)
    return QueuedChunk(Chunk(stream_id, first_step, np.zeros((steps, 2), np.float32)), pending)


def command(stream_id: str) -> StreamCommand:
    return StreamCommand(stream_id, "reset", cast(asyncio.Future[int], None))


def names(fair_queue: FairQueue, chunks_max: int = 100, steps_max: int = 100) -> list[list[str]]:
    batches = fair_queue.take(chunks_max, steps_max)
    return [[each.stream_id for each in one.chunks] for one in batches]


def test_a_batch_has_at_most_one_chunk_of_each_stream() -> None:
    fair_queue = FairQueue()
    for name in "aababc":
        fair_queue.put(chunk(name))
    assert names(fair_queue) == [["a", "b", "c"], ["a", "b"], ["a"]]
    assert not fair_queue


def test_a_served_stream_goes_to_the_back_of_the_queue() -> None:
    fair_queue = FairQueue()
    for name in "aaabbbccc":
        fair_queue.put(chunk(name))
    assert names(fair_queue, chunks_max=2) == [["a", "b"]]
    assert names(fair_queue, chunks_max=2) == [["c", "a"]]
    assert names(fair_queue, chunks_max=2) == [["b", "c"]]


def test_a_run_is_bounded_in_steps_but_takes_at_least_one_chunk() -> None:
    fair_queue = FairQueue()
    for _ in range(3):
        fair_queue.put(chunk("a", steps=60))
    assert names(fair_queue, steps_max=100) == [["a"], ["a"]]
    assert names(fair_queue, steps_max=1) == [["a"]]


def test_the_weight_of_the_queue_is_that_of_its_chunks() -> None:
    fair_queue = FairQueue()
    fair_queue.put(chunk("a", steps=3))
    fair_queue.put(command("a"))
    assert (fair_queue.chunks, fair_queue.weight) == (1, 3 * 2 * 4 + ENTRY_BYTES)
    fair_queue.take(10, 10)
    assert (fair_queue.chunks, fair_queue.weight) == (0, 0)


def test_a_command_keeps_its_place_in_its_stream() -> None:
    fair_queue = FairQueue()
    entries: list[Entry] = [chunk("a", 0), command("a"), chunk("a", 1)]
    for entry in entries:
        fair_queue.put(entry)
    first, second, third = fair_queue.take(10, 10)
    assert first.chunks == [entries[0]]
    assert second.commands == [entries[1]]
    assert not second.chunks
    assert third.chunks == [entries[2]]


entries = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), max_size=40)


@given(entries, st.integers(1, 10), st.integers(1, 10))
def test_entries_are_taken_once_in_order_and_at_most_one_of_each_stream(
    put: list[tuple[str, int]], chunks_max: int, steps_max: int
) -> None:
    fair_queue = FairQueue()
    given_in: dict[str, list[Any]] = {}
    for name, steps in put:
        entry = chunk(name, steps=steps)
        given_in.setdefault(name, []).append(entry)
        fair_queue.put(entry)
    out: dict[str, list[Any]] = {}
    while fair_queue:
        before = fair_queue.chunks
        for one in fair_queue.take(chunks_max, steps_max):
            taken = one.chunks + one.duplicates
            assert len({each.stream_id for each in taken}) == len(taken)
            assert all(each.steps for each in one.chunks)
            for each in taken:
                out.setdefault(each.stream_id, []).append(each)
        assert 1 <= before - fair_queue.chunks <= chunks_max
    assert out == given_in


@given(st.integers(1, 6), st.integers(1, 20))
def test_a_stream_waits_for_at_most_one_chunk_of_each_other_stream(
    others: int, chunks_max: int
) -> None:
    fair_queue = FairQueue()
    for number in range(others):
        for _ in range(50):
            fair_queue.put(chunk(f"busy {number}"))
    fair_queue.put(chunk("late"))
    served: list[str] = []
    while "late" not in served:
        served += [name for one in names(fair_queue, chunks_max) for name in one]
    assert served.index("late") <= others
