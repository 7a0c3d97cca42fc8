"""The one place that wires everything: `serve`."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bptt.compilation_log import logged
from bptt.config import ServerConfig
from bptt.durability import SqliteStore, Store
from bptt.engine.registry import Registry
from bptt.errors import StorageFailed
from bptt.exit_status import INTERRUPTED
from bptt.observability.call_log import LoggedCalls
from bptt.observability.history import History
from bptt.observability.metrics import Metrics
from bptt.rpc.auth.credentials import server_credentials
from bptt.rpc.auth.guard import Guard
from bptt.rpc.server import RpcServer
from bptt.rpc.servicers import LearnerService, ModelService
from bptt.security import exposure
from bptt.security.tls import TlsFiles
from bptt.systemd import Notifier
from bptt.web.health import ServerHealth
from bptt.web.server import HttpServer
from bptt_core.compilation import listening

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Each stops a server cleanly. A terminal sends SIGHUP when it closes."""
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where a server that is up can be reached."""

    address: str
    """host:port of gRPC, with the real port."""
    metrics_address: str | None
    """host:port of HTTP, with the real port; None: HTTP is not served."""


def keep_large_arrays_apart() -> None:
    """Return the memory of large arrays to the system when they are freed, where glibc can.

    glibc maps each allocation above a bound by itself, and raises the bound to 32 MB as such
    allocations are freed. From then on the growing arrays of streams, and the copies of
    checkpoints, leave holes: 100,000 streams took 3,893 bytes each in the core, and 3,270 with the
    bound fixed here.
    """
    with contextlib.suppress(AttributeError, OSError):  # another system's library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


async def serve(
    config: ServerConfig,
    *,
    on_ready: Callable[[RunningServer], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Run a server until it is asked to stop, then stop it cleanly.

    A clean stop: health says NOT_SERVING, the server reads no more chunks from open Learn calls,
    learns, answers and saves the accepted ones, and closes the calls; all within
    `config.grace_seconds`.

    Args:
        config: the server's configuration.
        on_ready: called once requests are answered.
        stop: set to stop the server. None: SIGTERM, SIGHUP and Ctrl-C stop it; a second one ends
            the process at once.

    Raises:
        AddressInUse: a port is taken.
        InvalidRequest: the address needs TLS and callers, or a file of theirs is not valid.
        CannotListen: an address cannot be listened on.
        StaleWriter: another server uses the data folder.
        StorageFailed: the data folder cannot be used, or a model could not be saved at the end.
    """
    exposure.check(config)
    guard = Guard.of(config)
    tls = None if config.tls.cert is None else TlsFiles(config.tls)
    keep_large_arrays_apart()
    metrics = Metrics(config.metrics_detail, config.limits.queue_chunks)
    health = ServerHealth(asyncio.get_running_loop())
    async with contextlib.AsyncExitStack() as last, contextlib.AsyncExitStack() as stack:
        stack.enter_context(listening(logged()))
        store = stack.enter_context(_store(config))
        learn_pool = stack.enter_context(ThreadPoolExecutor(config.threads, "learn"))
        predict_pool = stack.enter_context(ThreadPoolExecutor(config.threads, "predict"))
        storage_pool = stack.enter_context(ThreadPoolExecutor(config.threads, "storage"))
        registry = Registry(config, learn_pool, store, metrics, storage=storage_pool)
        learner = LearnerService(registry, config.limits, predict_pool)
        metrics_address = None
        if config.metrics_address is not None:
            history = History(metrics) if config.has_page else None
            http = HttpServer(config.metrics_address, metrics.render, health, history)
            stack.push_async_callback(asyncio.to_thread, http.close)
            metrics_address = http.address
        rpc = RpcServer(
            learner,
            ModelService(registry, config.limits, predict_pool),
            LoggedCalls(metrics, config.log_calls),
            message_bytes=config.limits.message_bytes,
            credentials=None if tls is None else server_credentials(tls),
            guard=guard,
            reflects=config.reflection != "nobody",
        )
        asked = stop if stop is not None else last.enter_context(_signals())
        notifier = Notifier()
        async with notifier.watched(), _stopping(config, registry, learner, rpc, notifier, health):
            await rpc.start(config.address)
            if await _recovered(registry, rpc, asked, notifier, health):
                await rpc.serving()
                health.ready()
                notifier.ready(f"listening on {rpc.address}")
                log.info(
                    "listening on %s; %s; %s; metrics on %s; data in %s",
                    rpc.address,
                    "no TLS" if tls is None else "TLS",
                    "everybody may call" if guard is None else "callers with credentials",
                    f"http://{metrics_address}/metrics" if metrics_address else "no port",
                    f"{config.data}, durability {config.durability}"
                    if config.data
                    else "memory only",
                )
                if on_ready is not None:
                    on_ready(RunningServer(rpc.address, metrics_address))
                await asked.wait()


async def _recovered(
    registry: Registry,
    rpc: RpcServer,
    asked: asyncio.Event,
    notifier: Notifier,
    health: ServerHealth,
) -> bool:
    """Recover all models, each served once it is recovered; False: a stop came first."""

    def tell(progress: str) -> None:
        notifier.status(progress)
        health.recovering(progress)

    work = registry.recover(rpc.model_serving, tell)
    recovery = asyncio.create_task(work, name="recovery")
    stop = asyncio.create_task(asked.wait(), name="stop")
    try:
        await asyncio.wait((recovery, stop), return_when=asyncio.FIRST_COMPLETED)
        if not recovery.done():
            registry.begin_stop()  # ends the replays that are under way
        await recovery
        return not asked.is_set()
    finally:
        stop.cancel()


def failpoint() -> Callable[[str], None]:
    """A function for a store to call at each of its `POINTS`; tests have it end the process at one.

    The environment says at which: BPTT_FAILPOINT=POINT or POINT:N, the N-th time it is reached.
    """
    wanted, _, count = os.environ.get("BPTT_FAILPOINT", "").partition(":")
    left = int(count or 1)

    def at(point: str) -> None:
        nonlocal left
        if point == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return at


@contextlib.contextmanager
def _store(config: ServerConfig) -> Iterator[Store | None]:
    if config.data is None:
        yield None
        return
    store = SqliteStore(config.data, config.durability, config.kept, at_point=failpoint())
    store.open()
    try:
        yield store
    finally:
        store.close()


@contextlib.asynccontextmanager
async def _stopping(
    config: ServerConfig,
    registry: Registry,
    learner: LearnerService,
    rpc: RpcServer,
    notifier: Notifier,
    health: ServerHealth,
) -> AsyncIterator[None]:
    """Whatever ends the body, stop cleanly afterwards."""
    try:
        yield
    finally:
        start = time.perf_counter()
        level = logging.INFO if rpc.address else logging.DEBUG  # it may never have listened
        log.log(level, "stopping")
        notifier.stopping()
        health.stopping()
        registry.begin_stop()
        await rpc.not_serving()
        failures = await registry.stop(config.grace_seconds)
        left = config.grace_seconds - (time.perf_counter() - start)
        await learner.finish_calls(max(left, 0.0))
        await rpc.stop()
        log.log(level, "stopped after %.1f s", time.perf_counter() - start)
    if failures:
        raise StorageFailed("; ".join(failure.message for failure in failures))


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM, SIGHUP and Ctrl-C set. The second of them ends the process."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    if before[signal.SIGHUP] is signal.SIG_IGN:  # started by nohup, which wants it to go on
        del before[signal.SIGHUP]

    def ask(number: signal.Signals) -> None:
        log.info("asked to stop by %s", number.name)
        for each in before:
            loop.remove_signal_handler(each)
            signal.signal(each, before[each])
        signal.signal(signal.SIGINT, _leave)
        asked.set()

    for number in before:
        loop.add_signal_handler(number, ask, number)
    try:
        yield asked
    finally:
        for number in before:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])


def _leave(*signal_and_frame: object) -> None:
    """End the process as it stands, as SIGTERM does.

    Not with an exception: threads that still learn would be waited for.
    """
    os.write(2, b"bptt: stopped at once; steps that were not acknowledged are not saved\n")
    os._exit(INTERRUPTED)
