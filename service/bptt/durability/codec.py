"""A record as bytes and back, bit for bit. docs/journal.md describes the format for other readers.

    record   version u8 = 2 · kind u8 ('T' or 'C') · flags u16 · checksum u32 · payload
    'C'      JSON: {"name": …, "arguments": {…}}
    'T'      lanes u32 · CRC-32 of all names u32
             · columns: number of the stream, first step, steps
               · [targets] · [step of the first target] · [1 where the sequence ends]
             · [named lanes u32 · columns: lane, bytes of the name · names]
             · [lanes with a source position u32 · columns: lane, bytes of the position · positions]
             · inputs · [targets]
    column   form u8: 16 constant, 32 rising evenly, 48 values; plus the bytes b of an item
             · the constant ib, or the first ib and the difference ib, or the least i64 and for
             each item what it is above the least, ub
    array    type u8 ('f', 'i' or 'u') · bytes an item u8 · axes u8 · u8 = 0 · length u32 an axis
             · items, the last axis fastest

All numbers are little-endian and follow one another without padding. The checksum is the CRC-32 of
zlib over the record's lsn (i64), its first four bytes and its payload, so a record under the wrong
number is found like one with a flipped bit.

Records of version 1 are read. Their flags are 0, and a tick is a list of chunks with names:

    'T'      number of chunks u32 · chunks
    chunk    flags u16 · bytes of the stream's name u16 · first_step i64
             · [first_target_step i64] · name · inputs · [targets]
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.durability.store import checksum_of, Command, GO_BACK, Record, Tick, UNREADABLE
from bptt_core import Batch, Chunk

Array = NDArray[Any]

VERSION = 2
VERSIONS = (1, VERSION)  # that are read

_HEAD = struct.Struct("<BBHI")
_PREFIX = struct.Struct("<BBH")  # the head before the checksum
_I64 = struct.Struct("<q")
_COUNT = struct.Struct("<I")
_TICK = struct.Struct("<II")
_LENGTH = struct.Struct("<H")
_CHUNK = struct.Struct("<HHq")
_ARRAY = struct.Struct("<BBBB")

_KIND_TICK, _KIND_COMMAND = b"TC"
_TARGETS, _TARGET_LENGTHS, _FIRST_TARGETS, _ENDS, _NAMES, _SOURCES = 1, 2, 4, 8, 16, 32
_FLAGS = _TARGETS | _TARGET_LENGTHS | _FIRST_TARGETS | _ENDS | _NAMES | _SOURCES

_CONSTANT, _RISING, _VALUES = 16, 32, 48
_WIDTHS = (1, 2, 4, 8)
_LANES_MAX = 1 << 20  # bounds what a reader believes: a constant column may be as long as it says
_NAME_BYTES_MAX = 0xFFFF

_ITEM_SIZES = {"f": (4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8)}
_AXES_MAX = 4  # arrays have one or two; bounds what a reader believes


def encode(record: Record) -> bytes:
    """The bytes of a record.

    Raises:
        ValueError: the format cannot hold something in it.
    """
    body, flags = record.body, 0
    if isinstance(body, Command):
        kind = _KIND_COMMAND
        named = {"name": body.name, "arguments": body.arguments}
        parts = [json.dumps(named, separators=(",", ":")).encode()]
    else:
        kind = _KIND_TICK
        parts = []
        flags = _encode_tick(body, parts)
    payload = b"".join(parts)
    prefix = _PREFIX.pack(VERSION, kind, flags)
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
    version, kind, flags, checksum = _HEAD.unpack_from(data)
    payload = memoryview(data)[_HEAD.size :]
    if _checksum(lsn, data[: _PREFIX.size], payload) != checksum:
        raise ValueError("its checksum does not fit")
    if version not in VERSIONS:
        raise ValueError(
            f"its format is {version}, but this version of bptt reads {VERSIONS[0]} and {VERSION}"
        )
    try:
        if kind == _KIND_COMMAND:
            return Record(lsn, _decode_command(payload))
        if kind == _KIND_TICK:
            tick = _decode_chunks(data) if version == 1 else _decode_tick(data, flags)
            return Record(lsn, tick)
    except UNREADABLE as error:
        raise ValueError(f"it cannot be read: {error}") from error
    raise ValueError(f"its kind is {kind}")


def _checksum(lsn: int, prefix: bytes, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(prefix, zlib.crc32(_I64.pack(lsn))))


# ---------------------------------------------------------------------- a tick as columns


def _encode_tick(tick: Tick, parts: list[bytes]) -> int:
    """Append a tick's bytes to `parts`; return the flags of its record."""
    batch, flags = tick.batch, 0
    if len(batch) > _LANES_MAX:
        raise ValueError(f"a tick has {len(batch)} lanes, but must have at most {_LANES_MAX}")
    checksum = tick.names_checksum
    if checksum is None:
        checksum = checksum_of(batch.stream_ids)
    parts.append(_TICK.pack(len(batch), checksum))
    for column in (tick.incarnations, batch.first_steps, batch.lengths):
        _encode_column(column, parts)
    if batch.target_lengths is not None:
        flags |= _TARGET_LENGTHS
        _encode_column(batch.target_lengths, parts)
    if batch.first_target_steps is not None:
        flags |= _FIRST_TARGETS
        _encode_column(batch.first_target_steps, parts)
    if batch.ends is not None and np.count_nonzero(batch.ends):
        flags |= _ENDS
        _encode_column(batch.ends.astype(np.int64), parts)
    if len(tick.named):
        flags |= _NAMES
        _encode_names(tick, parts)
    if batch.source_positions is not None and any(batch.source_positions):
        flags |= _SOURCES
        _encode_sources(batch.source_positions, parts)
    _encode_array(batch.inputs, parts)
    if batch.targets is not None:
        flags |= _TARGETS
        _encode_array(batch.targets, parts)
    return flags


def _encode_names(tick: Tick, parts: list[bytes]) -> None:
    names = [tick.batch.stream_ids[lane].encode() for lane in tick.named.tolist()]
    longest = max(map(len, names))
    if longest > _NAME_BYTES_MAX:
        bound = f"at most {_NAME_BYTES_MAX}"
        raise ValueError(f"stream_id has {longest} bytes, but must have {bound}")
    _encode_texts(tick.named, names, parts)


def _encode_sources(positions: Sequence[bytes], parts: list[bytes]) -> None:
    lanes = [lane for lane, position in enumerate(positions) if position]
    _encode_texts(np.array(lanes, np.int64), [positions[lane] for lane in lanes], parts)


def _encode_texts(lanes: Array, texts: Sequence[bytes], parts: list[bytes]) -> None:
    """Append what some lanes have."""
    parts.append(_COUNT.pack(len(texts)))
    _encode_column(lanes, parts)
    _encode_column(np.array([len(text) for text in texts], np.int64), parts)
    parts += texts


def _encode_column(column: Array, parts: list[bytes]) -> None:
    """Append whole numbers: a constant once, an even rise as two numbers, others by their size."""
    if not len(column):
        return
    first = int(column[0])
    if len(column) == 1:
        parts.append(_one(_CONSTANT, first))
        return
    differences = column[1:] - column[:-1]
    rise = int(differences[0])
    if not np.count_nonzero(differences != rise):
        parts.append(_one(_RISING, first, rise) if rise else _one(_CONSTANT, first))
        return
    least = int(column.min())
    above = (column - least).view(np.uint64)  # wraps where the range exceeds 63 bits
    width = next(each for each in _WIDTHS if int(above.max()) < 1 << 8 * each)
    parts.append(bytes((_VALUES + width,)) + _I64.pack(least))
    parts.append(above.astype(f"<u{width}").tobytes())


def _one(form: int, *numbers: int) -> bytes:
    for width in _WIDTHS:
        half = 1 << (8 * width - 1)
        if all(-half <= number < half for number in numbers):
            break
    packed = [number.to_bytes(width, "little", signed=True) for number in numbers]
    return bytes((form + width,)) + b"".join(packed)


def _decode_tick(data: bytes, flags: int) -> Tick:
    if flags & ~_FLAGS:
        raise ValueError(f"flags {flags:#x} are not known")
    count, checksum = _TICK.unpack_from(data, _HEAD.size)
    if count > _LANES_MAX:
        raise ValueError(f"{count} lanes are more than {_LANES_MAX}")
    at = _HEAD.size + _TICK.size
    incarnations, at = _decode_column(data, at, count)
    first_steps, at = _decode_column(data, at, count)
    lengths, at = _decode_column(data, at, count)
    target_lengths = first_targets = ends = targets = None
    if flags & _TARGET_LENGTHS:
        target_lengths, at = _decode_column(data, at, count)
    if flags & _FIRST_TARGETS:
        first_targets, at = _decode_column(data, at, count)
    if flags & _ENDS:
        ends, at = _decode_column(data, at, count)
        ends = ends != 0
    names, named = [""] * count, np.empty(0, np.int64)
    if flags & _NAMES:
        named, texts, at = _decode_texts(data, at, count)
        for lane, text in zip(named.tolist(), texts, strict=True):
            names[lane] = text.decode()
    sources: list[bytes] | None = None
    if flags & _SOURCES:
        lanes, texts, at = _decode_texts(data, at, count)
        sources = [b""] * count
        for lane, text in zip(lanes.tolist(), texts, strict=True):
            sources[lane] = text
    inputs, at = _decode_array(data, at)
    if flags & _TARGETS:
        targets, at = _decode_array(data, at)
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes follow its arrays")
    _check_rows("inputs", inputs, lengths)
    if targets is not None:
        _check_rows("targets", targets, lengths if target_lengths is None else target_lengths)
    batch = Batch(
        tuple(names),
        first_steps,
        lengths,
        inputs,
        targets,
        target_lengths,
        first_targets,
        ends,
        None if sources is None else tuple(sources),
    )
    return Tick(batch, incarnations, named, checksum)


def _check_rows(name: str, array: Array, lengths: Array) -> None:
    """Refuse an array that does not have the rows of its lanes."""
    rows = len(array)
    outside = np.count_nonzero((lengths < 0) | (lengths > rows))
    if outside or int(lengths.sum()) != rows:
        raise ValueError(f"{name} has {rows} rows, and its lanes have others")


def _decode_texts(data: bytes, at: int, count: int) -> tuple[Array, list[bytes], int]:
    """Return the lanes that have a text, and the texts."""
    (texts,) = _COUNT.unpack_from(data, at)
    if not 0 < texts <= count:
        raise ValueError(f"{texts} texts for {count} lanes")
    lanes, at = _decode_column(data, at + _COUNT.size, texts)
    sizes, at = _decode_column(data, at, texts)
    found = []
    for lane, size in zip(lanes.tolist(), sizes.tolist(), strict=True):
        if not (0 <= lane < count and 0 <= size <= len(data) - at):
            raise ValueError(f"a text of {size} bytes for lane {lane}")
        found.append(data[at : at + size])
        at += size
    return lanes, found, at


def _decode_column(data: bytes, at: int, count: int) -> tuple[Array, int]:
    if not count:
        return np.empty(0, np.int64), at
    form, width = data[at] & 0xF0, data[at] & 0x0F
    if form not in (_CONSTANT, _RISING, _VALUES) or width not in _WIDTHS:
        raise ValueError(f"a column of form {data[at]} is not known")
    at += 1
    if form == _VALUES:
        (least,) = _I64.unpack_from(data, at)
        at += _I64.size
        above = np.frombuffer(data, f"<u{width}", count, at).astype(np.uint64)
        return above.view(np.int64) + np.int64(least), at + count * width
    first = int.from_bytes(data[at : at + width], "little", signed=True)
    if form == _CONSTANT:
        return np.full(count, first, np.int64), at + width
    rise = int.from_bytes(data[at + width : at + 2 * width], "little", signed=True)
    return np.int64(first) + np.int64(rise) * np.arange(count), at + 2 * width


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


# ---------------------------------------------------------------------- version 1

_END_OF_SEQUENCE, _HAS_TARGETS, _FIRST_TARGET_STEP, _SOURCE_POSITION = 1, 2, 4, 8
_CHUNK_FLAGS = _END_OF_SEQUENCE | _HAS_TARGETS | _FIRST_TARGET_STEP | _SOURCE_POSITION


def _decode_chunks(data: bytes) -> Tick:
    at = _HEAD.size
    (count,) = _COUNT.unpack_from(data, at)
    at += _COUNT.size
    chunks = []
    for _ in range(count):
        chunk, at = _decode_chunk(data, at)
        chunks.append(chunk)
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes follow its last chunk")
    return Tick.of(chunks)


def _decode_chunk(data: bytes, at: int) -> tuple[Chunk, int]:
    flags, length, first_step = _CHUNK.unpack_from(data, at)
    if flags & ~_CHUNK_FLAGS:
        raise ValueError(f"flags {flags:#x} are not known")
    at += _CHUNK.size
    first_target_step: int | None = None
    if flags & _FIRST_TARGET_STEP:
        (first_target_step,) = _I64.unpack_from(data, at)
        at += _I64.size
    stream_id = data[at : at + length].decode()
    inputs, at = _decode_array(data, at + length)
    targets = None
    if flags & _HAS_TARGETS:
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
