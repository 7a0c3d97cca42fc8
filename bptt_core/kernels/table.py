"""What a kernel works on, read from the table of addresses that `backend.Compiled` keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.kernels.addresses import array_1d, array_2d, array_3d, array_4d
from bptt_core.kernels.jit import compiled
from bptt_core.kernels.sizes import Room, Sizes, Work
from bptt_core.state import Model, Streams

Array = NDArray[Any]

# Where each begins in the table, in fields: they are in their order.
MODEL = 0
STREAMS = MODEL + len(Model._fields)
WORK = STREAMS + len(Streams._fields)
ROOM = WORK + len(Work._fields)
COLUMNS = ROOM + len(Room._fields)
SIZES = COLUMNS + 1


@compiled
def sizes_at(table: Array) -> Sizes:
    """The sizes, which the table leads to as float64 numbers."""
    n = array_1d(table, SIZES, table.view(np.float64))
    return Sizes(
        int(n[0]), int(n[1]), int(n[2]), int(n[3]), int(n[4]), int(n[5]), n[6] != 0, int(n[7]),
        int(n[8]), int(n[9]), int(n[10]), int(n[11]), int(n[12]), int(n[13]), int(n[14]),
        int(n[15]), int(n[16]), int(n[17]), int(n[18]), int(n[19]), int(n[20]), n[21] != 0,
        n[22] != 0, n[23] != 0, n[24] != 0, int(n[25]), n[26] != 0, n[27], n[28], n[29],
        int(n[30]), int(n[31]),
    )  # fmt: skip


@compiled
def model_at(table: Array, like: Array) -> Model:
    """The model's arrays; `like` is any of the spec's dtype."""
    real = table.view(np.float64)
    return Model(
        array_1d(table, MODEL, like),
        array_2d(table, MODEL + 1, like),
        array_1d(table, MODEL + 2, table),
        array_1d(table, MODEL + 3, real),
        array_1d(table, MODEL + 4, real),
        array_1d(table, MODEL + 5, real),
        array_1d(table, MODEL + 6, real),
        array_1d(table, MODEL + 7, real),
        array_2d(table, MODEL + 8, real),
        array_2d(table, MODEL + 9, real),
        array_2d(table, MODEL + 10, real),
        array_1d(table, MODEL + 11, real),
        array_1d(table, MODEL + 12, real),
        array_1d(table, MODEL + 13, real),
        array_1d(table, MODEL + 14, real),
        array_2d(table, MODEL + 15, like),
        array_2d(table, MODEL + 16, real),
    )


@compiled
def streams_at(table: Array, like: Array) -> Streams:
    """The streams' arrays."""
    real = table.view(np.float64)
    return Streams(
        array_2d(table, STREAMS, table),
        array_3d(table, STREAMS + 1, like),
        array_3d(table, STREAMS + 2, like),
        array_4d(table, STREAMS + 3, like),
        array_4d(table, STREAMS + 4, like),
        array_3d(table, STREAMS + 5, real),
        array_3d(table, STREAMS + 6, real),
        array_3d(table, STREAMS + 7, real),
        array_2d(table, STREAMS + 8, real),
    )


@compiled
def work_at(table: Array, like: Array) -> Work:
    """The buffers of a window."""
    return Work(
        array_1d(table, WORK, like),
        array_1d(table, WORK + 1, like),
        array_1d(table, WORK + 2, like),
        array_1d(table, WORK + 3, like),
        array_1d(table, WORK + 4, like),
        array_1d(table, WORK + 5, like),
        array_1d(table, WORK + 6, like),
        array_1d(table, WORK + 7, like),
        array_1d(table, WORK + 8, like),
        array_1d(table, WORK + 9, like),
        array_1d(table, WORK + 10, like),
    )


@compiled
def room_at(table: Array, like: Array) -> Room:
    """The buffers of a call."""
    real = table.view(np.float64)
    return Room(
        array_1d(table, ROOM, like),
        array_1d(table, ROOM + 1, like),
        array_1d(table, ROOM + 2, like),
        array_1d(table, ROOM + 3, real),
        array_1d(table, ROOM + 4, real),
        array_1d(table, ROOM + 5, real),
        array_1d(table, ROOM + 6, real),
        array_1d(table, ROOM + 7, real),
        array_1d(table, ROOM + 8, real),
        array_2d(table, ROOM + 9, real),
        array_2d(table, ROOM + 10, table),
        array_2d(table, ROOM + 11, real),
        array_2d(table, ROOM + 12, table),
        array_1d(table, ROOM + 13, table),
    )
