"""The configuration of a server: `ServerConfig`, with every limit and the reason for its value."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args, Literal

from bptt.errors import InvalidRequest

Durability = Literal["full", "process", "none"]
"""What an acknowledged step survives: `full`, a crash of the machine; `process`, a crash of the
process; `none`, only a clean stop."""

MESSAGE_BYTES_MAX = 4 << 20
"""gRPC's default, also in other languages' clients. Holds a chunk of a million float32 values."""

STREAM_ID_BYTES_MAX = 256
"""The names of a million streams then take at most 256 MB."""

CHUNK_STEPS_MAX = 16_384
"""With k1 = 1 the answer has an update report of 60 bytes for each step: 1 MB."""

BATCH_CHUNKS_MAX = 16_384
"""Chunks in one batch, some of which may have no steps. If all of them are refused, the answer is
4 MB at 250 bytes each."""

LANES_MAX = 1 << 17
"""Lanes of one Learn call: the names of so many streams take at most 32 MB."""

ANSWER_VALUES_MAX = 700_000
"""Predicted values in one answer: 2.8 MB; half as many as doubles. With its update reports an
answer then stays below MESSAGE_BYTES_MAX, which is also the default limit of gRPC clients."""

TOP_TOKENS_DEFAULT = 5
TOP_TOKENS_MAX = 100
"""Likeliest tokens in an answer for each step: at most 800 bytes a step."""

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1000
"""A page of streams is then at most 270 KB."""

PAGE_BYTES_MAX = 2 << 20
"""Size of a page of models, whose input names may take a megabyte each; a page has at least one
model."""

INPUT_NAME_BYTES_MAX = 256
"""4,096 input names of this length fit one message."""

READ_AHEAD_BYTES = 1 << 20
"""HTTP/2 window of a call: the bytes buffered while the server does not read it. Bounds the memory
of a waiting client and does not slow down a fast one. gRPC does not probe for a larger window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds of one server. All are inclusive."""

    models: int = 1000
    """Models. A model in memory (see `models_in_memory`) has an asyncio task and, at the default
    size, takes half a megabyte; of other models only the definition and figures stay in memory."""
    streams: int = 100_000
    """Streams of one model; 4 KB each at the default size is 400 MB."""
    parameters: int = 50_000_000
    """Parameters of one model. A float32 copy takes 200 MB, and there are five: parameters,
    gradient, Adam's two moments, snapshot."""
    model_bytes: int = 2 << 30
    """Memory of one model with its first stream: the five copies, and the buffers of its updates,
    which hold the activations of k2 steps of `max_batch_streams` windows."""
    streams_bytes: int = 2 << 30
    """Memory of one model's streams. A stream may be large: 4,096 steps of 4,096 inputs take 64 MB.
    Arrays grow by doubling, so they reserve up to twice this bound, and three times while they are
    copied."""
    queue_chunks: int = 1024
    """Chunks in the queue of one model: 8 MB at 8 KB a chunk. A full queue makes clients wait."""
    queue_bytes: int = 32 << 20
    """Bytes in the queue of one model: eight chunks of the largest size."""
    queue_seconds: float = 30.0
    """How long a client waits for room in that queue, which usually empties in one or two seconds.
    After that its call ends with an error that says when to retry."""
    call_answers: int = 1024
    """Chunks of one Learn call without a sent answer. Beyond it the server stops reading the call
    until the client reads its answers."""
    call_bytes: int = 16 << 20
    """Bytes of predictions in those answers: a horizon of 64 makes them 64 times as long as the
    inputs."""
    run_chunks: int = 256
    """Chunks in one run of the trainer, from which on no further tick is added to it. Bounds the
    time between two snapshots."""
    run_steps: int = 2048
    """Steps in one run, likewise. The event loop counts a run's updates without a pause, and
    answers no prediction meanwhile. Measured: 2.2 ms for the 4,096 updates of 16,384 steps."""
    tick_chunks: int = 16_384
    """Streams in one tick: the lanes of a message are learned together. A model whose buffers for
    so many streams exceed `model_bytes` has smaller ticks. Admitting and publishing so many takes
    the event loop some 10 ms."""
    tick_steps: int = 16_384
    """Steps from which on no further stream is added to a tick."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the data folder keeps for each model.

    Raises:
        InvalidRequest: a field is out of its bounds; the error names it.
    """

    checkpoints: int = 3
    """Newest checkpoints: the default leaves two to fall back to if the newest is damaged. The best
    checkpoint is kept as well."""
    history_bytes: int = 64 << 20
    """Journal bytes beyond what recovery needs, for `bptt replay`: the default holds 1.8 million
    steps of 8 float32 values in chunks of 64."""
    model_bytes: int = 4 << 30
    """Bytes of checkpoints and journal. Beyond it, history is deleted first, then checkpoints from
    the oldest on. The newest checkpoint and the journal after it always stay."""
    open_journals: int = 128
    """Journals open at one time. Each takes three files and one for its commit watermark, so they
    use half of the 1,024 files that a process may open by default; the other half is for
    clients."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        for name, least in _KEPT_LEAST.items():
            if getattr(self, name) < least:
                raise InvalidRequest.of(f"kept.{name}", getattr(self, name), f"at least {least}")


_KEPT_LEAST = {"checkpoints": 1, "history_bytes": 0, "model_bytes": 1, "open_journals": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """All settings of a server.

    Raises:
        InvalidRequest: a field is out of its bounds; the error names it.
    """

    address: str = "127.0.0.1:50051"
    """Where gRPC listens, host:port. Port 0: a free one. There is no authentication: listen on
    loopback unless a proxy in front of the server authenticates clients."""
    metrics_address: str | None = "127.0.0.1:9464"
    """Where Prometheus scrapes /metrics, host:port. Port 0: a free one. None: metrics are not
    served."""
    data: Path | None = None
    """Folder of journals and checkpoints. None: nothing is stored, and models are lost when the
    server stops."""
    durability: Durability = "full"
    """See `Durability`. `none` writes no journal."""
    kept: Kept = field(default_factory=Kept)
    """How much of each model is kept in `data`."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Threads that learn, shared by all models. As many as cores, because kernels run without the
    GIL."""
    checkpoint_records: int = 10_000
    """A checkpoint is written after this many records, and every `checkpoint_seconds` of
    learning."""
    checkpoint_seconds: float = 10.0
    """A killed server replays at most what it learned in this time, which takes no longer than
    learning it did. Without a journal this is what it loses."""
    gradient_flow_updates: int = 1000
    """Minimum updates of a model between two measurements of its gradient flow; 0: never. One
    measurement costs as much as 30 to 60 updates; it is postponed until it takes at most half a
    percent of the learning time."""
    models_in_memory: int = 128
    """Models in memory. Beyond it the least recently used models are saved and leave memory; a
    request brings them back. The default equals the number of open journals, so that a model in
    memory need not open its journal for each commit. A model of the default size takes half a
    megabyte. Models with an open Learn call stay in memory; without `data` all models stay."""
    grace_seconds: float = 20.0
    """How long a stop waits for clients that do not read their answers. Kubernetes kills after 30
    s."""
    limits: Limits = field(default_factory=Limits)
    """Upper bounds of the server."""

    def __post_init__(self) -> None:
        """Check the bounds that do not depend on the machine."""
        split_address("address", self.address)
        if self.metrics_address is not None:
            split_address("metrics_address", self.metrics_address)
        if self.durability not in get_args(Durability):
            choices = ", ".join(get_args(Durability))
            raise InvalidRequest.of("durability", self.durability, f"one of {choices}")
        for name in ("threads", "checkpoint_records", "models_in_memory"):
            value = getattr(self, name)
            if value < 1:
                raise InvalidRequest.of(name, value, "at least 1")
        if self.gradient_flow_updates < 0:
            raise InvalidRequest.of(
                "gradient_flow_updates", self.gradient_flow_updates, "0, for never, or more"
            )
        for name in ("checkpoint_seconds", "grace_seconds"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InvalidRequest.of(name, value, "a finite number > 0")


def split_address(field_name: str, address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host stands in brackets.

    Raises:
        InvalidRequest: it is not an address; the error names `field_name`.
    """
    host, colon, port = address.rpartition(":")
    bound = "host:port, with a port from 0 to 65535"
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise InvalidRequest.of(field_name, address or "empty", bound)
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InvalidRequest.of(field_name, address, bound + " and an IPv6 host in brackets")
    return host.strip("[]"), int(port)
