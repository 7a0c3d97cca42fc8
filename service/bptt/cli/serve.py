"""`bptt serve`: runs the server in the foreground."""

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
    help="Address of gRPC; port 0 picks a free port. The server does not authenticate clients: "
    "use a loopback address unless a proxy in front of the server authenticates them.",
)
@click.option(
    "--metrics-address",
    default="127.0.0.1:9464",
    show_default=True,
    metavar="HOST:PORT",
    help="Address of /metrics for Prometheus; port 0 picks a free port.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that holds the models. Without it, all models are lost when the server stops.",
)
@click.option(
    "--durability",
    type=click.Choice(["full", "process", "none"]),
    default="full",
    show_default=True,
    help="What an acknowledged step survives. full: a power cut; process: kill -9 of the server; "
    "none: a clean stop only.",
)
@click.option(
    "--kept-checkpoints",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="COUNT",
    help="Number of newest checkpoints to keep of each model; the best one is kept as well.",
)
@click.option(
    "--history-megabytes",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    metavar="MB",
    help="Size of journal to keep of each model beyond what recovery needs, for `bptt replay`.",
)
@click.option(
    "--model-megabytes",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    metavar="MB",
    help="Size of checkpoints and journal of one model; beyond it the oldest are removed, but "
    "never the newest.",
)
@click.option(
    "--models-in-memory",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="COUNT",
    help="Number of models in memory; others are loaded from the data folder on request.",
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
    # The kernels need one BLAS thread. Unless it is set here, each call sets and restores it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from bptt.app import configure_logging  # imported late: the server's libraries take a second
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
        stop = _stop_at_end_of_input() if until_input_ends else None  # None: signals stop it
        await run(config, on_ready=on_ready, stop=stop)

    asyncio.run(until_stopped())


def _stop_at_end_of_input() -> asyncio.Event:
    """Return an event that is set when standard input ends or a signal arrives.

    Standard input ends when the parent process ends, however it ends, so that no server outlives
    the process that started it.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def wait() -> None:
        source = io.FileIO(0, closefd=False)  # unbuffered: holds no lock at exit
        while source.read(1024):
            pass
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            loop.add_signal_handler(number, stop.set)
    threading.Thread(target=wait, name="input", daemon=True).start()
    return stop
