"""Listeners are told when compilations begin and end."""

from __future__ import annotations

from bptt_core.compilation import Event, listening, tell


def test_who_listens_later_is_told_of_what_has_begun_and_not_ended() -> None:
    early: list[Event] = []
    late: list[Event] = []
    first, second = Event("begun", "first", 1, 2), Event("begun", "second", 2, 2)
    ends = [Event("compiled", "first", 1, 2), Event("failed", "second", 2, 2)]
    with listening(early.append):
        tell(first)
        tell(second)
        tell(ends[0])
        with listening(late.append):
            assert late == [second]
            tell(ends[1])
    tell(Event("begun", "third", 1, 1))
    assert early == [first, second, *ends]
    assert late == [second, ends[1]]
    tell(Event("compiled", "third", 1, 1))
    with listening(late.append):
        assert late == [second, ends[1]]
