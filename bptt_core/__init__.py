"""Recurrent networks that learn from streams by truncated back-propagation through time.

Numerics only: no clock, file, thread, log or network connection. A learner's state depends on its
spec and on the steps it was fed, and on nothing else.
"""

from bptt_core import errors
from bptt_core.gradient_flow import gradient_flow, GradientFlow, spectral_radii
from bptt_core.learner import FeedResult, Learner
from bptt_core.memory import bytes_of_model, bytes_of_stream
from bptt_core.settings import Settings
from bptt_core.snapshot import Snapshot, StreamColumns, StreamView
from bptt_core.specs import ModelSpec
from bptt_core.state import memory_shape
from bptt_core.ticks import Batch, Chunk, ChunkResult, Figures, TickResult, UpdateReport

__all__ = [
    "Batch",
    "Chunk",
    "ChunkResult",
    "FeedResult",
    "Figures",
    "GradientFlow",
    "Learner",
    "ModelSpec",
    "Settings",
    "Snapshot",
    "StreamColumns",
    "StreamView",
    "TickResult",
    "UpdateReport",
    "bytes_of_model",
    "bytes_of_stream",
    "errors",
    "gradient_flow",
    "memory_shape",
    "spectral_radii",
]
