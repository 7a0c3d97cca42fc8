"""The configuration of a server: `ServerConfig`, with every limit and the reason for its value.

Each field is declared by `setting`, with its bounds and a line for operators. The command line
derives a flag, a variable and a key of `bptt.toml` from each, and the checks read the same bounds.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints, Literal, TypeVar

from bptt.errors import InvalidRequest

Durability = Literal["full", "process", "none"]
"""What an acknowledged step survives: `full`, a crash of the machine; `process`, a crash of the
process; `none`, only a clean stop."""

Reflection = Literal["everybody", "callers", "nobody"]
"""Who may use gRPC's reflection: `callers` are those that the server knows."""

MetricsDetail = Literal["full", "model", "server"]
"""What /metrics shows: `full`, everything; `model`, no buckets of the models' histograms and no
gradient flow by lag; `server`, nothing of single models."""

PageChoice = Literal["auto", "on", "off"]
"""Whether HTTP serves the page for people: `auto`, if it listens on loopback."""
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
LogCalls = Literal["none", "sessions", "all"]
"""Which calls are logged: `sessions`, the beginning and end of `Learn` calls; `all`, also the end
of every other call."""

MESSAGE_BYTES_MAX = 4 << 20
"""Bytes of an answer, and by default of a request: gRPC's default, also in other languages'
clients. Holds a chunk of a million float32 values."""

STREAM_ID_BYTES_MAX = 256
"""The names of a million streams then take at most 256 MB."""

SOURCE_POSITION_BYTES_MAX = 256  # kept in memory and in the checkpoint for each stream

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

_CHOICES = {
    "durability": Durability,
    "reflection": Reflection,
    "metrics_detail": MetricsDetail,
    "page": PageChoice,
    "log_level": LogLevel,
    "log_format": LogFormat,
    "log_calls": LogCalls,
}
"""Fields of `ServerConfig` with a fixed set of values."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """What an operator has to know of a field, and its bounds."""

    help: str
    """One sentence for `bptt serve --help`."""
    least: float | None = None
    """The lowest value; None: there is no such bound."""
    most: float | None = None
    """The highest value; None: there is no such bound."""
    positive: bool = False
    """True: a finite number above 0."""

    @property
    def bound(self) -> str:
        """The bounds in words; empty without any."""
        if self.positive:
            return "a finite number > 0"
        if self.most is not None:
            return f"from {self.least} to {self.most}"
        return "" if self.least is None else f"at least {self.least}"

    def allows(self, value: float) -> bool:
        """Return whether a number is within the bounds; NaN never is."""
        if self.positive:
            return 0 < value < float("inf")
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )


def setting(
    default: T,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    positive: bool = False,
) -> T:
    """Return the definition of a dataclass's field that an operator can set.

    Args:
        default: the default value.
        text: `Setting.help`.
        least: the lowest value.
        most: the highest value; needs `least`.
        positive: only finite numbers above 0 are allowed.
    """
    return field(default=default, metadata={"setting": Setting(text, least, most, positive)})


def _check_bounds(section: str, values: Any) -> None:
    for each in fields(values):
        found: Setting | None = each.metadata.get("setting")
        value = getattr(values, each.name)
        if found is not None and found.bound and not found.allows(value):
            raise InvalidRequest.of(section + each.name, value, found.bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds of one server. All are inclusive.

    Raises:
        InvalidRequest: a field is out of its bounds; the error names it.
    """

    models: int = setting(1000, "Number of models.", least=1)
    """A model in memory (see `models_in_memory`) has an asyncio task and, at the default size,
    takes half a megabyte; of other models only the definition and figures stay in memory."""
    streams: int = setting(100_000, "Number of streams of one model.", least=1)
    """4 KB each at the default size is 400 MB."""
    parameters: int = setting(50_000_000, "Number of parameters of one model.", least=1)
    """A float32 copy takes 200 MB, and there are five: parameters, gradient, Adam's two moments,
    snapshot."""
    model_bytes: int = setting(
        2 << 30, "Bytes of memory of one model with its first stream.", least=1
    )
    """The five copies, and the buffers of its updates, which hold the activations of k2 steps of 64
    windows at a time."""
    streams_bytes: int = setting(2 << 30, "Bytes of memory of one model's streams.", least=1)
    """A stream may be large: 4,096 steps of 4,096 inputs take 64 MB. Arrays grow by doubling, so
    they reserve up to twice this bound, and three times while they are copied."""
    message_bytes: int = setting(
        MESSAGE_BYTES_MAX,
        "Bytes of one message from a client; the SDK cuts larger chunks.",
        least=64 << 10,
        most=64 << 20,
    )
    """gRPC's default. A smaller one bounds what a client can make the server parse at once; the
    SDK's own limit for what it receives is the upper bound here. Answers stay below
    MESSAGE_BYTES_MAX whatever this is, because a chunk's steps are bounded as well."""
    chunk_steps: int = setting(
        CHUNK_STEPS_MAX,
        "Steps of one chunk; the SDK cuts longer chunks.",
        least=1,
        most=CHUNK_STEPS_MAX,
    )
    """See CHUNK_STEPS_MAX."""
    answer_values: int = setting(
        ANSWER_VALUES_MAX,
        "Predicted values in one answer; the SDK cuts chunks whose answer has more.",
        least=1,
        most=ANSWER_VALUES_MAX,
    )
    """See ANSWER_VALUES_MAX. A chunk of one step is taken in any case."""
    queue_chunks: int = setting(1024, "Chunks in the queue of one model.", least=1)
    """8 MB at 8 KB a chunk. A full queue makes clients wait."""
    queue_bytes: int = setting(32 << 20, "Bytes in the queue of one model.", least=1)
    """Eight chunks of the largest size."""
    queue_seconds: float = setting(
        30.0, "Seconds that a client waits for room in that queue.", positive=True
    )
    """The queue usually empties in one or two seconds. After this time the client's call ends with
    an error that says when to retry."""
    call_answers: int = setting(
        1024, "Chunks of one Learn call without a sent answer; beyond it no more are read.", least=1
    )
    """The server reads the call again once the client reads its answers."""
    call_bytes: int = setting(
        16 << 20, "Bytes of predictions in those answers; beyond it no more are read.", least=1
    )
    """A horizon of 64 makes predictions 64 times as long as the inputs."""
    run_chunks: int = setting(256, "Chunks that a model learns in one run.", least=1)
    """No further tick is added to a run from so many on. Bounds the time between two snapshots."""
    run_steps: int = setting(2048, "Steps that a model learns in one run.", least=1)
    """Likewise. The event loop counts a run's updates without a pause, and answers no prediction
    meanwhile. Measured: 2.2 ms for the 4,096 updates of 16,384 steps."""
    tick_chunks: int = setting(16_384, "Streams that a model learns in one tick.", least=1)
    """The lanes of a message are learned together. A model whose buffers for so many streams exceed
    `model_bytes` has smaller ticks. Admitting and publishing so many takes the event loop 10 ms."""
    tick_steps: int = setting(16_384, "Steps from which on no stream is added to a tick.", least=1)
    """Bounds the time of one tick."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _check_bounds("limits.", self)

    def steps_of_chunk(self, outputs: int, *, doubles: bool = False) -> int:
        """The most steps in a chunk whose answer has `outputs` values for each step.

        Args:
            outputs: number of predicted values a step.
            doubles: the answer has doubles, which take twice the room.
        """
        values = self.answer_values // 2 if doubles else self.answer_values
        return max(1, min(self.chunk_steps, values // outputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the data folder keeps for each model.

    Raises:
        InvalidRequest: a field is out of its bounds; the error names it.
    """

    checkpoints: int = setting(
        3, "Newest checkpoints to keep of each model; the best one is kept as well.", least=1
    )
    """The default leaves two to fall back to if the newest is damaged."""
    history_bytes: int = setting(
        64 << 20,
        "Bytes of journal to keep of each model beyond what recovery needs, for `bptt replay`.",
        least=0,
    )
    """The default holds 1.8 million steps of 8 float32 values in chunks of 64."""
    model_bytes: int = setting(
        4 << 30,
        "Bytes of checkpoints and journal of one model; beyond it the oldest are removed, but "
        "never the newest.",
        least=1,
    )
    """History is deleted first, then checkpoints from the oldest on. The newest checkpoint and the
    journal after it always stay."""
    open_journals: int = setting(128, "Number of journals that are open at one time.", least=1)
    """Each takes three files and one for its commit watermark, so they use half of the 1,024 files
    that a process may open by default; the other half is for clients."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        _check_bounds("kept.", self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The files of TLS. They are read again when they change; open calls go on."""

    cert: Path | None = setting(
        None, "File of the server's certificate and its chain, in PEM; needs --tls-key."
    )
    """None: no encryption."""
    key: Path | None = setting(None, "File of the certificate's private key, in PEM.")
    """Without a password, because nobody is there to type it when the server starts again."""
    client_ca: Path | None = setting(
        None,
        "File of the certificates, in PEM, one of which must have signed a client's certificate. "
        "With it, a client without such a certificate cannot connect.",
    )
    """None: clients show no certificates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Jwt:
    """An issuer of JSON Web Tokens whose callers the server takes. All three go together."""

    issuer: str | None = setting(None, "Issuer of JSON Web Tokens, as their claim `iss` names it.")
    """None: no such tokens are taken."""
    audience: str | None = setting(None, "Audience that such a token must name in its claim `aud`.")
    """Without it, a token that was issued for another service would do."""
    keys: str | None = setting(
        None, "The issuer's JSON Web Key Set: a file, or a URL that begins with https://."
    )
    """A file is read again when it changes, a URL every five minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """All settings of a server.

    Raises:
        InvalidRequest: a field is out of its bounds; the error names it.
    """

    address: str = setting(
        "127.0.0.1:50051",
        "Address of gRPC; port 0 picks a free port. An address that other machines reach needs "
        "--tls-cert, --tls-key and --callers.",
    )
    """Where gRPC listens, host:port."""
    metrics_address: str | None = setting(
        "127.0.0.1:9464",
        "Address of HTTP: /metrics for Prometheus, /livez and /readyz for probes; port 0 picks a "
        "free port, `none` serves no HTTP.",
    )
    """Where HTTP listens, host:port. None: HTTP is not served."""
    callers: Path | None = setting(
        None,
        "File of the callers and what each may do, which `bptt token` writes. With it, every call "
        "but those of health needs a token or a client certificate.",
    )
    """Read again when it changes. None, and no `jwt`: the server does not ask who calls."""
    reflection: Reflection = setting(
        "callers",
        "Who may read the API from the server, as grpcurl does. everybody; callers: those that the "
        "server knows, or everybody if it does not ask; nobody.",
    )
    """See `Reflection`."""
    insecure: bool = setting(
        False,
        "Serve an address that other machines reach without TLS or without callers: who reaches "
        "the port may read, change and delete every model.",
    )
    """For networks that something else protects."""
    tls: Tls = field(default_factory=Tls)
    """Encryption of gRPC."""
    jwt: Jwt = field(default_factory=Jwt)
    """Callers that an issuer vouches for."""
    metrics_detail: MetricsDetail = setting(
        "model",
        "What /metrics shows. full: everything; model: no buckets of the models' histograms and no "
        "gradient flow by lag; server: nothing of single models.",
    )
    """See `MetricsDetail`. A model has 57 lines by default and 213 with `full`. Prometheus keeps
    about 3 KB for each series, so 1,000 models take 150 MB there by default and 600 MB with
    `full`."""
    page: PageChoice = setting(
        "auto",
        "Whether HTTP serves a page with live charts at /. auto: if it listens on loopback.",
    )
    """The page shows no more than /metrics does, but it is made for browsers, and the server does
    not authenticate them."""
    log_level: LogLevel = setting("info", "Lowest level of the events that are logged.")
    """Events of other packages are logged from `warning` on."""
    log_format: LogFormat = setting(
        "text",
        "Form of the log on standard error, one line an event. text: for people; json: for "
        "programs, with model and stream as fields.",
    )
    """See `bptt.observability.logs`."""
    log_calls: LogCalls = setting(
        "none",
        "Calls that are logged. sessions: beginning and end of Learn calls; all: also the end of "
        "every other call.",
    )
    """A line a call costs more than a small prediction, so none is logged by default."""
    data: Path | None = setting(
        None,
        "Folder that holds the models. Without it, all models are lost when the server stops.",
    )
    """Folder of journals and checkpoints. None: nothing is stored."""
    durability: Durability = setting(
        "full",
        "What an acknowledged step survives. full: a power cut; process: kill -9 of the server; "
        "none: a clean stop only.",
    )
    """See `Durability`. `none` writes no journal."""
    kept: Kept = field(default_factory=Kept)
    """How much of each model is kept in `data`."""
    threads: int = setting(
        os.cpu_count() or 1,
        "Threads that learn, shared by all models; by default as many as cores.",
        least=1,
    )
    """As many as cores, because kernels run without the GIL."""
    checkpoint_records: int = setting(
        10_000, "Records of a model after which a checkpoint is written.", least=1
    )
    """A checkpoint is written after this many records, and every `checkpoint_seconds` of
    learning."""
    checkpoint_seconds: float = setting(
        10.0, "Seconds of learning after which a checkpoint is written.", positive=True
    )
    """A killed server replays at most what it learned in this time, which takes no longer than
    learning it did. Without a journal this is what it loses."""
    gradient_flow_updates: int = setting(
        1000,
        "Fewest updates of a model between two measurements of its gradient flow; 0: never.",
        least=0,
    )
    """One measurement costs as much as 30 to 60 updates; it is postponed until it takes at most
    half a percent of the learning time."""
    models_in_memory: int = setting(
        128,
        "Number of models in memory; others are loaded from the data folder on request.",
        least=1,
    )
    """Beyond it the least recently used models are saved and leave memory; a request brings them
    back. The default equals the number of open journals, so that a model in memory need not open
    its journal for each commit. A model of the default size takes half a megabyte. Models with an
    open Learn call stay in memory; without `data` all models stay."""
    grace_seconds: float = setting(
        20.0,
        "Seconds that a stop waits for clients that do not read their answers.",
        positive=True,
    )
    """Kubernetes kills after 30 s."""
    limits: Limits = field(default_factory=Limits)
    """Upper bounds of the server."""

    def __post_init__(self) -> None:
        """Check the bounds that do not depend on the machine."""
        split_address("address", self.address)
        if self.metrics_address is not None:
            split_address("metrics_address", self.metrics_address)
        for name, kind in _CHOICES.items():
            value, choices = getattr(self, name), get_args(kind)
            if value not in choices:
                raise InvalidRequest.of(name, value, f"one of {', '.join(choices)}")
        _check_bounds("", self)

    @property
    def has_page(self) -> bool:
        """Whether HTTP serves the page for people."""
        if self.metrics_address is None or self.page != "auto":
            return self.page == "on"
        host, _ = split_address("metrics_address", self.metrics_address)
        return is_loopback(host)


@dataclass(frozen=True, slots=True)
class ConfigField:
    """One field of the configuration that an operator can set, and its names."""

    key: str
    """In `bptt.toml`, with its table: `kept.checkpoints`. Errors name the field so."""
    type: Any
    """Its annotation."""
    default: Any
    setting: Setting

    @property
    def name(self) -> str:
        """As an identifier: `kept_checkpoints`."""
        return self.key.replace(".", "_")

    @property
    def flag(self) -> str:
        """The option of `bptt serve`: `--kept-checkpoints`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable: `BPTT_KEPT_CHECKPOINTS`."""
        return "BPTT_" + self.name.upper()


_SECTIONS: dict[str, type[Any]] = {"tls": Tls, "jwt": Jwt, "kept": Kept, "limits": Limits}


def config_fields() -> list[ConfigField]:
    """Return every field of `ServerConfig` and of the classes in it, in the order of the code."""
    return list(_fields_of("", ServerConfig))


def _fields_of(section: str, owner: type[Any]) -> Iterator[ConfigField]:
    hints = get_type_hints(owner)
    for each in fields(owner):
        if each.name in _SECTIONS and not section:
            yield from _fields_of(each.name + ".", _SECTIONS[each.name])
        else:
            yield ConfigField(
                section + each.name, hints[each.name], each.default, each.metadata["setting"]
            )


def config_from(values: dict[str, Any]) -> ServerConfig:
    """Build a configuration from values by key; fields without a value have their default.

    Raises:
        InvalidRequest: a value is out of its bounds; the error names its key.
    """
    parts: dict[str, dict[str, Any]] = {"": {}, **{name: {} for name in _SECTIONS}}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        parts[section][name] = value
    sections = {name: kind(**parts[name]) for name, kind in _SECTIONS.items()}
    return ServerConfig(**parts[""], **sections)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address on this host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


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
