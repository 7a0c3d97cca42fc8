"""Says on standard error that kernels are compiled, while a command waits for it."""

from __future__ import annotations

from contextlib import AbstractContextManager

import click

from bptt.compilation_log import worded
from bptt_core.compilation import listening


def shown() -> AbstractContextManager[None]:
    """Print a line when the compilation of a kernel begins, and one with its seconds at the end."""
    return listening(worded(lambda _, line: click.echo(line, err=True)))
