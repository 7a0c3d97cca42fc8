"""The durable step of a stream while commits are behind."""

from __future__ import annotations

import numpy as np

from bptt.engine.journaling import DurableSteps
from bptt.engine.messages import Moves
from bptt.engine.slots import StreamSlots


class Streams:
    """Streams that records move, and the steps of theirs that are durable."""

    def __init__(self) -> None:
        self.slots = StreamSlots()
        self.durable = DurableSteps(self.slots)

    def applied(self, lsn: int, *moves: tuple[str, int, int]) -> None:
        slots = self.slots.open_all([name for name, _, _ in moves])
        before, after = (np.array([each[column] for each in moves]) for column in (1, 2))
        self.slots.next_step[slots] = after
        self.durable.applied(lsn, Moves(slots, before, after))

    def step(self, stream_id: str) -> int:
        return self.durable.step(stream_id)


def test_a_stream_is_durable_up_to_its_last_commit() -> None:
    streams = Streams()
    streams.applied(1, ("s", 0, 10))
    streams.applied(2, ("s", 10, 15), ("other", 0, 5))
    assert streams.step("s") == 0
    streams.durable.committed(1)
    assert streams.step("s") == 10
    assert streams.step("other") == 0
    assert streams.durable.steps(np.array([0, -1, 1])).tolist() == [10, 0, 0]
    streams.durable.committed(2)
    assert (streams.step("s"), streams.step("other"), streams.step("unknown")) == (15, 5, 0)
    streams.applied(3, ("s", 15, 16))
    assert (streams.step("s"), streams.step("other")) == (15, 5)
    streams.durable.committed(3)
    assert streams.step("s") == 16


def test_a_deleted_streams_earlier_steps_do_not_count_as_durable() -> None:
    streams = Streams()
    streams.applied(1, ("s", 1000, 1010))
    streams.applied(3, ("s", 0, 5))  # the second record deleted it
    assert streams.step("s") == 0
    streams.durable.committed(1)
    assert streams.step("s") == 0
    streams.applied(4, ("s", 5, 9))
    streams.durable.committed(3)
    assert streams.step("s") == 5
    streams.durable.committed(4)
    assert streams.step("s") == 9


def test_steps_from_before_a_restore_do_not_count_as_durable() -> None:
    streams = Streams()
    streams.applied(1, ("s", 20, 30))
    streams.applied(2, ("s", 30, 40))
    streams.durable.begins_anew()  # record 3 restored it to step 20
    streams.slots.next_step[0] = 20
    assert streams.step("s") == 20
    streams.applied(4, ("s", 20, 22))
    for lsn in (1, 2, 3):
        streams.durable.committed(lsn)
        assert streams.step("s") == 20
    streams.durable.committed(4)
    assert streams.step("s") == 22


def test_a_slot_that_is_given_again_has_no_durable_steps_of_the_stream_before() -> None:
    streams = Streams()
    streams.applied(1, ("gone", 0, 100))
    streams.slots.next_step[0] = 0
    streams.slots.release("gone")
    streams.applied(3, ("new", 0, 7))
    assert streams.slots.numbers == {"new": 0}
    streams.durable.committed(2)
    assert streams.step("new") == 0
    streams.durable.committed(3)
    assert streams.step("new") == 7
