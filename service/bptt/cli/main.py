"""The group of commands, and the one place where an error becomes a line and an exit status.

A command's module is imported when the command is used, so that a client command loads nothing of
the server. Exit status: 0 done, 1 an error, 2 a wrong option, 130 ended by Ctrl-C.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import click

from bptt.cli.console import say_error
from bptt.cli.data.problem import InputError
from bptt.errors import ServiceError
from bptt.exit_status import INTERRUPTED

CLIENT_COMMANDS = ("certificate", "config", "gradients", "learn", "models", "predict", "token")
"""Commands that `pip install bptt` is enough for. Command NAME is `bptt.cli.NAME.NAME`,
with _ for -."""
SERVER_COMMANDS = ("backup", "demo", "repair", "replay", "serve", "verify", "warm-up")
"""Commands that need `bptt[server]`."""
TOLD_OTHERWISE = ("demo", "serve")
"""Commands that do not say themselves that kernels are compiled: the server logs it, and tells its
clients."""
SERVER_PACKAGES = (
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "numba",
    "plotly",
    "prometheus_client",
    "pythonjsonlogger",
    "safetensors",
    "scipy",
    "starlette",
    "threadpoolctl",
    "uvicorn",
)
"""Import names of what the extra `server` installs."""


class Commands(click.Group):
    """A group that imports a command's module when the command is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, sorted."""
        return sorted(CLIENT_COMMANDS + SERVER_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None if there is none."""
        if cmd_name not in CLIENT_COMMANDS + SERVER_COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        command = getattr(importlib.import_module(f"bptt.cli.{name}"), name)
        assert isinstance(command, click.Command)
        if cmd_name in CLIENT_COMMANDS:
            return command
        assert command.callback is not None
        checked = copy.copy(command)
        checked.callback = _needs_server(cmd_name, command.callback)
        return checked

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Look up the first argument's command; an unknown name is an error that lists all."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(
                f"no command {args[0]!r}; the commands are {', '.join(self.list_commands(ctx))}"
            )
        return super().resolve_command(ctx, args)


def _needs_server(name: str, callback: Callable[..., Any]) -> Callable[..., Any]:
    """`callback`, preceded by a check that the server's packages are installed.

    `--help` and wrong options are answered before, and so without those packages.
    """

    @functools.wraps(callback)
    def checked(*args: Any, **options: Any) -> Any:
        missing = [each for each in SERVER_PACKAGES if importlib.util.find_spec(each) is None]
        if missing:
            raise click.ClickException(
                f"`bptt {name}` needs the server, which is not installed "
                f"(no {', '.join(missing)}); type: pip install 'bptt[server]'"
            )
        if name in TOLD_OTHERWISE:
            return callback(*args, **options)
        from bptt.cli.compiling import shown  # imported late: it needs the core

        with shown():
            return callback(*args, **options)

    return checked


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with `bptt demo`. Every command has a --help of its own, with an example.",
)
@click.version_option(metadata.version("bptt"), prog_name="bptt")
def bptt() -> None:
    """Learn from sequences while they stream in, and predict each step before it is learned."""


def run() -> int:
    """Run the command line; an expected error prints one line, never a traceback.

    Returns:
        The exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal's encoding lacks, such as °, prints as a question mark.
            stream.reconfigure(errors="replace")
    try:
        return bptt.main(prog_name="bptt", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.UsageError as error:
        where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        say_error(error.format_message() + where)
        return error.exit_code
    except click.ClickException as error:
        say_error(error.format_message())
        return error.exit_code
    except (ServiceError, InputError) as error:
        say_error(str(error))
        return 1
    except (KeyboardInterrupt, click.Abort):
        say_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone. Buffered output must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
