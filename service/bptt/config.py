"""How a server is set up: `ServerConfig`, with every limit and the reason for its value."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args, Literal

from bptt.errors import InvalidRequest

Durability = Literal["full", "process", "none"]
"""An acknowledged step survives the machine's end, the process's end, or a clean stop only."""

MESSAGE_BYTES_MAX = 4 << 20
"""gRPC's own default, which clients in other languages have too; a million values a chunk."""

STREAM_ID_BYTES_MAX = 256
"""A name, not a payload: a million streams' names then stay below 256 MB."""

CHUNK_STEPS_MAX = 16_384
"""With k1 = 1 a chunk is answered with as many update reports, 60 bytes each: 1 MB."""

ANSWER_VALUES_MAX = 700_000
"""Predictions in one answer: 2.8 MB, so that with its update reports it stays below
MESSAGE_BYTES_MAX, the most that a client of gRPC reads by default."""

TOP_TOKENS_DEFAULT = 5
TOP_TOKENS_MAX = 100
"""Likeliest tokens that an answer names for each step: 800 bytes a step at the most."""

PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1000
"""A page of streams is then at most 270 KB."""

PAGE_BYTES_MAX = 2 << 20
"""Of a page of models, whose input names may take a megabyte each; a page has at least one."""

INPUT_NAME_BYTES_MAX = 256
"""A column's title; 4096 of them still fit one message."""

READ_AHEAD_BYTES = 1 << 20
"""What HTTP/2 takes from a call that the server does not read: bounds a waiting client's share of
memory, and is wide enough for a fast one (flow control is not probed for a wider window)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server holds at most. All bounds are inclusive."""

    models: int = 1000
    """Models. Those in memory (`models_in_memory`) have an asyncio task each and, of the default
    size, half a megabyte; of the others a definition and figures are kept."""
    streams: int = 100_000
    """Streams of one model; 4 KB each at the default size is 400 MB."""
    parameters: int = 50_000_000
    """Of one model. 200 MB a copy in float32, and there are five: parameters, gradient, two of
    Adam's moments, snapshot."""
    model_bytes: int = 2 << 30
    """Of one model with its first stream: those five copies, and the buffers of its updates, which
    hold the activations of k2 steps of `max_batch_streams` windows."""
    streams_bytes: int = 2 << 30
    """Of one model's streams, which may not be the small ones of the default size: 4,096 steps of
    4,096 inputs are 64 MB a stream. Room is made in doublings, so up to twice as much address space
    is taken, and half as much again while it is copied."""
    queue_chunks: int = 1024
    """Chunks that wait for one model: 8 MB at 8 KB a chunk. When it is full the client waits."""
    queue_bytes: int = 32 << 20
    """The same in bytes, for large chunks: eight of the largest."""
    queue_seconds: float = 30.0
    """How long a client waits for that queue, which is worked off in a second or two; then its call
    ends with an error that says when to retry."""
    call_answers: int = 1024
    """Chunks of one Learn call that are not answered yet or whose answer is not yet sent: a client
    that does not read its answers is not read from."""
    call_bytes: int = 16 << 20
    """The same in bytes of predictions, which a horizon of 64 makes 64 times as long as inputs."""
    run_chunks: int = 256
    """Chunks that the trainer takes at once. Bounds the time between two snapshots."""
    run_steps: int = 2048
    """The same in steps, for long chunks. What a run did is counted on the event loop in one go:
    2.2 ms for the 4,096 updates of 16,384 steps, measured, in which no prediction is answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the data folder keeps of each model.

    Raises:
        InvalidRequest: a field is out of its bounds; the error names it.
    """

    checkpoints: int = 3
    """Newest checkpoints: two are in reserve if the newest is damaged. The best is kept too."""
    history_bytes: int = 64 << 20
    """Of journal beyond what recovery needs, for `bptt replay`: 1.8 million steps of 8 float32 in
    chunks of 64."""
    model_bytes: int = 4 << 30
    """Of checkpoints and journal. Beyond it history goes first, then checkpoints, the oldest first
    and never the newest; the journal behind the newest stays whatever it takes."""
    open_journals: int = 128
    """Journals open at once; with three files and a commit watermark each, half of the 1,024 files
    that a process may open by default; the other half is for clients."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        for name, least in _KEPT_LEAST.items():
            if getattr(self, name) < least:
                raise InvalidRequest.of(f"kept.{name}", getattr(self, name), f"at least {least}")


_KEPT_LEAST = {"checkpoints": 1, "history_bytes": 0, "model_bytes": 1, "open_journals": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything a server needs to know.

    Raises:
        InvalidRequest: a field is out of its bounds; the error names it.
    """

    address: str = "127.0.0.1:50051"
    """Where gRPC listens, host:port. Port 0: a free one. There is no authentication: listen on
    loopback unless something in front of the server does that."""
    metrics_address: str | None = "127.0.0.1:9464"
    """Where Prometheus scrapes /metrics, host:port. Port 0: a free one. None: nowhere."""
    data: Path | None = None
    """Folder of journals and checkpoints. None: nothing is stored, and a stop forgets every
    model."""
    durability: Durability = "full"
    """What an acknowledged step survives: `full` a power cut, `process` kill -9 of the server,
    `none` only a clean stop, because no journal is written."""
    kept: Kept = field(default_factory=Kept)
    """How much of each model is kept in `data`."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Threads that learn, shared by all models: as many as cores, for kernels run without the
    interpreter's lock."""
    checkpoint_records: int = 10_000
    """A model is saved after so many ticks, and every `checkpoint_seconds` while it learns."""
    checkpoint_seconds: float = 10.0
    """Seconds between checkpoints of a model that learns. After a kill the server replays at most
    the steps that were learned in this time; without a journal it loses them."""
    gradient_flow_updates: int = 1000
    """Least updates of a model between two looks at how far its gradients reach back; 0: never.
    A look costs as much as 30 to 60 updates, and is put off where it would take more than half a
    percent of the time spent learning."""
    models_in_memory: int = 128
    """Models that stay in memory; beyond it the least recently used ones are saved and
    unloaded, and loaded again on request. The default equals `open_journals`, so a model in memory
    need not open its journal for each commit; half a megabyte each, of the default size.
    Models with an open Learn call stay; without `data` all stay."""
    grace_seconds: float = 20.0
    """Seconds a stop waits for clients that do not read answers; Kubernetes kills after 30."""
    limits: Limits = field(default_factory=Limits)
    """Bounds of what the server holds."""

    def __post_init__(self) -> None:
        """Check what can be checked without a look at the machine."""
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
