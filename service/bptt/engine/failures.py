"""The interface between a worker that has failed and the supervisor that recovers its model."""

from __future__ import annotations

from typing import Protocol

from bptt.engine.lifecycle import Lifecycle
from bptt.errors import ModelFailed, ServiceError


class Supervisor(Protocol):
    """Recovers failed models."""

    def failed(self, model_id: str, lifecycle: Lifecycle, doing: str) -> ServiceError:
        """Handle the failure of a model's worker.

        Args:
            model_id: the model.
            lifecycle: of the model, in the state in which its worker ended.
            doing: the activity that failed, in one word.

        Returns:
            The error for requests until the model is recovered, or for good.
        """


class Unsupervised:
    """Leaves a model FAILED and does not recover it."""

    def failed(self, model_id: str, lifecycle: Lifecycle, doing: str) -> ServiceError:
        """See `Supervisor`."""
        return failed_for_good(model_id)


def failed_for_good(model_id: str) -> ModelFailed:
    """The error of a model that is not recovered automatically."""
    return ModelFailed(
        f"model {model_id} stopped learning after an internal error; "
        "a restart of the server recovers it as it was before the error"
    )
