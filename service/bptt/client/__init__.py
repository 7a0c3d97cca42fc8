"""The asyncio client: `Client.connect(address)`."""

from bptt.client.access import Access
from bptt.client.client import Client
from bptt.client.errors import ServerUnreachable, StepsLost
from bptt.client.session import LearnSession
from bptt.client.types import (
    Answer,
    BatchPrediction,
    BatchResult,
    Checkpoint,
    Imported,
    Learned,
    Model,
    ModelSpec,
    Prediction,
    Refused,
    Stream,
    UpdateReport,
)

__all__ = [
    "Access",
    "Answer",
    "BatchPrediction",
    "BatchResult",
    "Checkpoint",
    "Client",
    "Imported",
    "LearnSession",
    "Learned",
    "Model",
    "ModelSpec",
    "Prediction",
    "Refused",
    "ServerUnreachable",
    "StepsLost",
    "Stream",
    "UpdateReport",
]
