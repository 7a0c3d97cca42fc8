"""Memory of a model and its streams, computed from the spec before anything is allocated.

Activations dominate: an update keeps those of every step of all its windows. 4,096 steps of 64
streams with 2,048 units in 5 layers take 34 GiB.
"""

from __future__ import annotations

import math

import numpy as np

from bptt_core import params
from bptt_core.cells import CELLS
from bptt_core.specs import ModelSpec
from bptt_core.state import model_shapes, stream_shapes

TILE = 64
"""Streams whose windows the compiled backend unfolds at a time. The gradients of an update's tiles
are added up in a fixed order. Measured at H = 64 with 1,000 streams an update: the activations of
32 steps of 64 streams stay in the processor's second cache, those of more do not."""
TURNED_MOST = 1 << 16  # numbers in W up to which products with Wᵀ gain from a transposed copy


def bytes_of_model(spec: ModelSpec, tick_streams: int | None = None) -> int:
    """Bytes of a model that learns with the compiled backend, without its streams.

    Counted: parameters, the optimizer's moments, statistics, the copy of the parameters that
    predictions read, and the buffers of an update. Not counted: the steps of the current call, and
    the steps that a prediction reads first.

    Args:
        spec: the model's.
        tick_streams: the largest number of streams in one tick. None: `max_batch_streams`, the
            limit of one update.
    """
    streams = spec.max_batch_streams if tick_streams is None else tick_streams
    size = np.dtype(spec.dtype).itemsize
    kept = sum(_bytes(*shape) for shape in model_shapes(spec).values())
    return kept + size * (params.count(spec) + sum(work_lengths(spec, streams).values()))


def bytes_of_stream(spec: ModelSpec) -> int:
    """Bytes of one stream, idle or not. The table of streams doubles its capacity when full."""
    return sum(_bytes(*shape) for shape in stream_shapes(spec).values())


def work_lengths(spec: ModelSpec, streams: int) -> dict[str, int]:
    """Length of each buffer of `kernels.sizes.Work` for ticks of up to `streams` streams.

    An update unfolds the windows of one tile, and the steps after them. Steps that are only read
    are read up to the next update of any stream.
    """
    steps = max(spec.k2, spec.k1 + spec.delay)
    return window_lengths(spec, steps, min(streams, TILE))


def window_lengths(
    spec: ModelSpec, steps: int, streams: int, *, backward: bool = True
) -> dict[str, int]:
    """Length of each buffer of `kernels.sizes.Work` for windows of these steps and streams.

    Without `backward` the buffers hold a forward pass only.
    """
    rows, H, GH = steps * streams, spec.hidden_size, spec.gates * spec.hidden_size
    back = rows if backward else 0
    return {
        "inputs": rows * spec.features,
        "states": spec.layers * spec.state_parts * (steps + 1) * streams * H,
        "tape": spec.layers * rows * GH,
        "extra": spec.layers * (steps + 3) * streams * H,
        "output": rows * spec.outputs,
        "target": back * spec.target_width,
        "dh": back * H,
        "da": back * GH,
        "dw": back * GH if CELLS[spec.cell].separate_hidden_bias else 0,
        "bias": GH,
        "turned": GH * H if GH * H <= TURNED_MOST else 0,
        "gradient": params.count(spec) if backward else 0,
    }


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
