"""A network as a safetensors file: parameters under PyTorch's names, all else as metadata.

`torch.nn.Module.load_state_dict(safetensors.torch.load_file(path), strict=True)` takes such a file
for a module whose recurrent layers are called `rnn` and whose linear layer is called `head`. The
metadata `bptt`, JSON, is of this service: the spec, the names of inputs and targets, and the
statistics that scale values.

A file is read as hostile: nothing in it is run, and its sizes are bounded by its length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bptt.durability.checkpoints import laid_out
from bptt.durability.store import UNREADABLE

Array = NDArray[Any]

FORMAT = "bptt model 1"


@dataclass(frozen=True, slots=True, eq=False)
class PortableModel:
    """A network outside any server."""

    parameters: Mapping[str, Array]
    """By the names in the file. An export has PyTorch's: `rnn.weight_ih_l0` to `head.bias`."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the `ModelSpec`; empty: another program wrote the file."""
    input_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    statistics: Mapping[str, Array] = field(default_factory=dict)
    """See `Learner.load_statistics`; empty: none."""


def encode(model: PortableModel) -> bytes:
    """The file of a network."""
    own = {
        "format": FORMAT,
        "spec": dict(model.spec),
        "input_names": list(model.input_names),
        "target_names": list(model.target_names),
        "statistics": {name: array.tolist() for name, array in model.statistics.items()},
    }
    start, arrays = laid_out(model.parameters, {"format": "pt", "bptt": json.dumps(own)})
    return b"".join((start, *(array.tobytes() for array in arrays)))


def decode(data: bytes) -> PortableModel:
    """The network of a file.

    Raises:
        ValueError: the bytes are not such a file; the error says why.
    """
    import safetensors.numpy  # of the server's extra

    try:
        parameters = safetensors.numpy.load(data)
        own = _own(data)
        statistics = {
            str(name): np.asarray(rows, np.float64)
            for name, rows in (own["statistics"] if own else {}).items()
        }
    except KeyError as error:  # a type that NumPy does not have
        raise ValueError(f"arrays of type {error} cannot be read; save them as F32") from error
    except (safetensors.SafetensorError, *UNREADABLE) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    parameters = {name: _as_float(array) for name, array in parameters.items()}
    if own is None:
        return PortableModel(parameters)
    return PortableModel(
        parameters,
        own["spec"],
        tuple(own["input_names"]),
        tuple(own["target_names"]),
        statistics,
    )


def _own(data: bytes) -> dict[str, Any] | None:
    """The service's own metadata; None in a file of another program."""
    size = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + size]).get("__metadata__", {}).get("bptt")
    if text is None:
        return None
    own = json.loads(text)
    if not isinstance(own, dict) or own.get("format") != FORMAT:
        raise ValueError(f"its metadata 'bptt' are not of the format {FORMAT!r}")
    forms = {"spec": dict, "statistics": dict, "input_names": list, "target_names": list}
    for name, form in forms.items():
        if not isinstance(own.get(name), form):
            raise ValueError(f"{name} in its metadata 'bptt' has another form")
    return own


def _as_float(array: Array) -> Array:
    """Half precision as float32, other arrays as they are; own memory."""
    kind = np.dtype(np.float32) if array.dtype == np.float16 else array.dtype
    return np.array(array, kind, order="C")
