"""The service's error for each error of the core."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bptt import errors
from bptt_core import errors as core


def family(root: type[Exception]) -> Iterator[type[Exception]]:
    yield root
    for each in root.__subclasses__():
        yield from family(each)


CORE = [each for each in family(core.BpttError) if each is not core.BpttError]


@pytest.mark.parametrize("kind", CORE)
def test_field_value_and_bound_of_a_core_error_are_told(kind: type[core.BpttError]) -> None:
    if issubclass(kind, core.InvalidArgument):
        error: core.BpttError = kind("k2", 3, "at least 4")
        expected = ("INVALID_ARGUMENT", "spec.k2", "3", "at least 4")
    elif kind is core.OrderError:
        error = core.OrderError("s", 7, 5)
        expected = ("OUT_OF_RANGE", "first_step", "7", "at most 5")
    else:
        assert kind is core.UnknownStream, "map it in from_core, and say here what it becomes"
        error = core.UnknownStream("s")
        expected = ("NOT_FOUND", "stream_id", "'s'", "stream")
    mapped = errors.from_core(error, prefix="spec.")
    [violation] = mapped.violations
    assert (mapped.code, violation.field, violation.value) == expected[:3]
    assert expected[3] in violation.bound
    # An unknown field is named as it was sent: the spec has no such field.
    named = "k2" if kind is core.UnknownField else violation.field
    assert named in mapped.message
    assert violation.value in mapped.message
    assert violation.bound in mapped.message


def test_a_value_that_is_too_long_is_cut() -> None:
    error = errors.InvalidRequest.of("f", "x" * 100_000, "short")
    assert len(error.message) < 300
    assert "100000 characters" in error.message
