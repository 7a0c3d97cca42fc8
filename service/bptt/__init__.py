"""The Python SDK of the learning server: `from bptt import Client`.

Exported here: the client and its sessions, the values it returns, and the errors to catch. Names
are imported when they are first used, so that `import bptt` takes no time, and none of them
imports what only the server needs.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bptt import errors
    from bptt.client import (
        Access,
        Answer,
        BatchPrediction,
        BatchResult,
        Checkpoint,
        Client,
        Imported,
        Learned,
        LearnSession,
        Model,
        ModelSpec,
        Prediction,
        Refused,
        ServerUnreachable,
        StepsLost,
        Stream,
        UpdateReport,
    )
    from bptt.errors import (
        Aborted,
        AlreadyExists,
        DataDamaged,
        InvalidRequest,
        LimitReached,
        ModelFailed,
        NotFound,
        OutOfOrder,
        PermissionDenied,
        ServiceError,
        Unauthenticated,
        Unavailable,
        Violation,
    )

    __version__: str

__all__ = [
    "Aborted",
    "Access",
    "AlreadyExists",
    "Answer",
    "BatchPrediction",
    "BatchResult",
    "Checkpoint",
    "Client",
    "DataDamaged",
    "Imported",
    "InvalidRequest",
    "LearnSession",
    "Learned",
    "LimitReached",
    "Model",
    "ModelFailed",
    "ModelSpec",
    "NotFound",
    "OutOfOrder",
    "PermissionDenied",
    "Prediction",
    "Refused",
    "ServerUnreachable",
    "ServiceError",
    "StepsLost",
    "Stream",
    "Unauthenticated",
    "Unavailable",
    "UpdateReport",
    "Violation",
    "__version__",
    "errors",
]

_HOMES = ("bptt.errors", "bptt.client")  # the modules that define what is exported

if not TYPE_CHECKING:  # a type checker sees the imports above, and so reports a misspelt name

    def __getattr__(name: str) -> object:
        """The exported name, imported when it is first asked for (PEP 562)."""
        if name == "__version__":
            value = metadata.version("bptt")
        elif name == "errors":
            value = importlib.import_module("bptt.errors")
        elif name in __all__:
            homes = map(importlib.import_module, _HOMES)
            value = next(vars(home)[name] for home in homes if name in vars(home))
        else:
            raise AttributeError(f"module 'bptt' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """All exported names, also those that are not imported yet."""
        return sorted({*globals(), *__all__})
