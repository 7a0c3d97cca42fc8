"""A model's definition from a network that was trained elsewhere.

A file of this service tells the whole spec. A file of another program has arrays only: their shapes
tell the sizes, and the client tells the task. Values are then fed as they are, without scaling,
because the network was trained on them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from bptt.domain import ModelDefinition
from bptt.durability import PortableModel
from bptt.errors import from_core, InvalidRequest
from bptt_core import Learner, ModelSpec, Snapshot
from bptt_core.cells import CELLS
from bptt_core.errors import InvalidArgument
from bptt_core.specs import EARLIER

Array = NDArray[Any]

_RECURRENT = re.compile(r"(?P<prefix>.*?)(?P<name>(?:weight|bias)_(?:ih|hh)_l\d+)")
_WANTED = "weight_ih_l0, weight_hh_l0, bias_ih_l0 and bias_hh_l0 of each layer, as nn.RNN, nn.LSTM "
_WANTED += "and nn.GRU name them, and weight and bias of one linear layer"


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """Parameters under the names that the core takes, and what was understood."""

    parameters: Mapping[str, Array]
    notes: tuple[str, ...]
    """One line for each thing that the file does not tell and that was assumed; for people."""


def renamed(parameters: Mapping[str, Array]) -> Network:
    """Name the arrays of one recurrent module and one linear layer as the core does.

    Raises:
        InvalidRequest: there are others, or some are missing.
    """
    found = {name: _RECURRENT.fullmatch(name) for name in parameters}
    modules = {match["prefix"] for match in found.values() if match}
    if len(modules) != 1:
        value = f"{len(modules)} recurrent modules" if modules else "no recurrent module"
        names = ", ".join(sorted(parameters)[:4]) or "no arrays"
        raise InvalidRequest.of("data", f"{value} ({names})", _WANTED)
    others = [name for name, match in found.items() if not match]
    heads = {name.rpartition(".")[0] for name in others}
    if len(heads) != 1 or {name.rpartition(".")[2] for name in others} != {"weight", "bias"}:
        value = ", ".join(sorted(others)[:4]) or "no linear layer"
        raise InvalidRequest.of("data", f"{value} beside the recurrent module", _WANTED)
    [module], [head] = modules, heads
    arrays = {
        f"rnn.{match['name']}" if match else f"head.{name.rpartition('.')[2]}": parameters[name]
        for name, match in found.items()
    }
    if (module, head) == ("rnn.", "head"):
        return Network(arrays, ())
    told = f"{module or 'the arrays without a prefix'} read as the recurrent layers"
    return Network(arrays, (f"{told}, {head or 'weight and bias'} as the linear layer",))


def values_of(model: PortableModel, network: Network, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the spec: those that the client gives, then what the file tells.

    Raises:
        InvalidRequest: the file does not tell the task, or its arrays have shapes that no network
            of this service has.
    """
    if model.spec:
        return EARLIER | dict(model.spec) | dict(given)
    if "task" not in given:
        tasks = "regression, classification or next_token"
        raise InvalidRequest.of(
            "spec.task", "left out", f"given, {tasks}: the file holds arrays only"
        )
    return _from_shapes(network.parameters, given) | {"scaling": False} | dict(given)


def assumed(model: PortableModel, spec: ModelSpec, given: Mapping[str, Any]) -> list[str]:
    """What a model was given that its file does not tell; for people."""
    if model.spec:
        return []
    notes = []
    if "cell" not in given and spec.cell.startswith("rnn"):
        notes.append(f"cell {spec.cell}: the file does not tell whether it is tanh or relu")
    if "scaling" not in given:
        notes.append("scaling off: inputs and targets are fed as they are")
    return notes


def _from_shapes(arrays: Mapping[str, Array], given: Mapping[str, Any]) -> dict[str, Any]:
    layers = len([name for name in arrays if name.startswith("rnn.weight_hh_l")])
    recurrent, inputs = _matrix(arrays, "rnn.weight_hh_l0"), _matrix(arrays, "rnn.weight_ih_l0")
    rows, hidden = recurrent.shape
    cells = [name for name, cell in CELLS.items() if len(cell.gates) * hidden == rows]
    if not cells:
        bound = "(H, H) of an RNN, (3H, H) of a GRU or (4H, H) of an LSTM"
        raise InvalidRequest.of("data", f"rnn.weight_hh_l0 of shape {recurrent.shape}", bound)
    values: dict[str, Any] = {"hidden_size": hidden, "layers": layers, "cell": cells[0]}
    outputs = _matrix(arrays, "head.weight").shape[0]
    if given["task"] == "next_token":
        return values | {"vocabulary_size": outputs}
    values["input_size"] = inputs.shape[1]
    if given["task"] != "forecast":
        values["output_size"] = outputs
    return values


def _matrix(arrays: Mapping[str, Array], name: str) -> Array:
    array = arrays.get(name)
    if array is None or array.ndim != 2:
        value = "missing" if array is None else f"of shape {array.shape}"
        raise InvalidRequest.of("data", f"{name} {value}", "a matrix")
    return array


def loader(model: PortableModel, network: Network) -> Callable[[Learner], None]:
    """What puts a network into a new learner.

    It raises InvalidRequest where the network does not fit the learner's spec.
    """

    def load(learner: Learner) -> None:
        try:
            learner.load_parameters(network.parameters)
            if model.statistics:
                learner.load_statistics(model.statistics)
        except InvalidArgument as error:
            raise from_core(error, prefix="data.") from error

    return load


def exported(definition: ModelDefinition, snapshot: Snapshot) -> PortableModel:
    """The network of a model as of a snapshot."""
    return PortableModel(
        snapshot.parameters(),
        definition.spec.to_dict(),
        definition.input_names,
        definition.target_names,
        snapshot.statistics(),
    )
