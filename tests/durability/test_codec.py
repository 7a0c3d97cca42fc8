"""Records as bytes: round trips, and detection of changed bytes."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bptt.durability import codec, Command, Record, Tick
from bptt_core import Batch, Chunk
from tests.durability.support import same, tick_record

DTYPES = ["f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]

names = st.text(min_size=1, max_size=40).filter(lambda text: _is_utf8(text))
numbers = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 3)


@st.composite
def ticks(draw: st.DrawFn) -> Tick:
    """Ticks of any columns that fit one another."""
    count = draw(st.integers(1, 4))

    def column(values: st.SearchStrategy[int]) -> Any:
        return np.array(draw(st.lists(values, min_size=count, max_size=count)), np.int64)

    def rows(lengths: Any) -> Any:
        shape = (int(lengths.sum()), *draw(st.lists(st.integers(0, 4), max_size=1)))
        return draw(hnp.arrays(np.dtype(draw(st.sampled_from(DTYPES))), shape))

    lengths = column(st.integers(0, 3))
    targets = target_lengths = None
    if draw(st.booleans()):
        target_lengths = draw(st.none() | st.just(column(st.integers(0, 3))))
        targets = rows(lengths if target_lengths is None else target_lengths)
    named = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    stream_ids = [draw(names) if each else "" for each in named]
    sources = draw(st.none() | st.tuples(*[st.binary(max_size=256)] * count))
    batch = Batch(
        tuple(stream_ids),
        column(numbers),
        lengths,
        rows(lengths),
        targets,
        target_lengths,
        draw(st.none() | st.just(column(numbers))),
        draw(st.none() | st.just(column(st.integers(0, 1)) != 0)),
        sources,
    )
    return Tick(batch, column(numbers), np.flatnonzero(named))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
commands = st.builds(Command, st.text(), st.dictionaries(st.text(), plain, max_size=3))
records = st.builds(Record, st.integers(1, 1 << 62), ticks() | commands)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@given(records)
def test_a_record_comes_back_bit_for_bit(record: Record) -> None:
    assert same(codec.decode(record.lsn, codec.encode(record)), record)


@given(records, st.data())
def test_any_flipped_bit_is_detected(record: Record, data: st.DataObject) -> None:
    encoded = bytearray(codec.encode(record))
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="checksum"):
        codec.decode(record.lsn, bytes(encoded))


@given(records, st.data())
def test_a_record_of_another_length_is_detected(record: Record, data: st.DataObject) -> None:
    encoded = codec.encode(record)
    with pytest.raises(ValueError, match=r"checksum|too few"):
        codec.decode(record.lsn, encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(ValueError, match="checksum"):
        codec.decode(record.lsn, encoded + data.draw(st.binary(min_size=1, max_size=9)))


@given(records)
def test_a_record_under_another_lsn_is_detected(record: Record) -> None:
    with pytest.raises(ValueError, match="checksum"):
        codec.decode(record.lsn + 1, codec.encode(record))


@given(st.sampled_from([1, 2]), st.binary(max_size=80), st.sampled_from(b"TCX"), st.integers(0, 70))
def test_any_bytes_under_a_valid_checksum_are_read_or_refused(
    version: int, payload: bytes, kind: int, flags: int
) -> None:
    try:
        record = codec.decode(1, sealed(1, bytes([version, kind, flags, 0]), payload))
    except ValueError:
        return
    assert record.lsn == 1


def sealed(number: int, prefix: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(struct.pack("<q", number) + prefix + payload)
    return prefix + struct.pack("<I", checksum) + payload


INPUTS = np.array([[1.5, -2.0]], np.float32)
INPUT_BYTES = b"f\x04\x02\x00" + struct.pack("<IIff", 1, 2, 1.5, -2.0)


def test_the_bytes_are_those_of_the_description() -> None:
    """Builds the format by hand, so that every change of it is noticed."""
    targets = np.array([-1], np.int64)
    chunk = Chunk("é", 7, INPUTS, targets, end_of_sequence=True, source_position=b"9")
    payload = struct.pack("<II", 1, zlib.crc32(b"\xc3\xa9"))
    payload += b"\x11\x00" + b"\x11\x07" + b"\x11\x01"  # number, first step, steps
    payload += b"\x11\x01"  # ends
    payload += struct.pack("<I", 1) + b"\x11\x00" + b"\x11\x02" + b"\xc3\xa9"
    payload += struct.pack("<I", 1) + b"\x11\x00" + b"\x11\x01" + b"9"
    payload += INPUT_BYTES
    payload += b"i\x08\x01\x00" + struct.pack("<I", 1) + struct.pack("<q", -1)
    assert codec.encode(Record(9, Tick.of([chunk]))) == sealed(9, b"\x02T\x39\x00", payload)

    named = b'{"name":"reset","arguments":{"stream_id":"a"}}'
    record = Record(10, Command("reset", {"stream_id": "a"}))
    assert codec.encode(record) == sealed(10, b"\x02C\x00\x00", named)


@pytest.mark.parametrize(
    ("column", "encoded"),
    [
        ([5, 5, 5], b"\x11\x05"),
        ([7], b"\x11\x07"),
        ([-3, -2, -1], b"\x21\xfd\x01"),
        ([1000, 2000, 3000], b"\x22" + struct.pack("<hh", 1000, 1000)),
        ([4, 9, 5], b"\x31" + struct.pack("<q", 4) + b"\x00\x05\x01"),
        ([0, 300, 1], b"\x32" + struct.pack("<qHHH", 0, 0, 300, 1)),
        (
            [-(1 << 63), 0, (1 << 63) - 1],
            b"\x38" + struct.pack("<qQQQ", -(1 << 63), 0, 1 << 63, 2**64 - 1),
        ),
    ],
)
def test_a_column_takes_the_fewest_bytes(column: list[int], encoded: bytes) -> None:
    count = len(column)
    batch = Batch(("",) * count, np.array(column), np.zeros(count, np.int64), INPUTS[:0])
    record = Record(1, Tick(batch, np.zeros(count, np.int64), np.arange(0)))
    found = codec.encode(record)
    head = 8 + struct.calcsize("<II") + len(b"\x11\x00")
    assert found[head : head + len(encoded)] == encoded
    assert found[head + len(encoded) :][:2] == b"\x11\x00"
    assert same(codec.decode(1, found), record)


def test_records_of_version_1_are_read() -> None:
    """Built by hand: chunks one after another, each with its name."""
    targets = np.array([-1], np.int64)
    label = b"i\x08\x01\x00" + struct.pack("<Iq", 1, -1)
    payload = struct.pack("<I", 2)
    payload += struct.pack("<HHq", 3, 2, 7) + b"\xc3\xa9" + INPUT_BYTES + label
    payload += struct.pack("<HHqq", 14, 1, 0, 5) + b"b" + INPUT_BYTES + label
    payload += struct.pack("<H", 2) + b"42"
    record = codec.decode(9, sealed(9, b"\x01T\x00\x00", payload))
    expected = [
        Chunk("é", 7, INPUTS, targets, end_of_sequence=True),
        Chunk("b", 0, INPUTS, targets, first_target_step=5, source_position=b"42"),
    ]
    assert same(record, Record(9, Tick.of(expected)))
    named = b'{"name":"reset","arguments":{"stream_id":"a"}}'
    record = codec.decode(10, sealed(10, b"\x01C\x00\x00", named))
    assert record.body == Command("reset", {"stream_id": "a"})


def test_late_targets_come_back_with_their_place() -> None:
    inputs, targets = np.empty((0, 1), np.float64), np.array([[1.0], [np.nan]])
    chunks = [Chunk("s", 7, inputs, targets, first_target_step=3), Chunk("t", 0, targets)]
    record = Record(1, Tick.of(chunks))
    found = codec.decode(1, codec.encode(record))
    assert same(found, record)
    assert isinstance(found.body, Tick)
    assert found.body.batch.first_target_steps is not None
    assert found.body.batch.first_target_steps.tolist() == [3, -1]


def test_bits_of_a_nan_and_the_sign_of_a_zero_are_kept() -> None:
    odd = np.array([0x7FC0_1234, 0xFFC0_0001, 0x8000_0000], np.uint32).view(np.float32)
    record = Record(1, Tick.of([Chunk("s", 0, odd.reshape(3, 1))]))
    assert same(codec.decode(1, codec.encode(record)), record)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=">f4").reshape(3, 2),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(3, 2)),
        np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2],
    ],
    ids=["big-endian", "columns first", "strided"],
)
def test_an_array_of_any_layout_comes_back_plain(array: Any) -> None:
    record = codec.decode(1, codec.encode(Record(1, Tick.of([Chunk("s", 0, array)]))))
    assert isinstance(record.body, Tick)
    found = record.body.batch.inputs
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found.flags.aligned
    assert found.flags.writeable


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((1, 1), np.complex64), "complex64"),
        (np.zeros(1, bool), "bool"),
        (np.zeros(1, np.float16), "float16"),
        (np.array([None]), "object"),
        (np.zeros((1,) * 5), "5 axes"),
    ],
)
def test_an_array_that_has_no_place_is_refused(array: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        codec.encode(Record(1, Tick.of([Chunk("s", 0, array)])))


def test_a_stream_s_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="65536 bytes"):
        codec.encode(Record(1, Tick.of([Chunk("s" * 65536, 0, np.zeros((1, 1)))])))


@pytest.mark.parametrize(
    ("prefix", "payload", "found"),
    [
        (b"\x03T\x00\x00", b"", "its format is 3, but this version of bptt reads 1 and 2"),
        (b"\x01X\x00\x00", b"", "its kind is 88"),
        (b"\x02T\x40\x00", b"", "flags 0x40"),
        (b"\x02T\x00\x00", struct.pack("<II", 1 << 21, 0), "2097152 lanes are more than"),
        (b"\x02T\x00\x00", struct.pack("<II", 1, 0) + b"\x71\x00", "a column of form 113"),
        (
            b"\x02T\x00\x00",
            struct.pack("<II", 1, 0) + b"\x11\x00" * 2 + b"\x11\x02" + INPUT_BYTES,
            "inputs has 1 rows, and its lanes have others",
        ),
        (
            b"\x02T\x00\x00",
            struct.pack("<II", 1, 0) + b"\x11\x00" * 2 + b"\x11\x01" + INPUT_BYTES + b"more",
            "4 bytes follow its arrays",
        ),
        (
            b"\x02T\x10\x00",
            struct.pack("<II", 1, 0) + b"\x11\x00" * 3 + struct.pack("<I", 2),
            "2 texts for 1 lanes",
        ),
        (
            b"\x02T\x20\x00",
            struct.pack("<II", 1, 0)
            + b"\x11\x00" * 3
            + struct.pack("<I", 1)
            + b"\x11\x00\x11\x63a",
            "a text of 99 bytes for lane 0",
        ),
        (b"\x01T\x00\x00", struct.pack("<IHHq", 1, 16, 0, 0), "flags 0x10"),
        (
            b"\x01T\x00\x00",
            struct.pack("<IHHq", 1, 0, 0, 0) + b"f\x04\x01\x00" + struct.pack("<I", 1 << 31),
            r"shape \(2147483648,\) is longer than the record",
        ),
        (b"\x01T\x00\x00", struct.pack("<IHHq", 1, 0, 0, 0) + b"c\x08\x01\x00", "'c'8"),
        (
            b"\x01T\x00\x00",
            struct.pack("<IHHq", 1, 8, 0, 0)
            + b"f\x04\x01\x00"
            + struct.pack("<I", 0)
            + struct.pack("<H", 3)
            + b"ab",
            "its source position is longer than the record",
        ),
        (b"\x01C\x00\x00", b"{}", "cannot be read"),
    ],
)
def test_another_programs_file_is_refused_by_name(
    prefix: bytes, payload: bytes, found: str
) -> None:
    with pytest.raises(ValueError, match=found):
        codec.decode(3, sealed(3, prefix, payload))


def test_records_take_little_more_than_their_numbers() -> None:
    one = Chunk("sensor-1", 0, np.zeros((64, 8), np.float32))
    assert len(codec.encode(Record(1, Tick.of([one])))) == 64 * 8 * 4 + 50
    assert len(codec.encode(tick_record(1, steps=1))) == 3 * 4 + 43


def test_a_fleet_s_record_takes_a_few_bytes_a_lane() -> None:
    """Lanes that are known by their numbers, at steps of their own."""
    count = 1000
    steps = np.random.default_rng(0).integers(10**6, 10**6 + 60_000, count)
    inputs = np.zeros((count, 8), np.float32)
    batch = Batch(("s",) * count, steps, np.ones(count, np.int64), inputs)
    encoded = codec.encode(Record(1, Tick(batch, np.arange(count), np.arange(0))))
    assert len(encoded) - inputs.nbytes < 2 * count + 100
