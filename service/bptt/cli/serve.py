"""`bptt serve`."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
from pathlib import Path
from typing import Any

import click

from bptt.cli.console import DEFAULT_ADDRESS, json_option, print_json

EXAMPLE = """\b
Example:
  bptt serve --data ./models
"""


@click.command(epilog=EXAMPLE)
@click.option(
    "--address",
    default=DEFAULT_ADDRESS,
    show_default=True,
    metavar="HOST:PORT",
    help="Where gRPC listens; port 0 takes a free one. There is no authentication: stay on "
    "loopback unless something in front of the server does that.",
)
@click.option(
    "--metrics-address",
    default="127.0.0.1:9464",
    show_default=True,
    metavar="HOST:PORT",
    help="Where Prometheus finds /metrics; port 0 takes a free one.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder in which models are kept. Left out: nothing is kept when the server stops.",
)
@click.option(
    "--durability",
    type=click.Choice(["full", "process", "none"]),
    default="full",
    show_default=True,
    help="What an acknowledged step outlives: the machine's end, the process's, or a clean stop.",
)
@click.option(
    "--kept-checkpoints",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="COUNT",
    help="Newest checkpoints kept of each model; the best is kept beside them.",
)
@click.option(
    "--history-megabytes",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    metavar="MB",
    help="Journal of each model kept beyond what recovery needs, for `bptt replay`.",
)
@click.option(
    "--model-megabytes",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    metavar="MB",
    help="Checkpoints and journal of one model: beyond it the oldest go, and never the newest.",
)
@click.option(
    "--models-in-memory",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="COUNT",
    help="Models kept in memory; others come back from the data folder when they are asked for.",
)
@click.option("--until-input-ends", is_flag=True, hidden=True)
@json_option("one document with the addresses once the server is ready")
def serve(
    address: str,
    metrics_address: str,
    data: Path | None,
    durability: Any,
    kept_checkpoints: int,
    history_megabytes: int,
    model_megabytes: int,
    models_in_memory: int,
    until_input_ends: bool,
    as_json: bool,
) -> None:
    """Run the server until Ctrl-C, SIGTERM or SIGHUP."""
    # One thread, as kernels want it: else each of their calls sets it, and sets it back.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from bptt.app import configure_logging  # the server's libraries take a second to import
    from bptt.app import serve as run
    from bptt.config import Kept, ServerConfig

    configure_logging()
    config = ServerConfig(
        address=address,
        metrics_address=metrics_address,
        data=data,
        durability=durability,
        kept=Kept(
            checkpoints=kept_checkpoints,
            history_bytes=history_megabytes << 20,
            model_bytes=model_megabytes << 20,
        ),
        models_in_memory=models_in_memory,
    )

    def on_ready(server: Any) -> None:
        if as_json:
            print_json(
                {
                    "address": server.address,
                    "metrics_address": server.metrics_address,
                    "data": str(data) if data else None,
                    "pid": os.getpid(),
                }
            )

    async def until_stopped() -> None:
        stop = _end_of_input() if until_input_ends else None  # None: a signal stops it
        await run(config, on_ready=on_ready, stop=stop)

    asyncio.run(until_stopped())


def _end_of_input() -> asyncio.Event:
    """Set when standard input ends or a signal comes: a parent's end is its server's, however."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def wait() -> None:
        source = io.FileIO(0, closefd=False)  # unbuffered: holds no lock when the program exits
        while source.read(1024):
            pass
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    threading.Thread(target=wait, name="input", daemon=True).start()
    return stop
