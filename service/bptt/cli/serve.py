"""`bptt serve`: runs the server in the foreground."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
from typing import Any

import click

from bptt.cli.console import json_option, print_json
from bptt.cli.settings import server_options, Settings

EXAMPLE = """\b
Example:
  bptt serve --data ./models

Each option is also a variable (--kept-checkpoints is BPTT_KEPT_CHECKPOINTS) and a key of bptt.toml
(checkpoints in the table [kept]); `bptt config` shows them all.
"""


@click.command(epilog=EXAMPLE)
@server_options
@click.option("--until-input-ends", is_flag=True, hidden=True)
@json_option("one document with the addresses once the server is ready")
def serve(settings: Settings, until_input_ends: bool, as_json: bool) -> None:
    """Run the server until Ctrl-C, SIGTERM or SIGHUP."""
    # The kernels need one BLAS thread. Unless it is set here, each call sets and restores it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from bptt.app import serve as run  # imported late: the server's libraries take a second
    from bptt.observability.logs import configure_logging

    config = settings.config
    configure_logging(config.log_level, config.log_format)

    def on_ready(server: Any) -> None:
        if as_json:
            print_json(
                {
                    "address": server.address,
                    "metrics_address": server.metrics_address,
                    "data": str(config.data) if config.data else None,
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
