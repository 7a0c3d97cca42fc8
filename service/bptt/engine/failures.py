"""The interface between a failed trainer and the supervisor that recovers it."""

from __future__ import annotations

from typing import Protocol

from bptt.engine.lifecycle import Lifecycle
from bptt.errors import ModelFailed, ServiceError


class Supervisor(Protocol):
    """Recovers failed models."""

    def failed(self, model_id: str, lifecycle: Lifecycle, doing: str) -> ServiceError:
        """Handle the end of a model's worker.

        Args:
            model_id: the model's name.
            lifecycle: the model's lifecycle, in the state in which the worker ended.
            doing: the worker's activity in one word.

        Returns:
            The error for requests until the model is recovered, or for good.
        """


class Unsupervised:
    """Leaves failed models FAILED."""

    def failed(self, model_id: str, lifecycle: Lifecycle, doing: str) -> ServiceError:
        """See `Supervisor`."""
        return failed_for_good(model_id)


def failed_for_good(model_id: str) -> ModelFailed:
    """The error of a model that is not recovered automatically."""
    return ModelFailed(
        f"model {model_id} stopped learning after an internal error; "
        "a restart of the server brings it back as it was before that"
    )
