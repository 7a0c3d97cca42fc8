"""An asyncio client: `Client.connect(address)`, NumPy arrays in and out, errors that say why."""

from service.client.client import Client
from service.client.errors import ServerUnreachable, StepsLost
from service.client.session import LearnSession
from service.client.types import (
    Answer,
    Checkpoint,
    Learned,
    Model,
    ModelSpec,
    Prediction,
    Refused,
    Stream,
    UpdateReport,
)

__all__ = [
    "Answer",
    "Checkpoint",
    "Client",
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
