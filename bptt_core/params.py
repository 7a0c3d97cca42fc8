"""Parameters: one flat vector, with views under PyTorch's names and in its layout.

Clip, norm, optimizer, snapshot and checkpoint are each one pass over the one vector. The order is
PyTorch's own: for each layer `rnn.weight_ih_l`, `rnn.weight_hh_l`, `rnn.bias_ih_l`,
`rnn.bias_hh_l`, then
    `head.weight`, `head.bias`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt_core.cells import CELLS, Layer
from bptt_core.errors import InvalidArgument, NonFiniteError, ShapeError
from bptt_core.layout import check_floats, check_layout
from bptt_core.specs import ModelSpec

Array = NDArray[Any]
Views = dict[str, Array]


def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the flat vector."""
    rows = spec.gates * spec.hidden_size
    result: dict[str, tuple[int, ...]] = {}
    for layer in range(spec.layers):
        inputs = spec.network_inputs if layer == 0 else spec.hidden_size
        result[f"rnn.weight_ih_l{layer}"] = (rows, inputs)
        result[f"rnn.weight_hh_l{layer}"] = (rows, spec.hidden_size)
        result[f"rnn.bias_ih_l{layer}"] = (rows,)
        result[f"rnn.bias_hh_l{layer}"] = (rows,)
    result["head.weight"] = (spec.outputs, spec.hidden_size)
    result["head.bias"] = (spec.outputs,)
    return result


def count(spec: ModelSpec) -> int:
    """P, the length of the flat vector."""
    return sum(int(np.prod(shape)) for shape in shapes(spec).values())


def layer_ends(spec: ModelSpec) -> list[int]:
    """End index of each layer's parameters, and then of the head's, in the flat vector."""
    sizes: dict[str, int] = {}
    for name, shape in shapes(spec).items():
        part = name.rpartition("_")[2] if name.startswith("rnn.") else "head"
        sizes[part] = sizes.get(part, 0) + int(np.prod(shape))
    return [int(end) for end in np.cumsum(list(sizes.values()))]


def views(spec: ModelSpec, vector: Array) -> Views:
    """Named views into a flat vector (P,): writing to one writes to the vector."""
    result: Views = {}
    start = 0
    for name, shape in shapes(spec).items():
        stop = start + int(np.prod(shape))
        if spec.vocabulary_size and name == "rnn.weight_ih_l0":
            # Stored token by token, so that the numbers of one token are contiguous.
            result[name] = vector[start:stop].reshape(shape[::-1]).T
        else:
            result[name] = vector[start:stop].reshape(shape)
        start = stop
    if start != vector.size:
        raise ShapeError("vector", str(vector.shape), f"({start},)")
    return result


def layer(named: Views, index: int) -> Layer:
    """Views of one layer in the letters of its equations."""
    return Layer(
        named[f"rnn.weight_ih_l{index}"],
        named[f"rnn.weight_hh_l{index}"],
        named[f"rnn.bias_ih_l{index}"],
        named[f"rnn.bias_hh_l{index}"],
    )


def initialise(spec: ModelSpec) -> Array:
    """A fresh flat vector (P,) from the spec's seed.

    The cell fills each layer. The head has PyTorch's uniform(-1/√H, 1/√H), but the head of a
    forecast starts at zero: its first predictions then repeat the last value, the naive forecast.
    """
    vector: Array = np.empty(count(spec), dtype=spec.dtype)
    named = views(spec, vector)
    random = np.random.Generator(np.random.PCG64(spec.seed))
    for index in range(spec.layers):
        CELLS[spec.cell].initialise(layer(named, index), random)
    bound = 0.0 if spec.task == "forecast" else spec.hidden_size**-0.5
    for view in (named["head.weight"], named["head.bias"]):
        view[:] = random.uniform(-bound, bound, view.shape)
    return vector


def load(spec: ModelSpec, vector: Array, source: Mapping[str, Array]) -> None:
    """Copy arrays under PyTorch's names into a flat vector (P,), all or nothing.

    Raises:
        InvalidArgument: a name is missing or unknown.
        ShapeError: an array's shape is not the one of the spec.
        DtypeError: an array is neither float32 nor float64.
        LayoutError: an array is strided or read-only.
        NonFiniteError: an array holds NaN or infinity.
    """
    expected = shapes(spec)
    for name in source:
        if name not in expected:
            raise InvalidArgument(name, "given", "one of " + ", ".join(expected))
    for name, shape in expected.items():
        if name not in source:
            raise InvalidArgument(name, "missing", f"an array of shape {shape}")
        array = np.asarray(source[name])
        check_floats(name, array)
        if array.shape != shape:
            raise ShapeError(name, f"of shape {array.shape}", f"of shape {shape}")
        check_layout(name, array)
        if not np.isfinite(array).all():
            raise NonFiniteError(name, "not finite", "finite numbers")
    for name, view in views(spec, vector).items():
        view[:] = source[name]
