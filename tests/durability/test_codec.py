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

from bptt.durability import codec, Command, Record
from bptt_core import Chunk
from tests.durability.support import same, tick_record

DTYPES = ["f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]

arrays = st.sampled_from(DTYPES).flatmap(
    lambda name: hnp.arrays(
        np.dtype(name), hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5)
    )
)
names = st.text(min_size=1, max_size=40).filter(lambda text: _is_utf8(text))
chunks = st.builds(
    Chunk,
    names,
    st.integers(0, 1 << 62),
    arrays,
    st.none() | arrays,
    st.booleans(),
    source_position=st.binary(max_size=256),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
commands = st.builds(Command, st.text(), st.dictionaries(st.text(), plain, max_size=3))
records = st.builds(
    Record, st.integers(1, 1 << 62), st.lists(chunks, max_size=3).map(tuple) | commands
)


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


@given(st.binary(max_size=80), st.sampled_from(b"TCX"))
def test_any_bytes_under_a_valid_checksum_are_read_or_refused(payload: bytes, kind: int) -> None:
    try:
        record = codec.decode(1, sealed(1, bytes([1, kind, 0, 0]), payload))
    except ValueError:
        return
    assert record.lsn == 1


def sealed(number: int, prefix: bytes, payload: bytes) -> bytes:
    checksum = zlib.crc32(struct.pack("<q", number) + prefix + payload)
    return prefix + struct.pack("<I", checksum) + payload


def test_the_bytes_are_those_of_the_description() -> None:
    """Builds the format by hand, so that every change of it is noticed."""
    inputs = np.array([[1.5, -2.0]], np.float32)
    targets = np.array([-1], np.int64)
    payload = struct.pack("<I", 1) + struct.pack("<HHq", 3, 2, 7) + b"\xc3\xa9"
    payload += b"f\x04\x02\x00" + struct.pack("<II", 1, 2) + struct.pack("<ff", 1.5, -2.0)
    payload += b"i\x08\x01\x00" + struct.pack("<I", 1) + struct.pack("<q", -1)
    record = Record(9, (Chunk("é", 7, inputs, targets, end_of_sequence=True),))
    assert codec.encode(record) == sealed(9, b"\x01T\x00\x00", payload)

    named = b'{"name":"reset","arguments":{"stream_id":"a"}}'
    record = Record(10, Command("reset", {"stream_id": "a"}))
    assert codec.encode(record) == sealed(10, b"\x01C\x00\x00", named)


def test_late_targets_come_back_with_their_place() -> None:
    inputs, targets = np.empty((0, 2), np.float32), np.array([[1.0], [np.nan]])
    record = Record(
        1, (Chunk("s", 7, inputs, targets, first_target_step=3), Chunk("t", 0, targets))
    )
    found = codec.decode(1, codec.encode(record))
    assert same(found, record)
    assert isinstance(found.body, tuple)
    assert [each.first_target_step for each in found.body] == [3, None]


def test_bits_of_a_nan_and_the_sign_of_a_zero_are_kept() -> None:
    odd = np.array([0x7FC0_1234, 0xFFC0_0001, 0x8000_0000], np.uint32).view(np.float32)
    record = Record(1, (Chunk("s", 0, odd.reshape(3, 1)),))
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
    record = codec.decode(1, codec.encode(Record(1, (Chunk("s", 0, array),))))
    assert isinstance(record.body, tuple)
    found = record.body[0].inputs
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
        codec.encode(Record(1, (Chunk("s", 0, array),)))


def test_a_stream_s_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="65536 bytes"):
        codec.encode(Record(1, (Chunk("s" * 65536, 0, np.zeros((1, 1))),)))


@pytest.mark.parametrize(
    ("prefix", "payload", "found"),
    [
        (b"\x02T\x00\x00", b"", "its format is 2, but this version of bptt reads 1"),
        (b"\x01X\x00\x00", b"", "its kind is 88"),
        (b"\x01T\x00\x00", struct.pack("<I", 0) + b"more", "4 bytes follow its last chunk"),
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


def test_a_chunk_of_64_steps_takes_little_more_than_its_numbers() -> None:
    record = Record(1, (Chunk("sensor-1", 0, np.zeros((64, 8), np.float32)),))
    assert len(codec.encode(record)) == 64 * 8 * 4 + 44
    assert len(codec.encode(tick_record(1, steps=1))) == 3 * 4 + 37
