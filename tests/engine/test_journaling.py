"""The durable step of a stream while commits are behind."""

from __future__ import annotations

from bptt.engine.journaling import DurableSteps


def test_a_stream_is_durable_up_to_its_last_commit() -> None:
    durable = DurableSteps()
    durable.applied(1, [("s", 0, 10)])
    durable.applied(2, [("s", 10, 15), ("other", 0, 5)])
    assert durable.step("s", 15) == 0
    assert durable.committed(1)
    assert durable.step("s", 15) == 10
    assert durable.step("other", 5) == 0
    assert durable.committed(2)
    assert (durable.step("s", 15), durable.step("other", 5)) == (15, 5)
    assert not durable.committed(3)


def test_a_deleted_streams_earlier_steps_do_not_count_as_durable() -> None:
    durable = DurableSteps()
    durable.applied(1, [("s", 1000, 1010)])
    durable.applied(3, [("s", 0, 5)])  # the second record deleted it
    assert durable.step("s", 5) == 0
    durable.committed(1)
    assert durable.step("s", 5) == 0
    durable.applied(4, [("s", 5, 9)])
    durable.committed(3)
    assert durable.step("s", 9) == 5
    durable.committed(4)
    assert durable.step("s", 9) == 9
