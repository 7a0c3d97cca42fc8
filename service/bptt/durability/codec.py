"""A record as bytes and back, bit for bit. docs/journal.md describes the format for other readers.

    record   version u8 = 1 · kind u8 ('T' or 'C') · u16 = 0 · checksum u32 · payload
    'T'      number of chunks u32 · chunks
    'C'      JSON: {"name": …, "arguments": {…}}
    chunk    flags u16 · bytes of the stream's name u16 · first_step i64
             · [first_target_step i64] · name · inputs · [targets]
             · [bytes of the source position u16 · source position]
    array    type u8 ('f', 'i' or 'u') · bytes an item u8 · axes u8 · u8 = 0 · length u32 an axis
             · items, the last axis fastest

All numbers are little-endian and follow one another without padding. The checksum is the CRC-32 of
zlib over the record's lsn (i64), its first four bytes and its payload, so a record under the wrong
number is found like one with a flipped bit.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.durability.store import Command, GO_BACK, Record, UNREADABLE
from bptt_core import Chunk

Array = NDArray[Any]

VERSION = 1

_HEAD = struct.Struct("<BBHI")
_PREFIX = 4  # bytes of the head before the checksum
_I64 = struct.Struct("<q")
_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<H")
_CHUNK = struct.Struct("<HHq")
_ARRAY = struct.Struct("<BBBB")

_KIND_TICK, _KIND_COMMAND = b"TC"
_END_OF_SEQUENCE, _TARGETS, _FIRST_TARGET_STEP, _SOURCE_POSITION = 1, 2, 4, 8
_FLAGS = _END_OF_SEQUENCE | _TARGETS | _FIRST_TARGET_STEP | _SOURCE_POSITION

_ITEM_SIZES = {"f": (4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8)}
_AXES_MAX = 4  # a chunk's arrays have one or two; bounds what a reader believes


def encode(record: Record) -> bytes:
    """The bytes of a record.

    Raises:
        ValueError: the format cannot hold something in it.
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
    """The record of number `lsn` that these bytes hold. Its arrays are copies.

    Raises:
        ValueError: they hold none; the error says what was found.
    """
    if not isinstance(data, bytes):  # a damaged page may give a value of any type
        raise ValueError("it is no blob")
    if len(data) < _HEAD.size:
        raise ValueError(f"{len(data)} bytes are too few for a record")
    version, kind, _, checksum = _HEAD.unpack_from(data)
    payload = memoryview(data)[_HEAD.size :]
    if _checksum(lsn, data[:_PREFIX], payload) != checksum:
        raise ValueError("its checksum does not fit")
    if version != VERSION:
        raise ValueError(f"its format is {version}, but this version of bptt reads {VERSION}")
    try:
        if kind == _KIND_COMMAND:
            return Record(lsn, _decode_command(payload))
        if kind == _KIND_TICK:
            return Record(lsn, _decode_tick(data))
    except UNREADABLE as error:
        raise ValueError(f"it cannot be read: {error}") from error
    raise ValueError(f"its kind is {kind}")


def _checksum(lsn: int, prefix: bytes, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(prefix, zlib.crc32(_I64.pack(lsn))))


def _encode_chunk(chunk: Chunk, parts: list[bytes]) -> None:
    name = chunk.stream_id.encode()
    if len(name) > 0xFFFF:
        raise ValueError(f"stream_id has {len(name)} bytes, but must have at most {0xFFFF}")
    flags = _END_OF_SEQUENCE if chunk.end_of_sequence else 0
    if chunk.targets is not None:
        flags |= _TARGETS
    if chunk.first_target_step is not None:
        flags |= _FIRST_TARGET_STEP
    if chunk.source_position:
        flags |= _SOURCE_POSITION
    parts.append(_CHUNK.pack(flags, len(name), chunk.first_step))
    if chunk.first_target_step is not None:
        parts.append(_I64.pack(chunk.first_target_step))
    parts.append(name)
    _encode_array(chunk.inputs, parts)
    if chunk.targets is not None:
        _encode_array(chunk.targets, parts)
    if chunk.source_position:
        parts += (_LENGTH.pack(len(chunk.source_position)), chunk.source_position)


def _encode_array(array: Array, parts: list[bytes]) -> None:
    kind, size = array.dtype.kind, array.dtype.itemsize
    if size not in _ITEM_SIZES.get(kind, ()) or array.ndim > _AXES_MAX:
        raise ValueError(f"a journal cannot hold an array of {array.dtype} with {array.ndim} axes")
    parts.append(_ARRAY.pack(ord(kind), size, array.ndim, 0))
    parts.append(struct.pack(f"<{array.ndim}I", *array.shape))
    parts.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


def _decode_command(payload: memoryview) -> Command:
    named = json.loads(bytes(payload))
    name, arguments = named["name"], named["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("its name is no text, or its arguments are no object")
    if name in GO_BACK:
        if "lsn" not in arguments and "ticks" in arguments:  # as earlier versions called it
            arguments["lsn"] = arguments.pop("ticks")
        if type(arguments.get("lsn")) is not int or not 0 <= arguments["lsn"] < 1 << 63:
            raise ValueError(f"the command {name!r} names no checkpoint")
    return Command(name, arguments)


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
        (first_target_step,) = _I64.unpack_from(data, at)
        at += _I64.size
    stream_id = data[at : at + length].decode()
    inputs, at = _decode_array(data, at + length)
    targets = None
    if flags & _TARGETS:
        targets, at = _decode_array(data, at)
    ends = bool(flags & _END_OF_SEQUENCE)
    source = b""
    if flags & _SOURCE_POSITION:
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size + length
        source = data[at - length : at]
        if len(source) != length or at > len(data):
            raise ValueError("its source position is longer than the record")
    return Chunk(stream_id, first_step, inputs, targets, ends, first_target_step, source), at


def _decode_array(data: bytes, at: int) -> tuple[Array, int]:
    kind, size, axes, _ = _ARRAY.unpack_from(data, at)
    if size not in _ITEM_SIZES.get(chr(kind), ()) or axes > _AXES_MAX:
        raise ValueError(f"an array of {chr(kind)!r}{size} with {axes} axes is not known")
    at += _ARRAY.size
    shape = struct.unpack_from(f"<{axes}I", data, at)
    at += 4 * axes
    count = math.prod(shape)
    if count * size > len(data) - at:
        raise ValueError(f"an array of shape {shape} is longer than the record")
    stored = np.frombuffer(data, np.dtype(f"<{chr(kind)}{size}"), count, at)
    # Copied, because its place in the record may not be aligned for its type.
    return stored.reshape(shape).astype(f"={chr(kind)}{size}"), at + count * size
