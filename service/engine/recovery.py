"""From a learner to a checkpoint, and back to a learner that goes on where it was."""

from __future__ import annotations

from dataclasses import dataclass

from bptt_core import Learner
from bptt_core.errors import BpttError
from service.domain import ModelDefinition
from service.durability import Checkpoint, Store
from service.errors import DataDamaged, InvalidRequest


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """A model as its newest checkpoint has it."""

    definition: ModelDefinition
    learner: Learner
    ticks: int


def make_checkpoint(definition: ModelDefinition, learner: Learner, ticks: int) -> Checkpoint:
    """All of a model that a restart needs."""
    arrays, metadata = learner.state()
    named = {
        "learner": metadata,
        "input_names": list(definition.input_names),
        "target_names": list(definition.target_names),
    }
    return Checkpoint(definition.model_id, ticks, arrays, named)


def recover(store: Store, model_id: str) -> Recovered:
    """Read back a model's newest checkpoint, and make its learner ready. Takes time: use a thread.

    Raises:
        DataDamaged: it cannot be read back, or is of another version.
    """
    checkpoint = store.load(model_id, store.checkpoints(model_id)[-1].ticks)
    try:
        learner = Learner.from_state(checkpoint.arrays, checkpoint.metadata["learner"])
        names = tuple(checkpoint.metadata["input_names"])
        target_names = tuple(checkpoint.metadata.get("target_names", ()))  # older ones have none
        definition = ModelDefinition(model_id, learner.spec, names, target_names)
    except (BpttError, InvalidRequest, KeyError, TypeError) as error:
        which = f"the checkpoint of model {model_id} after {checkpoint.ticks} ticks"
        raise DataDamaged(f"{which} does not fit: {error}") from error
    learner.warm_up()
    return Recovered(definition, learner, checkpoint.ticks)
