"""The group of commands, and the one place where an error becomes a line and an exit status.

Exit status: 0 done, 1 an error, 2 a wrong option, 130 ended by Ctrl-C.
"""

from __future__ import annotations

import io
import os
import sys
from importlib import metadata

import click

from bptt.cli import INTERRUPTED
from bptt.cli.backup import backup
from bptt.cli.console import say_error
from bptt.cli.data.source import InputError
from bptt.cli.demo import demo
from bptt.cli.gradients import gradients
from bptt.cli.learn import learn
from bptt.cli.models import models
from bptt.cli.predict import predict
from bptt.cli.repair import repair
from bptt.cli.replay import replay
from bptt.cli.serve import serve
from bptt.cli.verify import verify
from bptt.errors import ServiceError


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with `bptt demo`. Every command has a --help of its own, with an example.",
)
@click.version_option(metadata.version("bptt"), prog_name="bptt")
def bptt() -> None:
    """Learn from sequences while they stream in, and predict each step before it is learned."""


for command in (
    serve,
    learn,
    predict,
    models,
    demo,
    gradients,
    verify,
    replay,
    repair,
    backup,
):
    bptt.add_command(command)


def run() -> int:
    """The exit status; what is known to go wrong gives a line, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ° shows a question mark
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
        # Whoever read our output has gone; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
