"""A record as bytes and back, bit for bit. docs/journal.md describes the format for other readers.

    record   version u8 = 1 · kind u8 ('T' or 'C') · u16 = 0 · checksum u32 · payload
    'T'      number of chunks u32 · chunks
    'C'      JSON: {"name": …, "arguments": {…}}
    chunk    flags u16 · bytes of the stream's name u16 · first_step i64
             · [first_target_step i64] · name · inputs · [targets]
    array    type u8 ('f', 'i' or 'u') · bytes an item u8 · axes u8 · u8 = 0 · length u32 an axis
             · items, the last axis fastest

All numbers are little-endian and follow one another without padding. The checksum is the CRC-32 of
zlib over the record's tick (i64), its first four bytes and its payload: a record that is found
under another number is as damaged as one with a flipped bit.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.durability.store import Command, Record
from bptt_core import Chunk

Array = NDArray[Any]

VERSION = 1

_HEAD = struct.Struct("<BBHI")
_PREFIX = 4  # bytes of the head before the checksum
_TICK = struct.Struct("<q")
_COUNT = struct.Struct("<I")
_CHUNK = struct.Struct("<HHq")
_ARRAY = struct.Struct("<BBBB")

_KIND_TICK, _KIND_COMMAND = b"TC"
_END_OF_SEQUENCE, _TARGETS, _FIRST_TARGET_STEP = 1, 2, 4
_FLAGS = _END_OF_SEQUENCE | _TARGETS | _FIRST_TARGET_STEP

_ITEM_SIZES = {"f": (4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8)}
_AXES_MAX = 4  # a chunk's arrays have one or two; bounds what a reader believes


def encode(record: Record) -> bytes:
    """The bytes of a record.

    Raises:
        ValueError: something in it has no place in the format.
    """
    if isinstance(record.body, Command):
        kind = _KIND_COMMAND
        named = {"name": record.body.name, "arguments": record.body.arguments}
        parts = [json.dumps(named, separators=(",", ":")).encode()]
    else:
        kind = _KIND_TICK
        parts = [_COUNT.pack(len(record.body))]
        for chunk in record.body:
            _encode_chunk(chunk, parts)
    payload = b"".join(parts)
    prefix = bytes((VERSION, kind, 0, 0))
    return b"".join((prefix, _COUNT.pack(_checksum(record.lsn, prefix, payload)), payload))


def decode(lsn: int, data: bytes) -> Record:
    """The record of number `tick` whose bytes these are. Its arrays are new and its own.

    Raises:
        ValueError: they are not; it says what was found.
    """
    if not isinstance(data, bytes):  # SQLite holds whatever a damaged page says it is
        raise ValueError("it is no blob")
    if len(data) < _HEAD.size:
        raise ValueError(f"{len(data)} bytes are too few for a record")
    version, kind, _, checksum = _HEAD.unpack_from(data)
    payload = memoryview(data)[_HEAD.size :]
    if _checksum(lsn, data[:_PREFIX], payload) != checksum:
        raise ValueError("its checksum does not fit")
    if version != VERSION:
        raise ValueError(f"its format is {version}, and this program reads {VERSION}")
    try:
        if kind == _KIND_COMMAND:
            return Record(lsn, _decode_command(payload))
        if kind == _KIND_TICK:
            return Record(lsn, _decode_tick(data))
    except (struct.error, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    raise ValueError(f"its kind is {kind}")


def _checksum(lsn: int, prefix: bytes, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(prefix, zlib.crc32(_TICK.pack(lsn))))


def _encode_chunk(chunk: Chunk, parts: list[bytes]) -> None:
    name = chunk.stream_id.encode()
    if len(name) > 0xFFFF:
        raise ValueError(f"a stream's name has {len(name)} bytes, more than a journal holds")
    flags = _END_OF_SEQUENCE if chunk.end_of_sequence else 0
    if chunk.targets is not None:
        flags |= _TARGETS
    if chunk.first_target_step is not None:
        flags |= _FIRST_TARGET_STEP
    parts.append(_CHUNK.pack(flags, len(name), chunk.first_step))
    if chunk.first_target_step is not None:
        parts.append(_TICK.pack(chunk.first_target_step))
    parts.append(name)
    _encode_array(chunk.inputs, parts)
    if chunk.targets is not None:
        _encode_array(chunk.targets, parts)


def _encode_array(array: Array, parts: list[bytes]) -> None:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if size not in _ITEM_SIZES.get(kind, ()) or array.ndim > _AXES_MAX:
        raise ValueError(f"an array of {array.dtype} with {array.ndim} axes has no place in it")
    parts.append(_ARRAY.pack(ord(kind), size, array.ndim, 0))
    parts.append(struct.pack(f"<{array.ndim}I", *array.shape))
    parts.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _decode_command(payload: memoryview) -> Command:
    named = json.loads(bytes(payload))
    return Command(named["name"], dict(named["arguments"]))


def _decode_tick(data: bytes) -> tuple[Chunk, ...]:
    at = _HEAD.size
    (count,) = _COUNT.unpack_from(data, at)
    at += _COUNT.size
    chunks = []
    for _ in range(count):
        chunk, at = _decode_chunk(data, at)
        chunks.append(chunk)
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes follow its last chunk")
    return tuple(chunks)


def _decode_chunk(data: bytes, at: int) -> tuple[Chunk, int]:
    flags, length, first_step = _CHUNK.unpack_from(data, at)
    if flags & ~_FLAGS:
        raise ValueError(f"flags {flags:#x} are not known")
    at += _CHUNK.size
    first_target_step: int | None = None
    if flags & _FIRST_TARGET_STEP:
        (first_target_step,) = _TICK.unpack_from(data, at)
        at += _TICK.size
    stream_id = data[at : at + length].decode()
    inputs, at = _decode_array(data, at + length)
    targets = None
    if flags & _TARGETS:
        targets, at = _decode_array(data, at)
    ends = bool(flags & _END_OF_SEQUENCE)
    return Chunk(stream_id, first_step, inputs, targets, ends, first_target_step), at


def _decode_array(data: bytes, at: int) -> tuple[Array, int]:
    kind, size, axes, _ = _ARRAY.unpack_from(data, at)
    if size not in _ITEM_SIZES.get(chr(kind), ()) or axes > _AXES_MAX:
        raise ValueError(f"an array of {chr(kind)!r}{size} with {axes} axes is not known")
    at += _ARRAY.size
    shape = struct.unpack_from(f"<{axes}I", data, at)
    at += 4 * axes
    count = math.prod(shape)
    if count * size > len(data) - at:
        raise ValueError(f"an array of shape {shape} does not fit into what is left")
    stored = np.frombuffer(data, np.dtype(f"<{chr(kind)}{size}"), count, at)
    # Copied: where an array lies in the record, the processor may not read it as it is.
    return stored.reshape(shape).astype(f"={chr(kind)}{size}"), at + count * size
