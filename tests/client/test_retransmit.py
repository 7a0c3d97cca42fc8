"""Chunks that a session repeats or drops after a new call reports the streams' positions."""

from __future__ import annotations

from typing import Any

import pytest

from bptt import v1 as pb
from bptt.client import Refused, StepsLost
from bptt.client.retransmit import RetransmitBuffer, Sent
from bptt.errors import OutOfOrder, StreamDeleted

LEARNED: Any = object()  # an answer whose contents are not used


def sent(buffer: RetransmitBuffer, first_step: int, *, placed: bool = True) -> Sent:
    """A written chunk of ten steps."""
    chunk = pb.Chunk(stream_id="s", first_step=first_step)
    found = buffer.add(pb.LearnRequest(chunk=chunk), 10, 0, placed=placed)
    found.written = True
    return found


def opened(last: int, *streams: tuple[int, int, int]) -> pb.LearnOpened:
    """Positions of the stream `s`: next step, durable step, incarnation."""
    told = [
        pb.Stream(stream_id="s", next_step=end, durable_step=durable, incarnation=incarnation)
        for end, durable, incarnation in streams
    ]
    return pb.LearnOpened(streams=told, last_incarnation=last)


def test_steps_that_a_call_reports_durable_are_dropped_from_the_buffer() -> None:
    buffer = RetransmitBuffer()
    buffer.learned(sent(buffer, 0), LEARNED, 10, 1)
    buffer.learned(sent(buffer, 10), LEARNED, 20, 1)
    again, ready = buffer.resume(["s"], opened(1, (20, 10, 1)), same_load=True)
    assert (again, ready, buffer.chunks) == ([], [], 1)
    buffer.acknowledge("s", 20, 1)
    assert not buffer.keeps("s")


def test_a_deleted_incarnation_is_dropped_and_unwritten_chunks_open_a_new_one() -> None:
    buffer = RetransmitBuffer()
    buffer.learned(sent(buffer, 0), LEARNED, 10, 1)
    sent(buffer, 10)
    waiting = sent(buffer, 20)
    waiting.written = False
    again, ready = buffer.resume(["s"], opened(1), same_load=True)
    [refused] = ready
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, StreamDeleted)
    assert refused.chunk_index == 1
    assert again == [waiting]
    assert (waiting.first_step, waiting.message.chunk.incarnation) == (0, 0)
    assert buffer.ends["s"] == 10


def test_a_chunk_without_a_first_answer_is_sent_again() -> None:
    buffer = RetransmitBuffer()
    first = sent(buffer, 0)
    again, ready = buffer.resume(["s"], opened(7), same_load=True)
    assert (again, ready) == ([first], [])
    assert first.resent


def test_steps_lost_with_the_server_are_sent_again() -> None:
    buffer = RetransmitBuffer()
    first = sent(buffer, 0)
    buffer.learned(first, LEARNED, 10, 3)
    for last in (2, 3):  # in the second case a later stream has a higher incarnation
        again, _ = buffer.resume(["s"], opened(last), same_load=False)
        assert again == [first]
        assert first.message.chunk.incarnation == 0
        buffer.learned(first, LEARNED, 10, 3)


def test_durable_steps_that_are_gone_were_deleted_or_lost() -> None:
    buffer = RetransmitBuffer()
    buffer.learned(sent(buffer, 0), LEARNED, 10, 3)
    buffer.acknowledge("s", 10, 3)
    buffer.learned(sent(buffer, 10), LEARNED, 20, 3)
    with pytest.raises(StepsLost, match="up to step 10, but expects step 0"):
        buffer.resume(["s"], opened(2), same_load=False)
    again, ready = buffer.resume(["s"], opened(3), same_load=False)
    assert (again, ready, buffer.keeps("s")) == ([], [], False)


def test_an_incarnation_that_went_back_behind_what_was_durable_is_an_error() -> None:
    buffer = RetransmitBuffer()
    buffer.learned(sent(buffer, 0), LEARNED, 10, 1)
    buffer.acknowledge("s", 10, 1)
    sent(buffer, 10)
    with pytest.raises(StepsLost, match="up to step 10, but expects step 4"):
        buffer.resume(["s"], opened(1, (4, 4, 1)), same_load=False)


def test_acknowledgements_of_two_incarnations_come_in_any_order() -> None:
    for order in ([1, 2], [2, 1]):
        buffer = RetransmitBuffer()
        buffer.learned(sent(buffer, 0), LEARNED, 10, 1)
        buffer.learned(sent(buffer, 0), LEARNED, 10, 2)
        for incarnation in order:
            assert buffer.keeps("s")
            buffer.acknowledge("s", 10, incarnation)
        assert not buffer.keeps("s")
        assert (buffer.chunks, buffer.size) == (0, 0)


def test_a_refusal_of_a_deleted_incarnation_moves_what_no_earlier_call_sent() -> None:
    buffer = RetransmitBuffer()
    buffer.learned(sent(buffer, 0), LEARNED, 10, 1)
    old, new = sent(buffer, 10), sent(buffer, 20)
    old.resent = True
    again = buffer.move_up(old, 0, deleted=True)
    assert again == [new]
    assert (new.first_step, new.message.chunk.incarnation) == (0, 0)
    assert (old.first_step, old.message.chunk.incarnation) == (10, 1)


def test_only_chunks_that_the_session_places_name_an_incarnation() -> None:
    buffer = RetransmitBuffer()
    buffer.learned(sent(buffer, 0), LEARNED, 10, 5)
    assert sent(buffer, 10).message.chunk.incarnation == 5
    assert sent(buffer, 0, placed=False).message.chunk.incarnation == 0


def test_a_chunk_that_did_not_follow_is_not_sent_again() -> None:
    """Its refusal was lost with the call; by now the steps before it have come."""
    buffer = RetransmitBuffer()
    buffer.learned(sent(buffer, 0), LEARNED, 10, 1)
    sent(buffer, 15, placed=False)
    following = sent(buffer, 10, placed=False)
    again, ready = buffer.resume(["s"], opened(1, (20, 10, 1)), same_load=False)
    [refused] = ready
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, OutOfOrder)
    assert (refused.chunk_index, refused.first_step, refused.expected_step) == (1, 15, 10)
    assert again == [following]


def test_a_chunk_that_does_not_follow_and_was_never_written_is_sent() -> None:
    buffer = RetransmitBuffer()
    buffer.learned(sent(buffer, 0), LEARNED, 10, 1)
    ahead = sent(buffer, 15, placed=False)
    ahead.written = False
    again, ready = buffer.resume(["s"], opened(1, (10, 10, 1)), same_load=True)
    assert (again, ready) == ([ahead], [])
