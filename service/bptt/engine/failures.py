"""What happens to a model whose worker has ended: the seam to whoever brings it back."""

from __future__ import annotations

from typing import Protocol

from bptt.engine.lifecycle import Lifecycle
from bptt.errors import ModelFailed, ServiceError


class Supervisor(Protocol):
    """Brings failed models back."""

    def failed(self, model_id: str, lifecycle: Lifecycle, doing: str) -> ServiceError:
        """The worker of a model has ended.

        Args:
            model_id: the model.
            lifecycle: of the model, in the state in which its worker ended.
            doing: what the worker did, in one word.

        Returns:
            The error for requests until the model is back, or for good.
        """


class Unsupervised:
    """Leaves a model FAILED: nobody brings it back."""

    def failed(self, model_id: str, lifecycle: Lifecycle, doing: str) -> ServiceError:
        """See `Supervisor`."""
        return failed_for_good(model_id)


def failed_for_good(model_id: str) -> ModelFailed:
    """The error of a model that is not brought back by itself."""
    return ModelFailed(
        f"model {model_id} stopped learning after an internal error; "
        "a restart of the server brings it back as it was before that"
    )
